"""Making nodes: shape and dtype follow from the table of ops."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.errors import GraphError
from kernels.ir.node import Arg, DType, Lead, Linear, Node, Op, Shape, Slice, Take, const
from kernels.ir.numpy_ops import Batch
from kernels.ir.rules import RULES
from kernels.ir.shapes import text

_NO_BATCH: Final = Batch({}, {}, np.zeros(0, np.intp), np.dtype(np.float64))


def make(
    op: Op,
    *sources: Node,
    arg: Arg = None,
    shape: Shape | None = None,
    dtype: DType | None = None,
    name: str = "",
) -> Node:
    """Make a node, its shape and dtype inferred.

    RESHAPE and EXPAND need ``shape``, CAST needs ``dtype``; if another op is given one, it has to
    be what is inferred. ``name`` is for errors: the first source's, if there is none.

    Raises:
        GraphError: The op cannot be applied so. Names op and node.
    """
    name = name or (sources[0].name if sources else "")
    found, kind = RULES[op].infer(sources, arg, shape=shape, dtype=dtype, name=name)
    if shape not in (None, found) or dtype not in (None, kind):
        wanted = f"{text(found if shape is None else shape)} of {kind if dtype is None else dtype}"
        raise GraphError(f"{op} {name!r}: makes {text(found)} of {kind}, not {wanted}")
    return Node(op, sources, found, kind, arg, name)


def fold(node: Node) -> Node:
    """Return the constant that an op on constants comes to; the node itself, if it is no such op.

    Floats are computed in float64 and rounded once, to float32.
    """
    is_leaf = not node.sources or node.lead is not None
    if is_leaf or any(source.op is not Op.CONST for source in node.sources):
        return node
    arrays = tuple(_NO_BATCH.floats(source.array) for source in node.sources)
    with np.errstate(all="ignore"):
        return const(RULES[node.op].numpy(node, arrays, _NO_BATCH), node.name)


def scalar(value: float, like: Node) -> Node:
    """Make a constant of one element that goes with ``like``: of its rank and dtype."""
    kind: type[np.generic] = {DType.FLOAT: np.float32, DType.INT: np.int64, DType.BOOL: np.bool_}[
        like.dtype
    ]
    return const(np.full((1,) * len(like.shape), value, kind), like.name)


def add(a: Node, b: Node) -> Node:
    """A + b."""
    return make(Op.ADD, a, b)


def sub(a: Node, b: Node) -> Node:
    """A - b."""
    return make(Op.SUB, a, b)


def mul(a: Node, b: Node) -> Node:
    """A * b."""
    return make(Op.MUL, a, b)


def div(a: Node, b: Node) -> Node:
    """A / b."""
    return make(Op.DIV, a, b)


def reshape(x: Node, *dims: int) -> Node:
    """Reshape what is behind the lead, or the whole of a constant."""
    return make(Op.RESHAPE, x, shape=_with_lead(x, dims))


def expand(x: Node, *dims: int) -> Node:
    """Repeat what is behind the lead, or in a constant, to ``dims``."""
    return make(Op.EXPAND, x, shape=_with_lead(x, dims))


def _with_lead(x: Node, dims: tuple[int, ...]) -> Shape:
    return dims if x.lead is None else (x.lead, *dims)


def transpose(x: Node, *order: int) -> Node:
    """Permute the axes."""
    return make(Op.TRANSPOSE, x, arg=order)


def slice_(x: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
    """Take ``start`` to ``stop`` of an axis."""
    return make(Op.SLICE, x, arg=Slice(axis, start, stop, step))


def take(x: Node, axis: int, indices: tuple[int, ...]) -> Node:
    """Take elements of an axis by index."""
    return make(Op.TAKE, x, arg=Take(axis, indices))


def concat(*xs: Node, axis: int = -1) -> Node:
    """Put values behind each other; a negative axis counts from the end."""
    return make(Op.CONCAT, *xs, arg=axis % max(len(xs[0].shape), 1))


def to_rows(x: Node) -> Node:
    """Return a value of rows: x itself, or what repeats a request's value for each of its rows."""
    return make(Op.TO_ROWS, x) if x.lead is Lead.REQUESTS else x


def cast(x: Node, dtype: DType) -> Node:
    """Cast, if the dtype is another."""
    return x if x.dtype is dtype else make(Op.CAST, x, dtype=dtype)


def sum_(x: Node, *axes: int) -> Node:
    """Sum over axes, which stay as 1."""
    return make(Op.SUM, x, arg=axes)


def linear(
    xs: Node | tuple[Node, ...],
    weight: NDArray[Any] | Node,
    bias: NDArray[Any] | Node | None = None,
    activation: Op | None = None,
    *,
    slope: float = 0.0,
    grouped: bool = False,
    name: str = "",
) -> Node:
    """Make a LINEAR of one or more inputs.

    ``weight`` is ``[k, n]``, or ``[g, k, n]`` with ``grouped``; ``bias`` ``[n]`` or ``[g, n]``, of
    zeros if None.
    """
    inputs = (xs,) if isinstance(xs, Node) else xs
    name = name or (inputs[0].name if inputs else "")
    held = weight if isinstance(weight, Node) else const(weight, name)
    if bias is None:
        bias = np.zeros((*held.dims[:-2], *held.dims[-1:]), np.float32)
    added = bias if isinstance(bias, Node) else const(bias, name)
    arg = Linear(len(inputs), activation, slope, grouped)
    return make(Op.LINEAR, *inputs, held, added, arg=arg, name=name)

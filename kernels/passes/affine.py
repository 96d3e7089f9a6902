"""LINEAR taken apart and put together: its sources, the row blocks of its weight, its bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels.ir.node import Linear, Node, Op, const

Array: TypeAlias = NDArray[Any]

ACTIVATIONS: Final = frozenset({Op.RELU, Op.SIGMOID, Op.TANH, Op.LEAKY_RELU, Op.ELU})


def spec(node: Node) -> Linear:
    """Return the argument of a LINEAR."""
    assert isinstance(node.arg, Linear)
    return node.arg


def inputs(node: Node) -> tuple[Node, ...]:
    """Return what a LINEAR multiplies."""
    return node.sources[:-2]


def weight(node: Node) -> Array:
    """Return the weight of a LINEAR: float32 ``[k, n]``, of a grouped one ``[g, k, n]``."""
    return node.sources[-2].array


def bias(node: Node) -> Array:
    """Return the bias of a LINEAR: float32 ``[n]``, of a grouped one ``[g, n]``."""
    return node.sources[-1].array


def blocks(node: Node) -> list[tuple[Node, Array]]:
    """Return each source of a LINEAR with its rows of the weight, views of it."""
    found, at, whole = [], 0, weight(node)
    for source in inputs(node):
        k = source.dims[-1]
        found.append((source, whole[..., at : at + k, :]))
        at += k
    return found


def is_plain(node: Node) -> bool:
    """Whether a node is a LINEAR without activation and groups."""
    return node.op is Op.LINEAR and spec(node).activation is None and not spec(node).grouped


def linear(
    parts: Sequence[tuple[Node, Array]],
    offset: Array,
    *,
    activation: Op | None = None,
    slope: float = 0.0,
    grouped: bool = False,
    name: str = "",
) -> Node:
    """Make a LINEAR of sources with their blocks ``[k_i, n]`` (or ``[g, k_i, n]``).

    Arithmetic on weights is done in float64 by the caller and rounded to float32 here.
    """
    first, last = parts[0]
    rows = last if len(parts) == 1 else np.concatenate([block for _, block in parts], axis=-2)
    arg = Linear(len(parts), activation, slope, grouped)
    shape = (*first.shape[:-1], rows.shape[-1])
    leaves = (const(rows, name), const(offset, name))
    return Node(Op.LINEAR, (*(x for x, _ in parts), *leaves), shape, arg=arg, name=name)


def like(node: Node, parts: Sequence[tuple[Node, Array]], offset: Array) -> Node:
    """Make a LINEAR with the activation, the groups and the name of another."""
    one = spec(node)
    return linear(
        parts,
        offset,
        activation=one.activation,
        slope=one.slope,
        grouped=one.grouped,
        name=node.name,
    )


def activated(node: Node, one: Linear) -> Node:
    """Put the activation of a LINEAR behind a value, as a node of its own."""
    if one.activation is None:
        return node
    arg = one.slope if one.activation in (Op.LEAKY_RELU, Op.ELU) else None
    return Node(one.activation, (node,), node.shape, arg=arg, name=node.name)


def floats(node: Node) -> NDArray[np.float64]:
    """Return a constant in float64."""
    return node.array.astype(np.float64)


def wide(array: Array) -> NDArray[np.float64]:
    """Return an array in float64, for arithmetic on weights."""
    return array.astype(np.float64)

"""Shape rules: what shape and dtype an op's result has, and what its sources must be.

Each rule takes an ``Asked`` and returns the result's shape and dtype, or raises ``GraphError``.
``rules.py`` names one for each op. That none touches axis 0 of a value with a lead is checked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Final, TypeAlias, TypeVar

import attrs

from kernels.errors import GraphError
from kernels.ir.node import (
    Arg,
    Dim,
    DType,
    Lead,
    Node,
    Op,
    Shape,
    Slice,
    Take,
)

T = TypeVar("T")
Inferred: TypeAlias = tuple[Shape, DType]
NUMBERS: Final = frozenset({DType.FLOAT, DType.INT})
FLOATS: Final = frozenset({DType.FLOAT})
BOOLS: Final = frozenset({DType.BOOL})
ANY: Final = frozenset(DType)


@attrs.frozen(eq=False)
class Asked:
    """An op applied to sources, its result unknown as yet.

    Attributes:
        shape, dtype: What the node says of itself, where it says so: RESHAPE, EXPAND and CAST are
            told by it.
    """

    op: Op
    sources: tuple[Node, ...]
    arg: Arg
    shape: Shape | None
    dtype: DType | None
    name: str

    def refuse(self, why: str) -> GraphError:
        """Return the error that names op and node."""
        return GraphError(f"{self.op} {self.name!r}: {why}")

    def argument(self, kind: type[T]) -> T:
        """Return ``arg``, which has to be of this type."""
        if not isinstance(self.arg, kind) or isinstance(self.arg, bool):
            raise self.refuse(f"arg is {self.arg!r}, want {kind.__name__}")
        return self.arg

    def number(self) -> None:
        """Check that ``arg`` is a finite number."""
        if isinstance(self.arg, bool) or not isinstance(self.arg, int | float):
            raise self.refuse(f"arg is {self.arg!r}, want a float")
        if not math.isfinite(self.arg):
            raise self.refuse(f"arg is {self.arg}")

    def axes(self) -> tuple[int, ...]:
        """Return ``arg``: axes in order, each once."""
        if not isinstance(self.arg, tuple):
            raise self.refuse(f"arg is {self.arg!r}, want a tuple of axes")
        if list(self.arg) != sorted(set(self.arg)):
            raise self.refuse(f"axes {self.arg} are not in order")
        for axis in self.arg:
            self.inner(axis)
        return self.arg

    def inner(self, axis: int) -> int:
        """Return the size of an axis of the first source; it may not be the lead's."""
        shape = self.sources[0].shape
        if not isinstance(axis, int) or not 0 <= axis < len(shape):
            raise self.refuse(f"axis {axis} of {text(shape)}")
        dim = shape[axis]
        if isinstance(dim, Lead):
            raise self.refuse(f"works across {dim}, each of which is computed alone")
        return dim

    def typed(self, allowed: Collection[DType], sources: tuple[Node, ...] | None = None) -> DType:
        """Return the dtype that sources share, one of those allowed."""
        sources = self.sources if sources is None else sources
        found = {source.dtype for source in sources}
        if len(found) != 1:
            raise self.refuse(f"sources are {', '.join(source.dtype for source in sources)}")
        dtype = found.pop()
        if dtype not in allowed:
            raise self.refuse(f"is not for {dtype}")
        return dtype

    def parameter(self, i: int, dims: tuple[int, ...], what: str) -> None:
        """Check that source ``i`` is a constant of floats of a shape."""
        node = self.sources[i]
        if node.op is not Op.CONST or node.dtype is not DType.FLOAT:
            raise self.refuse(f"{what} is {node.op} {node.dtype}, want a constant of floats")
        if node.shape != dims:
            raise self.refuse(f"{what} is {text(node.shape)}, want {text(dims)}")

    def led(self, source: Node, rank: int, what: str) -> tuple[int, ...]:
        """Return the dims of a source that must have a lead and a rank (at least, if negative)."""
        short = len(source.shape) < -rank if rank < 0 else len(source.shape) != rank
        if source.lead is None or short:
            least = "at least " if rank < 0 else ""
            raise self.refuse(
                f"{what} is {text(source.shape)}, want a lead, rank {least}{abs(rank)}"
            )
        if source.lead is not self.sources[0].lead:
            raise self.refuse(f"mixes {self.sources[0].lead} and {source.lead}")
        return source.dims


Infer: TypeAlias = Callable[[Asked], Inferred]


def text(shape: Shape) -> str:
    """Return a shape for messages."""
    return "[" + ", ".join(str(dim) for dim in shape) + "]"


def broadcast(asked: Asked, sources: tuple[Node, ...] | None = None) -> Shape:
    """Return the shape of sources of equal rank, whose dimensions are equal or 1."""
    sources = asked.sources if sources is None else sources
    shapes = ", ".join(text(source.shape) for source in sources)
    if len({len(source.shape) for source in sources}) != 1:
        raise asked.refuse(f"sources differ in rank: {shapes}")
    found: list[Dim] = []
    for dims in zip(*(source.shape for source in sources), strict=True):
        wide = {dim for dim in dims if dim != 1}
        if len(wide) > 1:
            raise asked.refuse(f"sources do not go together: {shapes}")
        found.append(wide.pop() if wide else 1)
    return tuple(found)


def same(allowed: Collection[DType]) -> Infer:
    """Elementwise: the sources' dtype is the result's."""
    return lambda asked: (broadcast(asked), asked.typed(allowed))


def truth(allowed: Collection[DType]) -> Infer:
    """Elementwise: bool out of sources of one dtype."""

    def infer(asked: Asked) -> Inferred:
        asked.typed(allowed)
        return broadcast(asked), DType.BOOL

    return infer


def with_number(asked: Asked) -> Inferred:
    """Elementwise on floats, with a number as its argument."""
    asked.number()
    return broadcast(asked), asked.typed(FLOATS)


def cast(asked: Asked) -> Inferred:
    """To the dtype that the node says."""
    if asked.dtype is None:
        raise asked.refuse("no dtype to cast to")
    return asked.sources[0].shape, asked.dtype


def where(asked: Asked) -> Inferred:
    """(condition, then, else)."""
    asked.typed(BOOLS, asked.sources[:1])
    return broadcast(asked), asked.typed(ANY, asked.sources[1:])


def reshape(asked: Asked) -> Inferred:
    """To the node's shape: the same lead, the same number of elements."""
    source = asked.sources[0]
    shape = _said(asked)
    lead = shape[0] if shape and isinstance(shape[0], Lead) else None
    dims = [dim for dim in shape if isinstance(dim, int)]
    if lead is not source.lead or math.prod(dims) != source.width:
        raise asked.refuse(f"makes {text(shape)} of {text(source.shape)}")
    return shape, source.dtype


def expand(asked: Asked) -> Inferred:
    """To the node's shape: of the same rank, equal where the source's dimension is not 1."""
    source = asked.sources[0]
    shape = _said(asked)
    if len(shape) != len(source.shape) or any(
        old not in (1, new) for old, new in zip(source.shape, shape, strict=True)
    ):
        raise asked.refuse(f"makes {text(shape)} of {text(source.shape)}")
    return shape, source.dtype


def _said(asked: Asked) -> Shape:
    shape = asked.shape
    if shape is None:
        raise asked.refuse("no shape to make")
    if any(isinstance(dim, Lead) for dim in shape[1:]):
        raise asked.refuse(f"{text(shape)} has a lead behind axis 0")
    if any(isinstance(dim, int) and dim < 0 for dim in shape):
        raise asked.refuse(f"{text(shape)} has a negative dimension")
    return shape


def transpose(asked: Asked) -> Inferred:
    """Axes permuted by ``arg``."""
    source = asked.sources[0]
    order = asked.argument(tuple)
    if sorted(order) != list(range(len(source.shape))):
        raise asked.refuse(f"{order} does not permute {text(source.shape)}")
    if source.lead is not None and order[0] != 0:
        raise asked.refuse(f"moves {source.lead} away from axis 0")
    return tuple(source.shape[axis] for axis in order), source.dtype


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """Return a shape with another size on an axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def slice_(asked: Asked) -> Inferred:
    """Part of an axis."""
    source, cut = asked.sources[0], asked.argument(Slice)
    size = asked.inner(cut.axis)
    if not 0 <= cut.start <= cut.stop <= size or cut.step < 1:
        raise asked.refuse(f"{cut} of {text(source.shape)}")
    return resized(source.shape, cut.axis, len(range(cut.start, cut.stop, cut.step))), source.dtype


def concat(asked: Asked) -> Inferred:
    """Sources behind each other on an axis, equal on the others."""
    axis = asked.argument(int)
    if not asked.sources:
        raise asked.refuse("no sources")
    asked.inner(axis)
    total = 0
    first = asked.sources[0].shape
    for source in asked.sources:
        size = source.shape[axis] if axis < len(source.shape) else None
        if not isinstance(size, int) or resized(source.shape, axis, 0) != resized(first, axis, 0):
            raise asked.refuse(f"{text(source.shape)} behind {text(first)} on axis {axis}")
        total += size
    return resized(first, axis, total), asked.typed(ANY)


def take(asked: Asked) -> Inferred:
    """Elements of an axis by constant indices."""
    source, taken = asked.sources[0], asked.argument(Take)
    size = asked.inner(taken.axis)
    if any(not 0 <= index < size for index in taken.indices):
        raise asked.refuse(f"indices {taken.indices} of {size} elements")
    return resized(source.shape, taken.axis, len(taken.indices)), source.dtype


def to_rows(asked: Asked) -> Inferred:
    """From REQUESTS to ROWS."""
    source = asked.sources[0]
    if source.lead is not Lead.REQUESTS:
        raise asked.refuse(f"{text(source.shape)} is not a value of requests")
    return (Lead.ROWS, *source.shape[1:]), source.dtype


def reduce(allowed: Collection[DType]) -> Infer:
    """Axes become 1."""

    def infer(asked: Asked) -> Inferred:
        source, axes = asked.sources[0], asked.axes()
        if any(source.shape[axis] == 0 for axis in axes):
            raise asked.refuse(f"reduces no elements: {text(source.shape)}")
        shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(source.shape))
        return shape, asked.typed(allowed)

    return infer

"""CUDA text for one element of a value, pulled out of the graph.

An element is asked for by its coordinates. Movement only changes the coordinates, elementwise ops
become an expression of their sources' elements, and what lies in memory is loaded: nothing between
is ever stored. Text is in static single assignment; an element that is asked for twice is computed
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import attrs

from kernels.errors import GraphError
from kernels.ir.node import DType, Node, Op, Slice, Take
from kernels.ir.rules import RULES
from kernels.plan.index import Index, Term, add, flat, mul, unflat

MOVEMENT: Final = frozenset(
    {Op.RESHAPE, Op.TRANSPOSE, Op.EXPAND, Op.SLICE, Op.CONCAT, Op.TAKE, Op.TO_ROWS}
)
C_TYPES: Final = {DType.FLOAT: "float", DType.INT: "int", DType.BOOL: "int"}
ELEMENTWISE: Final = frozenset(op for op in Op if RULES[op].cuda is not None)
_ROUNDED_TO_FLOAT: Final = 17


class Memory(Protocol):
    """Where values lie that an expression may load."""

    def load(self, node: Node, element: Index, row: str, scope: Expression) -> str | None:
        """Return text that loads an element of a row, or None: it must be computed.

        Args:
            node: The value.
            element: Place of the element among the row's.
            row: ``r`` for the tile's row; otherwise text that gives the row of a matrix.
            scope: Where a load of several neighbours can get a name, ``Expression.shared``.
        """

    def table(self, values: Sequence[int | float], dtype: DType, index: Index) -> str:
        """Return text that reads a constant array, of numbers of ``dtype``."""


@attrs.define(eq=False)
class Expression:
    """Text of elements in one scope: the body of one function of a row and a column.

    Attributes:
        bound: Elements that have a name already, whatever their coordinates.
        lines: The statements so far.
    """

    memory: Memory
    bound: Mapping[Node, str] = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)
    _known: dict[tuple[Node, tuple[Index, ...], str], str] = attrs.field(factory=dict)
    _shared: dict[str, str] = attrs.field(factory=dict)
    _n_names: list[int] = attrs.field(factory=lambda: [0])

    def element(self, node: Node, coordinates: tuple[Index, ...], row: str = "r") -> str:
        """Return text for the element at ``coordinates`` (without the lead's) of a row's value.

        Raises:
            GraphError: The op can be neither loaded nor computed here.
        """
        key = (node, coordinates, row)
        if key not in self._known:
            self._known[key] = self._compute(node, coordinates, row)
        return self._known[key]

    def computed(self, node: Node, coordinates: tuple[Index, ...]) -> str:
        """Return text for an element that is computed even where the value is stored, too."""
        return self._compute(node, coordinates, "r", load=False)

    def name(self, dtype: DType, text: str) -> str:
        """Give a value a name."""
        name = self._new_name()
        self.lines.append(f"const {C_TYPES[dtype]} {name} = {text};")
        return name

    def shared(self, kind: str, text: str) -> str:
        """Name a load of type ``kind``, once for all elements that are taken from it."""
        if text not in self._shared:
            self._shared[text] = self._new_name()
            self.lines.append(f"const {kind} {self._shared[text]} = {text};")
        return self._shared[text]

    def _new_name(self) -> str:
        self._n_names[0] += 1
        return f"t{self._n_names[0]}"

    def body(self, result: str) -> str:
        """Return the statements, then one that returns ``result``."""
        return " ".join([*self.lines, f"return {result};"])

    def _compute(self, node: Node, at: tuple[Index, ...], row: str, *, load: bool = True) -> str:
        if node in self.bound:
            return self.bound[node]
        if node.op is Op.CONST:
            return self._constant(node, at)
        loaded = self.memory.load(node, flat(at, node.dims), row, self) if load else None
        if loaded is not None:
            return self.name(node.dtype, loaded)
        if node.op in ELEMENTWISE:
            sources = [self.element(source, narrowed(source, at), row) for source in node.sources]
            text = RULES[node.op].cuda_text(sources, node)
            return self.name(node.dtype, text)
        if node.op is Op.CONCAT:
            return self._concat(node, at, row)
        if node.op is Op.TO_ROWS:
            return self.element(node.sources[0], at, f"request({row})")
        if node.op in MOVEMENT:
            return self.element(node.sources[0], self._moved(node, at), row)
        raise GraphError(f"node {node.name!r}, op {node.op}: its value is not stored")

    def _constant(self, node: Node, at: tuple[Index, ...]) -> str:
        values = node.array.ravel().tolist()
        index = flat(at, node.dims)
        if len(set(values)) == 1 and values[0] == values[0]:
            return literal(values[0], node.dtype)
        if isinstance(index, int):
            return literal(values[index], node.dtype)
        return self.name(node.dtype, self.memory.table(values, node.dtype, index))

    def _moved(self, node: Node, at: tuple[Index, ...]) -> tuple[Index, ...]:
        """Return the coordinates in the only source."""
        source, lead = node.sources[0], node.lead is not None
        if node.op is Op.RESHAPE:
            return unflat(flat(at, node.dims), source.dims)
        if node.op is Op.EXPAND:
            return narrowed(source, at)
        if node.op is Op.TRANSPOSE:
            assert isinstance(node.arg, tuple)
            moved: list[Index] = [0] * len(at)
            for position, axis in enumerate(node.arg[1:] if lead else node.arg):
                moved[axis - lead] = at[position]
            return tuple(moved)
        where = node.arg
        assert isinstance(where, Slice | Take)
        axis = where.axis - lead
        if isinstance(where, Slice):
            index = add(mul(at[axis], where.step), where.start)
        else:
            index = self._taken(where, at[axis])
        return (*at[:axis], index, *at[axis + 1 :])

    def _taken(self, take: Take, index: Index) -> Index:
        if isinstance(index, int):
            return take.indices[index]
        return Term(self.name(DType.INT, self.memory.table(take.indices, DType.INT, index)))

    def _concat(self, node: Node, at: tuple[Index, ...], row: str) -> str:
        """Read only the piece that the element lies in: another's place may not exist."""
        assert isinstance(node.arg, int)
        axis = node.arg - (node.lead is not None)
        starts = [0]
        for source in node.sources:
            starts.append(starts[-1] + source.dims[axis])
        pieces = list(zip(node.sources, starts, strict=False))
        if isinstance(index := at[axis], int):
            piece, start = [each for each in pieces if each[1] <= index and each[0].dims[axis]][-1]
            return self.element(piece, (*at[:axis], index - start, *at[axis + 1 :]), row)
        name = self._new_name()
        self.lines.append(f"{C_TYPES[node.dtype]} {name};")
        for position, (piece, start) in enumerate(pieces):
            last = position == len(pieces) - 1
            opening = "else" if last and position else f"if ({index} < {starts[position + 1]})"
            if position and not last:
                opening = f"else {opening}"
            moved = (*at[:axis], add(index, -start), *at[axis + 1 :])
            with self._block(f"{opening} {{"):
                self.lines.append(f"{name} = {self.element(piece, moved, row)};")
        return name

    @contextmanager
    def _block(self, opening: str) -> Iterator[None]:
        """Names given inside are not known after it."""
        known, shared = dict(self._known), dict(self._shared)
        self.lines.append(opening)
        yield
        self.lines.append("}")
        self._known, self._shared = known, shared


def narrowed(source: Node, at: tuple[Index, ...]) -> tuple[Index, ...]:
    """Return the coordinates in a source whose dimensions of 1 are repeated.

    A constant may have a lead axis of its own, of 1.
    """
    dims = source.dims
    if source.lead is None and len(dims) == len(at) + 1:
        return (0, *narrowed_dims(dims[1:], at))
    return narrowed_dims(dims, at)


def narrowed_dims(dims: tuple[int, ...], at: tuple[Index, ...]) -> tuple[Index, ...]:
    """Return 0 where a dimension is 1, the coordinate elsewhere."""
    return tuple(0 if dim == 1 else each for dim, each in zip(dims, at, strict=True))


def literal(value: float, dtype: DType) -> str:
    """Return a number as CUDA text; floats are rounded to float32 by the compiler."""
    if dtype is not DType.FLOAT:
        return str(int(value))
    if value != value:
        return "__int_as_float(0x7fc00000)"
    if value in (float("inf"), float("-inf")):
        return f"{'-' if value < 0 else ''}__int_as_float(0x7f800000)"
    text = f"{value:.{_ROUNDED_TO_FLOAT}g}"
    if not any(mark in text for mark in ".e"):
        text += ".0"
    return f"{text}f" if value >= 0 else f"({text}f)"

"""Tracing: which column of which root each element of a tensor is a copy of.

A *root* has rows, and in each the same number of elements: an input's feature, the rows that a
lookup gives, a computed tensor. Tracing runs the moving operators (``movement.py``) on numbers that
stand for the elements of the roots, at batch ``TRACE_BATCH``, so a chain of Slice, Cast, Reshape,
Concat and the like comes to a list of columns, and being the same for every row is checked and
not assumed.

An element's *code* is 0 where it comes from no root (a constant), else ``1 + row + TRACE_BATCH *
column``, with columns numbered over all roots by ``Columns``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import attrs
import numpy as np
import onnx
from numpy.typing import NDArray

from kernels.graph.facts import TRACE_BATCH, Facts, Kind
from kernels.graph.model import Array, Graph
from kernels.graph.movement import is_move, move, n_moved

Codes = NDArray[np.int64]

#: What is done to a root's elements before they are used: an operator and its numbers.
Change = tuple[str, tuple[float, ...]]


@attrs.frozen
class Root:
    """What elements are traced to.

    Attributes:
        space: ``feature`` (of a spec), ``column`` (of an input: ``name`` ends in its number),
            ``computed`` (a tensor) or ``rows`` (of a lookup).
        change: Done to each element; None for nothing.
    """

    space: Literal["feature", "column", "computed", "rows"]
    name: str
    change: Change | None = None


class Element(NamedTuple):
    """One column of a root."""

    root: Root
    place: int


class Columns:
    """Numbers the columns of roots."""

    def __init__(self) -> None:
        self._elements: list[Element] = []
        self._numbers: dict[Element, int] = {}

    def number(self, element: Element) -> int:
        """Return a column's number, a new one when it has none."""
        if element not in self._numbers:
            self._numbers[element] = len(self._elements)
            self._elements.append(element)
        return self._numbers[element]

    def of(self, root: Root, width: int) -> list[int]:
        """Return the numbers of the columns of a root that has ``width``."""
        return [self.number(Element(root, index)) for index in range(width)]

    def element(self, number: int) -> Element:
        """Return the column with a number."""
        return self._elements[number]

    def elements(self, numbers: Iterable[int]) -> list[Element]:
        """Return the columns with these numbers."""
        return [self._elements[number] for number in numbers]


def encode(columns: Sequence[int], shape: tuple[int, ...]) -> Codes:
    """Return the codes of a tensor whose rows, flattened, are these columns."""
    rows = np.arange(TRACE_BATCH, dtype=np.int64)[:, None]
    return (1 + rows + TRACE_BATCH * np.asarray(columns, np.int64)).reshape(shape)


def row_columns(codes: Codes) -> list[int] | None:
    """Invert ``encode``: the columns of each row; None if the rows differ or are not in order."""
    if not codes.size or codes.size % TRACE_BATCH or not codes.ndim:
        return None
    flat = codes.reshape(TRACE_BATCH, -1) - 1
    columns = flat // TRACE_BATCH
    in_order = np.array_equal(
        flat % TRACE_BATCH, np.broadcast_to(np.arange(TRACE_BATCH)[:, None], flat.shape)
    )
    if flat.min() < 0 or not in_order or not (columns == columns[0]).all():
        return None
    return [int(each) for each in columns[0]]


def column_numbers(codes: Codes) -> set[int]:
    """Return the numbers of the columns that occur."""
    found = np.unique(codes)
    return {int(each) for each in np.unique((found[found > 0] - 1) // TRACE_BATCH)}


@attrs.frozen(eq=False)
class Traced:
    """A traced tensor: its elements' codes, and what integers were added on the way."""

    codes: Codes
    added: Codes


@attrs.frozen(eq=False)
class Tracer:
    """Traces the tensors of one graph.

    Attributes:
        roots: Tensors that are roots, or made of some: their codes.
        is_integral: Whether a column only ever holds integers, so that a Cast to an integer type
            leaves them as they are.
        offsets: Whether adding integer constants counts as moving; else only moves do.
        root_of: Asked for a tensor that cannot be traced further; its codes if it is a root.
    """

    graph: Graph
    facts: Facts
    roots: Mapping[str, Codes]
    is_integral: Callable[[int], bool]
    offsets: bool = False
    root_of: Callable[[str], Codes | None] = lambda _: None

    def run(self) -> dict[str, Traced]:
        """Return what each tensor that can be traced comes from."""
        traced = {name: Traced(codes, np.zeros_like(codes)) for name, codes in self.roots.items()}
        for node in self.graph.nodes:
            for name, result in self._node(node, traced):
                if name and name not in traced:
                    traced[name] = result
            for name in node.output:
                if name and name not in traced and (codes := self.root_of(name)) is not None:
                    traced[name] = Traced(codes, np.zeros_like(codes))
        return traced

    def _node(self, node: onnx.NodeProto, traced: Mapping[str, Traced]) -> list[tuple[str, Traced]]:
        """Return the outputs of a node that moves traced elements; nothing for another."""
        if self.offsets and node.op_type in ("Add", "Sub"):
            return self._add(node, traced)
        if not is_move(node):
            return []
        n = n_moved(node)
        moved = [self._moved(name, traced) for name in node.input[:n]]
        operands = [self._operand(name) for name in node.input[n:]]
        if any(each is None for each in moved) or not any(n in traced for n in node.input[:n]):
            return []
        if any(name and o is None for name, o in zip(node.input[n:], operands, strict=True)):
            return []
        parts = [each for each in moved if each is not None]
        if node.op_type == "Cast" and not self._is_exact(node, parts[0]):
            return []
        try:
            codes = move(node, [*(each.codes for each in parts), *operands])
            added = move(node, [*(each.added for each in parts), *operands])
        except (ValueError, IndexError):
            return []
        results = [Traced(c, a) for c, a in zip(codes, added, strict=True)]
        return list(zip(node.output, results, strict=False))

    def _moved(self, name: str, traced: Mapping[str, Traced]) -> Traced | None:
        """Return a moved input; constants go along where integers may be added."""
        if name in traced:
            return traced[name]
        array = self.graph.constants.get(name) if self.offsets else None
        if array is None or not _is_whole(array):
            return None
        return Traced(np.zeros(array.shape, np.int64), array.astype(np.int64))

    def _operand(self, name: str) -> Array | None:
        if not name:
            return None
        if name in self.graph.constants:
            return self.graph.constants[name]
        if self.facts.kinds[name] > Kind.BATCH:
            return None
        return self.facts.values[TRACE_BATCH].get(name)

    def _add(self, node: onnx.NodeProto, traced: Mapping[str, Traced]) -> list[tuple[str, Traced]]:
        left, right = node.input
        if right in traced and left not in traced and node.op_type == "Add":
            left, right = right, left
        number = self._operand(right)
        if left not in traced or number is None or not _is_whole(number):
            return []
        source = traced[left]
        if not self._all_integral(source):
            return []
        by = number.astype(np.int64) * (1 if node.op_type == "Add" else -1)
        codes, by = np.broadcast_arrays(source.codes, by)
        added = np.broadcast_to(source.added, codes.shape) + by
        return [(node.output[0], Traced(codes, added))]

    def _is_exact(self, node: onnx.NodeProto, source: Traced) -> bool:
        """Whether a Cast keeps the values of what it casts."""
        before, after = (self.facts.dtypes.get(n) for n in (node.input[0], node.output[0]))
        if before is None or after is None:
            return False
        if after.kind == "b" or before.kind == "b":
            return after.kind != "b" or before.kind == "b"
        if after.itemsize < min(4, before.itemsize):  # a half, or a byte, does not hold them all
            return False
        return after.kind == "f" or before.kind in "iu" or self._all_integral(source)

    def _all_integral(self, source: Traced) -> bool:
        return all(self.is_integral(column) for column in column_numbers(source.codes))


def _is_whole(array: Array) -> bool:
    return array.dtype.kind in "iu" or (
        array.dtype.kind == "f" and bool(np.all(np.isfinite(array) & (array == np.floor(array))))
    )

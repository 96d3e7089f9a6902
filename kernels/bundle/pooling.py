"""Pooling: where a graph sums, averages or maximises looked up rows with weights from features.

Rows are followed from their lookups through moves, products with weights that depend on features
alone, and added biases of that kind, to a reduction. There each result is checked to be a pooling:
over elements of one lookup, of one column of its table, with weights that are the same for every
column. One lookup whose ids are pooled in groups (a bag for each of several features in one table)
gives a *pool* for each group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import numpy as np
import onnx

from kernels.bundle.manifest import Pooling
from kernels.bundle.traces import FeatureTraces
from kernels.graph.facts import TRACE_BATCH, Facts, Kind
from kernels.graph.model import Array, Graph, attribute
from kernels.graph.movement import is_move, move, n_moved
from kernels.graph.trace import Change, Codes, Columns, Element, Root, Traced, encode

# What models put where a mask hides an entry from a maximum; added to it, a row's own value is lost
# in float32's rounding, as in the graph.
_HIDDEN: Final = -1e8


@attrs.frozen
class Pool:
    """One pooled lookup: ``pooling`` over ids number ``entries`` of the lookup ``lookup``.

    Attributes:
        weights: Where the weight (for ``max``: the bias) of each entry comes from, if there is one.
    """

    lookup: str
    pooling: Pooling
    entries: tuple[int, ...]
    weights: tuple[Element, ...] | None


@attrs.frozen(eq=False)
class Pooled:
    """A reduction's result: its elements' codes, and the pools that they are columns of."""

    codes: Codes
    pools: tuple[Pool, ...]


@attrs.frozen(eq=False)
class _Rows:
    """A tensor that holds looked up rows: each element's code, weight and bias (0: none)."""

    codes: Codes
    weights: Codes
    biases: Codes


def rows_root(pool: Pool) -> Root:
    """Return the root that stands for a pool's columns."""
    weights = [] if pool.weights is None else [(e.root, e.place) for e in pool.weights]
    return Root("rows", f"{pool.lookup} {pool.pooling} {pool.entries} {weights}")


@attrs.frozen(eq=False)
class Pooler:
    """Finds the reductions of a graph that are poolings.

    Attributes:
        dims: Columns of the table of each lookup, by the lookup's output.
    """

    graph: Graph
    facts: Facts
    traces: FeatureTraces
    dims: Mapping[str, int]

    def run(self) -> dict[str, Pooled]:
        """Return what is pooled, by the tensor that holds it."""
        rows: dict[str, _Rows] = {}
        found: dict[str, Pooled] = {}
        for node in self.graph.nodes:
            if not node.output or not any(name in rows or name in self.dims for name in node.input):
                if node.output and node.output[0] in self.dims:
                    rows[node.output[0]] = self._looked_up(node.output[0])
                continue
            if len(node.output) == 1 and (pooled := self._reduce(node, rows)) is not None:
                found[node.output[0]] = pooled
                continue
            rows.update(zip(node.output, self._follow(node, rows), strict=False))
        return found

    def _looked_up(self, name: str) -> _Rows:
        shape = self.facts.shape(name)
        size = int(np.prod(shape, dtype=np.int64)) // TRACE_BATCH
        codes = encode(self.traces.columns.of(Root("rows", name), size), shape)
        return _Rows(codes, np.zeros_like(codes), np.zeros_like(codes))

    def _follow(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> list[_Rows]:
        """Return what a node that changes rows in a way that pooling can express gives."""
        if node.op_type in ("Mul", "Div"):
            return self._weigh(node, rows)
        if node.op_type in ("Add", "Sub"):
            return self._bias(node, rows)
        if node.op_type == "Where":
            return self._mask(node, rows)
        if not is_move(node):
            return []
        n = n_moved(node)
        if not all(name in rows for name in node.input[:n]):
            return []
        operands = [self._operand(name) for name in node.input[n:]]
        if any(name and o is None for name, o in zip(node.input[n:], operands, strict=True)):
            return []
        if node.op_type == "Cast" and self.facts.dtypes[node.output[0]].kind != "f":
            return []
        try:
            moved = [
                move(node, [*(getattr(rows[name], part) for name in node.input[:n]), *operands])
                for part in ("codes", "weights", "biases")
            ]
        except (ValueError, IndexError):
            return []
        return [_Rows(*each) for each in zip(*moved, strict=True)]

    def _operand(self, name: str) -> Array | None:
        if name in self.graph.constants:
            return self.graph.constants[name]
        if not name or self.facts.kinds[name] > Kind.BATCH:
            return None
        return self.facts.values[TRACE_BATCH].get(name)

    def _weigh(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> list[_Rows]:
        left, right = node.input
        if left not in rows and node.op_type == "Mul":
            left, right = right, left
        weights = self.traces.values.get(right)
        if left not in rows or weights is None or rows[left].weights.any():
            return []
        if rows[left].biases.any():
            return []
        codes = weights.codes
        if node.op_type == "Div":
            codes = self._changed(weights, ("Reciprocal", ()))
        return [self._with(rows[left], weights=codes)]

    def _bias(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> list[_Rows]:
        left, right = node.input
        if left not in rows and node.op_type == "Add":
            left, right = right, left
        bias = self.traces.values.get(right)
        if left not in rows or bias is None or rows[left].weights.any():
            return []
        if rows[left].biases.any():
            return []
        codes = bias.codes
        if node.op_type == "Sub":
            codes = self._changed(bias, ("Neg", ()))
        return [self._with(rows[left], biases=codes)]

    def _mask(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> list[_Rows]:
        """``Where(mask, rows, 0)`` weighs with the mask, ``Where(mask, rows, -1e9)`` adds it."""
        mask, yes, no = node.input
        kept, filled = (yes, no) if yes in rows else (no, yes)
        fill = self._operand(filled)
        traced = self.traces.values.get(mask)
        if kept not in rows or fill is None or traced is None or not fill.size:
            return []
        source, number = rows[kept], float(fill.flat[0])
        if not np.all(fill == number) or source.weights.any() or source.biases.any():
            return []
        if number == 0:
            change = (1.0, 0.0) if kept == yes else (0.0, 1.0)
            return [self._with(source, weights=self._changed(traced, ("Where", change)))]
        if number <= _HIDDEN:
            change = (0.0, number) if kept == yes else (number, 0.0)
            return [self._with(source, biases=self._changed(traced, ("Where", change)))]
        return []

    def _with(
        self, rows: _Rows, *, weights: Codes | None = None, biases: Codes | None = None
    ) -> _Rows:
        shape = np.broadcast_shapes(
            *(each.shape for each in (rows.codes, weights, biases) if each is not None)
        )
        return _Rows(
            np.broadcast_to(rows.codes, shape),
            np.broadcast_to(rows.weights if weights is None else weights, shape),
            np.broadcast_to(rows.biases if biases is None else biases, shape),
        )

    def _changed(self, traced: Traced, change: Change) -> Codes:
        """Return codes of the same elements with a change done to each."""
        return change_codes(traced.codes, self.traces.columns, change)

    def _reduce(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> Pooled | None:
        """Return the pooling that a reduction or a product with weights is, if it is one."""
        if node.op_type == "MatMul":
            return self._product(node, rows)
        if node.op_type == "Einsum":
            return self._einsum(node, rows)
        pooling = _REDUCTIONS.get(node.op_type)
        if pooling is None or node.input[0] not in rows:
            return None
        source = rows[node.input[0]]
        axes = attribute(node, "axes")
        if len(node.input) > 1 and node.input[1]:
            operand = self._operand(node.input[1])
            axes = None if operand is None else operand.ravel().tolist()
            if axes is None:
                return None
        if not axes:
            return None
        ndim = source.codes.ndim
        over = sorted(axis % ndim for axis in axes)
        kept = [axis for axis in range(ndim) if axis not in over]
        flat = [
            np.transpose(part, (*kept, *over)).reshape(*(part.shape[a] for a in kept), -1)
            for part in (source.codes, source.weights, source.biases)
        ]
        shape = [source.codes.shape[axis] for axis in kept]
        if attribute(node, "keepdims", 1):
            shape = [1 if axis in over else source.codes.shape[axis] for axis in range(ndim)]
        return self._pool(pooling, _Rows(*flat), tuple(shape))

    def _product(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> Pooled | None:
        """``weights [.., 1, L] @ rows [.., L, D]`` and ``rows [.., D, L] @ weights [.., L, 1]``."""
        left, right = node.input
        if right in rows and left in self.traces.values:
            source, weights = rows[right].codes, self.traces.values[left].codes
            if weights.ndim < 2 or weights.shape[-2] != 1 or source.ndim < 2:
                return None
            source, weights = np.swapaxes(source, -1, -2), weights
            row_axis = -2
        elif left in rows and right in self.traces.values:
            source, weights = rows[left].codes, self.traces.values[right].codes
            if weights.ndim < 2 or weights.shape[-1] != 1 or source.ndim < 2:
                return None
            weights = np.swapaxes(weights, -1, -2)
            row_axis = -1
        else:
            return None
        name = right if right in rows else left
        if rows[name].weights.any() or rows[name].biases.any():
            return None
        source, weights = np.broadcast_arrays(source, weights)
        shape = list(source.shape[:-1])
        shape.insert(len(shape) + 1 + row_axis, 1)
        return self._pool("sum", _Rows(source, weights, np.zeros_like(source)), tuple(shape))

    def _einsum(self, node: onnx.NodeProto, rows: Mapping[str, _Rows]) -> Pooled | None:
        """Products of rows and weights, summed over the labels that the result has not."""
        equation = attribute(node, "equation").decode().replace(" ", "")
        terms, _, result = equation.partition("->")
        labels = terms.split(",")
        if len(labels) != 2 or len(node.input) != 2 or not result or "." in equation:
            return None
        left, right = (0, 1) if node.input[0] in rows else (1, 0)
        source = rows.get(node.input[left])
        weights = self.traces.values.get(node.input[right])
        if source is None or weights is None or source.weights.any() or source.biases.any():
            return None
        summed = sorted(set("".join(labels)) - set(result))
        order = [*result, *summed]
        if any(len(set(each)) < len(each) for each in (*labels, result)):
            return None
        parts = [
            _aligned(codes, each, order)
            for codes, each in ((source.codes, labels[left]), (weights.codes, labels[right]))
        ]
        codes, scale = np.broadcast_arrays(*parts)
        shape = codes.shape[: len(result)]
        flat = (*shape, -1)
        return self._pool(
            "sum",
            _Rows(codes.reshape(flat), scale.reshape(flat), np.zeros((*flat[:-1], 1), np.int64)),
            shape,
        )

    def _pool(self, pooling: Pooling, rows: _Rows, shape: tuple[int, ...]) -> Pooled | None:
        """Check that reducing the last axis pools, and return it in the result's shape."""
        extra = rows.biases if pooling == "max" else rows.weights
        if (rows.weights if pooling == "max" else rows.biases).any() or not rows.codes.size:
            return None
        if rows.codes.min() == 0 or (extra.any() and extra.min() == 0):
            return None
        n = rows.codes.shape[-1]
        codes, extra = rows.codes.reshape(-1, n), extra.reshape(-1, n)
        row = (codes - 1) % TRACE_BATCH
        if not (row == row[:, :1]).all():
            return None
        if extra.any() and not ((extra - 1) % TRACE_BATCH == row).all():
            return None
        result = np.empty(len(codes), np.int64)
        pools: dict[Pool, None] = {}
        for i, (numbers, extras) in enumerate(
            zip((codes - 1) // TRACE_BATCH, (extra - 1) // TRACE_BATCH, strict=True)
        ):
            made = self._one(pooling, numbers, extras if extra.any() else None)
            if made is None:
                return None
            pool, column = made
            pools.setdefault(pool)
            number = self.traces.columns.number(Element(rows_root(pool), column))
            result[i] = 1 + row[i, 0] + TRACE_BATCH * number
        return Pooled(result.reshape(shape), tuple(pools))

    def _one(
        self, pooling: Pooling, numbers: Array, extras: Array | None
    ) -> tuple[Pool, int] | None:
        """Return the pool, and its column, that the elements of one result come to."""
        columns = self.traces.columns
        elements = columns.elements(int(each) for each in numbers)
        name = elements[0].root.name
        dim = self.dims.get(name)
        if dim is None or any(element.root != elements[0].root for element in elements):
            return None
        column = elements[0].place % dim
        if any(element.place % dim != column for element in elements):
            return None
        weights = None
        if extras is not None:
            weights = tuple(self._weight(int(each)) for each in extras)
        entries = tuple(element.place // dim for element in elements)
        return Pool(name, pooling, entries, weights), column

    def _weight(self, number: int) -> Element:
        """Return a weight's element, or the first that is always alike."""
        element = self.traces.columns.element(number)
        plain = Element(attrs.evolve(element.root, change=None), element.place)
        number = self.traces.columns.number(plain)
        alike = self.traces.columns.element(self.traces.alike.get(number, number))
        return Element(element.root, alike.place)


def _aligned(codes: Codes, labels: str, order: list[str]) -> Codes:
    """Return codes with an axis for each label of ``order``, of size 1 for those it lacks."""
    moved = np.transpose(codes, [labels.index(label) for label in order if label in labels])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if label in labels else 1 for label in order])


def change_codes(codes: Codes, columns: Columns, change: Change) -> Codes:
    """Return codes of the same elements with a change done to each; none may have one already."""
    numbers = np.unique((codes[codes > 0] - 1) // TRACE_BATCH)
    replaced = []
    for number in numbers:
        root, place = columns.element(int(number))
        replaced.append(columns.number(Element(attrs.evolve(root, change=change), place)))
    places = np.searchsorted(numbers, (codes - 1) // TRACE_BATCH)
    moved = 1 + (codes - 1) % TRACE_BATCH + TRACE_BATCH * np.asarray(replaced, np.int64)[places]
    return np.where(codes > 0, moved, 0)


_REDUCTIONS: Final[Mapping[str, Pooling]] = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "max",
}

"""Import of operators that choose elements by constant places: Slice, Split, Gather, GatherND."""

from __future__ import annotations

import itertools
from typing import Final

import attrs
import numpy as np

from kernels.graph.model import Array
from kernels.ir.node import DType, Lead, Op, Slice, Take
from kernels.ir.onnx_axes import elementwise, insert, reshape, transpose
from kernels.ir.onnx_call import Call, Result, Table
from kernels.ir.onnx_value import Count, RequestOfRow, Size, Sizes, Value, settled


def part(call: Call, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    """Return a slice of an ONNX axis; bounds are within it."""
    if (start, stop, step) == (0, x.local[axis], 1):
        return x
    arg = Slice(x.view.axis(call.not_rows(x, axis)), start, stop, step)
    return Value(call.make(Op.SLICE, x.node, arg=arg), x.view)


def take(call: Call, x: Value, axis: int, indices: Array) -> Value:
    """Return elements of an ONNX axis by non-negative indices ``[n]``; a slice, if they are one."""
    listed = [int(each) for each in indices]
    steps = {b - a for a, b in itertools.pairwise(listed)} or {1}
    if len(steps) == 1 and (step := steps.pop()) > 0:
        return part(call, x, axis, listed[0], listed[-1] + 1, step)
    arg = Take(x.view.axis(call.not_rows(x, axis)), tuple(listed))
    return Value(call.make(Op.TAKE, x.node, arg=arg), x.view)


def _from_front(call: Call, indices: Array, n: int) -> Array:
    if indices.size and (indices.min() < -n or indices.max() >= n):
        raise call.refuse(f"takes index {indices.min()} to {indices.max()} of {n} elements")
    return np.where(indices < 0, indices + n, indices)


def _slice(call: Call) -> Result:
    given = call.inputs[0]
    bounds = _bounds(call)
    if isinstance(given, Sizes):
        ((_, start, stop, step),) = bounds
        if isinstance(start, Count) or isinstance(stop, Count):
            raise call.refuse("cuts a shape at a number of rows")
        return settled(given.array[start:stop:step])
    x = call.value(0)
    for axis, start, stop, step in bounds:
        at = call.axis(axis, x.view.rank)
        if at == x.view.at:
            if start != 0 or step != 1 or not _reaches(stop, x.sizes[at]):
                call.not_rows(x, at)
            continue
        if isinstance(start, Count) or isinstance(stop, Count):
            raise call.refuse("cuts at a number of rows")
        chosen = range(x.local[at])[start:stop:step]
        if not chosen:
            raise call.refuse("takes nothing")
        x = take(call, x, at, np.asarray(chosen))
    return x


def _reaches(stop: Size, size: Size) -> bool:
    """Whether a bound is at, or beyond, all elements of an axis that holds the rows."""
    return stop == size or (isinstance(stop, int) and stop >= np.iinfo(np.int32).max)


def _bounds(call: Call) -> list[tuple[int, Size, Size, int]]:
    """Return axis, start, stop and step of each slice."""
    if call.opset < 10:
        starts, stops = call.attribute("starts"), call.attribute("ends")
        axes = call.attribute("axes") or range(len(starts))
        return [(a, b, c, 1) for a, b, c in zip(axes, starts, stops, strict=True)]
    starts, stops = (_sizes(call, i) for i in (1, 2))
    axes = call.array(3, "its axes").tolist() if call.has(3) else range(len(starts))
    steps = call.array(4, "its steps").tolist() if call.has(4) else [1] * len(starts)
    return list(zip(axes, starts, stops, steps, strict=True))


def _sizes(call: Call, i: int) -> list[Size]:
    given = call.inputs[i]
    if isinstance(given, Sizes):
        return given.flat()
    return [int(each) for each in call.array(i, "a bound").ravel()]


def _split(call: Call) -> Result:
    given = call.inputs[0]
    if isinstance(given, Sizes):
        ends = np.cumsum(call.integers(1, "split", 13) or [1] * len(call.node.output))
        return tuple(settled(each) for each in np.split(given.array, ends[:-1]))
    x = call.value(0)
    axis = call.not_rows(x, call.axis(call.attribute("axis", 0), x.view.rank))
    n = x.local[axis]
    sizes = call.integers(1, "split", 13)
    if sizes is None:
        parts = int(call.attribute("num_outputs", len(call.node.output)))
        size = -(-n // parts)
        sizes = [min(size, n - start) for start in range(0, n, size)]
    starts = list(itertools.accumulate(sizes, initial=0))
    if starts[-1] != n:
        raise call.refuse(f"cuts {n} elements into {sizes}")
    return tuple(part(call, x, axis, a, b) for a, b in itertools.pairwise(starts))


def _gather(call: Call) -> Result:
    data, index = call.inputs[0], call.inputs[1]
    axis = call.attribute("axis", 0)
    if isinstance(data, Sizes):
        return settled(np.take(data.array, call.array(1, "an index of a shape"), axis))
    x = call.value(0)
    axis = call.axis(axis, x.view.rank)
    if isinstance(index, RequestOfRow):
        return _to_rows(call, x, axis)
    call.not_rows(x, axis)
    indices = _from_front(call, call.array(1, "its index"), x.local[axis])
    made = take(call, x, axis, indices.ravel())
    sizes = [*made.sizes[:axis], *indices.shape, *made.sizes[axis + 1 :]]
    return reshape(call, made, sizes)


def _to_rows(call: Call, x: Value, axis: int) -> Value:
    view = x.view
    if axis != view.at or view.lead is not Lead.REQUESTS or view.merged > 1:
        raise call.refuse("gathers what is not one row a request by request_of_row")
    moved = attrs.evolve(view, lead=Lead.ROWS)
    return Value(x.node if x.is_alike else call.make(Op.TO_ROWS, x.node), moved)


def _gather_nd(call: Call) -> Result:
    x = call.value(0)
    n_batch = call.attribute("batch_dims", 0)
    indices = call.inputs[1]
    if isinstance(indices, Value) and indices.is_alike and indices.view.merged == 1:
        indices = indices.node.array.reshape(indices.local)
    if not isinstance(indices, np.ndarray):
        raise call.refuse("takes elements at computed places")
    if any(size != 1 for size in indices.shape[:n_batch]):
        raise call.refuse("takes other elements from each row")
    depth = indices.shape[-1]
    axes = range(n_batch, n_batch + depth)
    for axis in axes:
        call.not_rows(x, axis)
    dims = [x.local[axis] for axis in axes]
    flat = np.ravel_multi_index(
        tuple(_from_front(call, indices[..., i].ravel(), n) for i, n in enumerate(dims)),
        dims,
    )
    joined = int(np.prod(dims, dtype=np.int64))
    x = reshape(call, x, [*x.sizes[:n_batch], joined, *x.sizes[n_batch + depth :]])
    made = take(call, x, n_batch, flat)
    chosen = indices.shape[n_batch:-1]
    return reshape(call, made, [*made.sizes[:n_batch], *chosen, *made.sizes[n_batch + 1 :]])


def _gather_elements(call: Call) -> Result:
    """Take by indices that are alike for every row: flat places along the joined other axes."""
    x, index = call.value(0), call.inputs[1]
    rank = x.view.rank
    axis = call.not_rows(x, call.axis(call.attribute("axis", 0), rank))
    at = x.view.at
    if not isinstance(index, Value) or not index.is_alike or index.view != x.view or at is None:
        raise call.refuse("takes elements at computed places")
    order = [at, *(each for each in range(rank) if each != at)]
    turned = transpose(call, x, order)
    places = np.moveaxis(index.node.array.reshape(index.local), at, 0)[0]
    grid = list(np.indices(places.shape))
    along = axis if axis < at else axis - 1
    grid[along] = _from_front(call, places, x.local[axis])
    flat = np.ravel_multi_index(tuple(each.ravel() for each in grid), turned.local[1:])
    wide = reshape(call, turned, [turned.sizes[0], int(np.prod(turned.local[1:]))])
    made = reshape(call, take(call, wide, 1, flat), [turned.sizes[0], *places.shape])
    return transpose(call, made, [order.index(each) for each in range(rank)])


def _one_hot(call: Call) -> Result:
    x = call.value(0)
    depth = int(call.array(1, "its depth").item())
    off, on = call.array(2, "its values")
    rank = x.view.rank + 1
    axis = call.axis(call.attribute("axis", -1), rank)
    ids = insert(call, x, [axis])
    if ids.node.dtype is DType.FLOAT:
        ids = elementwise(call, Op.CAST, ids, dtype=DType.INT)
    places = np.arange(depth).reshape(-1, *([1] * (rank - axis - 1)))
    from_front = elementwise(call, Op.EQ, ids, places)
    from_end = elementwise(call, Op.EQ, ids, places - depth)
    hot = elementwise(call, Op.OR, from_front, from_end)
    return elementwise(call, Op.WHERE, hot, np.asarray(on), np.asarray(off))


INDEXING: Final[Table] = {
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
}

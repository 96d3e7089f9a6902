"""Movement: reshapes, transposes and slices are joined, undone, or put in their place.

Normal forms, so that later passes find few shapes of one thing:

* SLICE goes up: through RESHAPE, TRANSPOSE, CONCAT and EXPAND, towards what it is a slice of.
* RESHAPE and TRANSPOSE go down through elementwise ops and reductions (``sink.py``), so that a
  Linear meets its activation and its normalisation.
* RESHAPE goes up through a CONCAT whose pieces stay whole; what CONCATs become is in ``concat.py``.
* A TRANSPOSE that moves dimensions of 1 alone is a RESHAPE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import attrs

from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, Slice, Take
from kernels.passes.concat import CONCAT
from kernels.passes.rewrite import Rule, Uses, with_sources
from kernels.passes.sink import SINK
from kernels.passes.views import cut, groups, join, reshape, transposed


def _reshape(node: Node, _: Uses) -> Node | None:
    source = node.sources[0]
    if source.op is Op.RESHAPE or source.shape == node.shape:
        return reshape(source, node.dims)
    if source.op is Op.CONCAT:
        return _reshape_of_concat(node, source)
    return None


def _reshape_of_concat(node: Node, source: Node) -> Node | None:
    axis = source.arg
    lead = source.lead is not None
    assert isinstance(axis, int)
    for old, new in groups(source.dims, node.dims):
        if axis - lead not in old:
            continue
        outer = source.dims[old.start : axis - lead]
        wide = [i for i in new if node.dims[i] != 1]
        if math.prod(outer) != 1 or not wide:
            return None
        unit = math.prod(node.dims[wide[0] + 1 : new.stop])
        sizes = [math.prod(part.dims[old.start : old.stop]) for part in source.sources]
        if any(size % unit for size in sizes):
            return None
        parts = []
        for part, size in zip(source.sources, sizes, strict=True):
            dims = list(node.dims)
            dims[wide[0]] = size // unit
            parts.append(reshape(part, dims))
        return join(parts, wide[0] + lead)
    return None


def _transpose(node: Node, _: Uses) -> Node | None:
    source, order = node.sources[0], node.arg
    assert isinstance(order, tuple)
    if source.op is Op.TRANSPOSE:
        assert isinstance(source.arg, tuple)
        inner = source.arg
        return transposed(source.sources[0], tuple(inner[axis] for axis in order))
    if source.op is Op.RESHAPE and source.sources[0].op is Op.TRANSPOSE:
        finer = _transpose_of_merged(node, source, order)
        if finer is not None:
            return finer
    moved = [axis for axis in order if source.shape[axis] != 1]
    if moved == sorted(moved):
        return reshape(source, node.dims)
    return _transpose_without_ones(node, source, order)


def _transpose_of_merged(node: Node, source: Node, order: tuple[int, ...]) -> Node | None:
    """Transpose before dimensions are merged, where that was done to a TRANSPOSE: they compose."""
    inner = source.sources[0]
    lead = source.lead is not None
    pairs = groups(inner.dims, source.dims)
    if any(len(new) != 1 for _, new in pairs) or len(pairs) != len(source.dims):
        return None
    finer = [0] if lead else []
    for axis in order[lead:]:
        old, _ = pairs[axis - lead]
        finer += [each + lead for each in old]
    return reshape(make(Op.TRANSPOSE, inner, arg=tuple(finer), name=node.name), node.dims)


def _transpose_without_ones(node: Node, source: Node, order: tuple[int, ...]) -> Node | None:
    """Transpose what has no dimensions of 1, and put these where they belong by a RESHAPE."""
    lead = source.lead is not None
    kept = [axis for axis in range(lead, len(source.shape)) if source.shape[axis] != 1]
    if len(kept) + lead == len(source.shape):
        return None
    narrow = reshape(source, [source.dims[axis - lead] for axis in kept])
    among = [kept.index(axis) + lead for axis in order if axis in kept]
    inner = (0, *among) if lead else tuple(among)
    return reshape(make(Op.TRANSPOSE, narrow, arg=inner, name=node.name), node.dims)


def _slice(node: Node, _: Uses) -> Node | None:
    source, part = node.sources[0], node.arg
    assert isinstance(part, Slice)
    axis = part.axis
    if source.shape == node.shape:
        return source
    if source.op is Op.TRANSPOSE:
        order = source.arg
        assert isinstance(order, tuple)
        inner = attrs.evolve(part, axis=order[axis])
        return transposed(make(Op.SLICE, source.sources[0], arg=inner, name=node.name), order)
    if part.step != 1:
        return None
    stop = part.start + node.dims[axis - (node.lead is not None)]
    if source.op is Op.SLICE:
        inner_part = source.arg
        assert isinstance(inner_part, Slice)
        if inner_part.axis == axis and inner_part.step == 1:
            first = inner_part.start
            return cut(source.sources[0], axis, first + part.start, first + stop)
    if source.op is Op.CONCAT and source.arg == axis:
        return _slice_of_concat(source, axis, part.start, stop)
    if source.op is Op.EXPAND:
        return _slice_of_expand(node, source, axis, part.start, stop)
    if source.op is Op.RESHAPE:
        return _slice_of_reshape(node, source, axis, part.start, stop)
    return None


def _slice_of_concat(source: Node, axis: int, start: int, stop: int) -> Node | None:
    kept, at = [], 0
    for part in source.sources:
        size = part.shape[axis]
        assert isinstance(size, int)
        low, high = max(start - at, 0), min(stop - at, size)
        if low < high:
            kept.append(cut(part, axis, low, high))
        at += size
    return join(kept, axis)


def _slice_of_expand(node: Node, source: Node, axis: int, start: int, stop: int) -> Node:
    inner = source.sources[0]
    if inner.shape[axis] != 1:
        inner = cut(inner, axis, start, stop)
    if inner.shape == node.shape:
        return inner
    return make(Op.EXPAND, inner, shape=node.shape, name=node.name)


def _slice_of_reshape(node: Node, source: Node, axis: int, start: int, stop: int) -> Node | None:
    inner = source.sources[0]
    lead = inner.lead is not None
    for old, new in groups(inner.dims, source.dims):
        if axis - lead not in new:
            continue
        if math.prod(source.dims[new.start : axis - lead]) != 1:
            return None
        stride = math.prod(source.dims[axis - lead + 1 : new.stop])
        wide = [i for i in old if inner.dims[i] != 1]
        if not wide:
            return None
        unit = math.prod(inner.dims[wide[0] + 1 : old.stop])
        if start * stride % unit or stop * stride % unit:
            return None
        narrow = cut(inner, wide[0] + lead, start * stride // unit, stop * stride // unit)
        return reshape(narrow, node.dims)
    return None


def _expand(node: Node, _: Uses) -> Node | None:
    source = node.sources[0]
    if source.shape == node.shape:
        return source
    if source.op is Op.EXPAND:
        return with_sources(node, source.sources)
    return None


def _take(node: Node, _: Uses) -> Node | None:
    take = node.arg
    assert isinstance(take, Take)
    first = take.indices[0] if take.indices else 0
    if take.indices and take.indices == tuple(range(first, first + len(take.indices))):
        return cut(node.sources[0], take.axis, first, first + len(take.indices))
    return None


def _cast(node: Node, _: Uses) -> Node | None:
    source = node.sources[0]
    if source.dtype is node.dtype:
        return source
    if source.op is Op.CAST and source.dtype is DType.FLOAT and node.dtype is DType.BOOL:
        return with_sources(node, source.sources)  # not zero before, not zero after
    return None


_OWN: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.RESHAPE: (_reshape,),
    Op.TRANSPOSE: (_transpose,),
    Op.SLICE: (_slice,),
    Op.EXPAND: (_expand,),
    Op.TAKE: (_take,),
    Op.CAST: (_cast,),
}
MOVEMENT: Final[Mapping[Op, tuple[Rule, ...]]] = {
    op: (*_OWN.get(op, ()), *CONCAT.get(op, ()), *SINK.get(op, ())) for op in Op
}

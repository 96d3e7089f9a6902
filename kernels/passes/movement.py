"""Movement: reshapes, transposes, slices and concats are joined, undone, or put in their place.

Normal forms, so that later passes find few shapes of one thing:

* SLICE goes up: through RESHAPE, TRANSPOSE, CONCAT and EXPAND, towards what it is a slice of.
* RESHAPE and TRANSPOSE go down through elementwise ops, so that a Linear meets its activation and
  its normalisation. A TRANSPOSE that moves dimensions of 1 alone is a RESHAPE.
* CONCAT is flat, RESHAPE goes up through it where its pieces stay whole, and pieces that continue
  each other in one value are that value's again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import attrs
import numpy as np

from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, Shape, Slice, Take, const
from kernels.ir.rules import ELEMENTWISE
from kernels.passes.rewrite import Rule, Uses, with_sources
from kernels.passes.views import (
    cut,
    groups,
    interval,
    join,
    piece,
    reshape,
    runs,
    shaped,
)

# A CONCAT that others read too is made for them: taking it apart saves no copy, and hides that
# all read the same value.
NO_COPY: Final = frozenset({Op.LINEAR, Op.CONCAT, Op.RESHAPE, Op.SLICE})
# A CONCAT of so many pieces of one value is a TAKE: one table of indices, not a copy for each.
_MANY: Final = 8
# A constant is rewritten to another shape up to so many elements; a larger one is worth no copy.
_SMALL: Final = 1 << 16


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
        return _transposed(source.sources[0], tuple(inner[axis] for axis in order))
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


def _transposed(node: Node, order: tuple[int, ...]) -> Node:
    if order == tuple(range(len(order))):
        return node
    return make(Op.TRANSPOSE, node, arg=order, name=node.name)


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
        return _transposed(make(Op.SLICE, source.sources[0], arg=inner, name=node.name), order)
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


def _concat(node: Node, uses: Uses) -> Node | None:
    axis = node.arg
    assert isinstance(axis, int)
    if len(node.sources) == 1:
        return node.sources[0]
    flat: list[Node] = []
    for source in node.sources:
        nested = source.op is Op.CONCAT and source.arg == axis and uses.only_by(source, NO_COPY)
        flat.extend(source.sources if nested else [source])
    joined = _rejoined(flat, axis) if node.lead is not None else flat
    if len(joined) >= _MANY:
        taken = _taken(joined, axis, node)
        if taken is not None:
            return taken
    if node.lead is not None:
        turned = _turned(joined, axis, node)
        if turned is not None:
            return turned
        if all(part.op is Op.TRANSPOSE and part.arg == joined[0].arg for part in joined):
            order = joined[0].arg
            assert isinstance(order, tuple)
            return _transposed(join([part.sources[0] for part in joined], order[axis]), order)
    if len(joined) == len(node.sources):
        return None
    return join(joined, axis)


def _turned(parts: list[Node], axis: int, node: Node) -> Node | None:
    """Make a TRANSPOSE of neighbouring slices of one axis that are put together along another.

    So heads are cut out of columns and stacked, and so they are put side by side again. Slice n is
    ``[before, n, behind]`` of the value; the result wants it as ``[outer, n, inner]``.
    """
    slices = [_slice_under(part) for part in parts]
    found = [part for part in slices if part is not None]
    if len(found) < len(parts) or len(parts) < 2:
        return None
    args = [part.arg for part in found]
    base, first, last = found[0].sources[0], args[0], args[-1]
    if not isinstance(first, Slice) or not isinstance(last, Slice):
        return None
    width, along = first.stop - first.start, first.axis
    wanted = [
        Slice(along, first.start + i * width, first.start + (i + 1) * width)
        for i in range(len(parts))
    ]
    same = all(part.sources[0] is base and part.shape == found[0].shape for part in found)
    if args != wanted or not same or len({part.shape for part in parts}) > 1 or 0 in node.dims:
        return None
    before = math.prod(base.dims[: along - 1])
    outer = math.prod(node.dims[: axis - 1])
    row = cut(base, along, first.start, last.stop)
    n, whole = len(parts), row.width
    if outer == before or max(outer, before) % min(outer, before):
        return None
    if outer > before:  # [before, n, more, inner] -> [before, more, n, inner]
        more = outer // before
        dims = (before, n, more, whole // (outer * n))
    else:  # [outer, more, n, behind] -> [outer, n, more, behind]
        more = before // outer
        dims = (outer, more, n, whole // (before * n))
    return reshape(_transposed(reshape(row, dims), (0, 1, 3, 2, 4)), node.dims)


def _slice_under(node: Node) -> Node | None:
    while node.op is Op.RESHAPE:
        node = node.sources[0]
    return node if node.op is Op.SLICE else None


def _taken(parts: list[Node], axis: int, node: Node) -> Node | None:
    """Make a TAKE of pieces of one value, each a whole number of steps of one grid."""
    pieces = [interval(part) for part in parts]
    unit = math.prod(node.dims[axis:])
    first = min(each.start for each in pieces)
    if math.prod(node.dims[: axis - 1]) != 1 or len({each.base for each in pieces}) > 1:
        return None
    if any((each.start - first) % unit for each in pieces):
        return None
    last = max(each.stop for each in pieces)
    dims = list(node.dims)
    dims[axis - 1] = (last - first) // unit
    source = piece(attrs.evolve(pieces[0], start=first, stop=last), dims)
    steps = [range((each.start - first) // unit, (each.stop - first) // unit) for each in pieces]
    indices = tuple(index for step in steps for index in step)
    return make(Op.TAKE, source, arg=Take(axis, indices), name=node.name)


def _rejoined(parts: list[Node], axis: int) -> list[Node]:
    """Put slices of one axis, and intervals of one value, together where they are neighbours."""
    joined: list[Node] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.op is Op.SLICE and part.op is Op.SLICE:
            one, two = last.arg, part.arg
            assert isinstance(one, Slice)
            assert isinstance(two, Slice)
            same = last.sources[0] is part.sources[0] and one.axis == two.axis == axis
            if same and one.step == two.step == 1 and one.stop == two.start:
                joined[-1] = cut(part.sources[0], axis, one.start, two.stop)
                continue
        joined.append(part)
    if math.prod(parts[0].dims[: axis - 1]) != 1:
        return joined
    pieces = [interval(part) for part in joined]
    result = []
    for run in runs(pieces):
        if len(run) == 1:
            result.append(joined[run[0]])
            continue
        dims = list(joined[run[0]].dims)
        dims[axis - 1] = sum(joined[i].dims[axis - 1] for i in run)
        whole = attrs.evolve(pieces[run[0]], stop=pieces[run[-1]].stop)
        result.append(piece(whole, dims))
    return result


def _below_elementwise(node: Node, _: Uses) -> Node | None:
    """Let a RESHAPE or TRANSPOSE of the sources happen to the result instead."""
    movers = [source for source in node.sources if source.op in (Op.RESHAPE, Op.TRANSPOSE)]
    rest = [source for source in node.sources if source.op not in (Op.RESHAPE, Op.TRANSPOSE)]
    first = movers[0] if movers else None
    if first is None or first.shape != node.shape or any(s.op is not Op.CONST for s in rest):
        return None
    inner = first.sources[0].shape
    if any((s.op, s.arg, s.shape) != (first.op, first.arg, first.shape) for s in movers):
        return None
    sources = []
    for source in node.sources:
        if source.op is Op.CONST:
            moved = _moved_const(source, first)
        elif first.op is Op.RESHAPE:
            moved = reshape(source, first.sources[0].dims)
        else:
            moved = source.sources[0]
        if moved is None:
            return None
        sources.append(moved)
    made = Node(node.op, tuple(sources), inner, node.dtype, node.arg, node.name)
    if first.op is Op.RESHAPE:
        return make(Op.RESHAPE, made, shape=node.shape, name=first.name)
    return make(Op.TRANSPOSE, made, arg=first.arg, name=first.name)


def _moved_const(node: Node, mover: Node) -> Node | None:
    """Return what a constant beside ``mover`` is beside its source."""
    inner = mover.sources[0]
    array = node.array
    if mover.op is Op.TRANSPOSE:
        assert isinstance(mover.arg, tuple)
        return const(array.transpose(np.argsort(mover.arg)), node.name)
    if node.width == 1:
        return const(array.reshape((1,) * len(inner.shape)), node.name)
    if mover.width > _SMALL or mover.lead is None:
        return None
    full = np.broadcast_to(array, (1, *mover.dims)).reshape(1, *inner.dims)
    return const(compact(full), node.name)


def compact(array: np.typing.NDArray[np.generic]) -> np.typing.NDArray[np.generic]:
    """Return an array with axes of equal slices made 1 long."""
    for axis in range(array.ndim):
        first = array.take([0], axis=axis)
        if array.shape[axis] > 1 and bool(np.all(array == first)):
            array = first
    return array


def _without_ones(node: Node, _: Uses) -> Node | None:
    """Leave out dimensions that are 1 in the result, if that saves the RESHAPE of a source."""
    kept = [axis for axis, dim in enumerate(node.dims) if dim != 1] or [0]
    if node.lead is None or len(kept) == len(node.dims):
        return None
    sources, saved = [], False
    for source in node.sources:
        if source.op is Op.CONST:
            axes = tuple(axis + 1 for axis in range(len(node.dims)) if axis not in kept)
            sources.append(const(source.array.squeeze(axes), source.name))
        elif source.lead is not None:
            narrow = reshape(source, [source.dims[axis] for axis in kept])
            saved |= source.op is Op.RESHAPE and narrow.op is not Op.RESHAPE
            sources.append(narrow)
        else:
            return None
    if not saved:
        return None
    shape = shaped(node, [node.dims[axis] for axis in kept])
    made = Node(node.op, tuple(sources), shape, node.dtype, node.arg, node.name)
    return reshape(made, node.dims)


def _implicit_expand(node: Node, _: Uses) -> Node | None:
    """Read what an EXPAND repeats: an elementwise op repeats dimensions of 1 itself."""
    sources = list(node.sources)
    for index, source in enumerate(sources):
        if source.op is Op.EXPAND:
            inner = source.sources[0]
            trial = [*sources[:index], inner, *sources[index + 1 :]]
            if _broadcast(trial) == node.shape:
                sources = trial
    return with_sources(node, sources)


def _broadcast(sources: list[Node]) -> Shape:
    columns = zip(*(source.shape for source in sources), strict=True)
    return tuple(next((dim for dim in column if dim != 1), 1) for column in columns)


def _compact_const(node: Node, _: Uses) -> Node | None:
    """Let constants beside other sources be as small as they can, so that scalars show."""
    if node.lead is None or len(node.sources) == 1:
        return None
    sources = list(node.sources)
    for index, source in enumerate(sources):
        if source.op is Op.CONST and 1 < source.width <= _SMALL:
            smaller = compact(source.array)
            if smaller.shape != source.array.shape:
                trial = [*sources[:index], const(smaller, source.name), *sources[index + 1 :]]
                if _broadcast(trial) == node.shape:
                    sources = trial
    return with_sources(node, sources)


def _reduced(node: Node, _: Uses) -> Node | None:
    """Leave out axes of one element, and sum at once what is summed twice."""
    source, axes = node.sources[0], node.arg
    assert isinstance(axes, tuple)
    kept = tuple(axis for axis in axes if source.shape[axis] != 1)
    if not kept:
        return source
    if kept != axes:
        return attrs.evolve(node, arg=kept)
    if source.op is Op.TRANSPOSE:
        order = source.arg
        assert isinstance(order, tuple)
        inner = tuple(sorted(order[axis] for axis in axes))
        return _transposed(make(node.op, source.sources[0], arg=inner, name=node.name), order)
    ones = [axis for axis, dim in enumerate(source.shape) if dim == 1]
    if ones and source.lead is not None:
        narrow = reshape(source, [dim for dim in source.dims if dim != 1])
        fewer = tuple(axis - sum(one < axis for one in ones) for axis in axes)
        return reshape(make(node.op, narrow, arg=fewer, name=node.name), node.dims)
    if node.op is source.op:
        assert isinstance(source.arg, tuple)
        both = tuple(sorted({*axes, *source.arg}))
        return Node(node.op, source.sources, node.shape, node.dtype, both, node.name)
    return None


def _softmax_below(node: Node, _: Uses) -> Node | None:
    """Let a TRANSPOSE of the source happen to the result instead; leave out dimensions of 1."""
    source, axis = node.sources[0], node.arg
    assert isinstance(axis, int)
    ones = [i for i, dim in enumerate(source.shape) if dim == 1]
    if ones and source.lead is not None and axis not in ones:
        narrow = reshape(source, [dim for dim in source.dims if dim != 1])
        fewer = axis - sum(one < axis for one in ones)
        return reshape(make(Op.SOFTMAX, narrow, arg=fewer, name=node.name), node.dims)
    if source.op is not Op.TRANSPOSE:
        return None
    assert isinstance(source.arg, tuple)
    made = make(Op.SOFTMAX, source.sources[0], arg=source.arg[axis], name=node.name)
    return make(Op.TRANSPOSE, made, arg=source.arg, name=source.name)


def _cast(node: Node, _: Uses) -> Node | None:
    source = node.sources[0]
    if source.dtype is node.dtype:
        return source
    if source.op is Op.CAST and source.dtype is DType.FLOAT and node.dtype is DType.BOOL:
        return with_sources(node, source.sources)  # not zero before, not zero after
    return None


MOVEMENT: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.RESHAPE: (_reshape,),
    Op.TRANSPOSE: (_transpose,),
    Op.SLICE: (_slice,),
    Op.EXPAND: (_expand,),
    Op.TAKE: (_take,),
    Op.CONCAT: (_concat,),
    Op.SOFTMAX: (_softmax_below,),
    Op.SUM: (_reduced,),
    Op.MEAN: (_reduced,),
    Op.REDUCE_MAX: (_reduced,),
    Op.REDUCE_MIN: (_reduced,),
    Op.PROD: (_reduced,),
    **dict.fromkeys(
        ELEMENTWISE, (_implicit_expand, _compact_const, _without_ones, _below_elementwise)
    ),
    Op.CAST: (_cast, _implicit_expand, _without_ones, _below_elementwise),
}

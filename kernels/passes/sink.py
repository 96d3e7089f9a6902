"""Sinking: RESHAPE, TRANSPOSE and EXPAND of the sources of an op happen to its result instead.

Elementwise ops, SOFTMAX and reductions do not care how their elements are arranged, so movement
goes down through them, constants are turned to match, and dimensions of 1 are left out. What an
EXPAND repeats, an elementwise op repeats itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.build import make
from kernels.ir.node import Node, Op, Shape, const
from kernels.ir.rules import ELEMENTWISE
from kernels.passes.rewrite import Rule, Uses, with_sources
from kernels.passes.views import reshape, shaped, transposed

# A constant is rewritten to another shape up to so many elements; a larger one is worth no copy.
_SMALL: Final = 1 << 16


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
    return const(_compact(full), node.name)


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array with axes of equal slices made 1 long."""
    for axis in range(array.ndim):
        first = array.take([0], axis=axis)
        if array.shape[axis] > 1 and bool(np.all(array == first)):
            array = first
    return array


def _without_ones(node: Node, _: Uses) -> Node | None:
    """Leave out dimensions that are 1 in the result, if that saves the RESHAPE of a source."""
    kept = [axis for axis, dim in enumerate(node.dims) if dim != 1] or [0]
    if node.lead is None or len(kept) >= len(node.dims):
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
            smaller = _compact(source.array)
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
        return transposed(make(node.op, source.sources[0], arg=inner, name=node.name), order)
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


SINK: Final[Mapping[Op, tuple[Rule, ...]]] = {
    **dict.fromkeys(
        ELEMENTWISE, (_implicit_expand, _compact_const, _without_ones, _below_elementwise)
    ),
    Op.SOFTMAX: (_softmax_below,),
    **dict.fromkeys((Op.SUM, Op.MEAN, Op.REDUCE_MAX, Op.REDUCE_MIN, Op.PROD), (_reduced,)),
}

"""What each op does to axes of steps, and when it needs every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from kernels.ir.build import make
from kernels.ir.build import scalar as scalar_like
from kernels.ir.node import Linear, Node, Op, Slice, Take, TopK
from kernels.ir.rules import ELEMENTWISE, REDUCTIONS
from kernels.lengths import kinds
from kernels.lengths.kinds import ANY, PLAIN, SHARE, Kind, is_alike, is_low, is_plain
from kernels.lengths.values import (
    Axis,
    Mode,
    NeedsAll,
    Value,
    Walk,
    cut,
    made,
    met,
    nodes_of,
    stretches_of,
)
from kernels.passes.views import groups

Rule: TypeAlias = Callable[[Walk, Node, list[Value]], Value]


def kind_of(node: Node, sources: Sequence[Value]) -> Kind:
    """Return the kind of a result whichever its element."""
    found = [source.kind for source in sources]
    if node.op in ELEMENTWISE:
        return kinds.elementwise(node, found)
    if node.op in (Op.SOFTMAX, Op.LAYER_NORM):
        return PLAIN
    if node.op in (Op.SUM, Op.PROD, Op.MATMUL, Op.LINEAR):
        return kinds.mixed(found)
    return kinds.joined(found)


def _elementwise(walk: Walk, node: Node, sources: list[Value]) -> Value:
    nodes, found = met(walk, node, sources, range(1, len(node.shape)))
    axes = {}
    for place, (axis, tails) in found.items():
        alike = walk.mode_of(axis.steps) is Mode.EMPTY
        axes[place] = attrs.evolve(axis, tail=kinds.elementwise(node, tails, alike=alike))
    return made(node, nodes, axes, kinds.elementwise(node, [each.kind for each in sources]))


def _reshape(walk: Walk, node: Node, sources: list[Value]) -> Value:
    (source,) = sources
    old, new = source.node.dims, node.dims
    axes: dict[int, Axis] = {}
    pairs = groups(old, new)
    for place, axis in source.axes.items():
        blamed = axis.stretches
        pair = next(((a, b) for a, b in pairs if place - 1 in a), None)
        if pair is None:
            raise NeedsAll(blamed, node, "has no elements")
        wide = [at for at in pair[0] if old[at] != 1]
        others = [at for at in wide if at + 1 in source.axes and at + 1 != place]
        target = next((at for at in pair[1] if new[at] != 1), None)
        if wide[0] != place - 1 or others or target is None:
            raise NeedsAll(blamed, node, "puts other dimensions before the steps")
        unit = axis.steps.each * math.prod(old[at] for at in wide[1:])
        rest = math.prod(new[at] for at in pair[1] if at > target)
        if unit % rest or new[target] != axis.steps.most * (unit // rest):
            raise NeedsAll(blamed, node, "cuts steps apart")
        axes[target + 1] = attrs.evolve(axis, steps=axis.steps.with_each(unit // rest))
    return made(node, [source.node], axes, source.kind)


def _transpose(walk: Walk, node: Node, sources: list[Value]) -> Value:
    (source,), order = sources, node.arg
    assert isinstance(order, tuple)
    axes = {order.index(place): axis for place, axis in source.axes.items()}
    return made(node, [source.node], axes, source.kind)


def _same(walk: Walk, node: Node, sources: list[Value]) -> Value:
    """EXPAND and TO_ROWS: axes of steps stay where they are."""
    (source,) = sources
    return made(node, [source.node], source.axes, source.kind)


def _of_one_axis(walk: Walk, node: Node, sources: list[Value]) -> Value:
    """SLICE, TAKE and TOP_K, along an axis that is not of steps."""
    (source,), arg = sources, node.arg
    assert isinstance(arg, Slice | Take | TopK)
    if arg.axis in source.axes:
        raise NeedsAll(source.axes[arg.axis].stretches, node, "picks among the steps")
    return made(node, [source.node], source.axes, source.kind)


def _concat(walk: Walk, node: Node, sources: list[Value]) -> Value:
    joined_at = node.arg
    assert isinstance(joined_at, int)
    if any(joined_at in source.axes for source in sources):
        raise NeedsAll(stretches_of(sources), node, "lays sequences side by side")
    nodes, found = met(walk, node, sources, range(1, len(node.shape)))
    axes = {
        place: attrs.evolve(axis, tail=kinds.joined(tails))
        for place, (axis, tails) in found.items()
    }
    return made(node, nodes, axes, kinds.joined([each.kind for each in sources]))


def _reduction(walk: Walk, node: Node, sources: list[Value]) -> Value:
    (source,), reduced = sources, node.arg
    assert isinstance(reduced, tuple)
    axes = {}
    for place, axis in source.axes.items():
        if place in reduced:
            _check_reduced(walk, node, axis)
        else:
            axes[place] = attrs.evolve(axis, tail=_of_reduced(node, axis.tail))
    over_steps = [place for place in reduced if place in source.axes]
    kind = kind_of(node, sources)
    if node.op is not Op.MEAN or not over_steps:
        return made(node, [source.node], axes, kind)
    # The mean is over the whole length, whatever the bucket's.
    total = attrs.evolve(node, op=Op.SUM)
    summed = made(total, [source.node], axes, kind)
    count = math.prod(int(node.sources[0].shape[place]) for place in reduced)
    mean = make(Op.MUL, summed.node, scalar_like(1 / count, summed.node), name=node.name)
    return attrs.evolve(summed, node=attrs.evolve(mean, shape=summed.node.shape))


def _check_reduced(walk: Walk, node: Node, axis: Axis) -> None:
    """Check that a reduction over an axis is the same without the steps that are left out."""
    mode, tail = walk.mode_of(axis.steps), axis.tail
    if mode is Mode.ALIVE:
        needless = node.op is not Op.REDUCE_MAX or is_plain(tail)
    elif node.op in (Op.SUM, Op.MEAN):
        needless = tail == 0.0 or tail is SHARE
    elif node.op is Op.REDUCE_MAX:
        needless = is_alike(tail) if mode is Mode.EMPTY else is_low(tail)
        walk.needs_step.add(axis.steps.most)
    else:
        needless = node.op is Op.PROD and tail == 1.0
    if not needless:
        raise NeedsAll(axis.stretches, node, "goes over all steps, masked or not")


def _of_reduced(node: Node, tail: Kind) -> Kind:
    """Return the kind of a reduction of elements of one kind, over another axis."""
    if node.op is Op.PROD or (node.op is Op.SUM and tail != 0.0 and tail is not SHARE):
        return kinds.mixed([tail])
    return tail


def _normal(walk: Walk, axis: Axis) -> Axis:
    """Return an axis after its elements were normalised along another one."""
    kept = walk.mode_of(axis.steps) is not Mode.EMPTY or is_alike(axis.tail)
    return attrs.evolve(axis, tail=PLAIN if kept else ANY)


def _softmax(walk: Walk, node: Node, sources: list[Value]) -> Value:
    (source,), place = sources, node.arg
    assert isinstance(place, int)
    axes = {at: _normal(walk, axis) for at, axis in source.axes.items()}
    axis = source.axes.get(place)
    if axis is not None:
        mode = walk.mode_of(axis.steps)
        test = {Mode.DEAD: is_low, Mode.ALIVE: is_plain, Mode.EMPTY: is_alike}[mode]
        if axis.steps.each != 1 or not test(axis.tail):
            raise NeedsAll(axis.stretches, node, "goes over all steps, masked or not")
        walk.needs_step.add(axis.steps.most)
        results: dict[Mode, Kind] = {Mode.DEAD: 0.0, Mode.ALIVE: PLAIN, Mode.EMPTY: SHARE}
        axes[place] = attrs.evolve(axis, tail=results[mode])
    return made(node, [source.node], axes, PLAIN)


def _layer_norm(walk: Walk, node: Node, sources: list[Value]) -> Value:
    source, last = sources[0], len(node.shape) - 1
    if last in source.axes:
        raise NeedsAll(source.axes[last].stretches, node, "goes over all steps, masked or not")
    axes = {at: _normal(walk, axis) for at, axis in source.axes.items()}
    return made(node, nodes_of(sources), axes, PLAIN)


def _matmul(walk: Walk, node: Node, sources: list[Value]) -> Value:
    a, b = sources
    rank = len(node.shape)
    inner = [(a, rank - 1), (b, rank - 2)]
    contracted = [(value, place) for value, place in inner if place in value.axes]
    nodes = nodes_of(sources)
    if contracted:
        value, place = contracted[0]
        steps = value.axes[place].steps
        blamed = a.stretches | b.stretches
        if any(other.axes[at].steps.most != steps.most for other, at in contracted):
            raise NeedsAll(blamed, node, "joins steps of different sequences")
        tails = []
        for index, (each, at) in enumerate(inner):
            nodes[index], tail = cut(walk, each, at, steps)
            tails.append(tail)
        gone = walk.mode_of(steps) is Mode.ALIVE or _vanishes(tails)
        if not gone or steps.each != 1:
            raise NeedsAll(blamed, node, "goes over all steps, masked or not")
    batch, found = met(
        walk,
        node,
        [attrs.evolve(a, node=nodes[0]), attrs.evolve(b, node=nodes[1])],
        range(1, rank - 2),
    )
    axes = {
        place: attrs.evolve(axis, tail=_product(tails)) for place, (axis, tails) in found.items()
    }
    for value, place, other in ((a, rank - 2, b), (b, rank - 1, a)):
        if place in value.axes:
            axis = value.axes[place]
            axes[place] = attrs.evolve(axis, tail=_product([axis.tail, other.kind]))
    return made(node, batch, axes, kinds.mixed([a.kind, b.kind]))


def _vanishes(tails: Sequence[Kind]) -> bool:
    """Whether a sum of products over steps is the same without the steps that are left out."""
    others = [tail for tail in tails if tail is not SHARE]
    return all(map(is_plain, others)) and (0.0 in others or len(others) == 1)


def _product(tails: Sequence[Kind]) -> Kind:
    return 0.0 if 0.0 in tails and all(map(is_plain, tails)) else kinds.mixed(tails)


def _linear(walk: Walk, node: Node, sources: list[Value]) -> Value:
    arg = node.arg
    assert isinstance(arg, Linear)
    inputs, constants = sources[: arg.n_inputs], sources[arg.n_inputs :]
    last = len(node.shape) - 1
    for value in inputs:
        axis = value.axes.get(last)
        # Each step has weights of its own: those of steps that are 0 are left out, see ``bind``.
        if axis is not None:
            gone = walk.mode_of(axis.steps) is Mode.ALIVE or axis.tail == 0.0
            if arg.grouped or not gone:
                raise NeedsAll(axis.stretches, node, "has weights for each step, masked or not")
        group = value.axes.get(last - 1) if arg.grouped else None
        if group is not None:
            raise NeedsAll(group.stretches, node, "has weights for each step")
    nodes, found = met(walk, node, inputs, range(1, last))
    bounded = arg.activation in (Op.SIGMOID, Op.TANH)
    axes = {}
    for place, (axis, tails) in found.items():
        free = bounded and walk.mode_of(axis.steps) is not Mode.EMPTY
        axes[place] = attrs.evolve(axis, tail=PLAIN if free else kinds.mixed(tails))
    kind = PLAIN if bounded else kinds.mixed([each.kind for each in inputs])
    return made(node, [*nodes, *nodes_of(constants)], axes, kind)


RULES: Final[Mapping[Op, Rule]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    Op.RESHAPE: _reshape,
    Op.TRANSPOSE: _transpose,
    Op.EXPAND: _same,
    Op.TO_ROWS: _same,
    Op.SLICE: _of_one_axis,
    Op.TAKE: _of_one_axis,
    Op.TOP_K: _of_one_axis,
    Op.CONCAT: _concat,
    **dict.fromkeys(REDUCTIONS, _reduction),
    Op.SOFTMAX: _softmax,
    Op.LAYER_NORM: _layer_norm,
    Op.MATMUL: _matmul,
    Op.LINEAR: _linear,
}

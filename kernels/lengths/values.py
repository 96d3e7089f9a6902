"""What a proof goes by: values with axes of steps, and how they meet."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

import attrs
import numpy as np

from kernels.ir.node import Node, Op, Shape, Slice, Steps
from kernels.lengths import kinds
from kernels.lengths.columns import Stretch
from kernels.lengths.kinds import ANY, Kind


class NeedsAll(Exception):
    """An op needs every step of some inputs.

    Attributes:
        stretches: Those inputs.
        why: Which op, and what it does.
    """

    def __init__(self, stretches: Iterable[Stretch], node: Node, why: str) -> None:
        super().__init__(why)
        self.stretches = frozenset(stretches)
        self.why = f"{node.op} {node.name!r} {why}"


@attrs.frozen
class Axis:
    """An axis of steps.

    Attributes:
        steps: Its dimension.
        tail: Of the elements past the batch's length.
        stretches: The inputs that it comes of.
    """

    steps: Steps
    tail: Kind
    stretches: frozenset[Stretch]


@attrs.frozen(eq=False)
class Value:
    """A node of the new graph.

    Attributes:
        kind: Of its elements, whichever.
        axes: Of steps, by their place in the shape.
    """

    node: Node
    kind: Kind
    axes: Mapping[int, Axis] = attrs.field(factory=dict)

    @property
    def stretches(self) -> frozenset[Stretch]:
        """The inputs that any of its axes comes of."""
        return frozenset().union(*(axis.stretches for axis in self.axes.values()))


class Mode(enum.Enum):
    """Which elements of an axis a walk is about: its tails are of these."""

    DEAD = "dead"  # past the batch's length
    ALIVE = "alive"  # of a step that counts
    EMPTY = "empty"  # all, of a row in which no step counts and each is like the others


@attrs.define
class Walk:
    """What rules ask and tell beside the values.

    Attributes:
        mode: Of axes of ``most`` steps, or of all if that is None; others are DEAD.
        needs_step: See ``Proof``.
    """

    mode: Mode
    most: int | None = None
    needs_step: set[int] = attrs.field(factory=set)

    def mode_of(self, steps: Steps) -> Mode:
        """Return the mode of an axis."""
        return self.mode if self.most in (None, steps.most) else Mode.DEAD


def cut(walk: Walk, value: Value, place: int, steps: Steps) -> tuple[Node, Kind]:
    """Return a value that meets an axis of steps, cut to it, and the kind of its tail."""
    node, axis = value.node, value.axes.get(place)
    if axis is not None:
        return node, axis.tail
    if node.shape[place] == 1:
        return node, value.kind
    shape = resized(node.shape, place, steps)
    if node.op is Op.EXPAND and node.sources[0].shape[place] == 1:
        return attrs.evolve(node, shape=shape), value.kind
    part = Node(Op.SLICE, (node,), shape, node.dtype, Slice(place, 0, steps), node.name)
    alike = walk.mode_of(steps) is not Mode.EMPTY or isinstance(value.kind, float)
    return part, value.kind if alike else ANY


def met(
    walk: Walk, node: Node, sources: Sequence[Value], places: Iterable[int]
) -> tuple[list[Node], dict[int, tuple[Axis, list[Kind]]]]:
    """Bring sources of one rank together on axes of steps.

    Returns:
        The sources, cut where they are not of steps; and by place the axis, its tail not yet
        known, with the kinds of the sources' tails.
    """
    nodes = nodes_of(sources)
    found: dict[int, tuple[Axis, list[Kind]]] = {}
    for place in places:
        axes = [source.axes[place] for source in sources if place in source.axes]
        if not axes:
            continue
        blamed = frozenset().union(*(axis.stretches for axis in axes))
        sizes = {(axis.steps.most, axis.steps.each) for axis in axes}
        if len(sizes) > 1:
            raise NeedsAll(blamed, node, "joins steps of different sequences")
        tails: list[Kind] = []
        for index, source in enumerate(sources):
            current = attrs.evolve(source, node=nodes[index])
            nodes[index], tail = cut(walk, current, place, axes[0].steps)
            tails.append(tail)
        found[place] = Axis(axes[0].steps, ANY, blamed), tails
    return nodes, found


def made(node: Node, sources: Sequence[Node], axes: Mapping[int, Axis], kind: Kind) -> Value:
    """Return a node's value, with new sources and axes of steps."""
    shape = node.shape
    for place, axis in axes.items():
        shape = resized(shape, place, axis.steps)
    return Value(with_shape(node, sources, shape), kind, axes)


def with_shape(node: Node, sources: Sequence[Node], shape: Shape) -> Node:
    """Return a node that reads other sources and has another shape."""
    return attrs.evolve(node, sources=tuple(sources), shape=shape)


def resized(shape: Shape, place: int, steps: Steps) -> Shape:
    """Return a shape with another dimension of steps."""
    return (*shape[:place], steps, *shape[place + 1 :])


def nodes_of(values: Iterable[Value]) -> list[Node]:
    """Return the values' nodes."""
    return [value.node for value in values]


def stretches_of(values: Iterable[Value]) -> frozenset[Stretch]:
    """Return the inputs that any of the values' axes comes of."""
    return frozenset().union(*(value.stretches for value in values))


def kind_of_array(node: Node) -> Kind:
    """Return the kind of a constant's elements."""
    array = np.asarray(node.array, np.float64)
    if not array.size or np.isnan(array).any():
        return ANY
    low, high = float(array.min()), float(array.max())
    if low == high:
        return kinds.number(low)
    return kinds.joined([kinds.number(low), kinds.number(high)])

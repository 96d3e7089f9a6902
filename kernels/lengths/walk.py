"""The proof: a graph is gone through with axes of steps, and what is known of their tails.

Each op has a rule. A rule says which axes of a result are of steps, and of what kind the elements
past the batch's length are; or that the op needs every step, which is raised as ``NeedsAll`` with
the inputs that are to blame. The graph is made anew on the way: with ``Steps`` for these axes, and
with what has a fixed axis cut to the length of the steps that it meets.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from kernels.ir.node import Graph, Node, Op, Slice, Steps
from kernels.lengths.columns import Stretch
from kernels.lengths.kinds import PLAIN, Kind
from kernels.lengths.rules import RULES, kind_of
from kernels.lengths.values import (
    Axis,
    Mode,
    NeedsAll,
    Value,
    Walk,
    kind_of_array,
    nodes_of,
    stretches_of,
    with_shape,
)


@attrs.frozen(eq=False)
class Proof:
    """What a walk found.

    Attributes:
        graph: With ``Steps``.
        needs_step: The numbers of steps of sequences of which a batch may not be short where
            some row has no step at all.
    """

    graph: Graph
    needs_step: frozenset[int]


def prove(
    graph: Graph,
    tails: Mapping[Stretch, Kind],
    mode: Mode = Mode.DEAD,
    most: int | None = None,
) -> Proof:
    """Go through a graph.

    Args:
        graph: In normal form.
        tails: The stretches to shorten, which no other value of an input overlaps, and the kind
            of their elements past the length, or of those that ``mode`` says.
        mode: DEAD proves that the graph is the same without the steps past the length of a batch
            all of whose rows have steps that count, where ``needs_step`` says so. ALIVE proves that
            one step that counts is enough: its scores are plain wherever masked ones are
            normalised. EMPTY proves what DEAD does of rows that have no step, but of which each
            step is like the others: normalised to an n-th each, they come to the same whatever n.
        most: The steps of the sequences that this is about; of others, it is DEAD.

    Raises:
        NeedsAll: Not all of them can be.
    """
    walk = Walk(mode, most)
    values: dict[Node, Value] = {}
    for node in graph.nodes():
        sources = [values[source] for source in node.sources]
        values[node] = _leaf(walk, node, sources, tails) or _result(walk, node, sources)
    output = values[graph.output]
    if output.axes:
        raise NeedsAll(output.stretches, graph.output, "is an output")
    inputs = {
        name: values[node].node if node in values else node for name, node in graph.inputs.items()
    }
    made = attrs.evolve(graph, inputs=inputs, output=output.node)
    return Proof(made, frozenset(walk.needs_step))


def _leaf(
    walk: Walk, node: Node, sources: list[Value], tails: Mapping[Stretch, Kind]
) -> Value | None:
    """Return a constant, an input, or a stretch of one that is to be shortened."""
    if node.op is Op.CONST:
        return Value(node, kind_of_array(node))
    if node.op is Op.INPUT:
        place = (str(node.arg), 0, node.width)
    elif node.op is Op.SLICE and node.sources[0].op is Op.INPUT:
        assert isinstance(node.arg, Slice)
        place = (str(node.sources[0].arg), node.arg.start, node.arg.stop)
    else:
        return None
    for stretch, tail in tails.items():
        if (stretch.input, stretch.start, stretch.stop) == place:
            steps = Steps(stretch.most, stretch.each, last=stretch.last)
            assert node.lead is not None
            made = with_shape(node, nodes_of(sources), (node.lead, steps))
            every = walk.mode_of(steps) is Mode.EMPTY
            axis = Axis(steps, tail, frozenset({stretch}))
            return Value(made, tail if every else PLAIN, {1: axis})
    return Value(node, PLAIN) if node.op is Op.INPUT else None


def _result(walk: Walk, node: Node, sources: list[Value]) -> Value:
    if not any(source.axes for source in sources):
        made = with_shape(node, nodes_of(sources), node.shape)
        return Value(made, kind_of(node, sources))
    if node.op not in RULES:
        raise NeedsAll(stretches_of(sources), node, "has no rule")
    return RULES[node.op](walk, node, sources)

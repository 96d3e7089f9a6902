"""A graph with ``Steps`` becomes that of one length: fewer columns, steps and weights of steps."""

from __future__ import annotations

import attrs
import numpy as np

from kernels.ir.node import Dim, Graph, Linear, Node, Op, Slice, Steps, const


def has_steps(graph: Graph) -> bool:
    """Whether some sequences of a graph may be shorter."""
    return any(_steps(node) for node in graph.nodes())


def bind(graph: Graph, length: int) -> Graph:
    """Return the graph of a length, in which no ``Steps`` are left.

    Args:
        graph: As ``find_sequences`` made it.
        length: Steps of a sequence; of one that has no more, all. At least 1.
    """
    if length < 1:
        raise ValueError(f"{graph.model}: want at least 1 step, got {length}")
    bound = _Bound(graph, length)
    for node in graph.nodes():
        bound.add(node)
    for node in graph.inputs.values():
        bound.add(node)
    inputs = {name: bound.nodes[node] for name, node in graph.inputs.items()}
    return attrs.evolve(graph, inputs=inputs, output=bound.nodes[graph.output])


def _steps(node: Node) -> list[Steps]:
    return [dim for dim in node.shape if isinstance(dim, Steps)]


@attrs.define(eq=False)
class _Bound:
    graph: Graph
    length: int
    nodes: dict[Node, Node] = attrs.field(factory=dict)
    gone: dict[Node, list[tuple[int, int]]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        """Note which columns of each input go: from where, and how many."""
        for node in self.graph.nodes():
            if node.op is Op.SLICE and node.sources[0].op is Op.INPUT and _steps(node):
                part, (steps,) = node.arg, _steps(node)
                assert isinstance(part, Slice)
                found = part.start, steps - self.size(steps)
                self.gone.setdefault(node.sources[0], []).append(found)

    def size(self, dim: int) -> int:
        return dim.at(self.length) if isinstance(dim, Steps) else dim

    def column(self, node: Node, column: int) -> int:
        """Return where a column of an input lies now."""
        return column - sum(n for start, n in self.gone.get(node, ()) if start < column)

    def add(self, node: Node) -> None:
        if node in self.nodes:
            return
        sources = [self.nodes[source] for source in node.sources]
        shape: tuple[Dim, ...] = tuple(
            dim if not isinstance(dim, int) else self.size(dim) for dim in node.shape
        )
        arg = node.arg
        if node.op is Op.INPUT and not _steps(node):
            shape = (shape[0], self.column(node, node.width))
        elif isinstance(arg, Slice) and node.sources[0].op is Op.INPUT:
            start = self.column(node.sources[0], arg.start)
            size = shape[arg.axis]
            assert isinstance(size, int)
            arg = attrs.evolve(arg, start=start, stop=start + size * arg.step)
        elif isinstance(arg, Slice) and isinstance(arg.stop, Steps):
            start = arg.stop.start(self.length)
            arg = attrs.evolve(arg, start=start, stop=start + self.size(arg.stop))
        elif isinstance(arg, Linear) and any(
            isinstance(source.shape[-1], Steps) for source in node.sources[: arg.n_inputs]
        ):
            sources[arg.n_inputs] = self._weight(node, arg)
        self.nodes[node] = attrs.evolve(node, sources=tuple(sources), shape=shape, arg=arg)

    def _weight(self, node: Node, arg: Linear) -> Node:
        """Return the weight of a LINEAR without the rows of steps that are gone."""
        weight, kept, at = node.sources[arg.n_inputs], [], 0
        for source in node.sources[: arg.n_inputs]:
            depth = source.shape[-1]
            assert isinstance(depth, int)
            start = at + (depth.start(self.length) if isinstance(depth, Steps) else 0)
            kept.append(np.arange(start, start + self.size(depth)))
            at += depth
        return const(weight.array[np.concatenate(kept)], weight.name)

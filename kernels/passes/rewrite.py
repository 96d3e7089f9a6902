"""The rewriting core: a graph is rebuilt from its leaves up, and a rule may replace each node.

A rule sees a node whose sources have been rewritten already, and answers with a node of the same
shape and dtype that means the same, or with None. It is asked again until it has nothing to say.
What it makes beneath its answer is seen by the next walk only; ``optimise`` walks until nothing
changes. A walk that changes nothing returns the graph it was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from kernels.ir.node import Graph, Node, Op

# A rule that answers its own answers for ever is a fault of the rule; none needs ten.
_LIMIT: Final = 100


class Uses:
    """How often the nodes of the graph under a walk are read; the output counts once more."""

    def __init__(self, graph: Graph) -> None:
        self.old: Counter[Node] = Counter(
            source for node in graph.nodes() for source in node.sources
        )
        self.old[graph.output] += 1
        self._new: Counter[Node] = Counter()
        self._readers: dict[Node, set[Op]] = {}
        for node in graph.nodes():
            for source in node.sources:
                self._readers.setdefault(source, set()).add(node.op)

    def moved(self, old: Node, new: Node) -> None:
        """Note that ``new`` stands for ``old`` from here on."""
        self._new[new] += self.old[old]
        if new is not old:
            self._readers.setdefault(new, set()).update(self._readers.get(old, ()))

    def only_by(self, node: Node, ops: Collection[Op]) -> bool:
        """Whether all readers of ``node`` that are known are of these ops."""
        return self._readers.get(node, set()) <= set(ops)

    def once(self, node: Node) -> bool:
        """Whether one reader alone reads ``node``, so that merging it there doubles no work.

        False of a node made within this walk, whose readers are not known yet.
        """
        return self._new[node] == 1


Rule: TypeAlias = Callable[[Node, Uses], Node | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """Return ``graph`` with each node replaced as ``rule`` says, or ``graph`` itself.

    Raises:
        AssertionError: The rule changes a shape or a dtype, or never ends.
    """
    uses = Uses(graph)
    new: dict[Node, Node] = {}
    for node in graph.nodes():
        result = with_sources(node, [new[source] for source in node.sources])
        for _ in range(_LIMIT):
            better = rule(result, uses)
            if better is None or better is result:
                break
            same = better.shape == result.shape and better.dtype == result.dtype
            assert same, f"{result.op} {result.shape} became {better.op} {better.shape}"
            result = better
        else:
            raise AssertionError(f"the rules of {result.op} do not end")
        new[node] = result
        uses.moved(node, result)
    return with_output(graph, new[graph.output])


def replace(graph: Graph, replaced: Mapping[Node, Node]) -> Graph:
    """Return ``graph`` with nodes replaced; what stands for one is not walked again."""
    if not replaced:
        return graph
    new: dict[Node, Node] = {}

    def built(node: Node) -> Node:
        return with_sources(node, [new[source] for source in node.sources])

    for node in _through(graph, replaced):
        new[node] = new[replaced[node]] if node in replaced else built(node)
    return with_output(graph, new[graph.output])


def _through(graph: Graph, replaced: Mapping[Node, Node]) -> list[Node]:
    """Return nodes with sources first, where a replaced node's source is what replaces it."""
    done: dict[Node, None] = {}
    stack = [(graph.output, False)]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done[node] = None
            continue
        stack.append((node, True))
        below = (replaced[node],) if node in replaced else node.sources
        stack.extend((source, False) for source in reversed(below))
    return list(done)


def with_sources(node: Node, sources: Sequence[Node]) -> Node:
    """Return ``node`` reading ``sources``: itself, where it does already."""
    if all(old is new for old, new in zip(node.sources, sources, strict=True)):
        return node
    return attrs.evolve(node, sources=tuple(sources))


def with_output(graph: Graph, output: Node) -> Graph:
    """Return ``graph`` with another output: itself, where it is the one that it has."""
    return graph if output is graph.output else attrs.evolve(graph, output=output)


def by_op(table: Mapping[Op, Sequence[Rule]]) -> Rule:
    """Make one rule of many: those of a node's op are asked in their order."""

    def rule(node: Node, uses: Uses) -> Node | None:
        for each in table.get(node.op, ()):
            better = each(node, uses)
            if better is not None and better is not node:
                return better
        return None

    return rule

"""A graph becomes a chain of launches: phases of row tiles, and between them what has a kernel of its own.

A node *bounds* phases if it runs as its own launch: a Linear with weights too large to be streamed
by every tile, or a sequence program. All other nodes are computed by tiles, as late as their
readers allow, so that few values cross memory between launches. Values of requests that rows read
are computed first, by phases of their own.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from kernels.ir.node import Graph, Lead, Linear, Node, Op, Slice, topological
from kernels.plan.expression import ELEMENTWISE, MOVEMENT

# Bytes of one Linear's weights. Below, streaming them through every tile costs less than a launch
# and a trip of the activations through memory (tried with up to 1.5 MB a graph).
WIDE_BYTES: Final = 1_200_000
# Columns; where a 16-byte access may begin in rows of 16-bit elements.
ALIGNED_COLUMNS: Final = 8


class Kind(enum.StrEnum):
    """What kernel runs a phase."""

    TILE = "tile"
    WIDE = "wide"
    ATTENTION = "attention"
    ENCODER = "encoder"


_SEQUENCES: Final = {Op.TARGET_ATTENTION: Kind.ATTENTION, Op.ENCODER: Kind.ENCODER}


@attrs.frozen(eq=False)
class Phase:
    """One launch.

    Attributes:
        lead: What its rows are.
        outputs: What it leaves in memory, or the graph's output. One node, for kinds but TILE.
        chain: For kinds but TILE: the node that a kernel of its own runs, then the elementwise ops
            that its epilogue computes, each a reader of the one before; the last is the output.
    """

    kind: Kind
    lead: Lead
    outputs: tuple[Node, ...]
    chain: tuple[Node, ...] = ()


@attrs.frozen(eq=False)
class MatrixView:
    """Consecutive columns of a value that lies in memory as a row-major matrix."""

    base: Node
    column: int


def plan_phases(graph: Graph, *, wide: bool, sequences: bool) -> list[Phase]:
    """Cut a graph into phases, in the order in which they run.

    Args:
        wide: Whether large Linears get launches of their own.
        sequences: The same of sequence programs; without, the graph must hold none.
    """
    nodes = list(graph.nodes())
    kinds: dict[Node, Kind] = {}
    for node in nodes:
        if sequences and node.op in _SEQUENCES:
            kinds[node] = _SEQUENCES[node.op]
        elif wide and is_wide(node):
            kinds[node] = Kind.WIDE
    shared = dict.fromkeys(node.sources[0] for node in nodes if node.op is Op.TO_ROWS)
    roots = [each for each in shared if not is_view_of_input(each)]
    phases = _Chain(graph, Lead.REQUESTS, kinds, roots).phases() if roots else []
    return phases + _Chain(graph, Lead.ROWS, kinds, [graph.output]).phases()


def is_wide(node: Node) -> bool:
    """Whether a node is a Linear whose weights only a kernel across the card should read."""
    if node.op is not Op.LINEAR:
        return False
    assert isinstance(node.arg, Linear)
    inner = node.dims[:-2] if node.arg.grouped else node.dims[:-1]
    return not inner and node.sources[-2].width * 2 >= WIDE_BYTES


def is_view_of_input(node: Node) -> bool:
    """Whether a value is an input, or movement of one: readable where it lies."""
    if node.op is Op.INPUT:
        return True
    return node.op in MOVEMENT and all(is_view_of_input(each) for each in node.sources)


def matrix_view(node: Node) -> MatrixView | None:
    """Return where a value's columns lie in the value that it is moved from, if consecutive."""
    if node.op is Op.RESHAPE:
        return matrix_view(node.sources[0])
    if node.op is Op.SLICE:
        skipped, below = consecutive_start(node), matrix_view(node.sources[0])
        if skipped is None or below is None:
            return None
        return MatrixView(below.base, below.column + skipped)
    return None if node.op in MOVEMENT else MatrixView(node, 0)


def consecutive_start(node: Node) -> int | None:
    """Return the first element that a SLICE keeps of a row, if those that it keeps are neighbours."""
    assert isinstance(node.arg, Slice)
    dims, axis = node.sources[0].dims, node.arg.axis - 1
    if node.arg.step != 1 or math.prod(dims[:axis]) != 1:
        return None
    return node.arg.start * math.prod(dims[axis + 1 :])


def aligned_view(node: Node) -> MatrixView | None:
    """Return ``matrix_view``, if a 16-byte access may begin at its first column."""
    view = matrix_view(node)
    return None if view is None or view.column % ALIGNED_COLUMNS else view


@attrs.define(eq=False)
class _Chain:
    """Stages of one lead's nodes: even ones are tiles, odd ones hold the ends of bounding chains."""

    graph: Graph
    lead: Lead
    kinds: Mapping[Node, Kind]
    roots: Sequence[Node]
    readers: dict[Node, list[Node]] = attrs.field(factory=dict)
    chains: dict[Node, tuple[Node, ...]] = attrs.field(factory=dict)
    stage: dict[Node, int] = attrs.field(factory=dict)
    stored: set[Node] = attrs.field(factory=set)
    wanted: dict[int, list[Node]] = attrs.field(factory=dict)

    def phases(self) -> list[Phase]:
        members = [node for node in topological(self.roots) if self._is_member(node)]
        for node in members:
            for source in dict.fromkeys(node.sources):
                self.readers.setdefault(source, []).append(node)
        for node in members:
            if node in self.kinds:
                chain = self._with_epilogue(node)
                self.chains[chain[-1]] = chain
        self._assign_stages(members)
        self.stored.update(self.chains)
        for root in self.roots:
            self._store(root)
        last = max(self.stage.values())
        # Backwards: what a later stage reads, an earlier one has to store.
        for at in range(last, -1, -1):
            for end in self._ends(at):
                self._store_sources(end, at)
            for node in self.wanted.get(at, ()) if at % 2 == 0 else ():
                for source in node.sources:
                    self._want(source, at)
        found: list[Phase] = []
        for at in range(last + 1):
            for end in self._ends(at):
                chain = self.chains[end]
                found.append(Phase(self.kinds[chain[0]], self.lead, (end,), chain))
            if at % 2 == 0 and self.wanted.get(at):
                found.append(Phase(Kind.TILE, self.lead, tuple(self.wanted[at])))
        return found

    def _is_member(self, node: Node) -> bool:
        return node.lead is self.lead and node.op not in (Op.INPUT, Op.TO_ROWS)

    def _ends(self, at: int) -> list[Node]:
        return [end for end in self.chains if self.stage[end] == at]

    def _with_epilogue(self, core: Node) -> tuple[Node, ...]:
        """Follow the only readers that are elementwise over values that lie in memory by then."""
        chain = [core]
        while self.kinds[core] is Kind.WIDE and chain[-1] not in self.roots:
            readers = self.readers.get(chain[-1], [])
            if len(readers) != 1 or not self._is_epilogue(readers[0], chain[-1]):
                break
            if readers[0] is self.graph.output:  # its floats are for tiles to write
                break
            chain.append(readers[0])
        return tuple(chain)

    def _is_epilogue(self, node: Node, end: Node) -> bool:
        if node.op not in ELEMENTWISE or node.shape != end.shape or node in self.kinds:
            return False
        return all(each is end or self._is_stored_before(each, end) for each in node.sources)

    def _is_stored_before(self, node: Node, end: Node) -> bool:
        """Whether a value can lie in memory without waiting for anything that ``end`` does not."""
        if node.op in (Op.INPUT, Op.CONST):
            return True
        return node in set(topological([end])) or (
            node.op in MOVEMENT and all(self._is_stored_before(each, end) for each in node.sources)
        )

    def _assign_stages(self, members: Sequence[Node]) -> None:
        for node in members:
            before = [self.stage[each] for each in node.sources if each in self.stage]
            latest = max(before, default=-1)
            # The next odd stage after all sources, or the first even one that is not before them.
            ends = node in self.chains
            self.stage[node] = latest + 1 + latest % 2 if ends else latest + latest % 2
            self.stage[node] = max(self.stage[node], 1 if ends else 0)
        for node in reversed(members):
            if node not in self.chains and node not in self.roots:
                limits = (
                    self.stage[reader] - (1 if reader in self.chains else 0)
                    for reader in self.readers[node]
                )
                self.stage[node] = max(min(limits), self.stage[node])

    def _store_sources(self, end: Node, at: int) -> None:
        """Let the kernel that ends with ``end`` find what it reads."""
        core, *epilogue = self.chains[end]
        for source in core.sources:
            if source.lead is not self.lead or source.op is Op.INPUT:
                continue
            view = aligned_view(source)
            if view is None:
                self._store(source)
            elif view.base.op is not Op.INPUT:
                self._store(view.base)
        for node in epilogue:
            for source in node.sources:
                if source not in self.chains[end]:
                    self._want(source, at)

    def _want(self, node: Node, at: int) -> None:
        """Let stage ``at`` read ``node``: computed by it, or from what earlier ones store."""
        if not self._is_member(node) or node in self.stored:
            return
        if self.stage[node] >= at or node.op in MOVEMENT or self._is_computable(node):
            for source in node.sources:
                self._want(source, at)
        else:
            self._store(node)

    def _is_computable(self, node: Node) -> bool:
        """Whether elementwise ops over what lies in memory anyway give the value."""
        if not self._is_member(node) or node in self.stored:
            return True
        if node.op not in ELEMENTWISE and node.op not in MOVEMENT:
            return False
        return all(self._is_computable(source) for source in node.sources)

    def _store(self, node: Node) -> None:
        if node not in self.stored:
            self.stored.add(node)
            self.wanted.setdefault(self.stage.get(node, 0), []).append(node)

"""A graph becomes a chain of launches: row tiles, and between them what has a kernel of its own.

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
# Matrices that a wide Linear's epilogue may read; each takes shared memory from the ring.
MOST_STAGED: Final = 2
# Which source of TARGET_ATTENTION is the mask.
_MASK: Final = 2


class Kind(enum.StrEnum):
    """What kernel runs a phase."""

    TILE = "tile"
    WIDE = "wide"
    ATTENTION = "attention"
    ENCODER = "encoder"


SEQUENCES: Final = {Op.TARGET_ATTENTION: Kind.ATTENTION, Op.ENCODER: Kind.ENCODER}


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


def plan_phases(
    graph: Graph,
    *,
    wide: bool,
    sequences: bool,
    reads_inputs: bool = True,
    item_bytes: int = 2,
) -> list[Phase]:
    """Cut a graph into phases, in the order in which they run.

    Args:
        graph: As the passes leave it; it is not changed.
        wide: Whether large Linears get launches of their own.
        sequences: The same of sequence programs; without, the graph must hold none.
        reads_inputs: Whether wide Linears can read the inputs where they lie.
        item_bytes: Of a stored element.
    """
    nodes = list(graph.nodes())
    kinds: dict[Node, Kind] = {}
    for node in nodes:
        if sequences and node.op in SEQUENCES:
            kinds[node] = SEQUENCES[node.op]
        elif wide and is_wide(node, item_bytes):
            kinds[node] = Kind.WIDE
    shared = dict.fromkeys(node.sources[0] for node in nodes if node.op is Op.TO_ROWS)
    roots = [each for each in shared if not is_view_of_input(each)]
    phases = []
    if roots:
        phases += _Chain(graph, Lead.REQUESTS, kinds, roots, reads_inputs).phases()
    return phases + _Chain(graph, Lead.ROWS, kinds, [graph.output], reads_inputs).phases()


def is_wide(node: Node, item_bytes: int = 2) -> bool:
    """Whether a node is a Linear whose weights only a kernel across the card should read."""
    if node.op is not Op.LINEAR:
        return False
    assert isinstance(node.arg, Linear)
    inner = node.dims[:-2] if node.arg.grouped else node.dims[:-1]
    if node.arg.grouped and any(each.dims[-1] % ALIGNED_COLUMNS for each in node.sources[:-2]):
        return False
    return not inner and node.sources[-2].width * item_bytes >= WIDE_BYTES


def is_view_of_input(node: Node) -> bool:
    """Whether a value is an input, or movement of one: readable where it lies."""
    if node.op is Op.INPUT:
        return True
    return node.op in MOVEMENT and all(is_view_of_input(each) for each in node.sources)


def is_uniform(node: Node) -> bool:
    """Whether a value is a constant of equal elements."""
    return node.op is Op.CONST and len(set(node.array.ravel().tolist())) == 1


def staged_by(chain: Sequence[Node]) -> tuple[Node, ...]:
    """Return what an epilogue reads besides the sums and uniform constants, each once."""
    found = (source for node in chain[1:] for source in node.sources)
    return tuple(dict.fromkeys(s for s in found if s not in chain and not is_uniform(s)))


def tested(mask: Node) -> Node:
    """Return the value that a mask tests by elementwise ops alone, or the mask itself."""
    leaves: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node.op in ELEMENTWISE and node.shape == mask.shape:
            for source in node.sources:
                visit(source)
        elif not is_uniform(node):
            leaves[node] = None

    visit(mask)
    only = next(iter(leaves)) if len(leaves) == 1 else mask
    return only if only.shape == mask.shape and located_base(only) is not None else mask


def located_base(node: Node) -> Node | None:
    """Return the value in memory whose neighbouring columns ``node`` is, maybe of a request."""
    while node.op in (Op.TO_ROWS, Op.RESHAPE, Op.SLICE):
        if node.op is Op.SLICE and consecutive_start(node) is None:
            return None
        node = node.sources[0]
    return None if node.op in MOVEMENT else node


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
    """Return the first element that a SLICE keeps of a row, if those that it keeps lie together."""
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
    """Stages of one lead's nodes: even ones are tiles, odd ones hold ends of bounding chains."""

    graph: Graph
    lead: Lead
    kinds: Mapping[Node, Kind]
    roots: Sequence[Node]
    reads_inputs: bool
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
        last = max(self.stage.values(), default=0)
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
        chain, staged = [core], set[Node]()
        while self.kinds[core] is Kind.WIDE and chain[-1] not in self.roots:
            readers = self.readers.get(chain[-1], [])
            if len(readers) != 1 or not self._is_epilogue(readers[0], chain[-1], core):
                break
            staged.update(staged_by((*chain, readers[0])))
            if len(staged) > MOST_STAGED or readers[0] is self.graph.output:
                break  # the output's floats are for tiles to write
            chain.append(readers[0])
        return tuple(chain)

    def _is_epilogue(self, node: Node, end: Node, core: Node) -> bool:
        if node.op not in ELEMENTWISE or node.shape != end.shape or node in self.kinds:
            return False
        return all(
            each is end
            or is_uniform(each)
            or (each.shape == end.shape and self._is_ready_before(each, core))
            for each in node.sources
        )

    def _is_ready_before(self, node: Node, core: Node) -> bool:
        """Whether a value can lie in memory without waiting for anything that ``core`` does not."""
        if node.op in (Op.INPUT, Op.CONST):
            return True
        return node in set(topological(core.sources)) or (
            node.op in MOVEMENT and all(self._is_ready_before(each, core) for each in node.sources)
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
        chain = self.chains[end]
        core, kind = chain[0], self.kinds[chain[0]]
        for index, source in enumerate((*core.sources, *staged_by(chain))):
            if source.lead is not self.lead or source in self.stored:
                continue
            if kind is Kind.ATTENTION and index == _MASK:
                source = tested(source)  # what the kernel reads instead
            base = self._readable_base(source, kind)
            if base is None:
                self._store(source)
            elif base.op is not Op.INPUT and base.lead is self.lead:
                self._store(base)

    def _readable_base(self, source: Node, kind: Kind) -> Node | None:
        """Return the value whose matrix a kernel can read ``source`` from, or None."""
        if kind is not Kind.WIDE:
            return located_base(source)
        view = aligned_view(source)
        if view is None or (view.base.op is Op.INPUT and not self.reads_inputs):
            return None
        return view.base

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

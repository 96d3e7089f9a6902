"""Which inputs of a graph are sequences that may be shorter, and which are the marks that say so.

What looks like steps is tried as such, and what looks like a mask as one; what the proof does not
bear out is left as it is. Of the masks, as few stay marks as the proof needs: each mark more is one
more thing that keeps batches long.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Final

import attrs

from kernels.ir.node import Graph, Node, Op, Slice
from kernels.ir.rules import ELEMENTWISE
from kernels.lengths.columns import Mark, Shortened, Stretch
from kernels.lengths.kinds import PLAIN, Kind
from kernels.lengths.values import Mode, NeedsAll
from kernels.lengths.walk import Proof, prove
from kernels.passes.optimise import simplify


@attrs.frozen(eq=False)
class Found:
    """A graph with its sequences.

    Attributes:
        graph: With ``Steps`` where lengths may vary; as it was given where none may.
        shortened: The sequences that may be shorter; None if there are none.
        whole: What looks like sequences and needs its whole length, and why.
    """

    graph: Graph
    shortened: Shortened | None = None
    whole: Mapping[Stretch, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class InputFacts:
    """What is known of a graph's inputs beside the graph.

    Attributes:
        first_values: The first column of each input that holds numbers: those before are looked
            up, and no mask. Of an input that is not named, all are numbers.
        padded_left: Inputs and columns of them where lists begin that are padded on the left: of
            sequences of as many steps the last stay where they are shorter. It is a matter of what
            batches are like: where it is wrong, these are seldom short.
    """

    first_values: Mapping[str, int] = attrs.field(factory=dict)
    padded_left: Collection[tuple[str, int]] = ()


_UNKNOWN: Final = InputFacts()


def find_sequences(graph: Graph, facts: InputFacts = _UNKNOWN) -> Found:
    """Find the sequences of a dense graph, as imported, that may be shorter than they are."""
    simple = simplify(graph)
    candidates = _directed(_candidates(simple), facts.padded_left)
    rows = [each for each in candidates if each.each > 1]
    masks = [
        each
        for each in candidates
        if each.each == 1
        and each.start >= facts.first_values.get(each.input, 0)
        and any(other.most == each.most for other in rows)
    ]
    if not masks:
        return Found(graph, whole=dict.fromkeys(rows, "no input looks like its mask"))
    sizes = {each.most for each in rows}
    candidates = [each for each in candidates if each.most in sizes]
    tried = _Trial.of(simple, candidates, dict.fromkeys(masks, 0.0))
    for mask in masks:
        other = _Trial.of(simple, candidates, {**tried.dead, mask: 1.0})
        if other.worth > tried.worth:
            tried = other
    for mask in masks:
        fewer = {each: dead for each, dead in tried.dead.items() if each != mask}
        other = _Trial.of(simple, candidates, fewer)
        if fewer and other.worth >= tried.worth:
            tried = other
    whole = {each: why for each, why in tried.whole.items() if each.each > 1}
    if tried.proof is None:
        return Found(graph, whole=whole)
    shortened = Shortened(
        stretches=tuple(sorted(tried.stretches)),
        marks=tuple(
            Mark(each, dead) for each, dead in sorted(tried.dead.items()) if each in tried.stretches
        ),
        needs_step=tried.proof.needs_step,
        alike=_alike(simple, tried.stretches, tried.dead, tried.proof.needs_step),
    )
    return Found(tried.proof.graph, shortened, whole)


@attrs.frozen(eq=False)
class _Trial:
    """What comes of taking some inputs for marks.

    Attributes:
        dead: Those, and the number that masks a step out.
        stretches: What may be shorter then.
        proof: None if nothing may.
        whole: What may not, and why.
    """

    dead: Mapping[Stretch, float]
    stretches: Collection[Stretch]
    proof: Proof | None
    whole: Mapping[Stretch, str]

    @property
    def worth(self) -> int:
        """How many columns may be left out, at most."""
        return sum(each.most * each.each for each in self.stretches) if self.proof else 0

    @classmethod
    def of(
        cls, graph: Graph, candidates: Collection[Stretch], dead: Mapping[Stretch, float]
    ) -> _Trial:
        left = set(candidates)
        whole: dict[Stretch, str] = {}
        while any(each.each > 1 for each in left):
            try:
                proof = _proven(graph, left, dead)
            except NeedsAll as error:
                # Without its mask a sequence is lost for certain: those are the last to go.
                blamed = {each for each in error.stretches if each.each > 1} or error.stretches
                whole.update(dict.fromkeys(blamed, error.why))
                left -= blamed
                continue
            # Marks of what is left alone: others would keep batches long for nothing.
            sizes = {each.most for each in left if each.each > 1}
            return cls(dead, {each for each in left if each.most in sizes}, proof, whole)
        return cls(dead, (), None, whole)


def _proven(graph: Graph, left: Collection[Stretch], dead: Mapping[Stretch, float]) -> Proof:
    tails: dict[Stretch, Kind] = {each: dead.get(each, PLAIN) for each in left}
    proof = prove(graph, tails)
    if proof.needs_step:
        alive: dict[Stretch, Kind] = {
            each: 1 - dead[each] if each in dead else PLAIN for each in left
        }
        prove(graph, alive, Mode.ALIVE)
    for most in proof.needs_step:
        sides = {each.input for each in left if each in dead and each.most == most}
        if len(sides) > 1:
            raise NeedsAll(
                (each for each in left if each.most == most),
                graph.output,
                "depends on masks of both sides at once",
            )
    return proof


def _alike(
    graph: Graph,
    left: Collection[Stretch],
    dead: Mapping[Stretch, float],
    needs_step: Collection[int],
) -> frozenset[int]:
    """Return of which sequences a row without any step needs none, if its steps are alike."""
    tails: dict[Stretch, Kind] = {each: dead.get(each, PLAIN) for each in left}
    found = set()
    for most in needs_step:
        same = [each for each in left if each.most == most]
        # Of two masks, one's sequence may be empty, and another's not.
        if sum(each in dead for each in same) > 1 or len({each.input for each in same}) > 1:
            continue
        with contextlib.suppress(NeedsAll):
            prove(graph, tails, Mode.EMPTY, most)
            found.add(most)
    return frozenset(found)


def _candidates(graph: Graph) -> list[Stretch]:
    """Return what looks like steps: intervals of columns that nothing else overlaps."""
    readers: defaultdict[Node, list[Node]] = defaultdict(list)
    for node in graph.nodes():
        for source in dict.fromkeys(node.sources):
            readers[source].append(node)
    found = []
    for name, node in graph.inputs.items():
        parts = [each for each in readers[node] if _is_part(each)]
        views = [(part, *_span(part)) for part in parts]
        if len(parts) < len(readers[node]):
            views.append((node, 0, node.width))
        for view, start, stop in views:
            overlapping = [each for each, low, high in views if start < high and low < stop]
            if overlapping != [view]:
                continue
            most = _steps_of(view, readers)
            if most is not None:
                found.append(Stretch(name, start, most, (stop - start) // most))
    return found


def _directed(candidates: list[Stretch], padded_left: Collection[tuple[str, int]]) -> list[Stretch]:
    """Let sequences keep their last steps where all of so many steps are padded on the left."""
    sides: defaultdict[int, set[bool]] = defaultdict(set)
    for each in candidates:
        if each.each > 1:
            sides[each.most].add((each.input, each.start) in padded_left)
    return [attrs.evolve(each, last=sides[each.most] == {True}) for each in candidates]


def _is_part(node: Node) -> bool:
    return node.op is Op.SLICE and isinstance(node.arg, Slice) and node.arg.step == 1


def _span(node: Node) -> tuple[int, int]:
    assert isinstance(node.arg, Slice)
    return node.arg.start, node.arg.stop


def _steps_of(view: Node, readers: Mapping[Node, list[Node]]) -> int | None:
    """Return how many steps an interval would have: what its readers' first dimension counts."""
    firsts, pending = set(), [view]
    while pending:
        for reader in readers.get(pending.pop(), ()):
            wide = [dim for dim in reader.dims if dim != 1]
            if reader.op is Op.RESHAPE and len(wide) > 1:
                firsts.add(wide[0])
            elif (reader.op in ELEMENTWISE or reader.op is Op.TO_ROWS) and reader.dims == view.dims:
                pending.append(reader)
    first = firsts.pop() if firsts else view.width
    return None if firsts or first < 2 else first

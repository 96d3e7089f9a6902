"""Siblings: LINEARs that read the same become one, and parallel towers become one grouped LINEAR.

* LINEARs over the same sources with the same activation are one with more columns; each reader
  gets its slice.
* LINEARs of one shape over neighbouring intervals of one value (the second layer of each expert of
  an MMoE) are one grouped LINEAR over that value seen as ``[lead, groups, k]``. SOFTMAXs and
  elementwise ops over neighbouring intervals are one over the whole; so are many elementwise ops
  of one width over any intervals of the same values (the pairs of fields of a PNN).
* MATMULs of neighbouring intervals with one right-hand side (the gates of an MMoE times its
  experts) are one with more rows.

The pieces of what is merged are SLICEs and RESHAPEs, which ``movement`` puts together again where
a CONCAT or a merged reader wants them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final, TypeAlias

import numpy as np

from kernels.ir.build import make
from kernels.ir.node import Graph, Linear, Node, Op, const
from kernels.ir.rules import ELEMENTWISE
from kernels.passes.affine import bias, inputs, linear, spec, weight
from kernels.passes.rewrite import replace
from kernels.passes.views import (
    Interval,
    cut,
    interval,
    is_scalar,
    join,
    piece,
    reshape,
    runs,
    scalar,
    shaped,
)

# Elementwise ops of so many pieces are worth a TAKE for each source.
_MANY: Final = 8

# Columns of 16-bit elements in 16 bytes.
_ALIGNED: Final = 8

Merge: TypeAlias = Callable[[Sequence[Node]], dict[Node, Node]]


def merge_siblings(graph: Graph) -> Graph:
    """Return the graph with one kind of siblings merged.

    Siblings that are read alike come to lie beside each other, so that their readers, too, read
    neighbouring intervals.
    """
    readers: dict[Node, list[Hashable]] = {}
    for node in graph.nodes():
        for source in node.sources:
            readers.setdefault(source, []).append((node.op, node.shape, node.dtype))
    halves = _halves(graph)
    for key, merge in _KINDS:
        families: dict[Hashable, list[Node]] = {}
        for node in graph.nodes():
            family = key(node)
            if family is not None and node not in halves:
                families.setdefault(family, []).append(node)
        replaced: dict[Node, Node] = {}
        for members in families.values():
            if len(members) > 1:
                alike: dict[Hashable, list[Node]] = {}
                for member in members:
                    alike.setdefault(tuple(readers.get(member, ())), []).append(member)
                replaced.update(merge([each for kind in alike.values() for each in kind]))
        if replaced:
            return replace(graph, replaced)
    return graph


def _halves(graph: Graph) -> set[Node]:
    """Return the LINEARs that ``user_once`` made two of: each belongs to its other half."""
    found: set[Node] = set()
    for node in graph.nodes():
        if node.op is Op.ADD and any(source.op is Op.TO_ROWS for source in node.sources):
            found.update(node.sources)
            found.update(inner for source in node.sources for inner in source.sources)
    return {node for node in found if node.op is Op.LINEAR}


def _same_sources(node: Node) -> Hashable:
    if node.op is not Op.LINEAR or spec(node).grouped:
        return None
    return inputs(node), spec(node)


def _wider(members: Sequence[Node]) -> dict[Node, Node]:
    # Those of odd widths last, so that the others' columns begin where 16 bytes do.
    members = sorted(members, key=lambda member: member.dims[-1] % _ALIGNED != 0)
    first, one = members[0], spec(members[0])
    columns = np.concatenate([weight(member) for member in members], axis=1)
    offset = np.concatenate([bias(member) for member in members])
    sizes = [x.dims[-1] for x in inputs(first)]
    rows = np.split(columns, np.cumsum(sizes)[:-1])
    merged = linear(
        list(zip(inputs(first), rows, strict=True)),
        offset,
        activation=one.activation,
        slope=one.slope,
        name=first.name,
    )
    result, at = {}, 0
    for member in members:
        n = member.dims[-1]
        result[member] = cut(merged, len(merged.shape) - 1, at, at + n)
        at += n
    return result


def _parallel_linear(node: Node) -> Hashable:
    """Equal for LINEARs that differ in weights and in which interval of a value they read."""
    if node.op is not Op.LINEAR or len(node.shape) != 2 or len(inputs(node)) != 1:
        return None
    source = interval(inputs(node)[0])
    if source.stop - source.start == source.base.width:
        return None
    return source.base, source.stop - source.start, node.dims, spec(node)


def _grouped(run: Sequence[Node], whole: Interval) -> Node:
    one: Linear = spec(run[0])
    k = inputs(run[0])[0].dims[-1]
    return linear(
        [(piece(whole, (len(run), k)), np.stack([weight(node) for node in run]))],
        np.stack([bias(node) for node in run]),
        activation=one.activation,
        slope=one.slope,
        grouped=True,
        name=run[0].name,
    )


def _parallel_softmax(node: Node) -> Hashable:
    if node.op is not Op.SOFTMAX or node.arg != 1 or len(node.shape) != 2:
        return None
    source = interval(node.sources[0])
    if source.stop - source.start == source.base.width:
        return None
    return source.base, node.dims


def _softmaxes(run: Sequence[Node], whole: Interval) -> Node:
    return make(Op.SOFTMAX, piece(whole, (len(run), *run[0].dims)), arg=2, name=run[0].name)


def _parallel_elementwise(node: Node) -> Hashable:
    """Equal for ops of one kind that read intervals of the same values; constants are scalars."""
    if node.op not in ELEMENTWISE or node.lead is None or 0 in node.dims:
        return None
    bases: list[Hashable] = []
    partial = False
    for source in node.sources:
        if is_scalar(source):
            bases.append(scalar(source))
        elif source.shape == node.shape:
            where = interval(source)
            partial |= where.stop - where.start < where.base.width
            bases.append(where.base)
        else:
            return None
    return (node.op, node.arg, node.dtype, *bases) if partial else None


def _elementwise(members: Sequence[Node]) -> dict[Node, Node]:
    """Merge runs that go on in all their sources, but for one that all share.

    Many of one width are one op on their CONCATs, wherever they lie.
    """
    ordered = sorted(members, key=lambda node: [where.start for where in _intervals(node)])
    columns = zip(*(_intervals(node) for node in ordered), strict=True)
    shared = [len({(where.start, where.stop) for where in column}) == 1 for column in columns]
    one_width = len({node.width for node in members}) == 1
    if all(shared) or (any(shared) and not one_width):
        return {}
    found: list[list[Node]] = []
    for node in ordered:
        follows = found and all(
            is_shared or before.stop == after.start
            for is_shared, before, after in zip(
                shared, _intervals(found[-1][-1]), _intervals(node), strict=True
            )
        )
        if follows:
            found[-1].append(node)
        else:
            found.append([node])
    if len(found) >= _MANY and one_width:
        found = [list(members)]
    result: dict[Node, Node] = {}
    for run in found:
        if len(run) > 1:
            result.update(_stacked(run, any(shared)))
    return result


def _intervals(node: Node) -> list[Interval]:
    return [interval(source) for source in node.sources if not is_scalar(source)]


def _stacked(run: Sequence[Node], by_group: bool) -> dict[Node, Node]:
    """Make one op of several: of flat rows, or of ``[groups, width]`` beside what all share."""
    first, sources = run[0], []
    rank = 3 if by_group else 2
    for index, source in enumerate(first.sources):
        if is_scalar(source):
            sources.append(const(source.array.reshape((1,) * rank), source.name))
            continue
        parts = [node.sources[index] for node in run]
        if all(part is source for part in parts):
            sources.append(reshape(source, (1, source.width)))
        else:
            flat = join([reshape(part, (part.width,)) for part in parts], 1)
            sources.append(reshape(flat, (len(run), source.width)) if by_group else flat)
    total = sum(node.width for node in run)
    dims = (len(run), first.width) if by_group else (total,)
    shape = shaped(first, dims)
    made = Node(first.op, tuple(sources), shape, first.dtype, first.arg, first.name)
    result, at = {}, 0
    for node in run:
        result[node] = piece(Interval(made, at, at + node.width), node.dims)
        at += node.width
    return result


def _neighbours(together: Callable[[Sequence[Node], Interval], Node]) -> Merge:
    """Merge the members that read neighbouring intervals; member i becomes slice i of axis 1."""

    def merge(members: Sequence[Node]) -> dict[Node, Node]:
        found: dict[int, tuple[Interval, Node]] = {}
        for member in members:
            where = interval(member.sources[0])
            found.setdefault(where.start, (where, member))
        ordered = [found[start] for start in sorted(found)]
        result: dict[Node, Node] = {}
        for indices in runs([where for where, _ in ordered]):
            if len(indices) < 2:
                continue
            run = [ordered[i] for i in indices]
            whole = Interval(run[0][0].base, run[0][0].start, run[-1][0].stop)
            merged = together([node for _, node in run], whole)
            for index, (_, node) in enumerate(run):
                result[node] = reshape(cut(merged, 1, index, index + 1), node.dims)
        return result

    return merge


def _same_right(node: Node) -> Hashable:
    if node.op is not Op.MATMUL or len(node.shape) != 3:
        return None
    left = interval(node.sources[0])
    if left.stop - left.start == left.base.width:
        return None
    return node.sources[1], left.base


def _taller(members: Sequence[Node]) -> dict[Node, Node]:
    ordered = sorted(members, key=lambda node: interval(node.sources[0]).start)
    lefts = [interval(node.sources[0]) for node in ordered]
    result: dict[Node, Node] = {}
    for indices in runs(lefts):
        if len(indices) < 2:
            continue
        run = [ordered[i] for i in indices]
        rows = [node.dims[0] for node in run]
        whole = Interval(lefts[indices[0]].base, lefts[indices[0]].start, lefts[indices[-1]].stop)
        left = piece(whole, (sum(rows), run[0].sources[0].dims[-1]))
        merged = make(Op.MATMUL, left, run[0].sources[1], name=run[0].name)
        at = 0
        for node, m in zip(run, rows, strict=True):
            result[node] = cut(merged, 1, at, at + m)
            at += m
    return result


_KINDS: Final[tuple[tuple[Callable[[Node], Hashable], Merge], ...]] = (
    (_same_sources, _wider),
    (_parallel_linear, _neighbours(_grouped)),
    (_parallel_softmax, _neighbours(_softmaxes)),
    (_parallel_elementwise, _elementwise),
    (_same_right, _taller),
)

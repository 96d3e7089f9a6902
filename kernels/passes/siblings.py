"""Siblings: LINEARs that read the same become one, and parallel towers become one grouped LINEAR.

* LINEARs over the same sources with the same activation are one with more columns; each reader
  gets its slice.
* LINEARs of one shape over neighbouring intervals of one value (the second layer of each expert of
  an MMoE) are one grouped LINEAR over that value seen as ``[lead, groups, k]``. SOFTMAXs and
  elementwise ops of one source over neighbouring intervals are one over the whole.
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
from kernels.ir.node import Graph, Linear, Node, Op
from kernels.ir.rules import ELEMENTWISE
from kernels.passes.affine import bias, inputs, linear, spec, weight
from kernels.passes.rewrite import replace
from kernels.passes.views import Interval, cut, interval, piece, reshape, runs

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


def _parallel_unary(node: Node) -> Hashable:
    if node.op not in ELEMENTWISE or len(node.sources) != 1 or len(node.shape) != 2:
        return None
    source = interval(node.sources[0])
    if source.stop - source.start == source.base.width or node.lead is None:
        return None
    return source.base, node.dims, node.op, node.arg, node.dtype


def _unaries(run: Sequence[Node], whole: Interval) -> Node:
    source = piece(whole, (len(run), *run[0].dims))
    first = run[0]
    return Node(first.op, (source,), source.shape, first.dtype, first.arg, first.name)


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
    (_parallel_unary, _neighbours(_unaries)),
    (_same_right, _taller),
)

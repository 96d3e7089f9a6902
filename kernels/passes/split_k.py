"""Split-K: what a LINEAR reads is taken apart until nothing is copied or computed twice for it.

A LINEAR is a sum over blocks of its weight's rows, so each way to make one source of several is a
matter of which rows meet which value:

* A CONCAT is its parts. A flattened CONCAT or TRANSPOSE is a permutation of the rows; so is a TAKE.
* Neighbouring or overlapping slices of one value, and one value read twice, are one source.
* ``W (a - b)`` is ``W a - W b``: distributed where that adds no multiplications, as in DIN's
  ``concat(q, h, q - h, q * h)``, which comes down to q, h and ``q * h``.
* A constant source is part of the bias.
* A source that an EXPAND repeats is multiplied before it is repeated, without activation, and
  added to the rest (which then has its activation behind).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import attrs
import numpy as np

from kernels.ir.build import make
from kernels.ir.node import Node, Op, Take
from kernels.passes.affine import Array, activated, bias, blocks, inputs, like, linear, spec, wide
from kernels.passes.concat import NO_COPY
from kernels.passes.rewrite import Rule, Uses, by_op
from kernels.passes.views import Interval, cut, interval, piece, reshape


@attrs.frozen(eq=False)
class Block:
    """A value and its rows of the weight; ``[lead, .., k]`` and ``[k, n]``."""

    value: Node
    rows: Array


def _split(node: Node, uses: Uses) -> Node | None:
    if spec(node).grouped:
        return _split_grouped(node)
    offset, changed = bias(node), False
    found: list[Block] = []
    pending = [Block(x, w) for x, w in blocks(node)]
    while pending:
        block = pending.pop(0)
        if _repeated(block.value).lead is None and _varies_by_column(block.value):
            offset, changed = wide(offset) + _constant_term(block), True
            continue
        parts = _parts(block, [other.value for other in (*found, *pending)], uses)
        if parts is None:
            found.append(block)
        else:
            pending[:0] = parts
            changed = True
    merged = _merged(found)
    repeated = any(block.value.op is Op.EXPAND for block in merged)
    if not merged or not (changed or repeated or len(merged) < len(found)):
        return None
    return _assembled(node, merged, offset)


def _varies_by_column(value: Node) -> bool:
    """Whether a constant, repeated or not, is the same in all steps."""
    return math.prod(_repeated(value).dims[:-1]) == 1


def _constant_term(block: Block) -> Array:
    """Return what a constant source adds to the bias."""
    values = np.broadcast_to(
        _repeated(block.value).array.reshape(-1).astype(np.float64), (block.value.dims[-1],)
    )
    term: Array = values @ wide(block.rows)
    return term


def _parts(block: Block, others: Iterable[Node], uses: Uses) -> list[Block] | None:
    value, rows = block.value, block.rows
    last = len(value.shape) - 1
    if value.op is Op.CONCAT and value.arg == last and _apart(value, others, uses):
        sizes = np.cumsum([part.dims[-1] for part in value.sources])[:-1]
        split = np.split(rows, sizes)
        return [Block(part, r) for part, r in zip(value.sources, split, strict=True)]
    if value.op is Op.RESHAPE and last == 1:
        return _flattened(value.sources[0], rows)
    if value.op in (Op.ADD, Op.SUB):
        return _distributed(block, others)
    if isinstance(value.arg, Take) and value.arg.axis == last:
        return _scattered(value, value.arg, rows)
    if value.op is Op.EXPAND and value.sources[0].dims[-1] != value.dims[-1]:
        inner = value.sources[0]
        whole = (*value.shape[:-1], 1)
        if inner.shape != whole:
            inner = make(Op.EXPAND, inner, shape=whole, name=value.name)
        return [Block(inner, wide(rows).sum(axis=0, keepdims=True))]
    return None


def _apart(value: Node, others: Iterable[Node], uses: Uses) -> bool:
    """Whether a CONCAT is made for nobody else, or its parts are read beside it anyway."""
    return uses.only_by(value, NO_COPY) or any(other in value.sources for other in others)


def _scattered(value: Node, take: Take, rows: Array) -> list[Block] | None:
    """Take the rows of a TAKE back to what it takes from, if that is no wider."""
    (source,) = value.sources
    if source.dims[-1] > value.dims[-1]:
        return None
    moved = np.zeros((source.dims[-1], rows.shape[-1]))
    np.add.at(moved, list(take.indices), rows)
    return [Block(source, moved)]


def _flattened(value: Node, rows: Array) -> list[Block] | None:
    """Take apart a value that is read as a flat row."""
    n = rows.shape[-1]
    if value.op is Op.CONCAT:
        axis = value.arg
        assert isinstance(axis, int)
        sizes = np.cumsum([part.dims[axis - 1] for part in value.sources])[:-1]
        split = np.split(rows.reshape(*value.dims, n), sizes, axis=axis - 1)
        pairs = zip(value.sources, split, strict=True)
        return [Block(reshape(x, (x.width,)), np.reshape(r, (x.width, n))) for x, r in pairs]
    if value.op is Op.TRANSPOSE:
        order = value.arg
        assert isinstance(order, tuple)
        back = [int(axis) - 1 for axis in np.argsort(order)[1:]]
        moved = rows.reshape(*value.dims, n).transpose(*back, len(back))
        (inner,) = value.sources
        return [Block(reshape(inner, (inner.width,)), moved.reshape(inner.width, n))]
    if value.op is Op.EXPAND:
        (inner,) = value.sources
        pairs_of_dims = enumerate(zip(inner.dims, value.dims, strict=True))
        axes = tuple(i for i, (one, many) in pairs_of_dims if one != many)
        summed = wide(rows).reshape(*value.dims, n).sum(axis=axes)
        return [Block(reshape(inner, (inner.width,)), summed.reshape(inner.width, n))]
    return None


def _distributed(block: Block, others: Iterable[Node]) -> list[Block] | None:
    """Take a sum or difference apart, if one side is read anyway, is constant, or is repeated."""
    value = block.value
    known = {_repeated(other) for other in others}
    cheap = any(
        side in known or side.lead is None or side.shape != value.shape for side in value.sources
    )
    if not cheap:
        return None
    parts = []
    for side, rows in zip(
        value.sources, (block.rows, -block.rows if value.op is Op.SUB else block.rows), strict=True
    ):
        if side.lead is not None and side.shape != value.shape:
            parts.append(Block(make(Op.EXPAND, side, shape=value.shape, name=side.name), rows))
        elif side.lead is None and side.dims[-1] != value.dims[-1]:
            parts.append(Block(side, wide(rows).sum(axis=0, keepdims=True)))
        else:
            parts.append(Block(side, rows))
    if any(p.value.lead is None and p.value.width != p.value.dims[-1] for p in parts):
        return None
    return parts


def _repeated(node: Node) -> Node:
    return node.sources[0] if node.op is Op.EXPAND else node


def _merged(found: list[Block]) -> list[Block]:
    """Make one of the blocks that read one value, or neighbouring intervals of one."""
    groups: dict[tuple[Node, bool], list[tuple[Interval, Array]]] = {}
    kept: dict[tuple[Node, bool], Block] = {}
    for block in found:
        where = _columns(block.value)
        key = (where.base, len(block.value.shape) == 2)
        groups.setdefault(key, []).append((where, block.rows))
        kept.setdefault(key, block)
    result = []
    for key, members in groups.items():
        if len(members) == 1:
            result.append(kept[key])
            continue
        ordered = sorted(members, key=lambda member: member[0].start)
        run = [ordered[0]]
        for member in ordered[1:]:
            if member[0].start <= max(each.stop for each, _ in run):
                run.append(member)
            else:
                result.append(_one(run, key))
                run = [member]
        result.append(_one(run, key))
    return result


def _columns(value: Node) -> Interval:
    """Find what a value is columns of: an interval of a flat row, a slice of the last axis."""
    if len(value.shape) == 2:
        return interval(value)
    last = len(value.shape) - 1
    if value.op is Op.SLICE and getattr(value.arg, "axis", None) == last:
        part = value.arg
        if getattr(part, "step", None) == 1:
            start = int(getattr(part, "start", 0))
            return Interval(value.sources[0], start, start + value.dims[-1])
    return Interval(value, 0, value.dims[-1])


def _one(run: list[tuple[Interval, Array]], key: tuple[Node, bool]) -> Block:
    base, flat = key
    start = run[0][0].start
    stop = max(where.stop for where, _ in run)
    rows = np.zeros((stop - start, run[0][1].shape[-1]))
    for where, block in run:
        rows[where.start - start : where.stop - start] += block
    if flat:
        return Block(piece(Interval(base, start, stop), (stop - start,)), rows)
    return Block(cut(base, len(base.shape) - 1, start, stop), rows)


def _assembled(node: Node, found: list[Block], offset: Array) -> Node:
    """Make the LINEAR again, with what is repeated beside it."""
    full: list[tuple[Node, Array]] = []
    apart: dict[tuple[int, ...], list[tuple[Node, Array]]] = {}
    for block in found:
        inner = _repeated(block.value)
        if inner is not block.value and inner.dims[-1] == block.value.dims[-1]:
            apart.setdefault(inner.dims[:-1], []).append((inner, block.rows))
        else:
            full.append((block.value, block.rows))
    if not apart:
        return like(node, full, offset)
    one, zero = spec(node), np.zeros(bias(node).shape)
    terms = [linear(parts, zero, name=node.name) for parts in apart.values()]
    if full:
        terms.insert(0, linear(full, offset, name=node.name))
    elif len(terms) == 1:
        (parts,) = apart.values()
        return make(Op.EXPAND, like(node, parts, offset), shape=node.shape, name=node.name)
    else:
        (parts, *_) = apart.values()
        terms[0] = linear(parts, offset, name=node.name)
    total = terms[0]
    for term in terms[1:]:
        total = make(Op.ADD, total, term, name=node.name)
    if total.shape != node.shape:
        total = make(Op.EXPAND, total, shape=node.shape, name=node.name)
    return activated(total, one)


def _split_grouped(node: Node) -> Node | None:
    """A grouped LINEAR's sources are taken apart where they are concats of the last axis."""
    parts: list[tuple[Node, Array]] = []
    for x, w in blocks(node):
        if x.op is Op.CONCAT and x.arg == len(x.shape) - 1:
            sizes = np.cumsum([part.dims[-1] for part in x.sources])[:-1]
            parts.extend(zip(x.sources, np.split(w, sizes, axis=-2), strict=True))
        else:
            parts.append((x, w))
    return like(node, parts, bias(node)) if len(parts) > len(inputs(node)) else None


SPLIT_K: Final[Mapping[Op, tuple[Rule, ...]]] = {Op.LINEAR: (_split,)}
split_k_rule: Final = by_op(SPLIT_K)

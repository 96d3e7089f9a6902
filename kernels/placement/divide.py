"""Dividing tables over groups: bytes and traffic alike for all, in few pieces.

A table that is too large or too busy for one group is cut into pieces, stretches of its segments
that are alike in bytes and traffic together. Pieces then go, the largest first, to the group that
is the least full with them (longest processing time first, in two dimensions). Pieces are first as
large as balance may allow, and halved until it is good: fewer of them mean fewer groups a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.placement.placement import Piece
from kernels.placement.skew import F64

# Largest piece, in shares of what a group has on average. Whole tables come first: a shard pools
# them itself, which moves fewer bytes.
_PIECE_SIZES: Final = (np.inf, 1.0, 0.5, 0.25, 0.125, 0.0625)
# The fullest group over what it has to be at least, in bytes and traffic, that is good enough.
_GOOD: Final = 1.1
# Groups of fewer bytes than this need not be alike in them.
_SMALL_BYTES: Final = 1e8
# Smaller pieces have to improve the sum of both by so much.
_WORTH: Final = 0.98


@attrs.frozen(kw_only=True, eq=False)
class Item:
    """A table to be divided.

    Attributes:
        size: float64 ``[segments]``, bytes of each segment.
        work: float64 ``[segments]``, what each costs its group a request.
    """

    table: str
    size: F64
    work: F64


@attrs.frozen(kw_only=True, eq=False)
class Division:
    """Tables divided over groups.

    Attributes:
        groups: Each group's pieces, in the order of the items.
        size: float64 ``[n_groups]``, bytes, in shares of their mean or of ``_SMALL_BYTES``.
        work: float64 ``[n_groups]``, in shares of its mean.
    """

    groups: tuple[tuple[Piece, ...], ...]
    size: F64
    work: F64


def divide(items: Sequence[Item], n_groups: int) -> Division:
    """Divide tables over groups.

    Args:
        items: The tables.
        n_groups: At least 1.
    """
    sizes, works = ([item.size for item in items], [item.work for item in items])
    scaled = [
        attrs.evolve(item, size=size, work=work)
        for item, size, work in zip(
            items,
            _scaled(sizes, n_groups, _SMALL_BYTES),
            _scaled(works, n_groups, 0.0),
            strict=True,
        )
    ]
    # No segment can be divided.
    least = [max([1.0, *(float(each.max()) for each in loads)]) for loads in (
        [item.size for item in scaled], [item.work for item in scaled])]  # fmt: skip
    best, least_excess = None, np.inf
    for piece_size in _PIECE_SIZES:
        found = _divide(scaled, n_groups, piece_size)
        excess = [float(found.size.max()) / least[0], float(found.work.max()) / least[1]]
        if sum(excess) < _WORTH * least_excess:
            best, least_excess = found, sum(excess)
        if max(excess) <= _GOOD:
            break
    assert best is not None
    return best


def _scaled(loads: Sequence[F64], n_groups: int, least: float) -> list[F64]:
    """Return loads in shares of what a group has on average, or of ``least`` if that is more."""
    mean = max(sum(float(each.sum()) for each in loads) / n_groups, least)
    return [each / mean if mean else np.zeros_like(each) for each in loads]


@attrs.frozen(eq=False)
class _Cut:
    """All pieces, as columns: item, first and last segment, and loads."""

    item: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    size: F64
    work: F64


def _divide(items: Sequence[Item], n_groups: int, piece_size: float) -> Division:
    cut = _cut(items, n_groups, piece_size)
    order = np.lexsort((np.arange(len(cut.item)), -np.maximum(cut.size, cut.work)))
    size, work = np.zeros(n_groups), np.zeros(n_groups)
    holders: dict[int, list[int]] = {}
    group_of = np.empty(len(order), np.int64)
    for number in order.tolist():
        fullest = np.maximum(size + cut.size[number], work + cut.work[number])
        # Where the busier dimension is alike, the group with less of both.
        fullest += 1e-3 * (size + work)
        taken = holders.setdefault(int(cut.item[number]), [])
        fullest[taken] = np.inf  # a group holds one stretch of a table
        group = int(np.argmin(fullest))
        taken.append(group)
        group_of[number] = group
        size[group] += cut.size[number]
        work[group] += cut.work[number]
    groups: list[list[Piece]] = [[] for _ in range(n_groups)]
    for number, group in enumerate(group_of.tolist()):
        item = items[int(cut.item[number])]
        groups[group].append(Piece(item.table, int(cut.first[number]), int(cut.last[number])))
    return Division(groups=tuple(map(tuple, groups)), size=size, work=work)


def _cut(items: Sequence[Item], n_groups: int, piece_size: float) -> _Cut:
    numbers, firsts, lasts, sizes, works = [], [], [], [], []
    for number, item in enumerate(items):
        whole = max(float(item.size.sum()), float(item.work.sum()))
        n_pieces = int(np.ceil(whole / piece_size - 1e-9))
        n_pieces = min(max(n_pieces, 1), n_groups, len(item.size))
        edges = _edges(item.size + item.work, n_pieces)
        numbers.append(np.full(len(edges) - 1, number))
        firsts.append(edges[:-1])
        lasts.append(edges[1:])
        sizes.append(np.add.reduceat(item.size, edges[:-1]))
        works.append(np.add.reduceat(item.work, edges[:-1]))
    if not items:
        none = np.empty(0, np.int64)
        return _Cut(none, none, none, np.empty(0), np.empty(0))
    return _Cut(*map(np.concatenate, (numbers, firsts, lasts, sizes, works)))


def _edges(loads: F64, n_pieces: int) -> NDArray[np.int64]:
    """Cut segments into stretches of like loads: at most ``n_pieces``, none of them empty."""
    sums = np.cumsum(loads)
    wanted = np.arange(1, n_pieces) / n_pieces * sums[-1]
    after = np.searchsorted(sums, wanted)  # the segment in which each cut falls
    before = np.where(after > 0, sums[after - 1], 0.0)
    inner = after + (sums[after] - wanted < wanted - before)
    return np.unique(np.concatenate([[0], np.clip(inner, 0, len(loads)), [len(loads)]]))

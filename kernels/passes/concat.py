"""Concat: pieces of one value, put together again, are that value.

Pieces are told by where they come from, not by the shapes they have taken: neighbouring slices of
an axis and neighbouring intervals of a row are one again; equal slices of one axis that are laid
along another (heads that are cut out of columns and stacked, and laid side by side again) are a
TRANSPOSE; many pieces on one grid, in any order, are a TAKE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import attrs

from kernels.ir.build import make
from kernels.ir.node import Node, Op, Slice, Take
from kernels.passes.rewrite import Rule, Uses
from kernels.passes.views import cut, interval, join, piece, reshape, runs, transposed

# A CONCAT that others read too is made for them: taking it apart saves no copy, and hides that
# all read the same value.
NO_COPY: Final = frozenset({Op.LINEAR, Op.CONCAT, Op.RESHAPE, Op.SLICE})
# A CONCAT of so many pieces of one value is a TAKE: one table of indices, not a copy for each.
_MANY: Final = 4


def _concat(node: Node, uses: Uses) -> Node | None:
    axis = node.arg
    assert isinstance(axis, int)
    if len(node.sources) == 1:
        return node.sources[0]
    flat: list[Node] = []
    for source in node.sources:
        nested = source.op is Op.CONCAT and source.arg == axis and uses.only_by(source, NO_COPY)
        flat.extend(source.sources if nested else [source])
    joined = _rejoined(flat, axis) if node.lead is not None else flat
    if len(joined) >= _MANY and not uses.only_by(node, NO_COPY):
        taken = _taken(joined, axis, node)
        if taken is not None:
            return taken
    if node.lead is not None:
        turned = _turned(joined, axis, node)
        if turned is not None:
            return turned
        if all(part.op is Op.TRANSPOSE and part.arg == joined[0].arg for part in joined):
            order = joined[0].arg
            assert isinstance(order, tuple)
            return transposed(join([part.sources[0] for part in joined], order[axis]), order)
    if len(joined) == len(node.sources):
        return None
    return join(joined, axis)


def _turned(parts: list[Node], axis: int, node: Node) -> Node | None:
    """Make a TRANSPOSE of neighbouring slices of one axis that are put together along another.

    So heads are cut out of columns and stacked, and so they are put side by side again. Slice n is
    ``[before, n, behind]`` of the value; the result wants it as ``[outer, n, inner]``.
    """
    slices = [_slice_under(part) for part in parts]
    found = [part for part in slices if part is not None]
    if len(found) < len(parts) or len(parts) < 2:
        return None
    args = [part.arg for part in found]
    base, first, last = found[0].sources[0], args[0], args[-1]
    if not isinstance(first, Slice) or not isinstance(last, Slice):
        return None
    width, along = first.stop - first.start, first.axis
    wanted = [
        Slice(along, first.start + i * width, first.start + (i + 1) * width)
        for i in range(len(parts))
    ]
    same = all(part.sources[0] is base and part.shape == found[0].shape for part in found)
    if args != wanted or not same or len({part.shape for part in parts}) > 1 or 0 in node.dims:
        return None
    before = math.prod(base.dims[: along - 1])
    outer = math.prod(node.dims[: axis - 1])
    row = cut(base, along, first.start, last.stop)
    n, whole = len(parts), row.width
    if outer == before or max(outer, before) % min(outer, before):
        return None
    if outer > before:  # [before, n, more, inner] -> [before, more, n, inner]
        more = outer // before
        dims = (before, n, more, whole // (outer * n))
    else:  # [outer, more, n, behind] -> [outer, n, more, behind]
        more = before // outer
        dims = (outer, more, n, whole // (before * n))
    return reshape(transposed(reshape(row, dims), (0, 1, 3, 2, 4)), node.dims)


def _slice_under(node: Node) -> Node | None:
    while node.op is Op.RESHAPE:
        node = node.sources[0]
    return node if node.op is Op.SLICE else None


def _taken(parts: list[Node], axis: int, node: Node) -> Node | None:
    """Make a TAKE of pieces of one value, each a whole number of steps of one grid."""
    pieces = [interval(part) for part in parts]
    first = min(each.start for each in pieces)
    if math.prod(node.dims[: axis - 1]) != 1 or len({each.base for each in pieces}) > 1:
        return None
    starts = [each.start - first for each in pieces]
    unit = math.prod(node.dims[axis:])
    if len(node.dims) == 1:
        unit = math.gcd(*starts, *(part.width for part in parts))
    if 0 in node.dims or any(start % unit for start in starts):
        return None
    whole = attrs.evolve(pieces[0], start=first, stop=max(each.stop for each in pieces))
    n_steps = (whole.stop - first) // unit
    if len(node.dims) == 1:
        source, along = piece(whole, (n_steps, unit)), 1
    else:
        source = piece(whole, (*node.dims[: axis - 1], n_steps, *node.dims[axis:]))
        along = axis
    indices: list[int] = []
    for start, part in zip(starts, parts, strict=True):
        indices += range(start // unit, (start + part.width) // unit)
    taken = make(Op.TAKE, source, arg=Take(along, tuple(indices)), name=node.name)
    return reshape(taken, node.dims)


def _rejoined(parts: list[Node], axis: int) -> list[Node]:
    """Put slices of one axis, and intervals of one value, together where they are neighbours."""
    joined: list[Node] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.op is Op.SLICE and part.op is Op.SLICE:
            one, two = last.arg, part.arg
            assert isinstance(one, Slice)
            assert isinstance(two, Slice)
            same = last.sources[0] is part.sources[0] and one.axis == two.axis == axis
            if same and one.step == two.step == 1 and one.stop == two.start:
                joined[-1] = cut(part.sources[0], axis, one.start, two.stop)
                continue
        joined.append(part)
    if math.prod(parts[0].dims[: axis - 1]) != 1:
        return joined
    pieces = [interval(part) for part in joined]
    result = []
    for run in runs(pieces):
        if len(run) == 1:
            result.append(joined[run[0]])
            continue
        dims = list(joined[run[0]].dims)
        dims[axis - 1] = sum(joined[i].dims[axis - 1] for i in run)
        whole = attrs.evolve(pieces[run[0]], stop=pieces[run[-1]].stop)
        result.append(piece(whole, dims))
    return result


CONCAT: Final[Mapping[Op, tuple[Rule, ...]]] = {Op.CONCAT: (_concat,)}

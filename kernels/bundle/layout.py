"""Laying the two blocks out: which column of which side each element of the boundary gets.

Columns that a tensor of the dense graph holds in some order are given that order, the widest tensor
first, so that the tensor is one stretch of a block and needs no copy. Lookups come before values,
so the lookups of the widest tensor are laid out last and its values first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from kernels.bundle.manifest import Lookup, SideLayout, SideName, Source
from kernels.bundle.planned import PlannedLookup
from kernels.graph.trace import Element, Root

#: The change that carries a user feature into the candidate side's ids as it is.
IDENTITY: Final = ("Identity", ())


@attrs.define(eq=False)
class SideBuilder:
    """One side in the making.

    Attributes:
        programmed: Roots that the side's program must give, in the order of their first use.
    """

    side: SideName
    lookups: list[PlannedLookup] = attrs.field(factory=list)
    values: list[Element] = attrs.field(factory=list)
    programmed: dict[Root, None] = attrs.field(factory=dict)

    @property
    def lookups_width(self) -> int:
        """Columns of the lookups."""
        return sum(lookup.width for lookup in self.lookups)

    @property
    def width(self) -> int:
        """Columns of the block."""
        return self.lookups_width + len(self.values)


@attrs.frozen(eq=False)
class Blocks:
    """Both sides, laid out."""

    user: SideBuilder
    candidate: SideBuilder
    places: dict[Element, tuple[SideName, int]]


def lay_out(
    views: Iterable[Sequence[Element]],
    lookups: Sequence[PlannedLookup],
    side_of: Callable[[Element], SideName],
) -> Blocks:
    """Give each element of the views its column.

    Args:
        views: The tensors of the boundary.
        lookups: All lookups; those that no view holds are left out.
        side_of: Side of an element that is no lookup's.
    """
    parts: dict[Root, list[PlannedLookup]] = {}
    for lookup in lookups:
        parts.setdefault(lookup.root, []).append(lookup)
    sides: dict[SideName, SideBuilder] = {
        "user": SideBuilder("user"),
        "candidate": SideBuilder("candidate"),
    }
    groups: dict[SideName, list[list[PlannedLookup]]] = {"user": [], "candidate": []}
    placed: set[PlannedLookup | Element] = set()
    for view in sorted(views, key=len, reverse=True):
        new: dict[SideName, list[PlannedLookup]] = {"user": [], "candidate": []}
        for element in view:
            if element.root.space != "rows":
                if element not in placed:
                    sides[side_of(element)].values.append(element)
                    placed.add(element)
                continue
            lookup = _part(parts[element.root], element.place)
            if lookup not in placed:
                new[lookup.side].append(lookup)
                placed.add(lookup)
        for name, found in new.items():
            groups[name] += [found] if found else []
    for name, builder in sides.items():
        builder.lookups = [each for group in _widest_last(groups[name]) for each in group]
    places: dict[Element, tuple[SideName, int]] = {}
    for name, builder in sides.items():
        at = 0
        for lookup in builder.lookups:
            for place in range(lookup.width):
                places[Element(lookup.root, lookup.first + place)] = (name, at + place)
            at += lookup.width
        for place, element in enumerate(builder.values):
            places[element] = (name, at + place)
    return Blocks(sides["user"], sides["candidate"], places)


def _widest_last(groups: list[list[PlannedLookup]]) -> list[list[PlannedLookup]]:
    return [*groups[1:], *groups[:1]]


def _part(parts: Sequence[PlannedLookup], place: int) -> PlannedLookup:
    return next(each for each in parts if each.first <= place < each.first + each.width)


def side_layout(
    builder: SideBuilder,
    table_names: Callable[[PlannedLookup], str],
    side_of: Callable[[Element], SideName],
    output_name: Callable[[Root], str],
    is_id: Callable[[Root], bool],
) -> SideLayout:
    """Write one side of the manifest, and note in ``builder`` what its program must give.

    Args:
        builder: Laid out.
        table_names: Name of a lookup's table in the bundle.
        side_of: Side of a feature's or computed element.
        output_name: Name of a program's output.
        is_id: Whether a feature is one of ids.
    """

    def source(element: Element, added: int = 0, *, ids: bool = False) -> Source:
        root = element.root
        if root.space == "feature" and root.change is None:
            foreign = side_of(element) != builder.side
            if foreign or (ids and not is_id(root)):
                root = attrs.evolve(root, change=IDENTITY)
        if root.space == "feature" and root.change is None:
            return Source(feature=root.name, column=element.place, add=added)
        builder.programmed.setdefault(root)
        return Source(feature=output_name(root), column=element.place, add=added, program=True)

    ids, weights = _Matrix(), _Matrix()
    found: list[Lookup] = []
    for lookup in builder.lookups:
        first_weight = None
        if lookup.weights is not None:
            first_weight = weights.place(tuple(source(each) for each in lookup.weights))
        sources = tuple(source(each.element, each.added, ids=True) for each in lookup.ids)
        found.append(
            Lookup(
                side=builder.side,
                table=table_names(lookup),
                tensor=lookup.tensor,
                pooling=lookup.pooling,
                first_id=ids.place(sources),
                n_ids=len(sources),
                first_weight=first_weight,
                offset=sum(each.width for each in found),
                width=lookup.width,
            )
        )
    values = tuple(source(each) for each in builder.values)
    return SideLayout(
        ids=tuple(ids.rows),
        weights=tuple(weights.rows),
        values=values,
        lookups=tuple(found),
        width=builder.width,
        program=f"{builder.side}.onnx" if builder.programmed else None,
    )


class _Matrix:
    """Rows of an ids or weights matrix; what is there already is not added again."""

    def __init__(self) -> None:
        self.rows: list[Source] = []
        self._starts: dict[Source, list[int]] = {}

    def place(self, sources: tuple[Source, ...]) -> int:
        """Return the first of the consecutive rows that hold these sources."""
        for start in self._starts.get(sources[0], []):
            if self.rows[start : start + len(sources)] == list(sources):
                return start
        start = len(self.rows)
        for row, source in zip(itertools.count(start), sources, strict=False):
            self.rows.append(source)
            self._starts.setdefault(source, []).append(row)
        return start

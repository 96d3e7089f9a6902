"""A placement: which group holds which segments of which table, as a frozen value."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

DEFAULT_STALE_S: Final = 5.0
"""How old a cached row may be after an update, unless a placement says otherwise: seconds."""


@attrs.frozen
class Piece:
    """Segments ``first`` to ``last``, exclusive, of a table."""

    table: str
    first: int
    last: int


@attrs.frozen
class CachedTable:
    """A table whose hot rows are kept beside the executor; all of its rows lie in groups as well.

    Attributes:
        max_bytes: Of the rows that are kept: on a card of these alone, which it stores in its
            precision; in the host's memory also of what it takes to find them.
        stale_s: For how long after an update an old row may still be used, in seconds.
    """

    table: str
    max_bytes: int
    stale_s: float = DEFAULT_STALE_S


@attrs.frozen(kw_only=True)
class Placement:
    """Where a model's tables lie. ``check_placement`` says whether it fits a manifest.

    Attributes:
        groups: Each group's pieces, one a table at most.
        device: Tables in the card's memory, which are in no group.
        cached: Tables whose hot rows are kept beside the executor as well.
    """

    groups: tuple[tuple[Piece, ...], ...]
    device: tuple[str, ...] = ()
    cached: tuple[CachedTable, ...] = ()

    @property
    def n_groups(self) -> int:
        """How many groups there are, empty ones included."""
        return len(self.groups)

    def tables(self, group: int) -> tuple[str, ...]:
        """Return the tables that a group has a piece of, in its order."""
        return tuple(piece.table for piece in self.groups[group])

    def segments(self, group: int, table: str) -> range:
        """Return the segments of a table that a group holds; none if it has no piece of it."""
        for piece in self.groups[group]:
            if piece.table == table:
                return range(piece.first, piece.last)
        return range(0)

    def pooled(self, group: int) -> tuple[str, ...]:
        """Return the tables that lie wholly in a group and are not cached: it pools their rows."""
        return tuple(name for name in self.tables(group) if name not in self._fetched)

    @property
    def fetched(self) -> tuple[str, ...]:
        """The tables that lie in several groups or are cached: their rows are pooled at the join.

        In the order of groups and pieces.
        """
        return tuple(self._fetched)

    def group_of(self, table: str) -> NDArray[np.int32]:
        """Return which group holds each segment of a table: int32 ``[n_segments]``, read-only.

        Raises:
            KeyError: No group holds any of it: it lies on the card, or there is no such table.
        """
        return self._groups_of[table]

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hexadecimal: placements that place alike have the same."""
        groups = [sorted(attrs.astuple(piece) for piece in group) for group in self.groups]
        cached = sorted(attrs.astuple(each) for each in self.cached)
        text = json.dumps([groups, sorted(self.device), cached])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _fetched(self) -> dict[str, None]:
        cached = {each.table for each in self.cached}
        seen: set[str] = set()
        found: dict[str, None] = {}
        for group in self.groups:
            for piece in group:
                if piece.table in seen or piece.table in cached:
                    found[piece.table] = None
                seen.add(piece.table)
        return found

    @cached_property
    def _groups_of(self) -> dict[str, NDArray[np.int32]]:
        ends: dict[str, int] = {}
        for group in self.groups:
            for piece in group:
                ends[piece.table] = max(ends.get(piece.table, 0), piece.last)
        found = {table: np.full(end, -1, np.int32) for table, end in ends.items()}
        for number, group in enumerate(self.groups):
            for piece in group:
                found[piece.table][piece.first : piece.last] = number
        for array in found.values():
            array.flags.writeable = False
        return found

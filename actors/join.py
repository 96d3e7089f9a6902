"""Joining: a batch's head from the gateway and its parts from the shards, and what they make.

Where tables lie on the executor's card, one more part comes from the gateway: their ids. A join is
complete when the head and as many parts as it announces are there; its rows can then be copied into
a lane's staging buffers, as ``block_layout.py`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.block_layout import BlockLayout, Runs
from actors.card_part import let_go
from actors.card_rows import CardRows
from kernels.bundle.manifest import SideName
from kernels.errors import LookupFailed
from kernels.executor import Bags
from transport.messages import Batch, LookupBatch, RowsPart

_NO_MARKS: Final = np.empty(0, np.uint8)
_NO_PARTS: Final = np.empty(0, np.int32)
# Rows without any step of which it is asked whether their steps are alike: 10 to 20 us each.
_MOST_PADDING: Final = 64
_MOST_US: Final = 2**31 - 1


@attrs.define(eq=False)
class Join:
    """One batch, while its parts arrive and until its requests are answered.

    Attributes:
        arrived: When its head or its first part arrived.
        joined: When it was complete.
        row_splits: Request ``i`` has rows ``row_splits[i]`` to ``row_splits[i + 1]``.
        came: When each part arrived.
        begun: When the head arrived.
        n_notices: How often the gateway was told that a part is late, where it was.
        ids: The part that is for the card.
        fetched: The columns that were pooled here, of the user and the candidate side.
        card: What is gathered on the card of cached tables.
        degraded: uint8 ``[K]``, the requests for which default rows stand for others; or empty.
        lengths: Of sequences that may be shorter: steps of each request's longest; see
            ``measure``.
        part_us: As in ``ScoresBatch``, where the parts have replicas; else empty.
        part_attempts: Likewise.
    """

    gateway: str
    seq: int
    arrived: float
    head: Batch | None = None
    joined: float = 0.0
    begun: float = 0.0
    deadlines: list[float] = attrs.Factory(list)
    row_splits: list[int] = attrs.Factory(lambda: [0])
    parts: dict[int, RowsPart] = attrs.Factory(dict)
    came: dict[int, float] = attrs.Factory(dict)
    n_notices: dict[int, int] = attrs.Factory(dict)
    ids: LookupBatch | None = None
    fetched: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    card: CardRows | None = None
    degraded: NDArray[np.uint8] = _NO_MARKS
    lengths: list[int] = attrs.Factory(list)
    part_us: NDArray[np.int32] = _NO_PARTS
    part_attempts: NDArray[np.int32] = _NO_PARTS
    _answered: set[int] = attrs.field(factory=set, init=False)

    @property
    def complete(self) -> bool:
        """Whether everything has arrived."""
        n_parts = len(self.parts) + (self.ids is not None)
        return self.head is not None and n_parts == self.head.n_parts

    def note_parts(self, n_parts: int) -> None:
        """Set ``part_us`` and ``part_attempts``, of so many parts; -1 where none has come."""
        us, attempts = [-1] * n_parts, [-1] * n_parts
        for index, part in self.parts.items():
            if 0 <= index < n_parts:
                us[index] = min(int(max(self.came[index] - self.begun, 0.0) * 1e6), _MOST_US)
                attempts[index] = min(part.attempt, _MOST_US)
        self.part_us = np.array(us, np.int32)
        self.part_attempts = np.array(attempts, np.int32)

    def problem(self, layout: BlockLayout) -> tuple[str, str] | None:
        """Return code and message if a complete join cannot be run, as a part misfits."""
        assert self.head is not None
        n_requests, n_rows = len(self.head.n_rows), self.row_splits[-1]
        for index, part in self.parts.items():
            if part.code != "ok":
                return part.code, part.message
            if not 0 <= index < len(layout.parts):
                return "internal", f"part {index} of {len(layout.parts)} came"
            user, candidate = layout.parts[index]
            want = ((n_requests, user.width), (n_rows, candidate.width))
            if (part.user.shape, part.candidate.shape) != want:
                got = (part.user.shape, part.candidate.shape)
                return "internal", f"part {index} has shapes {got}, not {want}"
        if self._id_shapes() != _wanted_id_shapes(layout, n_requests, n_rows):
            return "internal", f"ids for the card have shapes {self._id_shapes()}"
        for index, (user, candidate) in enumerate(layout.parts):
            if (user.width or candidate.width) and index not in self.parts:
                return "internal", f"part {index} is none of those that came"
        if layout.fetch is not None:
            misfit = layout.fetch.problem(self.head, self.parts)
            if misfit is None and layout.card is not None:
                misfit = layout.card.problem(self.head, self.parts)
            if misfit is not None:
                return "internal", misfit
        return None

    def pool(self, layout: BlockLayout) -> tuple[str, str] | None:
        """Pool the rows that were fetched, and note who is served by default rows.

        Only of a join in which there is no ``problem``.

        Returns:
            Code and message if it cannot be done.
        """
        assert self.head is not None
        if layout.fetch is not None:
            try:
                self.fetched = layout.fetch.pool(self.head, self.parts)
                if layout.card is not None:
                    self.card = layout.card.rows_of(self.head, self.parts)
            except LookupFailed as error:
                return "internal", str(error)
        degraded = [index for index, part in self.parts.items() if part.degraded]
        if degraded:
            pools = any(
                user.width or rows.width for user, rows in map(layout.parts.__getitem__, degraded)
            )
            if pools or layout.fetch is None:
                self.degraded = np.ones(len(self.head.n_rows), np.uint8)
            else:
                self.degraded = layout.fetch.degraded(self.head, degraded).astype(np.uint8)
        return None

    def measure(self, layout: BlockLayout) -> None:
        """Set ``lengths`` by the masks among the values, where sequences may be shorter."""
        sequences, head = layout.sequences, self.head
        if sequences is None:
            return
        assert head is not None
        found = sequences.lengths(
            "user",
            head.user_values,
            layout.first_user_value,
            lambda most, places: self._are_alike(layout, "user", most, places),
        )
        rows = sequences.lengths(
            "candidate",
            head.candidate_values,
            layout.first_candidate_value,
            lambda most, places: self._are_alike(layout, "candidate", most, places),
        )
        if rows is not None and len(rows):
            # Of requests without rows, which nobody offers, this is some other row's.
            starts = np.minimum(self.row_splits[:-1], len(rows) - 1)
            longest = np.maximum.reduceat(rows, starts)
            found = longest if found is None else np.maximum(found, longest)
        self.lengths = [] if found is None else found.tolist()

    def _are_alike(
        self, layout: BlockLayout, side: SideName, most: int, places: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Return which rows of a side hold the same at each step of their sequences.

        False of all where that cannot be told, or takes as long as it would save.
        """
        padding = layout.padding.get((side, most))
        alike = np.ones(len(places), np.bool_)
        if padding is None or len(places) > _MOST_PADDING:
            return ~alike
        row = np.empty((1, padding.width), np.float32)
        copy = self.copy_user if side == "user" else self.copy_candidates
        for index, place in enumerate(places.tolist()):
            if padding.columns:
                copy(layout, row, place, place + 1)
            for start, n_steps, each in padding.columns:
                steps = row[0, start : start + n_steps * each].reshape(n_steps, each)
                alike[index] &= bool((steps == steps[0]).all())
        if padding.ids:
            assert self.ids is not None
            ids = self.ids.user_ids if side == "user" else self.ids.candidate_ids
            for first, n_steps in padding.ids:
                entries = ids[first : first + n_steps, places]
                alike &= (entries == entries[0]).all(0)
        return alike

    def _id_shapes(self) -> tuple[tuple[int, ...], ...]:
        ids = self.ids
        if ids is None:
            return ()
        matrices = (ids.user_ids, ids.user_weights, ids.candidate_ids, ids.candidate_weights)
        return tuple(matrix.shape for matrix in matrices)

    def copy_user(
        self, layout: BlockLayout, out: NDArray[np.float32], first: int, last: int
    ) -> None:
        """Copy requests ``first`` to ``last`` (exclusive) into ``out [last - first, width]``."""
        assert self.head is not None
        for index, part in self.parts.items():
            _copy(layout.parts[index][0].runs, part.user[first:last], out)
        if self.fetched is not None and layout.fetched is not None:
            _copy(layout.fetched[0].runs, self.fetched[0][first:last], out)
        _copy(layout.user_values, self.head.user_values[first:last], out)

    def copy_candidates(
        self, layout: BlockLayout, out: NDArray[np.float32], start: int, stop: int
    ) -> None:
        """Copy rows ``start`` to ``stop`` into ``out [stop - start, width]``."""
        assert self.head is not None
        for index, part in self.parts.items():
            _copy(layout.parts[index][1].runs, part.candidate[start:stop], out)
        if self.fetched is not None and layout.fetched is not None:
            _copy(layout.fetched[1].runs, self.fetched[1][start:stop], out)
        _copy(layout.candidate_values, self.head.candidate_values[start:stop], out)

    def copy_user_ids(self, layout: BlockLayout, out: Bags, first: int, last: int) -> None:
        """Copy what requests ``first`` to ``last`` (exclusive) look up in whole tables there."""
        if self.ids is not None:
            kept = layout.user_ids
            _begin(out.ids, self.ids.user_ids[kept.ids, first:last])
            _begin(out.weights, self.ids.user_weights[kept.weights, first:last])

    def copy_candidate_ids(self, layout: BlockLayout, out: Bags, start: int, stop: int) -> None:
        """Copy what rows ``start`` to ``stop`` look up in whole tables on the card."""
        if self.ids is not None:
            kept = layout.candidate_ids
            _begin(out.ids, self.ids.candidate_ids[kept.ids, start:stop])
            _begin(out.weights, self.ids.candidate_weights[kept.weights, start:stop])

    def answered(self, positions: Sequence[int]) -> None:
        """Note that requests are answered, which a request may be more than once."""
        self._answered.update(positions)
        if len(self._answered) >= len(self.deadlines):
            self.release()

    def release(self) -> None:
        """Give back what parts hold: all requests are answered, or nobody waits for them."""
        for part in self.parts.values():
            let_go(part)


def _begin(out: NDArray[np.generic], columns: NDArray[np.generic]) -> None:
    """Copy columns to the first ones of each row."""
    out[:, : len(columns)] = columns.T


def _copy(runs: Runs, rows: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for part, block, n in runs:
        out[:, block : block + n] = rows[:, part : part + n]


def _wanted_id_shapes(
    layout: BlockLayout, n_requests: int, n_rows: int
) -> tuple[tuple[int, ...], ...]:
    if layout.device is None:
        return ()
    user, candidate = layout.device
    return (
        (len(user.id_rows), n_requests),
        (len(user.weight_rows), n_requests),
        (len(candidate.id_rows), n_rows),
        (len(candidate.weight_rows), n_rows),
    )

"""Joining: a batch's head from the gateway and its parts from the shards, and what they make.

Where tables lie on the executor's card, one more part comes from the gateway: their ids. A join is
complete when the head and as many parts as it announces are there; its rows can then be copied into
a lane's staging buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.fetch import FetchLayout
from actors.layouts import Layouts
from kernels.bundle.manifest import Manifest
from kernels.device_tables import GatheredSide
from kernels.errors import LookupFailed
from kernels.executor import Bags
from kernels.lookup import ShardLayout
from transport.messages import Batch, LookupBatch, RowsPart


@attrs.frozen(eq=False)
class BlockLayout:
    """Where a model's parts and values go in the user and the candidate block.

    Columns are those that are staged: of the blocks, those that no table on the card gives.

    Attributes:
        parts: The layouts of what groups pool, in the order of a batch's parts.
        user_values: First of the value columns in the user block.
        candidate_values: First of them in the candidate block.
        device: How ids for the card come, as one more part.
        fetch: The tables that come as rows, and
        fetched: where their lookups go.
        replicas: How many shards can send each part.
        hot: The part that nobody but the executor itself makes; None if there is none.
    """

    parts: Sequence[tuple[ShardLayout, ShardLayout]]
    user_values: int
    candidate_values: int
    device: tuple[ShardLayout, ShardLayout] | None = None
    fetch: FetchLayout | None = None
    fetched: tuple[ShardLayout, ShardLayout] | None = None
    replicas: int = 1
    hot: int | None = None

    @classmethod
    def of(cls, manifest: Manifest, layouts: Layouts, replicas: int = 1) -> BlockLayout:
        """Make the layout of a model; shards without lookups send no part and are left out."""
        user_values, candidate_values = len(manifest.user.values), len(manifest.candidate.values)
        parts = layouts.part_layouts()
        fetch = layouts.fetch
        fetched = None if fetch is None else (fetch.user, fetch.candidate)
        if layouts.device is None:
            return cls(
                parts,
                manifest.user.width - user_values,
                manifest.candidate.width - candidate_values,
                fetch=fetch,
                fetched=fetched,
                replicas=replicas,
                hot=layouts.hot,
            )
        user, candidate = layouts.device
        return cls(
            [(_staged(one, user), _staged(other, candidate)) for one, other in parts],
            user.staged_width - user_values,
            candidate.staged_width - candidate_values,
            (user.layout, candidate.layout),
            fetch,
            None
            if fetched is None
            else (_staged(fetched[0], user), _staged(fetched[1], candidate)),
            replicas,
            layouts.hot,
        )

    def expected(self, head: Batch) -> list[int]:
        """Return which parts a batch has: those of groups that pool, or have rows for it."""
        if self.fetch is None:
            return list(range(len(self.parts)))
        brings: list[bool] = (head.part_rows.sum(axis=1) > 0).tolist()
        return [
            index
            for index, (user, candidate) in enumerate(self.parts)
            if user.width or candidate.width or (index < len(brings) and brings[index])
        ]


def _staged(layout: ShardLayout, side: GatheredSide) -> ShardLayout:
    """Return a shard's layout with runs to staged columns instead of the block's."""
    runs = (run._replace(block=side.staged_column(run.block)) for run in layout.runs)
    return attrs.evolve(layout, runs=tuple(runs))


_NO_MARKS: Final = np.empty(0, np.uint8)
_NO_PARTS: Final = np.empty(0, np.int32)
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
        degraded: uint8 ``[K]``, the requests for which default rows stand for others; or empty.
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
    degraded: NDArray[np.uint8] = _NO_MARKS
    part_us: NDArray[np.int32] = _NO_PARTS
    part_attempts: NDArray[np.int32] = _NO_PARTS

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
            _copy(layout.parts[index][0], part.user[first:last], out)
        if self.fetched is not None and layout.fetched is not None:
            _copy(layout.fetched[0], self.fetched[0][first:last], out)
        out[:, layout.user_values :] = self.head.user_values[first:last]

    def copy_candidates(
        self, layout: BlockLayout, out: NDArray[np.float32], start: int, stop: int
    ) -> None:
        """Copy rows ``start`` to ``stop`` into ``out [stop - start, width]``."""
        assert self.head is not None
        for index, part in self.parts.items():
            _copy(layout.parts[index][1], part.candidate[start:stop], out)
        if self.fetched is not None and layout.fetched is not None:
            _copy(layout.fetched[1], self.fetched[1][start:stop], out)
        out[:, layout.candidate_values :] = self.head.candidate_values[start:stop]

    def copy_user_ids(self, out: Bags, first: int, last: int) -> None:
        """Copy what requests ``first`` to ``last`` (exclusive) look up on the card."""
        assert self.ids is not None
        out.ids[:] = self.ids.user_ids[:, first:last].T
        out.weights[:] = self.ids.user_weights[:, first:last].T

    def copy_candidate_ids(self, out: Bags, start: int, stop: int) -> None:
        """Copy what rows ``start`` to ``stop`` look up on the card."""
        assert self.ids is not None
        out.ids[:] = self.ids.candidate_ids[:, start:stop].T
        out.weights[:] = self.ids.candidate_weights[:, start:stop].T


def _copy(layout: ShardLayout, rows: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for part, block, n in layout.runs:
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

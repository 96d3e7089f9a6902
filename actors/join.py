"""Joining: a batch's head from the gateway and its parts from the shards, in any order.

Where tables lie on the executor's card, one more part comes from the gateway: their ids.

Pure: no clock, no mailbox. A join is complete when the head and as many parts as it announces are
there; its rows can then be copied into a lane's staging buffers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Manifest
from kernels.device_tables import GatheredSide
from kernels.executor import Bags
from kernels.lookup import ShardLayout
from transport.messages import Batch, LookupBatch, RowsPart


@attrs.frozen(eq=False)
class BlockLayout:
    """Where a model's parts and values go in the user and the candidate block.

    Columns are those that are staged: of the blocks, those that no table on the card gives.

    Attributes:
        parts: The layouts of the shards that have lookups, in the order of a batch's parts.
        user_values: First of the value columns in the user block.
        candidate_values: First of them in the candidate block.
        device: How ids for the card come, as one more part.
    """

    parts: Sequence[tuple[ShardLayout, ShardLayout]]
    user_values: int
    candidate_values: int
    device: tuple[ShardLayout, ShardLayout] | None = None

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        layouts: Sequence[tuple[ShardLayout, ShardLayout]],
        device: tuple[GatheredSide, GatheredSide] | None = None,
    ) -> BlockLayout:
        """Make the layout of a model; shards without lookups send no part and are left out."""
        user_values, candidate_values = len(manifest.user.values), len(manifest.candidate.values)
        parts = [pair for pair in layouts if pair[0].width or pair[1].width]
        if device is None:
            return cls(
                parts,
                manifest.user.width - user_values,
                manifest.candidate.width - candidate_values,
            )
        user, candidate = device
        return cls(
            [(_staged(one, user), _staged(other, candidate)) for one, other in parts],
            user.staged_width - user_values,
            candidate.staged_width - candidate_values,
            (user.layout, candidate.layout),
        )


def _staged(layout: ShardLayout, side: GatheredSide) -> ShardLayout:
    """Return a shard's layout with runs to staged columns instead of the block's."""
    runs = (run._replace(block=side.staged_column(run.block)) for run in layout.runs)
    return attrs.evolve(layout, runs=tuple(runs))


@attrs.define(eq=False)
class Join:
    """One batch, while its parts arrive and until its requests are answered.

    Attributes:
        arrived: When its head or its first part arrived.
        joined: When it was complete.
        row_splits: Request ``i`` has rows ``row_splits[i]`` to ``row_splits[i + 1]``.
        ids: The part that is for the card.
    """

    gateway: str
    seq: int
    arrived: float
    head: Batch | None = None
    joined: float = 0.0
    deadlines: list[float] = attrs.Factory(list)
    row_splits: list[int] = attrs.Factory(lambda: [0])
    parts: dict[int, RowsPart] = attrs.Factory(dict)
    ids: LookupBatch | None = None

    @property
    def complete(self) -> bool:
        """Whether everything has arrived."""
        n_parts = len(self.parts) + (self.ids is not None)
        return self.head is not None and n_parts == self.head.n_parts

    def problem(self, layout: BlockLayout) -> tuple[str, str] | None:
        """Return code and message if a complete join cannot be run: a part failed or misfits."""
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
        for index, (user, _) in enumerate(layout.parts):
            source = self.parts[index].user
            for part, block, n in user.runs:
                out[:, block : block + n] = source[first:last, part : part + n]
        out[:, layout.user_values :] = self.head.user_values[first:last]

    def copy_candidates(
        self, layout: BlockLayout, out: NDArray[np.float32], start: int, stop: int
    ) -> None:
        """Copy rows ``start`` to ``stop`` into ``out [stop - start, width]``."""
        assert self.head is not None
        for index, (_, candidate) in enumerate(layout.parts):
            source = self.parts[index].candidate
            for part, block, n in candidate.runs:
                out[:, block : block + n] = source[start:stop, part : part + n]
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


@attrs.define
class Joins:
    """The joins under way, by batch. Those whose budget runs out are forgotten."""

    _joins: dict[tuple[str, int], Join] = attrs.field(factory=dict, init=False)
    _deadlines: list[tuple[float, tuple[str, int]]] = attrs.field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._joins)

    def begin(self, head: Batch, at: float) -> Join | None:
        """Enter a batch's head; return its join if that completes it."""
        join = self._join(head.gateway, head.seq, at)
        join.head = head
        join.deadlines = (at + head.budgets_us * 1e-6).tolist()
        join.row_splits = list(itertools.accumulate(head.n_rows.tolist(), initial=0))
        self._expect(join, max(join.deadlines, default=at))
        return self._finished(join, at)

    def add(self, part: RowsPart | LookupBatch, at: float, patience: float) -> Join | None:
        """Enter a part; return its join if that completes it.

        Args:
            part: It may come before its head, but is kept for at most ``patience`` seconds then.
            at: Now.
            patience: See ``part``.
        """
        join = self._join(part.gateway, part.seq, at)
        if not join.parts and join.ids is None and join.head is None:
            self._expect(join, at + patience)
        if isinstance(part, LookupBatch):
            join.ids = part
        else:
            join.parts[part.part] = part
        return self._finished(join, at)

    def expire(self, now: float) -> int:
        """Forget the joins that nobody waits for any more; return how many there were."""
        n_expired = 0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key = heapq.heappop(self._deadlines)
            join = self._joins.get(key)
            if join is not None and not any(deadline > now for deadline in join.deadlines):
                del self._joins[key]
                n_expired += 1
        return n_expired

    def drain(self) -> list[Join]:
        """Forget all joins; return those whose head has come, which somebody waits for."""
        joins = [join for join in self._joins.values() if join.head is not None]
        self._joins.clear()
        self._deadlines.clear()
        return joins

    def next_deadline(self) -> float | None:
        """Return when ``expire`` next has something to look at, or None."""
        return self._deadlines[0][0] if self._deadlines else None

    def _join(self, gateway: str, seq: int, at: float) -> Join:
        join = self._joins.get((gateway, seq))
        if join is None:
            join = self._joins[gateway, seq] = Join(gateway, seq, at)
        return join

    def _expect(self, join: Join, until: float) -> None:
        heapq.heappush(self._deadlines, (until, (join.gateway, join.seq)))

    def _finished(self, join: Join, at: float) -> Join | None:
        if not join.complete:
            return None
        join.joined = at
        del self._joins[join.gateway, join.seq]
        return join

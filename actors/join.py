"""Joining: a batch's head from the gateway and its parts from the shards, in any order.

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
from kernels.lookup import ShardLayout
from transport.messages import Batch, RowsPart


@attrs.frozen(eq=False)
class BlockLayout:
    """Where a model's parts and values go in the user and the candidate block.

    Attributes:
        parts: The layouts of the shards that have lookups, in the order of a batch's parts.
        user_values: First of the value columns in the user block.
        candidate_values: First of them in the candidate block.
    """

    parts: Sequence[tuple[ShardLayout, ShardLayout]]
    user_values: int
    candidate_values: int

    @classmethod
    def of(
        cls, manifest: Manifest, layouts: Sequence[tuple[ShardLayout, ShardLayout]]
    ) -> BlockLayout:
        """Make the layout of a model; shards without lookups send no part and are left out."""
        return cls(
            [pair for pair in layouts if pair[0].width or pair[1].width],
            manifest.user.width - len(manifest.user.values),
            manifest.candidate.width - len(manifest.candidate.values),
        )


@attrs.define(eq=False)
class Join:
    """One batch, while its parts arrive and until its requests are answered.

    Attributes:
        arrived: When its head or its first part arrived.
        joined: When it was complete.
        row_splits: Request ``i`` has rows ``row_splits[i]`` to ``row_splits[i + 1]``.
    """

    gateway: str
    seq: int
    arrived: float
    head: Batch | None = None
    joined: float = 0.0
    deadlines: list[float] = attrs.Factory(list)
    row_splits: list[int] = attrs.Factory(lambda: [0])
    parts: dict[int, RowsPart] = attrs.Factory(dict)

    @property
    def complete(self) -> bool:
        """Whether everything has arrived."""
        return self.head is not None and len(self.parts) == self.head.n_parts

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
        return None

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

    def add(self, part: RowsPart, at: float, patience: float) -> Join | None:
        """Enter a part; return its join if that completes it.

        Args:
            part: It may come before its head, but is kept for at most ``patience`` seconds then.
            at: Now.
            patience: See ``part``.
        """
        join = self._join(part.gateway, part.seq, at)
        if not join.parts and join.head is None:
            self._expect(join, at + patience)
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

"""The joins under way in an executor: parts in any order, late parts, and parts that come twice.

Where groups have replicas, a part that does not come in the time that its group's parts usually
take is late, which is for the gateway to mend; and the first of two answers counts.

Pure: no clock, no mailbox.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TypeAlias

import attrs

from actors.block_layout import BlockLayout
from actors.card_part import let_go
from actors.join import Join
from actors.replicas import LateAfter
from transport.messages import Batch, LookupBatch, RowsPart

# A batch, by its gateway and number.
_Key: TypeAlias = tuple[str, int]


@attrs.define
class Joins:
    """The joins under way, by batch. Those whose budget runs out are forgotten.

    Attributes:
        layout: Says which parts have replicas; without it none are late.
    """

    layout: BlockLayout | None = None
    _joins: dict[_Key, Join] = attrs.field(factory=dict, init=False)
    _deadlines: list[tuple[float, _Key]] = attrs.field(factory=list, init=False)
    _late: list[tuple[float, _Key]] = attrs.field(factory=list, init=False)
    _late_after: list[LateAfter] = attrs.field(factory=list, init=False)
    _over: set[_Key] = attrs.field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        if self.layout is not None and self.layout.replicas > 1:
            self._late_after = [LateAfter() for _ in self.layout.parts]

    def __len__(self) -> int:
        return len(self._joins)

    def begin(self, head: Batch, at: float) -> Join | None:
        """Enter a batch's head; return its join if that completes it."""
        join = self._join(head.gateway, head.seq, at)
        join.head = head
        join.begun = at
        join.deadlines = (at + head.budgets_us * 1e-6).tolist()
        join.row_splits = list(itertools.accumulate(head.n_rows.tolist(), initial=0))
        self._expect(join, max(join.deadlines, default=at))
        finished = self._finished(join, at)
        if finished is None and self._late_after:
            self._watch(join)
        return finished

    def add(self, part: RowsPart | LookupBatch, at: float, patience: float) -> Join | None:
        """Enter a part; return its join if that completes it.

        Args:
            part: It may come before its head, but is kept for at most ``patience`` seconds then.
                One that has come before is dropped.
            at: Now.
            patience: See ``part``.
        """
        if (part.gateway, part.seq) in self._over:
            let_go(part)
            return None
        join = self._join(part.gateway, part.seq, at)
        if not join.parts and join.ids is None and join.head is None:
            self._expect(join, at + patience)
        if isinstance(part, LookupBatch):
            join.ids = part
        elif part.part in join.parts:
            let_go(part)
            return None
        else:
            join.parts[part.part] = part
            join.came[part.part] = at
        return self._finished(join, at)

    def late(self, now: float) -> list[tuple[Join, list[int]]]:
        """Return the joins that have been waiting for some parts for too long, and which these are.

        Each part again after twice the time: whoever was asked since may be late, too.
        """
        found = []
        while self._late and self._late[0][0] <= now:
            _, key = heapq.heappop(self._late)
            join = self._joins.get(key)
            if join is None or join.head is None:  # none, or what came after its time was up
                continue
            late = [index for index, due in self._due(join) if due <= now]
            for index in late:
                join.n_notices[index] = join.n_notices.get(index, 0) + 1
            if late:
                found.append((join, late))
            self._watch(join)
        return found

    def expire(self, now: float) -> int:
        """Forget the joins that nobody waits for any more; return how many there were."""
        n_expired = 0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key = heapq.heappop(self._deadlines)
            join = self._joins.get(key)
            if join is not None and not any(deadline > now for deadline in join.deadlines):
                del self._joins[key]
                join.release()
                n_expired += 1
            self._over.discard(key)
        return n_expired

    def drain(self) -> list[Join]:
        """Forget all joins; return those whose head has come, which somebody waits for."""
        joins = [join for join in self._joins.values() if join.head is not None]
        self._joins.clear()
        self._deadlines.clear()
        self._late.clear()
        self._over.clear()
        return joins

    def next_deadline(self) -> float | None:
        """Return when ``expire`` next has something to look at, or None."""
        return self._deadlines[0][0] if self._deadlines else None

    def next_late(self) -> float | None:
        """Return when ``late`` next has something to look at, or None."""
        while self._late and self._late[0][1] not in self._joins:
            heapq.heappop(self._late)
        return self._late[0][0] if self._late else None

    def _join(self, gateway: str, seq: int, at: float) -> Join:
        join = self._joins.get((gateway, seq))
        if join is None:
            join = self._joins[gateway, seq] = Join(gateway, seq, at)
        return join

    def _expect(self, join: Join, until: float) -> None:
        heapq.heappush(self._deadlines, (until, (join.gateway, join.seq)))

    def _due(self, join: Join) -> list[tuple[int, float]]:
        """Return the parts that a join waits for, and when each is late, or late again."""
        assert self.layout is not None
        assert join.head is not None
        due = []
        for index in self.layout.expected(join.head):
            if index not in join.parts and index != self.layout.hot:
                after = self._late_after[index].seconds * 2 ** join.n_notices.get(index, 0)
                due.append((index, join.begun + after))
        return due

    def _watch(self, join: Join) -> None:
        """See to it that ``late`` looks at a join again."""
        first = min((due for _, due in self._due(join)), default=None)
        if first is not None:
            heapq.heappush(self._late, (first, (join.gateway, join.seq)))

    def _finished(self, join: Join, at: float) -> Join | None:
        if not join.complete:
            return None
        join.joined = at
        key = join.gateway, join.seq
        del self._joins[key]
        if self._late_after:
            self._over.add(key)  # until its deadline: other replicas' answers may be on their way
            join.note_parts(len(self._late_after))
            for index, came in join.came.items():
                if 0 <= index < len(self._late_after):
                    self._late_after[index].learn(max(came - join.begun, 0.0))
        return join

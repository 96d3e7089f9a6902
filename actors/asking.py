"""Who is asked for each part of the batches in flight: the gateway's book of lookups.

Pure: events go in with the time at which they happen, what is to be done comes out. A part is asked
of one replica of its group at first. Another one is asked too when the answer is late, and instead
when the one that was asked refuses, fails or dies. The first answer counts, which is the
executor's affair; here, a part is over when its batch is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from actors.replicas import Allowance, Replicas
from transport.messages import LookupBatch

# What a lookup costs besides its rows, in rows: about 20 us, in which 200 rows are fetched.
_LOOKUP_ROWS = 200
# A lookup may be lost though the replica lives: its node was restarted, or the way to it was. Where
# there is no other replica the same one is asked again after so many times its usual time, and not
# before this time, in which a machine may be busy with something else.
_AGAIN_TIMES = 4
_AGAIN_S = 0.02


@attrs.frozen(eq=False)
class Question:
    """Something to do: ask a replica for a part."""

    seq: int
    part: int
    replica: str
    lookup: LookupBatch


@attrs.frozen(eq=False)
class Nobody:
    """Something to do: decide about a part for which no replica is left that could be asked.

    Attributes:
        code: Why: ``unavailable``, or what the last one that was asked had to say; of
            ``transport.messages.ERROR_CODES``.
        message: Likewise; empty if all were known to be dead.
    """

    seq: int
    part: int
    lookup: LookupBatch
    attempt: int
    code: str
    message: str


Todo: TypeAlias = Question | Nobody


@attrs.define(eq=False)
class _Part:
    """A part of a batch.

    Attributes:
        attempts: Whom it was asked of, in order, and
        asked_at: when, the last time.
        waiting: The attempts that may still be answered.
        given_up: Names that failed, and are not asked again.
        over: Whether it is decided: nobody is asked any more.
    """

    replicas: tuple[str, ...]
    lookup: LookupBatch
    work: int
    attempts: list[str] = attrs.Factory(list)
    asked_at: float = 0.0
    waiting: list[int] = attrs.Factory(list)
    given_up: list[str] = attrs.Factory(list)
    over: bool = False


@attrs.frozen(eq=False)
class _Batch:
    parts: dict[int, _Part]
    deadline: float


@attrs.define(eq=False)
class Asking:
    """The parts of the batches in flight. Keeps each batch's lookups until it is settled.

    Attributes:
        n_hedges: Second questions that were asked as an answer was late.
        n_retries: Others that were asked again, as one was refused, failed, or died.
        n_wins: Second questions of either kind that were answered first.
    """

    replicas: Replicas = attrs.Factory(Replicas)
    n_hedges: int = 0
    n_retries: int = 0
    n_wins: int = 0
    _batches: dict[int, _Batch] = attrs.field(factory=dict, init=False)
    _allowance: Allowance = attrs.field(factory=Allowance, init=False)

    def counts(self) -> dict[str, int]:
        """Return the three counters by name, and start them anew."""
        counts = {"hedges": self.n_hedges, "retries": self.n_retries, "hedge_wins": self.n_wins}
        self.n_hedges = self.n_retries = self.n_wins = 0
        return counts

    def __len__(self) -> int:
        return len(self._batches)

    def begin(
        self,
        seq: int,
        parts: Sequence[tuple[tuple[str, ...], LookupBatch]],
        deadline: float,
        now: float,
    ) -> list[Todo]:
        """Enter a batch; return whom to ask for each of its parts.

        Args:
            seq: Never used before.
            parts: For each part that the batch has, the replicas of its group, and what to ask one
                of them.
            deadline: When nobody waits for it any more.
            now: The time.
        """
        entries = {
            lookup.part: _Part(replicas, lookup, _work(lookup)) for replicas, lookup in parts
        }
        self._batches[seq] = batch = _Batch(entries, deadline)
        self._allowance.earn(len(entries))
        todo = (self._ask(seq, index, batch, now) for index in entries)
        return [each for each in todo if each is not None]

    def refused(self, question: Question, code: str, message: str, now: float) -> list[Todo]:
        """Note that a replica, which lives, could not be told a question."""
        attempt = question.lookup.attempt
        return self.failed(question.seq, question.part, attempt, code, message, now)

    def failed(
        self, seq: int, index: int, attempt: int, code: str, message: str, now: float
    ) -> list[Todo]:
        """Note that an attempt was answered with an error."""
        batch = self._batches.get(seq)
        part = self._part(batch, index)
        if batch is None or part is None or attempt not in part.waiting:
            return []
        self._drop(part, attempt)
        part.given_up.append(part.attempts[attempt])
        return self._again(seq, index, batch, now, code, message)

    def late(self, seq: int, index: int, now: float) -> list[Todo]:
        """Note that the answer for a part takes long; ask another replica too, if that is sensible.

        It is if there is one, there is time for it to answer, and not too many were asked twice.
        Without another one, the same is asked again if it has had far more time than it needs.
        """
        batch = self._batches.get(seq)
        part = self._part(batch, index)
        if batch is None or part is None or not part.waiting:
            return []
        name = self.replicas.choose(part.replicas, self._excluded(part), now)
        if name is None and len(part.replicas) > 1:
            name = self.replicas.choose(part.replicas, part.given_up, now)
            patience = 0.0 if name is None else _AGAIN_TIMES * self.replicas.usual_s(name)
            if now - part.asked_at < max(patience, _AGAIN_S):
                return []
        if name is None or now + self.replicas.usual_s(name) >= batch.deadline:
            return []
        if not self._allowance.spend():
            return []
        self.n_hedges += 1
        return [self._question(seq, index, batch, name, now)]

    def died(self, name: str, now: float, how: str = "") -> list[Todo]:
        """Note that a replica is dead, and how that is known: what it was asked others are."""
        self.replicas.dead.add(name)
        todo: list[Todo] = []
        for seq, batch in self._batches.items():
            for index, part in batch.parts.items():
                lost = [attempt for attempt in part.waiting if part.attempts[attempt] == name]
                for attempt in lost:
                    self._drop(part, attempt)
                if lost:
                    todo += self._again(seq, index, batch, now, "unavailable", how)
        return todo

    def asked_of(self, seq: int, index: int) -> tuple[str, ...]:
        """Return the replicas whose answers for a part are awaited."""
        part = self._part(self._batches.get(seq), index)
        return () if part is None else tuple(part.attempts[attempt] for attempt in part.waiting)

    def settled(
        self, seq: int, attempts: Sequence[int], seconds: Sequence[float], now: float
    ) -> None:
        """Forget a batch, and learn from which attempts at its parts were the first to succeed.

        Args:
            seq: The batch's number; one that was forgotten before is passed over.
            attempts: By part, or none if that is not known.
            seconds: How long after the batch each part came, likewise.
            now: The time.
        """
        batch = self._batches.pop(seq, None)
        if batch is None:
            return
        for index, part in batch.parts.items():
            for attempt in part.waiting:
                self.replicas.done(part.attempts[attempt], part.work)
            first = attempts[index] if index < len(attempts) else -1
            if not 0 <= first < len(part.attempts):
                continue  # not known, or no replica's: default rows
            self.replicas.won(part.attempts[first], seconds[index])
            self.n_wins += first > 0
            for attempt in part.waiting:
                if attempt < first:
                    self.replicas.lost(part.attempts[attempt], now)

    def _again(
        self, seq: int, index: int, batch: _Batch, now: float, code: str, message: str
    ) -> list[Todo]:
        """Ask another replica for a part, unless one that was asked may still answer."""
        if batch.parts[index].waiting or now >= batch.deadline:
            return []
        todo = self._ask(seq, index, batch, now, code, message)
        self.n_retries += isinstance(todo, Question)
        return [] if todo is None else [todo]

    def _ask(
        self,
        seq: int,
        index: int,
        batch: _Batch,
        now: float,
        code: str = "unavailable",
        message: str = "",
    ) -> Todo | None:
        part = batch.parts[index]
        if part.over:
            return None
        name = self.replicas.choose(part.replicas, self._excluded(part), now)
        if name is not None:
            return self._question(seq, index, batch, name, now)
        part.over = True
        return Nobody(seq, index, part.lookup, len(part.attempts), code, message)

    def _question(self, seq: int, index: int, batch: _Batch, name: str, now: float) -> Question:
        part = batch.parts[index]
        attempt = len(part.attempts)
        part.attempts.append(name)
        part.waiting.append(attempt)
        part.asked_at = now
        self.replicas.asked(name, part.work)
        lookup = part.lookup
        if attempt:
            left_us = max(int((batch.deadline - now) * 1e6), 0)
            lookup = attrs.evolve(lookup, attempt=attempt, budget_us=left_us)
        return Question(seq, index, name, lookup)

    def _drop(self, part: _Part, attempt: int) -> None:
        part.waiting.remove(attempt)
        self.replicas.done(part.attempts[attempt], part.work)

    @staticmethod
    def _excluded(part: _Part) -> list[str]:
        return [*part.given_up, *(part.attempts[attempt] for attempt in part.waiting)]

    @staticmethod
    def _part(batch: _Batch | None, index: int) -> _Part | None:
        part = None if batch is None else batch.parts.get(index)
        return None if part is None or part.over else part


def _work(lookup: LookupBatch) -> int:
    n_rows: int = lookup.user_ids.size + lookup.candidate_ids.size + lookup.keys.size
    return _LOOKUP_ROWS + n_rows

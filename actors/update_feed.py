"""Feeds one replica: every update that has rows for its group, in order, from where it stands.

The feed asks where the replica stands, then sends some updates ahead of the answers. Whatever goes
wrong (a lost message, a restart, a refusal) ends in asking again. A replica that needs what the
stream has not kept is told to take over what a peer has.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, TypeAlias

import attrs
import numpy as np
import trio

from actors.update_stream import Entry, UpdateStream
from kernels.errors import StateError
from runtime.actor import Ref
from runtime.metrics import Metrics
from transport.errors import Overloaded, Unavailable
from transport.updates import SeedOrder, UpdateAck, UpdateBatch

log = logging.getLogger(__name__)

Phase: TypeAlias = Literal["away", "catching up", "live", "behind", "seeding"]

# Updates and bytes that a replica is sent ahead of its answers.
_WINDOW: Final = 16
_WINDOW_BYTES: Final = 16 << 20
# Longer than a slow disk takes to sync; after it, the replica is asked again where it stands.
_ANSWER_S: Final = 3.0
_SEED_S: Final = 600.0
_AGAIN_S: Final = 0.1
_AGAIN_MOST_S: Final = 1.0
_BEHIND_S: Final = 5.0
# Updates read from the log at a time.
_READ_MOST: Final = 16

_NO_KEYS: Final = np.empty(0, np.int64)
_NO_ROWS: Final = np.empty((0, 0), np.uint8)


class _Again(Exception):
    """Begin anew: ask the replica where it stands."""


@attrs.frozen
class _Sent:
    number: int
    at: float
    size_bytes: int
    end_bytes: int


class Feed:
    """What one replica has, and what it is sent.

    Attributes:
        replica: Its name.
        phase: ``away`` until it answers, ``live`` once it has had everything for a moment.
        has: It has applied all updates up to this number.
        keeps_from: While it is being seeded, what follows this number is to be kept for it.
        done_bytes: As ``Entry.end_bytes``, of the last update that it has applied.
        problem: What it last said was wrong.
    """

    def __init__(
        self,
        updater: str,
        ref: Ref,
        group: int,
        stream: UpdateStream,
        metrics: Metrics,
        peers: Callable[[], list[Feed]],
    ) -> None:
        """Feed nothing yet.

        Args:
            updater: Whom the replica answers.
            ref: The replica.
            group: Of the placement.
            stream: What it is fed.
            metrics: The updater's.
            peers: Tells the feeds of other replicas of the group that can give theirs a seed.
        """
        self.replica = ref.name
        self.group = group
        self.phase: Phase = "away"
        self.has = 0
        self.keeps_from = 0
        self.done_bytes = 0
        self.problem = ""
        self._updater = updater
        self._ref = ref
        self._stream = stream
        self._metrics = metrics
        self._peers = peers
        self._in_flight: deque[_Sent] = deque()
        self._ack: UpdateAck | None = None
        self._refusal: UpdateAck | None = None
        self._applied = 0
        self._news = trio.Event()

    def heard(self, ack: UpdateAck) -> None:
        """Take what the replica says."""
        self._ack = ack
        if ack.code != "ok":
            self._refusal = ack
            self.problem = ack.message
            self._metrics.count("refused")
        self._settle(ack)
        self.notify()

    def notify(self) -> None:
        """Note that there is something new: an update, or an answer."""
        self._news.set()

    def statistics(self, now: float) -> dict[str, Any]:
        """Return how it stands, for JSON."""
        waiting = [sent.at for sent in self._in_flight if sent.at > float("-inf")]
        following = self._stream.next_recent(self.has)
        if following is not None:
            waiting.append(following.at)
        oldest_s = max(now - min(waiting), 0.0) if waiting and self.has < self._stream.newest else 0
        return {
            "phase": self.phase,
            "applied": self.has,
            "behind_by": self._stream.newest - self.has,
            "oldest_unapplied_s": round(oldest_s, 3),
            "problem": self.problem,
        }

    async def run(self) -> None:
        """Feed the replica for as long as there is an updater."""
        wait_s = _AGAIN_S
        while True:
            try:
                await self._feed(await self._ask())
            except (_Again, Overloaded, Unavailable) as error:
                if str(error):
                    self.problem = str(error)
                if self.phase not in ("behind", "seeding"):
                    self.phase = "away" if isinstance(error, Unavailable) else "catching up"
            except StateError as error:
                await self._seed(error)
            self._in_flight.clear()
            await trio.sleep(wait_s)
            answered = self._ack is not None and self._ack.code == "ok"
            wait_s = _AGAIN_S if answered else min(2 * wait_s, _AGAIN_MOST_S)

    async def _ask(self) -> int:
        """Return the number of the stream up to which the replica stands."""
        self._ack = self._refusal = None
        self._ref.tell(self._message(None, 0, 0))
        ack = await self._answer(_ANSWER_S)
        if ack.code != "ok":
            raise Unavailable(f"{self.replica}: {ack.message}")
        return ack.applied if ack.stream == self._stream.id else 0

    async def _answer(self, budget_s: float) -> UpdateAck:
        with trio.move_on_after(budget_s):
            while self._ack is None:
                self._news = trio.Event()
                await self._news.wait()
        if self._ack is None:
            raise Unavailable(f"{self.replica}: no answer within {budget_s:g} s")
        return self._ack

    async def _feed(self, stands: int) -> None:
        """Send all after update ``stands``, and what comes, until something goes wrong.

        Raises:
            StateError: The stream has not kept what the replica needs.
            _Again, Overloaded, Unavailable: It is to be asked again where it stands.
        """
        stream = self._stream
        if self.phase != "live":
            self.phase = "catching up"
        self.problem = ""
        previous = stands
        if stands != self._applied or self.has < stands:
            # Else it has all up to ``has``, in which there was nothing else for it.
            self.has = self._applied = stands
        cursor = self.has = stream.begin_after(self.group, self.has)
        reading: Iterator[Entry] | None = None
        read: deque[Entry] = deque()
        while True:
            if read:
                entry: Entry | None = read.popleft()
            else:
                entry = stream.next_recent(cursor)
                if entry is not None:
                    reading = None
                elif cursor < stream.newest:
                    if reading is None:
                        reading = stream.read(cursor)
                    read.extend(await trio.to_thread.run_sync(_some, reading))
                    if not read:
                        reading = None  # it ended where the log did when it began
                    continue
            if entry is None:
                if not self._in_flight:
                    self.phase = "live"
                    self._progress(cursor)
                    self.done_bytes = stream.total_bytes
                await self._wait(functools.partial(self._is_newer, cursor))
                continue
            cursor = entry.number
            if self.group not in entry.parts:
                if not self._in_flight:
                    self._progress(cursor)
                continue
            await self._wait(self._has_room)
            self._ref.tell(self._message(entry, previous, cursor))
            previous = cursor
            size_bytes = entry.parts[self.group].size_bytes
            self._in_flight.append(_Sent(cursor, entry.at, size_bytes, entry.end_bytes))

    async def _wait(self, arrived: Callable[[], bool]) -> None:
        """Wait for something, answers being heard meanwhile.

        Raises:
            _Again: The replica refused what it was sent, or does not answer.
        """
        while True:
            if self._refusal is not None:
                raise _Again(self._refusal.message)
            if arrived():
                return
            self._news = trio.Event()
            n_before = len(self._in_flight)
            with trio.move_on_after(_ANSWER_S if n_before else float("inf")) as patience:
                await self._news.wait()
            if patience.cancelled_caught and len(self._in_flight) == n_before:
                raise _Again(f"{self.replica}: no answer within {_ANSWER_S:g} s")
            if not self._in_flight and n_before:
                return  # the caller looks where that leaves it

    def _is_newer(self, number: int) -> bool:
        return self._stream.newest > number

    def _has_room(self) -> bool:
        if len(self._in_flight) >= _WINDOW:
            return False
        return not self._in_flight or (
            sum(sent.size_bytes for sent in self._in_flight) < _WINDOW_BYTES
        )

    def _settle(self, ack: UpdateAck) -> None:
        if ack.stream != self._stream.id:
            return
        self._applied = max(self._applied, ack.applied)
        now = trio.current_time()
        while self._in_flight and self._in_flight[0].number <= ack.applied:
            sent = self._in_flight.popleft()
            self.done_bytes = sent.end_bytes or self.done_bytes
            self._metrics.count(f"applied.{self.replica}")
            if sent.at > float("-inf"):
                self._metrics.observe(f"lag_us.{self.replica}", (now - sent.at) * 1e6)
            self._progress(sent.number)

    def _progress(self, upto: int) -> None:
        self.has = max(self.has, upto)

    def _message(self, entry: Entry | None, previous: int, newest: int) -> UpdateBatch:
        stream, routes = self._stream, self._stream.routes
        part = None if entry is None else entry.parts[self.group]
        age_s = 0.0 if entry is None else trio.current_time() - entry.at
        return UpdateBatch(
            updater=self._updater,
            model=routes.model,
            version=routes.version,
            table="" if part is None else part.table,
            stream=stream.id,
            number=0 if entry is None else entry.number,
            previous=previous,
            newest=newest,
            age_us=int(age_s * 1e6) if age_s < float("inf") else 0,
            dtype="" if part is None else part.dtype,
            keys=_NO_KEYS if part is None else part.keys,
            rows=_NO_ROWS if part is None else part.rows,
        )

    async def _seed(self, error: StateError) -> None:
        """Have the replica take over what a peer has."""
        if self.phase != "behind":
            log.error("%s is behind what was kept: %s", self.replica, error)
            self._metrics.count("behind")
        self.phase = "behind"
        peers = self._peers()
        if not peers:
            self.problem = f"{error}; no replica of its group has it"
            await trio.sleep(_BEHIND_S)
            return
        peer = peers[0].replica
        self.phase = "seeding"
        self.keeps_from = peers[0].has  # it will have that at the least, and need what follows
        self._ack = self._refusal = None
        routes = self._stream.routes
        try:
            self._ref.tell(
                SeedOrder(
                    updater=self._updater,
                    model=routes.model,
                    version=routes.version,
                    peer=peer,
                )
            )
            ack = await self._answer(_SEED_S)
        except (Overloaded, Unavailable) as failure:
            self.problem = str(failure)
        else:
            if ack.code == "ok":
                self.phase = "catching up"
                log.warning("%s has taken over all updates of %s", self.replica, peer)
                return
            self.problem = ack.message
        self.phase = "behind"
        await trio.sleep(_BEHIND_S)


def _some(entries: Iterator[Entry]) -> list[Entry]:
    return list(itertools.islice(entries, _READ_MOST))

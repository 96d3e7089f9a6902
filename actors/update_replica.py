"""One shard's updates of one version of a model: persist, apply, acknowledge, compact, seed.

What arrives waits in a queue. One task persists all that waits together, in a thread, while lookups
go on; applies it in the event loop, batch by batch, with no lookup under way; and acknowledges it.
Another task compacts. A replica that needs more than the updater has kept takes over the snapshot
of a peer, which a third task sends.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import trio

from actors.update_gate import Gate
from actors.update_rules import judge
from actors.update_seed import download, read_part
from kernels.errors import StateError
from kernels.store.changes import Change
from kernels.store.rows import RowType
from kernels.store.state import Compaction, UpdateState
from runtime.actor import Context, Reply
from runtime.metrics import Metrics
from transport.errors import Overloaded, RequestError, Unavailable
from transport.messages import ErrorReply
from transport.updates import RowsChanged, SeedOrder, SeedPart, SeedRequest, UpdateAck, UpdateBatch

log = logging.getLogger(__name__)

# Updates that may wait; an updater sends far fewer before it waits for an answer.
_WAITING_MOST: Final = 256
# Updates that are persisted by one fsync.
_TOGETHER: Final = 32
# For how long after a part of a snapshot was sent its file is not replaced.
_SEEDING_S: Final = 10.0


class Replica:
    """Serves the updates of one version.

    Attributes:
        is_seeding: Whether its rows are of different times, so that it must not answer lookups.
    """

    def __init__(
        self,
        context: Context,
        metrics: Metrics,
        gate: Gate,
        state: UpdateState,
        *,
        model: str,
        version: str,
        cached: frozenset[str] = frozenset(),
        executors: tuple[str, ...] = (),
        compact_bytes: int,
    ) -> None:
        """Serve nothing yet.

        Args:
            context: The shard's.
            metrics: The shard's.
            gate: Where its lookups in threads go through.
            state: Closed at the end of ``run``.
            model: Whose updates these are.
            version: Of the model.
            cached: Tables of which executors keep rows.
            executors: Told about changes of these.
            compact_bytes: A log of this size is compacted; of the snapshot's, if that is larger.
        """
        self.model = model
        self.version = version
        self.is_seeding = False
        self._context = context
        self._metrics = metrics
        self._gate = gate
        self._state = state
        self._cached = cached
        self._executors = executors
        self._compact_bytes = compact_bytes
        self._newest = 0
        self._waiting: deque[tuple[UpdateBatch | SeedOrder, float]] = deque()
        self._arrived = trio.Event()
        self._grown = trio.Event()
        self._asks: deque[tuple[SeedRequest, Reply]] = deque()
        self._asked = trio.Event()
        self._snapshotting = trio.Lock()
        self._seeded_at = -_SEEDING_S
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def put(self, message: UpdateBatch | SeedOrder, received_at: float) -> None:
        """Let a message wait for its turn."""
        if len(self._waiting) >= _WAITING_MOST:
            self._acknowledge(message.updater, "unavailable", "too many updates wait")
            return
        if isinstance(message, UpdateBatch):
            self._newest = max(message.newest, message.number)
        self._waiting.append((message, received_at))
        self._arrived.set()

    def put_ask(self, message: SeedRequest, reply: Reply) -> None:
        """Let a peer's request for a part of the snapshot wait for its turn."""
        self._asks.append((message, reply))
        self._asked.set()

    def statistics(self) -> Mapping[str, Any]:
        """Return how far its updates have come, for JSON."""
        now, state = trio.current_time(), self._state
        waited = [
            now - at + message.age_us * 1e-6
            for message, at in self._waiting
            if isinstance(message, UpdateBatch) and message.number > state.number
        ]
        return {
            "version": self.version[:12],
            "applied": state.number,
            "newest": max(self._newest, state.number),
            "oldest_unapplied_s": round(max(waited, default=0.0), 3),
            "changed_rows": state.n_rows,
            "changed_bytes": state.size_bytes,
            "log_bytes": state.log_bytes,
            "is_seeding": self.is_seeding,
        }

    async def run(self) -> None:
        """Serve until ``aclose``.

        Raises:
            OSError: The disk cannot be relied on any more.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._serve)
                    nursery.start_soon(self._compact)
                    nursery.start_soon(self._send_seeds)
        finally:
            self._state.close()
            self._ended.set()

    async def aclose(self) -> None:
        """End ``run``; what is persisted stays on disk."""
        self._scope.cancel()
        await self._ended.wait()

    # Updates

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            arrivals = self._next_updates()
            if arrivals:
                updater = arrivals[-1][0].updater
                code, problem = await self._update(arrivals)
            else:
                order = self._waiting[0][0]
                assert isinstance(order, SeedOrder)
                updater = order.updater
                code, problem = await self._take_seed(order.peer)
            # Until here they count as waiting, for whoever asks how long they have.
            for _ in range(max(len(arrivals), 1)):
                self._waiting.popleft()
            if not self._waiting:
                self._arrived = trio.Event()
            self._acknowledge(updater, code, problem)

    def _next_updates(self) -> list[tuple[UpdateBatch, float]]:
        """Return what is to be persisted together; nothing if a seed is to be taken first."""
        arrivals: list[tuple[UpdateBatch, float]] = []
        for message, at in itertools.islice(self._waiting, _TOGETHER):
            if not isinstance(message, UpdateBatch):
                break
            arrivals.append((message, at))
        return arrivals

    async def _update(self, arrivals: list[tuple[UpdateBatch, float]]) -> tuple[str, str]:
        """Persist and apply what can be; return a code and what is wrong with the rest."""
        state = self._state
        stream, number = state.stream, state.number
        code, problem = "ok", ""
        changes: list[tuple[Change, UpdateBatch, float]] = []
        for batch, at in arrivals:
            verdict = judge(stream, number, batch)
            if verdict == "gap":
                code = "unavailable"
                problem = f"update {batch.number} follows {batch.previous}, not {number}"
            if verdict != "apply":
                continue
            change = _change_of(batch)
            invalid = state.problem_of(change)
            if invalid:
                code, problem = "invalid", f"update {batch.number}: {invalid}"
                break
            stream, number = batch.stream, batch.number
            changes.append((change, batch, at))
        if not changes:
            return code, problem
        try:
            places = await trio.to_thread.run_sync(
                state.persist, [change for change, _, _ in changes]
            )
        except StateError as error:
            log.error("%s: %s", self._context.name, error)
            self._metrics.count("updates_unwritten", len(changes))
            return "unavailable", str(error)
        for place, (change, batch, at) in zip(places, changes, strict=False):
            await self._gate.wait_none()
            state.apply(place, change)
            self._count(change, batch, at)
            await trio.lowlevel.checkpoint()  # lookups that wait go first
        if state.log_bytes > max(self._compact_bytes, state.snapshot_bytes):
            self._grown.set()
        return code, problem

    def _count(self, change: Change, batch: UpdateBatch, received_at: float) -> None:
        spent_us = (trio.current_time() - received_at) * 1e6
        self._metrics.count("updates")
        self._metrics.count("updated_rows", len(change.keys))
        self._metrics.observe("update_us", spent_us)
        self._metrics.observe("update_lag_us", spent_us + max(batch.age_us, 0))
        self._tell_executors(change)

    def _tell_executors(self, change: Change) -> None:
        """Tell those who keep rows of the table that theirs are old."""
        if change.table not in self._cached:
            return
        news = RowsChanged(
            model=self.model, version=self.version, table=change.table, keys=change.keys
        )
        for executor in self._executors:
            try:
                self._context.ref(executor).tell(news)
            except (Overloaded, Unavailable):
                # It finds out when its rows are as old as they may be (``stale_s``).
                self._metrics.count("untold_changes")

    def _acknowledge(self, updater: str, code: str = "ok", problem: str = "") -> None:
        state = self._state
        ack = UpdateAck(
            replica=self._context.name,
            model=self.model,
            version=self.version,
            stream=state.stream,
            applied=state.number,
            code=code,
            message=problem,
        )
        try:
            self._context.ref(updater).tell(ack)
        except (Overloaded, Unavailable):
            self._metrics.count("unacknowledged")  # it asks again
        except KeyError:
            self._metrics.count("strays")  # there is no such actor

    # Compaction

    async def _compact(self) -> None:
        while True:
            await self._grown.wait()
            await trio.sleep_until(self._seeded_at + _SEEDING_S)
            try:
                await self._snapshot()
            except (StateError, OSError) as error:
                # Updates go on as before; the next one tries again.
                log.error("%s: no compaction: %s", self._context.name, error)
                self._metrics.count("compactions_failed")
            self._grown = trio.Event()

    async def _snapshot(self) -> None:
        async with self._snapshotting:
            began = trio.current_time()
            compaction = await trio.to_thread.run_sync(self._state.compaction)
            try:
                more = True
                while more:
                    async with self._gate.reading():
                        more = await trio.to_thread.run_sync(_step, compaction)
                await trio.to_thread.run_sync(compaction.finish)
            finally:
                compaction.abandon()
            self._metrics.count("compactions")
            self._metrics.observe("compaction_us", (trio.current_time() - began) * 1e6)

    # Seeds

    async def _take_seed(self, peer: str) -> tuple[str, str]:
        """Take over all that a peer has; return a code and what went wrong."""
        state = self._state
        log.warning("%s: model %s: takes all updates of %s", self._context.name, self.model, peer)
        try:
            part = state.seed_part()
            await download(self._context.ref(peer), self.model, self.version, part)
            # A snapshot that began before memory has all of the seed would take its place.
            async with self._snapshotting:
                await self._put_seed(await trio.to_thread.run_sync(state.install_seed, part))
        except (RequestError, StateError, KeyError) as error:
            log.error("%s: no seed of %s: %s", self._context.name, peer, error)
            return "unavailable", f"no seed of {peer}: {error}"
        self._metrics.count("seeded")
        return "ok", ""

    async def _put_seed(self, path: Path) -> None:
        """Bring what is on disk into memory.

        Raises:
            OSError: It cannot be: what is in memory must not be served any more.
        """
        self.is_seeding = True
        try:
            changes = self._state.read_seed(path)
            while (change := await trio.to_thread.run_sync(_next, changes)) is not None:
                await self._gate.wait_none()
                self._state.put(change)
                self._tell_executors(change)
                await trio.lowlevel.checkpoint()
        except StateError as error:  # it was whole a moment ago
            raise OSError(str(error)) from error
        self.is_seeding = False

    async def _send_seeds(self) -> None:
        while True:
            await self._asked.wait()
            message, reply = self._asks.popleft()
            if not self._asks:
                self._asked = trio.Event()
            try:
                reply(await self._seed_part(message))
            except (StateError, OSError) as error:
                text = f"{self._context.name}: {error}"
                reply(ErrorReply(request_id=0, code="unavailable", message=text))

    async def _seed_part(self, message: SeedRequest) -> SeedPart:
        if message.snapshot == 0:
            if self._state.number == 0:
                raise StateError("has no updates itself")
            await self._snapshot()
        self._seeded_at = trio.current_time()
        path = self._state.snapshot_of(message.snapshot)
        data, size = await trio.to_thread.run_sync(read_part, path, message.offset)
        return SeedPart(
            snapshot=self._state.snapshot_number, offset=message.offset, size=size, data=data
        )


def _change_of(batch: UpdateBatch) -> Change:
    return Change(
        stream=batch.stream,
        number=batch.number,
        at_us=0,
        table=batch.table,
        dtype=cast("RowType", batch.dtype),  # as the table's, or else it is refused
        keys=batch.keys,
        rows=batch.rows,
    )


def _step(compaction: Compaction) -> bool:
    change = compaction.copy()
    if change is not None:
        compaction.write(change)
    return change is not None


def _next(changes: Iterator[Change]) -> Change | None:
    return next(changes, None)

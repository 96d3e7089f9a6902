from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.update_gate import Gate
from actors.update_replica import Replica
from kernels.errors import StateError
from kernels.store.delta import Delta
from kernels.store.rows import RowType, encode_rows, row_bytes
from kernels.store.state import ChangingTable, UpdateState
from runtime.metrics import Metrics
from runtime.refs import Answer
from runtime.topology import ActorSpec, NodeSpec, Topology
from transport.errors import Unavailable
from transport.messages import Message
from transport.updates import RowsChanged, SeedOrder, SeedRequest, UpdateAck, UpdateBatch

DIM = 4


@attrs.define(eq=False)
class FakeRef:
    name: str
    told: list[Message] = attrs.field(factory=list)
    answer: Callable[[Message], Awaitable[Message]] | None = None
    is_away: bool = False

    def tell(self, message: Message) -> None:
        if self.is_away:
            raise Unavailable(f"{self.name} is away")
        self.told.append(message)

    async def ask(self, message: Message, *, budget: float) -> Message:
        assert self.answer is not None
        return await self.answer(message)


TOPOLOGY = Topology(
    name="t", nodes=(NodeSpec(name="n", actors=(ActorSpec(name="a", class_name="A"),)),)
)


@attrs.define(eq=False)
class FakeContext:
    """The context of a shard, and those that it talks to."""

    name: str = "shard"
    topology: Topology = TOPOLOGY
    options: Mapping[str, Any] = attrs.field(factory=dict)
    stopping: trio.Event = attrs.field(factory=trio.Event)
    refs: dict[str, FakeRef] = attrs.field(factory=dict)

    def ref(self, actor: str) -> FakeRef:
        if actor == "nobody":
            raise KeyError(actor)
        return self.refs.setdefault(actor, FakeRef(actor))

    def report_ready(self, progress: float) -> None:
        raise NotImplementedError

    def deployed(self, model: str) -> None:
        raise NotImplementedError

    async def keep_deployed(self, model: str, deployed: object) -> None:
        raise NotImplementedError


@attrs.define(eq=False)
class Shard:
    """A replica under test."""

    replica: Replica
    context: FakeContext
    tables: dict[str, ChangingTable]
    metrics: Metrics
    gate: Gate
    state: UpdateState

    @property
    def acks(self) -> list[UpdateAck]:
        return [each for each in self.context.ref("updater").told if isinstance(each, UpdateAck)]

    async def send(self, *batches: UpdateBatch) -> UpdateAck:
        """Send updates and return the answer to the last of them."""
        n_before = len(self.acks)
        for batch in batches:
            self.replica.put(batch, trio.current_time())
        while True:
            if len(self.acks) > n_before and not self.replica._waiting:
                await wait_all_tasks_blocked(0.02)
                return self.acks[-1]
            await trio.sleep(0.01)

    async def seed_part(self, message: Message) -> Message:
        """Answer as a peer that is asked for its snapshot."""
        assert isinstance(message, SeedRequest)
        answer = Answer()
        self.replica.put_ask(message, answer.deliver)
        return await answer.wait(self.context.name, 60.0)

    def rows(self, table: str) -> dict[int, float]:
        """Return the first number of each changed row."""
        delta = self.tables[table].changed
        keys, rows = delta.copy(0, len(delta))
        dtype = self.tables[table].dtype
        numbers = rows.view(np.float16 if dtype == "fp16" else np.float32)
        return {int(key): float(row[0]) for key, row in zip(keys, numbers, strict=True)}


def changing(rows: int, dtype: RowType, *, keyed: bool) -> ChangingTable:
    return ChangingTable(
        dtype=dtype,
        row_bytes=row_bytes(dtype, DIM),
        rows=rows,
        keyed=keyed,
        n_segments=1,
        segments=range(1),
        changed=Delta(DIM, dtype),
    )


@asynccontextmanager
async def shard(
    folder: Path, *, compact_bytes: int = 1 << 30, name: str = "shard", is_run: bool = True
) -> AsyncIterator[Shard]:
    tables = {
        "dense": changing(10, "fp32", keyed=False),
        "keyed": changing(3, "fp16", keyed=True),
    }
    context, metrics, gate = FakeContext(name), Metrics(), Gate()
    state = UpdateState(folder, tables)
    replica = Replica(
        context,
        metrics,
        gate,
        state,
        model="m",
        version="v",
        cached=frozenset(["keyed"]),
        executors=("e-0", "e-1"),
        compact_bytes=compact_bytes,
    )
    async with trio.open_nursery() as nursery:
        if is_run:
            nursery.start_soon(replica.run)
        yield Shard(replica, context, tables, metrics, gate, state)
        if is_run:
            await replica.aclose()


def batch(
    number: int,
    previous: int,
    keys: list[int],
    table: str = "dense",
    **more: Any,  # noqa: ANN401
) -> UpdateBatch:
    dtype: RowType = "fp16" if table == "keyed" else "fp32"
    rows = np.full((len(keys), DIM), number, np.float32)
    fields: dict[str, Any] = {
        "updater": "updater",
        "model": "m",
        "version": "v",
        "table": table,
        "stream": 7,
        "number": number,
        "previous": previous,
        "newest": number,
        "age_us": 1000,
        "dtype": dtype,
        "keys": np.array(keys, np.int64),
        "rows": encode_rows(rows, dtype),
    }
    return UpdateBatch(**(fields | more))


def question() -> UpdateBatch:
    return batch(0, 0, [])


def run(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0.05))


def test_updates_are_applied_and_acknowledged_together(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it:
            ack = await it.send(
                batch(3, 0, [1, 2]), batch(4, 3, [2]), batch(9, 4, [2**40], "keyed")
            )
            assert (ack.replica, ack.stream, ack.applied, ack.code) == ("shard", 7, 9, "ok")
            assert len(it.acks) == 1
            assert it.rows("dense") == {1: 3.0, 2: 4.0}
            assert it.rows("keyed") == {2**40: 9.0}
            assert it.metrics.snapshot()["updated_rows"] == 4
            assert it.metrics.histogram("update_lag_us").least >= 1000
        async with shard(tmp_path) as again:
            ack = await again.send(question())
            assert (ack.stream, ack.applied) == (7, 9)
            assert again.rows("dense") == {1: 3.0, 2: 4.0}

    run(main)


def test_a_gap_is_refused_with_where_it_stands(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it:
            await it.send(batch(3, 0, [1]))
            ack = await it.send(batch(9, 7, [1]), batch(10, 9, [2]))
            assert (ack.applied, ack.code) == (3, "unavailable")
            assert "follows 9, not 3" in ack.message
            assert it.rows("dense") == {1: 3.0}
            ack = await it.send(batch(7, 3, [1]), batch(9, 7, [1]))
            assert (ack.applied, ack.code) == (9, "ok")

    run(main)


def test_what_it_has_is_acknowledged_again_and_has_no_effect(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it:
            await it.send(batch(3, 0, [1]), batch(4, 3, [1]))
            ack = await it.send(batch(3, 0, [1]))
            assert (ack.applied, ack.code) == (4, "ok")
            assert it.rows("dense") == {1: 4.0}
            assert it.metrics.snapshot()["updates"] == 2

    run(main)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (batch(5, 4, [10]), "row 10 is outside"),
        (batch(5, 4, [1], table="other"), "table other: not here"),
        (batch(5, 4, [1], dtype="int8"), "rows of int8"),
    ],
)
def test_what_fits_no_table_is_refused_for_good(
    tmp_path: Path, bad: UpdateBatch, problem: str
) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it:
            ack = await it.send(batch(4, 0, [1]), bad, batch(6, 5, [2]))
            assert (ack.applied, ack.code) == (4, "invalid")
            assert problem in ack.message
            assert it.rows("dense") == {1: 4.0}

    run(main)


def test_executors_are_told_of_changes_in_cached_tables(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it:
            it.context.ref("e-1").is_away = True
            await it.send(batch(1, 0, [1]), batch(2, 1, [5, 6], "keyed"))
            (news,) = it.context.ref("e-0").told
            assert isinstance(news, RowsChanged)
            assert (news.table, news.keys.tolist()) == ("keyed", [5, 6])
            assert it.metrics.snapshot()["untold_changes"] == 1

    run(main)


def test_an_updater_that_is_away_asks_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it:
            it.context.ref("updater").is_away = True
            it.replica.put(batch(1, 0, [1]), 0.0)
            it.replica.put(batch(2, 1, [1], updater="nobody"), 0.0)
            await trio.sleep(1)
            it.context.ref("updater").is_away = False
            assert (await it.send(question())).applied == 2

    run(main)


def test_a_full_disk_is_told_and_updates_go_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        def full(changes: object) -> list[int]:
            raise StateError("log: No space left on device")

        async with shard(tmp_path) as it:
            await it.send(batch(1, 0, [1]))
            with monkeypatch.context() as patch:
                patch.setattr(it.state, "persist", full)
                ack = await it.send(batch(2, 1, [1]))
                assert (ack.applied, ack.code) == (1, "unavailable")
                assert "No space left" in ack.message
            assert it.rows("dense") == {1: 1.0}
            assert (await it.send(batch(2, 1, [1]))).applied == 2

    run(main)


def test_no_update_is_applied_while_a_lookup_runs_in_a_thread(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path) as it, trio.open_nursery() as nursery:
            await it.send(batch(1, 0, [1]))
            go = threading.Event()
            begun = trio.Event()

            async def look_up() -> None:
                async with it.gate.reading():
                    begun.set()
                    await trio.to_thread.run_sync(go.wait)
                    assert it.rows("dense") == {1: 1.0}

            nursery.start_soon(look_up)
            await begun.wait()
            it.replica.put(batch(2, 1, [1]), trio.current_time())
            await trio.sleep(1)
            try:
                assert it.rows("dense") == {1: 1.0}
                assert it.replica.statistics()["oldest_unapplied_s"] >= 1
            finally:
                go.set()
            assert (await it.send(question())).applied == 2

    run(main)


def test_readers_do_not_starve_a_change() -> None:
    async def main() -> None:
        gate = Gate()
        order: list[str] = []

        async def read(name: str) -> None:
            async with gate.reading():
                order.append(name)
                await trio.sleep(1)

        async def change() -> None:
            await gate.wait_none()
            order.append("change")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "a")
            await wait_all_tasks_blocked()
            nursery.start_soon(change)
            await wait_all_tasks_blocked()
            nursery.start_soon(read, "b")
        assert order == ["a", "change", "b"]

    run(main)


def test_a_log_is_compacted_while_updates_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path, compact_bytes=2000) as it:
            for first in range(1, 101, 10):
                numbers = range(first, first + 10)
                await it.send(*(batch(number, number - 1, [number % 10]) for number in numbers))
            await trio.sleep(1)
            assert it.metrics.snapshot()["compactions"]
            statistics = it.replica.statistics()
            assert (statistics["applied"], statistics["changed_rows"]) == (100, 10)
        assert it.state.snapshot_number > 0
        async with shard(tmp_path) as again:
            assert again.rows("dense") == {n % 10: float(n) for n in range(91, 101)}

    run(main)


def test_a_replica_takes_over_what_a_peer_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.update_seed.PART_BYTES", 100)

    async def main() -> None:
        async with shard(tmp_path / "a", name="a") as it, shard(tmp_path / "b") as peer:
            await it.send(batch(1, 0, [9]))
            for number in range(1, 21):
                await peer.send(batch(number, number - 1, [number % 5]))

            it.context.ref("peer").answer = peer.seed_part
            order = SeedOrder(updater="updater", model="m", version="v", peer="peer")
            it.replica.put(order, trio.current_time())
            ack = await it.send(batch(21, 20, [9]))
            assert (ack.applied, ack.code) == (21, "ok")
            assert it.rows("dense") == {9: 21.0, **{n % 5: float(n) for n in range(16, 21)}}
            assert not it.replica.is_seeding
        async with shard(tmp_path / "a") as again:
            assert (await again.send(question())).applied == 21
            assert len(again.rows("dense")) == 6

    run(main)


def test_no_snapshot_is_made_of_half_a_seed(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path / "a") as it, shard(tmp_path / "b") as peer:
            for number in range(1, 6):
                await peer.send(batch(number, number - 1, [number]))
            it.context.ref("peer").answer = peer.seed_part
            async with trio.open_nursery() as nursery, it.gate.reading():
                order = SeedOrder(updater="updater", model="m", version="v", peer="peer")
                it.replica.put(order, trio.current_time())
                while not it.replica.is_seeding:  # noqa: ASYNC110 - it has no event
                    await trio.sleep(0.01)
                nursery.start_soon(it.replica._snapshot)
                await trio.sleep(1)
                assert it.rows("dense") == {}
            assert (await it.send(question())).applied == 5
        async with shard(tmp_path / "a") as again:
            assert again.rows("dense") == {n: float(n) for n in range(1, 6)}

    run(main)


def test_a_peer_that_has_nothing_gives_no_seed(tmp_path: Path) -> None:
    async def main() -> None:
        async with shard(tmp_path / "a") as it, shard(tmp_path / "b") as peer:
            it.context.ref("peer").answer = peer.seed_part
            await it.send(batch(1, 0, [9]))
            order = SeedOrder(updater="updater", model="m", version="v", peer="peer")
            it.replica.put(order, trio.current_time())
            await trio.sleep(2)
            assert it.acks[-1].code == "unavailable"
            assert "has no updates itself" in it.acks[-1].message
            assert it.rows("dense") == {9: 1.0}

    run(main)

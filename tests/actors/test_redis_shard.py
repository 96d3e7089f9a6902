from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import trio

from actors.layouts import placement_of
from actors.redis import shard as shard_module
from actors.redis.client import open_client
from actors.redis.load import fill
from actors.redis.rows import RedisTable
from actors.redis.server import parse
from actors.redis.shard import RedisShard
from actors.shard import EmbeddingShard
from kernels.bundle import codec
from kernels.bundle.load import Bundle, load_bundle
from kernels.lookup import PooledLookup
from kernels.store.build import build_keyed
from runtime.actor import Context, Ref
from runtime.errors import ActorDied, StartError
from runtime.host import Factory, Host
from runtime.mailbox import Mailbox
from runtime.supervisor import sole
from runtime.topology import Topology, all_in_one
from tests import tiny
from tests.redis_help import RedisProcess, needs_redis, redis_cluster, redis_server
from transport.errors import InvalidRequest
from transport.messages import LookupBatch, Message, Ping, Pong, RowsPart, StatsReply, StatsRequest
from transport.updates import SeedRequest, UpdateAck, UpdateBatch

pytestmark = needs_redis


class Recorder:
    """Takes the executor's or the gateway's place, and keeps what it is told."""

    def __init__(self, _: Context) -> None:
        self.send, self.receive = trio.open_memory_channel[Message](1000)

    def __call__(self, _: Context) -> Recorder:
        return self

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        while envelopes := await mailbox.receive_batch(64):
            for envelope in envelopes:
                self.send.send_nowait(envelope.message)


@attrs.frozen(eq=False)
class Shard:
    """A shard with a recorder as its executor."""

    host: Host
    executor: Recorder
    bundle: Bundle

    @property
    def ref(self) -> Ref:
        return self.host.ref("shard-0")

    async def part(self) -> RowsPart:
        with trio.fail_after(10):
            message = await self.executor.receive.receive()
        assert isinstance(message, RowsPart)
        return message

    async def look_up(self, batch: LookupBatch) -> RowsPart:
        self.ref.tell(batch)
        return await self.part()

    def batch(self, n: int = 7, *, seed: int = 0, seq: int = 1, **changes: object) -> LookupBatch:
        """Return a batch of 3 requests and ``n`` candidates, with ids of the tiny model."""
        manifest = self.bundle.manifest
        rng = np.random.default_rng(seed)
        rows = {"users": tiny.N_USERS, "items": tiny.N_ITEMS, "genres": tiny.N_GENRES}
        sides: dict[str, Any] = {}
        for name, layout, width in (
            ("user", manifest.user, 3),
            ("candidate", manifest.candidate, n),
        ):
            ids = np.zeros((len(layout.ids), width), np.int64)
            for lookup in layout.lookups:
                span = slice(lookup.first_id, lookup.first_id + lookup.n_ids)
                ids[span] = rng.integers(0, rows[lookup.table], (lookup.n_ids, width))
            sides[f"{name}_ids"] = ids
            weights = rng.random((len(layout.weights), width), np.float32)
            sides[f"{name}_weights"] = weights
        batch = LookupBatch(
            gateway="gateway",
            seq=seq,
            model="tiny",
            version=manifest.version,
            executor="executor-0",
            part=0,
            budget_us=5_000_000,
            **sides,
        )
        return attrs.evolve(batch, **changes)  # type: ignore[arg-type]


def topology_of(bundle: Path, options: Mapping[str, Any]) -> Topology:
    topology = all_in_one(bundle, model="tiny", listen=None)
    (node,) = topology.nodes
    actors = tuple(
        attrs.evolve(actor, options=options) if actor.name == "shard-0" else actor
        for actor in node.actors
    )
    return attrs.evolve(topology, nodes=(attrs.evolve(node, actors=actors),))


@asynccontextmanager
async def running(
    bundle: Path,
    factory: Factory = RedisShard,
    /,
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[Shard]:
    topology = topology_of(bundle, options)
    executor = Recorder(None)  # type: ignore[arg-type]
    host = Host(topology, {"gateway": Recorder, "shard-0": factory, "executor-0": executor})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield Shard(host, executor, load_bundle(bundle))
        assert await host.stop(5.0)


async def why_not(bundle: Path, **options: Any) -> str:  # noqa: ANN401
    """Return why a shard does not start."""
    with pytest.raises(ExceptionGroup) as caught:
        async with running(bundle, **options):
            pass
    died = sole(caught.value)
    assert isinstance(died, ActorDied)
    assert isinstance(died.__cause__, StartError)
    return str(died.__cause__)


def keyed(bundle: Path, to: Path) -> Path:
    """Copy the bundle of ``tests.tiny``, with a table of keys that lacks some items."""
    shutil.copytree(bundle, to)
    manifest = codec.loads((to / "manifest.json").read_text())
    rows = load_bundle(bundle).table("items")
    keys = np.array([k for k in range(len(rows)) if k % 3])
    header = build_keyed(
        to / "tables" / "items",
        [(keys, rows[keys])],
        dim=rows.shape[1],
        dtype="int8",
        n_segments=4,
        default=np.full(rows.shape[1], 0.5, np.float32),
    )
    changed: dict[str, Any] = {
        "rows": header.rows,
        "dtype": "int8",
        "file": "items",
        "keyed": True,
        "segments": 4,
        "version": header.version,
    }
    tables = tuple(
        attrs.evolve(table, **changed) if table.name == "items" else table
        for table in manifest.tables
    )
    (to / "manifest.json").write_text(codec.dumps(attrs.evolve(manifest, tables=tables)))
    return to


async def load(url: str, bundle: Path, prefix: str = "{table}:") -> None:
    client = await open_client(parse(url), timeout_s=5.0)
    opened = load_bundle(bundle)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        for table in opened.manifest.tables:
            there = RedisTable.of(opened, table.name, prefix.format(table=table.name).encode())
            await fill(client, there, opened, lambda _: None)
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RedisProcess]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        trio.run(load, server.url, tiny_bundle)
        yield server


async def test_its_rows_are_those_of_a_shard_with_files(
    one: RedisProcess, tiny_bundle: Path
) -> None:
    async with (
        running(tiny_bundle, url=one.url) as shard,
        running(tiny_bundle, EmbeddingShard) as files,
    ):
        for seed, n in ((1, 1), (2, 7), (3, 400), (4, 12_000)):
            batch = shard.batch(n, seed=seed)
            got, want = await shard.look_up(batch), await files.look_up(batch)
            assert got.code == want.code == "ok"
            np.testing.assert_array_equal(got.user, want.user)
            np.testing.assert_array_equal(got.candidate, want.candidate)
        stats = await shard.ref.ask(StatsRequest(request_id=1), budget=5)
        assert isinstance(stats, StatsReply)
        assert '"batches": 4' in stats.stats


async def test_a_table_of_keys_is_served_with_its_default_row(
    one: RedisProcess, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Of int8 rows; the shard has no more of the table than its header."""
    bundle = keyed(tiny_bundle, tmp_path / "bundle")
    await load(one.url, bundle, "keyed/{table}/")
    shutil.rmtree(next(each for each in (bundle / "tables" / "items").iterdir() if each.is_dir()))
    opened = load_bundle(bundle)
    with_files = load_bundle(keyed(tiny_bundle, tmp_path / "with_files"))
    tables = {table.name: with_files.open_table(table.name) for table in with_files.manifest.tables}
    async with running(bundle, url=one.url, prefix="keyed/{table}/") as shard:
        layouts = placement_of(shard.host.topology.models["tiny"], opened)
        for seed, n in ((1, 9), (2, 700)):
            batch = shard.batch(n, seed=seed)
            part = await shard.look_up(batch)
            assert part.code == "ok", part.message
            for got, layout, ids, weights in (
                (part.user, layouts.shards[0][0], batch.user_ids, batch.user_weights),
                (
                    part.candidate,
                    layouts.shards[0][1],
                    batch.candidate_ids,
                    batch.candidate_weights,
                ),
            ):
                want = PooledLookup(tables, layout).run(ids, weights)
                np.testing.assert_array_equal(got, want)
        assert (part.candidate == 0.5).all(axis=0).sum() == 0
        assert (part.candidate == 0.5).any()  # default rows


async def test_a_cluster_gives_the_same(tmp_path: Path, tiny_bundle: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        await load(servers[1].url, tiny_bundle)
        async with (
            running(tiny_bundle, url=servers[2].url) as shard,
            running(tiny_bundle, EmbeddingShard) as files,
        ):
            batch = shard.batch(300)
            got, want = await shard.look_up(batch), await files.look_up(batch)
            np.testing.assert_array_equal(got.user, want.user)
            np.testing.assert_array_equal(got.candidate, want.candidate)
            servers[0].kill()
            late = await shard.look_up(batch)
            assert (late.code, f":{servers[0].port}" in late.message) == ("unavailable", True)


async def test_another_version_or_model_is_unavailable(
    one: RedisProcess, tiny_bundle: Path
) -> None:
    async with running(tiny_bundle, url=one.url) as shard:
        version = shard.bundle.manifest.version
        part = await shard.look_up(shard.batch(version="0" * 64))
        assert part.code == "unavailable"
        assert f"version {version[:12]}, not tiny 000000000000" in part.message
        part = await shard.look_up(shard.batch(model="other"))
        assert "no such model" in part.message


async def test_a_batch_that_does_not_fit_is_an_error_and_no_more(
    one: RedisProcess, tiny_bundle: Path
) -> None:
    async with running(tiny_bundle, url=one.url) as shard:
        good = shard.batch()
        ids = good.candidate_ids.copy()
        ids[0, 3] = 10**6
        for bad, words in (
            ({"candidate_ids": ids}, "table"),
            ({"user_ids": good.user_ids[:1]}, "not"),
            ({"keys": np.arange(3), "key_splits": np.array([0, 2], np.int32)}, "do not divide"),
        ):
            part = await shard.look_up(shard.batch(**bad))
            assert part.code == "internal"
            assert words in part.message
        assert (await shard.look_up(good)).code == "ok"


async def test_a_row_of_another_size_and_a_missing_row_name_their_key(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with redis_server(tmp_path) as server:
        await load(server.url, tiny_bundle)
        async with running(tiny_bundle, url=server.url) as shard:
            items = next(t for t in shard.bundle.manifest.tables if t.rows == 17)
            batch = shard.batch(400)
            key = f"{items.name}:9"
            server.cli("set", key, "short")
            part = await shard.look_up(batch)
            assert part.code == "unavailable"
            assert f"key '{key}': 5 bytes" in part.message
            assert f"dim 6) have {items.row_bytes}" in part.message
            server.cli("del", key)
            part = await shard.look_up(batch)
            assert part.code == "unavailable"
            assert f"key '{key}': missing" in part.message


async def test_a_slow_server_costs_a_lookup_its_budget_and_no_more(
    one: RedisProcess, tiny_bundle: Path
) -> None:
    async with running(tiny_bundle, url=one.url, in_flight=2) as shard:
        one.cli("client", "pause", "400", "all")
        for seq in (1, 2, 3):
            shard.ref.tell(shard.batch(seq=seq, budget_us=100_000))
        parts = {part.seq: part for part in [await shard.part() for _ in range(3)]}
        assert parts[3].code == "overloaded"
        assert "2 lookups wait" in parts[3].message
        for seq in (1, 2):
            assert parts[seq].code == "unavailable"
            assert "budget of 100 ms" in parts[seq].message
            assert f"127.0.0.1:{one.port}" in parts[seq].message
        pong = await shard.ref.ask(Ping(request_id=5), budget=1)
        assert pong == Pong(request_id=5, status="ready")
        assert (await shard.look_up(shard.batch())).code == "ok"  # as soon as it goes on


async def test_live_updates_are_refused(one: RedisProcess, tiny_bundle: Path) -> None:
    async with running(tiny_bundle, url=one.url) as shard:
        update = UpdateBatch(
            updater="executor-0",
            model="tiny",
            version=shard.bundle.manifest.version,
            table="items",
            stream=1,
            number=1,
            previous=0,
            newest=1,
            age_us=0,
            dtype="fp32",
            keys=np.array([3]),
            rows=np.zeros((1, 24), np.uint8),
        )
        shard.ref.tell(update)
        with trio.fail_after(10):
            ack = await shard.executor.receive.receive()
        assert isinstance(ack, UpdateAck)
        assert (ack.code, ack.applied) == ("invalid", 0)
        assert "set their rows there" in ack.message
        seed = SeedRequest(model="tiny", version=update.version, snapshot=0, offset=0)
        with pytest.raises(InvalidRequest, match="set their rows there"):
            await shard.ref.ask(seed, budget=5)


async def test_a_batch_without_time_is_dropped(one: RedisProcess, tiny_bundle: Path) -> None:
    async with running(tiny_bundle, url=one.url) as shard:
        shard.ref.tell(shard.batch(seq=1, budget_us=0))
        assert (await shard.look_up(shard.batch(seq=2))).seq == 2


async def test_a_server_killed_under_load_is_used_again(tmp_path: Path, tiny_bundle: Path) -> None:
    codes: set[str] = set()
    awaited: dict[str, trio.Event] = {}

    async def load_it(shard: Shard) -> None:
        seq = 0
        while True:
            seq += 1
            part = await shard.look_up(shard.batch(50, seq=seq))
            assert part.seq == seq
            codes.add(part.code)
            if part.code in awaited:
                awaited.pop(part.code).set()

    async def until(code: str) -> None:
        awaited[code] = event = trio.Event()
        with trio.fail_after(10):
            await event.wait()

    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        await load(server.url, tiny_bundle)
        async with running(tiny_bundle, url=server.url) as shard, trio.open_nursery() as nursery:
            nursery.start_soon(load_it, shard)
            for _ in range(2):
                await until("ok")
                server.kill()
                await until("unavailable")
                server.start()
            await until("ok")
            nursery.cancel_scope.cancel()
    assert codes == {"ok", "unavailable"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "url"),
        ({"url": "http://h"}, "want redis://"),
        ({"url": "redis://h", "prefix": "{model}"}, "want {table}"),
        ({"url": "redis://h", "prefix": 3}, "prefix: want a text"),
        ({"url": "redis://h", "timeout_ms": 0}, "timeout_ms: want a whole number"),
        ({"url": "redis://h", "in_flight": True}, "in_flight: want a whole number"),
        ({"url": "redis://h", "password_file": "/nowhere/key"}, "/nowhere/key"),
        ({"url": "rediss://h", "certificates": "/nowhere/ca"}, "No such file"),
    ],
)
async def test_wrong_options_are_told_at_the_start(
    tiny_bundle: Path, options: dict[str, Any], words: str
) -> None:
    assert words in await why_not(tiny_bundle, **options)


async def test_a_wrong_password_is_told_at_the_start(tmp_path: Path, tiny_bundle: Path) -> None:
    with redis_server(tmp_path / "server", "--requirepass", "right") as server:
        key = tmp_path / "key"
        key.write_text("wrong\n")
        text = await why_not(tiny_bundle, url=server.url, password_file=str(key))
        assert f"127.0.0.1:{server.port}: WRONGPASS" in text
        assert "NOAUTH" in await why_not(tiny_bundle, url=server.url)


async def test_a_server_that_starts_later_is_waited_for(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path, "--appendonly", "yes") as server:
        await load(server.url, tiny_bundle)
        server.kill()

        async def start() -> None:
            await trio.sleep(0.1)
            server.start()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            async with running(tiny_bundle, url=server.url) as shard:
                assert (await shard.look_up(shard.batch())).code == "ok"
        server.kill()
        monkeypatch.setattr(shard_module, "_START_S", 0.0)
        why = await why_not(tiny_bundle, url=server.url)
        assert f"shard-0: Redis at 127.0.0.1:{server.port}: " in why


async def test_what_is_no_such_table_is_told_at_the_start(
    one: RedisProcess, tiny_bundle: Path
) -> None:
    items = next(t for t in load_bundle(tiny_bundle).manifest.tables if t.rows == 17)
    one.cli("copy", f"{items.name}:about", "kept")
    for field, value, words in (
        ("dim", "8", "Redis has dense rows of 8 fp32, the bundle dense rows of 6 fp32"),
        ("whole", "0", "loading it has not ended: 17 of 17 rows"),
        ("rows", "x", "not what describes a table"),
    ):
        one.cli("hset", f"{items.name}:about", field, value)
        assert words in await why_not(tiny_bundle, url=one.url)
        one.cli("copy", "kept", f"{items.name}:about", "replace")


async def test_without_hiredis_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, one: RedisProcess, tiny_bundle: Path
) -> None:
    monkeypatch.setitem(sys.modules, "hiredis", None)
    assert "pip install 'tensorbatch[redis]'" in await why_not(tiny_bundle, url=one.url)

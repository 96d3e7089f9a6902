"""What does a lookup cost when tables lie in Redis, against a shard's files?

``python -m tests.bench.bench_redis`` starts servers of its own on this machine and prints one JSON
line for each of files, one server, and a cluster of three: milliseconds a batch, one at a time
(median and p99), microseconds a distinct row (wall; processor time of this process, which is right
on a busy machine too; that of the servers), and batches and distinct rows a second with eight
batches in flight. A batch looks up one row of each of 26 tables for 500 candidates, by a power law,
fp32 of dim 32: 13,000 positions.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import trio

from actors.redis.client import Client, open_client
from actors.redis.keys import put
from actors.redis.lookup import ModelLookup
from actors.redis.rows import RedisTable
from actors.redis.server import parse
from kernels.bundle.manifest import Lookup, Manifest, SideLayout, Source, Table
from kernels.lookup import PooledLookup
from kernels.shards import shard_layout
from tests.redis_help import RedisProcess, redis_cluster, redis_server
from transport.messages import LookupBatch

N_TABLES, N_ROWS, DIM, N = 26, 20_000, 32, 500
N_BATCHES, IN_FLIGHT = 60, 8


def main() -> None:
    """Print a line for each place."""
    rng = np.random.default_rng(0)
    manifest = _manifest()
    rows = {table.name: rng.standard_normal((N_ROWS, DIM), np.float32) for table in manifest.tables}
    batches = [_batch(rng) for _ in range(N_BATCHES)]
    distinct = sum(len(np.unique(ids)) for batch in batches for ids in batch.candidate_ids)
    report = partial(_report, distinct / len(batches))

    layout = shard_layout(manifest.candidate, rows)
    files = PooledLookup(rows, layout)

    async def from_files(batch: LookupBatch) -> None:
        files.run(batch.candidate_ids, batch.candidate_weights)
        await trio.lowlevel.checkpoint()

    trio.run(_measure, partial(report, "files"), batches, from_files, ())
    with tempfile.TemporaryDirectory() as folder:
        with redis_server(Path(folder) / "one") as server:
            trio.run(_redis, partial(report, "one server"), batches, [server], manifest, rows)
        with redis_cluster(Path(folder) / "many") as servers:
            trio.run(_redis, partial(report, "cluster of 3"), batches, servers, manifest, rows)


async def _redis(
    report: Callable[[dict[str, float]], None],
    batches: list[LookupBatch],
    servers: Sequence[RedisProcess],
    manifest: Manifest,
    rows: dict[str, np.ndarray],
) -> None:
    client = await open_client(parse(servers[0].url), timeout_s=10.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        tables = {
            table.name: RedisTable(
                table=table, prefix=f"{table.name}:".encode(), default=bytes(table.row_bytes)
            )
            for table in manifest.tables
        }
        for name, table in tables.items():
            await _fill(client, table, rows[name])
        user = shard_layout(manifest.user, rows)
        candidate = shard_layout(manifest.candidate, rows)
        model = ModelLookup(client, manifest, tables, user, candidate, ())
        looked = await model.look_up(batches[0])
        want = PooledLookup(rows, candidate).run(
            batches[0].candidate_ids, batches[0].candidate_weights
        )
        assert np.array_equal(looked.candidate, want)

        async def from_redis(batch: LookupBatch) -> None:
            await model.look_up(batch)

        await _measure(report, batches, from_redis, servers)
        nursery.cancel_scope.cancel()


async def _fill(client: Client, table: RedisTable, rows: np.ndarray) -> None:
    keys = table.keys_of(np.arange(len(rows)))
    for at in range(0, len(rows), 4096):
        values = [row.tobytes() for row in rows[at : at + 4096]]
        await put(client, keys[at : at + 4096], values)


async def _measure(
    report: Callable[[dict[str, float]], None],
    batches: list[LookupBatch],
    look_up: Callable[[LookupBatch], Awaitable[None]],
    servers: Sequence[RedisProcess],
) -> None:
    for batch in batches[:10]:
        await look_up(batch)
    spent: list[float] = []
    theirs, own = _spent_s(servers), time.process_time()
    for batch in batches:
        began = time.perf_counter()
        await look_up(batch)
        spent.append(time.perf_counter() - began)
    own = (time.process_time() - own) / len(batches)
    theirs = (_spent_s(servers) - theirs) / len(batches)
    todo = iter(batches * 2)

    async def work() -> None:
        for batch in todo:
            await look_up(batch)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(work)
    a_second = 2 * len(batches) / (time.perf_counter() - began)
    report(
        {
            "median_s": float(np.median(spent)),
            "p99_s": float(np.quantile(spent, 0.99)),
            "own_s": own,
            "servers_s": theirs,
            "a_second": a_second,
        }
    )


def _spent_s(servers: Sequence[RedisProcess]) -> float:
    """Return the processor time that servers have used."""
    told = "\n".join(server.cli("info", "cpu") for server in servers)
    return sum(map(float, re.findall(r"^used_cpu_(?:user|sys):([0-9.]+)", told, re.MULTILINE)))


def _report(distinct: float, where: str, found: dict[str, float]) -> None:
    line = {
        "tables_in": where,
        "distinct_rows_a_batch": round(distinct),
        "batch_ms": round(found["median_s"] * 1e3, 3),
        "batch_p99_ms": round(found["p99_s"] * 1e3, 3),
        "row_us": round(found["median_s"] / distinct * 1e6, 3),
        "row_own_us": round(found["own_s"] / distinct * 1e6, 3),
        "row_servers_us": round(found["servers_s"] / distinct * 1e6, 3),
        "batches_a_second": round(found["a_second"]),
        "rows_a_second": round(found["a_second"] * distinct),
    }
    print(json.dumps(line))  # noqa: T201 - a program


def _manifest() -> Manifest:
    tables = tuple(
        Table(name=f"t{i}", rows=N_ROWS, dim=DIM, dtype="fp32", file=f"t{i}.npy")
        for i in range(N_TABLES)
    )
    lookups = tuple(
        Lookup(
            side="candidate",
            table=table.name,
            tensor=table.name,
            pooling="none",
            first_id=i,
            n_ids=1,
            first_weight=None,
            offset=i * DIM,
            width=DIM,
        )
        for i, table in enumerate(tables)
    )
    nothing = SideLayout(ids=(), weights=(), values=(), lookups=(), width=0, program=None)
    candidate = SideLayout(
        ids=tuple(Source(feature=table.name) for table in tables),
        weights=(),
        values=(),
        lookups=lookups,
        width=N_TABLES * DIM,
        program=None,
    )
    return Manifest(
        format=1,
        model="bench",
        version="0" * 64,
        tables=tables,
        user=nothing,
        candidate=candidate,
        outputs=(),
        kept=(),
    )


def _batch(rng: np.random.Generator) -> LookupBatch:
    ranks = np.minimum(rng.zipf(1.2, (N_TABLES, N)), N_ROWS) - 1
    return LookupBatch(
        gateway="gateway",
        seq=0,
        model="bench",
        version="0" * 64,
        executor="executor",
        part=0,
        budget_us=10**7,
        user_ids=np.empty((0, 1), np.int64),
        user_weights=np.empty((0, 1), np.float32),
        candidate_ids=ranks.astype(np.int64),
        candidate_weights=np.empty((0, N), np.float32),
    )


if __name__ == "__main__":
    main()

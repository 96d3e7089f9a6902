"""An updater and shards that take updates, in one process, and their tables to look into."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import trio
from numpy.typing import NDArray

from actors.update_gate import Gate
from actors.update_routes import Routes
from actors.update_shard import UPDATE_QUESTIONS, ShardUpdates, UpdateOptions
from actors.updater import Updater
from actors.usual import answer_usual
from kernels.bundle.load import load_bundle
from kernels.store.table import StoredTable
from runtime.actor import Context
from runtime.host import Host
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from runtime.topology import UPDATER, ActorSpec, ModelSpec, NodeSpec, Topology
from transport.messages import StatsReply, StatsRequest
from transport.updates import RowsChanged, UpdateReply, UpdateRequest

MODEL = "tiny"


@attrs.define(eq=False)
class Cluster:
    """What a test sees of an updater and its shards."""

    host: Host
    shards: dict[str, TableShard] = attrs.field(factory=dict)
    told: list[RowsChanged] = attrs.field(factory=list)
    deaf: set[str] = attrs.field(factory=set)

    async def update(self, request: UpdateRequest) -> UpdateReply:
        reply = await self.host.ref("updater").ask(request, budget=60.0)
        assert isinstance(reply, UpdateReply)
        return reply

    async def wait_applied(self, number: int) -> UpdateReply:
        """Wait until all replicas have applied an update."""
        while True:
            reply = await self.update(question())
            if reply.applied >= number:
                return reply
            await trio.sleep(0.05)

    async def stats(self, actor: str) -> dict[str, Any]:
        reply = await self.host.ref(actor).ask(StatsRequest(request_id=1), budget=60.0)
        assert isinstance(reply, StatsReply)
        stats: dict[str, Any] = json.loads(reply.stats)
        return stats

    async def progress(self) -> dict[str, Any]:
        """Return what the updater tells of its one version."""
        ((_, found),) = (
            each for each in (await self.stats("updater")).items() if each[0].startswith("updates.")
        )
        progress: dict[str, Any] = found
        return progress

    async def until(self, check: Callable[[dict[str, Any]], object]) -> None:
        """Wait until what ``progress`` returns passes a check."""
        while True:
            if check(await self.progress()):
                return
            await trio.sleep(0.5)

    def rows(self, shard: str, table: str, keys: list[int]) -> NDArray[np.float32]:
        return self.shards[shard].tables[table].fetch(np.array(keys, np.int64))


class TableShard:
    """A shard as far as updates go."""

    def __init__(self, cluster: Cluster, context: Context, options: UpdateOptions) -> None:
        self.context = context
        self.cluster = cluster
        self.metrics = Metrics()
        self.gate = Gate()
        self.updates = ShardUpdates(context, self.metrics, self.gate, options)
        self.tables: dict[str, StoredTable] = {}
        self.dies = trio.Event()

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            async with trio.open_nursery() as nursery:
                replica = await trio.to_thread.run_sync(self._open)
                assert replica is not None
                self.updates.start(replica, nursery)
                self.cluster.shards[self.context.name] = self
                nursery.start_soon(self._die)
                task_status.started()
                while envelopes := await mailbox.receive_batch(64):
                    for envelope in envelopes:
                        if self.context.name in self.cluster.deaf:
                            continue
                        if isinstance(envelope.message, UPDATE_QUESTIONS):
                            self.updates.take(envelope)
                        else:
                            answer_usual(envelope, self.metrics, self.updates.statistics())
                nursery.cancel_scope.cancel()
        finally:
            self.updates.close_opened()

    async def _die(self) -> None:
        await self.dies.wait()
        raise OSError("the disk is gone")

    def _open(self) -> Any:  # noqa: ANN401
        spec = self.context.topology.models[MODEL]
        bundle = load_bundle(spec.bundle)
        routes = Routes.of(spec, bundle)
        group = spec.group_of(self.context.name)
        for piece in routes.placement.groups[group]:
            self.tables[piece.table] = StoredTable.of_array(
                bundle.table(piece.table), name=piece.table
            )
        return self.updates.open(MODEL, bundle, self.tables)


class Listener:
    """An executor that hears what has changed."""

    def __init__(self, cluster: Cluster, context: Context) -> None:
        self.cluster = cluster

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        while envelopes := await mailbox.receive_batch(64):
            for envelope in envelopes:
                if isinstance(envelope.message, RowsChanged):
                    self.cluster.told.append(envelope.message)


def topology(
    bundle: Path,
    folder: Path,
    *,
    n_groups: int = 2,
    replicas: int = 1,
    placement: Path | None = None,
    updater: Mapping[str, Any] | None = None,
) -> Topology:
    """Return a cluster of an updater, shards and an executor, each in a node of its own."""
    shards = tuple(f"shard-{i}" for i in range(n_groups * replicas))
    actors = (
        ActorSpec(name="updater", class_name=UPDATER, options=dict(updater or {})),
        *(ActorSpec(name=shard, class_name="TableShard") for shard in shards),
        ActorSpec(name="executor", class_name="Listener"),
    )
    model = ModelSpec(
        name=MODEL,
        bundle=bundle,
        shards=shards,
        executors=("executor",),
        replicas=replicas,
        placement=placement,
    )
    return Topology(
        name="test",
        nodes=tuple(NodeSpec(name=actor.name, actors=(actor,)) for actor in actors),
        models={MODEL: model},
        run_folder=folder,
    )


@asynccontextmanager
async def running(
    what: Topology,
    *,
    options: UpdateOptions | None = None,
    without: tuple[str, ...] = (),
    make_updater: Callable[[Context], Any] = Updater,
) -> AsyncIterator[Cluster]:
    """Run a cluster in this process; shards ``without`` hear nothing."""
    cluster = Cluster(host=None)  # type: ignore[arg-type]
    cluster.deaf.update(without)
    factories: dict[str, Callable[[Context], Any]] = {"updater": make_updater}
    for shard in what.models[MODEL].shards:
        factories[shard] = lambda context: TableShard(cluster, context, options or UpdateOptions())
    factories["executor"] = lambda context: Listener(cluster, context)
    cluster.host = Host(what, factories)
    async with trio.open_nursery() as nursery:
        await nursery.start(cluster.host.run)
        yield cluster
        # Without an end, to which the clock would jump while a disk is waited for.
        assert await cluster.host.stop(math.inf)


def question() -> UpdateRequest:
    """Ask how far updates have come."""
    return update("", [])


def update(table: str, keys: list[int], value: float = 0.0, **changes: Any) -> UpdateRequest:  # noqa: ANN401
    """Set rows to one value in all places."""
    dim = {"users": 4, "items": 6, "genres": 3}.get(table, 1)
    fields: dict[str, Any] = {
        "request_id": 1,
        "model": MODEL,
        "table": table,
        "keys": np.array(keys, np.int64),
        "rows": np.full((len(keys), dim), value, np.float32),
    }
    return UpdateRequest(**(fields | changes))

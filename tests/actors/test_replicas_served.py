"""Gateway, executor and shards with replicas, in one process: who answers when some do not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from actors.executor import Executor
from actors.gateway import Gateway
from actors.shard import EmbeddingShard
from kernels.bundle import codec
from kernels.bundle.load import load_bundle
from kernels.placement import Piece, Placement
from kernels.store.build import build_keyed
from runtime.actor import Context, Envelope
from runtime.host import Factory, Host
from runtime.mailbox import Mailbox
from runtime.supervisor import RestartPolicy
from runtime.topology import Topology, spread
from tests import tiny
from tests.actors.test_gateway import ask, ask_all, assert_scores, expected, request
from tests.divided import divide
from transport.messages import (
    ErrorReply,
    LookupBatch,
    ScoreReply,
    ScoreRequest,
    StatsReply,
    StatsRequest,
)

# Groups 0 and 1, twice.
SHARDS = ("shard-0", "shard-1", "shard-2", "shard-3")


class Mortal(EmbeddingShard):
    """A shard that can be killed, or made to keep silent or to fail for some time."""

    alive: ClassVar[dict[str, Mortal]] = {}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.name = context.name
        self.context = context
        self.is_mute = False
        self.held_back: list[Envelope] = []
        self.n_asked = 0
        self._killed = trio.Event()
        Mortal.alive[context.name] = self

    def kill(self) -> None:
        self._killed.set()

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async def die() -> None:
            await self._killed.wait()
            raise RuntimeError("killed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            await super().run(mailbox, task_status=task_status)
            nursery.cancel_scope.cancel()

    async def _serve(self, envelope: Envelope) -> None:
        if isinstance(envelope.message, LookupBatch):
            self.n_asked += 1
            if self.is_mute:
                self.held_back.append(envelope)
                return
        await super()._serve(envelope)

    async def speak(self) -> None:
        """Answer what was held back."""
        self.is_mute = False
        for envelope in self.held_back:
            await super()._serve(envelope)
        self.held_back = []


class Watched(Gateway):
    """A gateway whose books a test may look into."""

    last: ClassVar[Watched]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        Watched.last = self

    @property
    def n_kept(self) -> int:
        return len(self._asker)


class WatchedExecutor(Executor):
    """An executor whose joins a test may look into."""

    last: ClassVar[WatchedExecutor]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        WatchedExecutor.last = self

    @property
    def n_joins(self) -> int:
        return sum(len(serving.engine._joins) for serving in self._versions.ready.values())


def topology_of(
    bundle: Path,
    executor: dict[str, Any] | None = None,
    **changes: Any,  # noqa: ANN401
) -> Topology:
    topology = spread(
        bundle, model="tiny", listen="ipc://unused", n_shards=4, replicas=2, executor=executor
    )
    [gateway] = topology.nodes[0].actors
    quiet = attrs.evolve(gateway, options={})  # asked in process only
    nodes = (attrs.evolve(topology.nodes[0], actors=(quiet,)), *topology.nodes[1:])
    model = attrs.evolve(topology.models["tiny"], **changes)
    return attrs.evolve(topology, nodes=nodes, models={"tiny": model})


@asynccontextmanager
async def serving(
    bundle: Path,
    *,
    restart_s: float = 60.0,
    **changes: Any,  # noqa: ANN401
) -> AsyncIterator[Host]:
    factories: dict[str, Factory] = {
        "gateway": Watched,
        **dict.fromkeys(SHARDS, Mortal),
        "executor-0": WatchedExecutor,
    }
    policy = RestartPolicy(first_delay_s=restart_s, longest_delay_s=restart_s)
    host = Host(topology_of(bundle, **changes), factories, policy=policy)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield host
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def divided(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return divide(tiny_bundle, tmp_path_factory.mktemp("divided") / "bundle")


async def kill(*names: str) -> None:
    """Kill shards and wait until they are dead."""
    for name in names:
        Mortal.alive[name].kill()
    await trio.testing.wait_all_tasks_blocked()


async def stats(host: Host) -> dict[str, int]:
    answer = await ask(host, StatsRequest(request_id=1))
    assert isinstance(answer, StatsReply)
    counters: dict[str, int] = json.loads(answer.stats)["gateway"]
    return counters


async def serves(host: Host, n: int, first: int = 1, **changes: Any) -> None:  # noqa: ANN401
    """Ask ``n`` times, one after the other, and check each answer."""
    for i in range(first, first + n):
        asked = request(i, 1 + i % 7, **changes)
        answer = await ask(host, asked)
        assert_scores(answer, asked)
        assert isinstance(answer, ScoreReply)
        assert not answer.degraded


async def test_tables_divided_over_groups_score_as_whole_ones(
    divided: Path, tiny_bundle: Path
) -> None:
    asked = [request(i, n) for i, n in enumerate([1, 6, 3, 40, 17, 300], start=1)]
    async with serving(divided) as host:
        answers = await ask_all(host, asked)
        await serves(host, 20)
        assert (await stats(host)).get("retries", 0) == 0
        n_asked = [Mortal.alive[name].n_asked for name in SHARDS]
    async with serving(tiny_bundle) as host:
        whole = await ask_all(host, asked)
    for each in asked:
        answer, other = answers[each.request_id], whole[each.request_id]
        assert_scores(answer, each)
        assert isinstance(answer, ScoreReply)
        assert isinstance(other, ScoreReply)
        np.testing.assert_allclose(answer.scores, other.scores, rtol=2e-6)
    assert min(n_asked) > 5  # replicas take turns


async def test_a_group_that_has_nothing_for_a_batch_is_not_asked(divided: Path) -> None:
    async with serving(divided) as host:
        # Users 4 to 7 and items 8 on lie in group 1, users 8 on and items up to 7 in group 0; the
        # history of zeros and genres are in group 0 anyway.
        asked = attrs.evolve(request(9, 2))
        rows = np.array([[1, 3]])
        asked = attrs.evolve(
            asked,
            blocks=tuple(
                attrs.evolve(block, values=rows) if block.names == ("item_id",) else block
                for block in asked.blocks
            ),
        )
        assert_scores(await ask(host, asked), asked)
        assert [Mortal.alive[name].n_asked > 0 for name in ("shard-1", "shard-3")] == [False, False]


async def test_when_a_replica_dies_nobody_notices(divided: Path) -> None:
    async with serving(divided) as host:
        await serves(host, 4)
        Mortal.alive["shard-0"].kill()  # what is on its way there is lost
        await serves(host, 8, budget_us=1_000_000)
        counted = await stats(host)
        assert counted["dead_replicas"] == 1
        assert Watched.last.n_kept == 0


async def test_a_silent_replicas_part_is_asked_of_its_double(
    divided: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(divided) as host:
        mute = Mortal.alive["shard-1"]
        mute.is_mute = True
        before = trio.current_time()
        await serves(host, 6, budget_us=50_000)
        assert trio.current_time() - before < 6 * 0.03
        counted = await stats(host)
        assert counted["hedges"] >= 1
        assert counted["hedge_wins"] == counted["hedges"]
        assert counted.get("retries", 0) == 0
        assert (Watched.last.n_kept, WatchedExecutor.last.n_joins) == (0, 0)
        # Its answers come at last: late, and twice.
        assert mute.held_back
        await mute.speak()
        await trio.testing.wait_all_tasks_blocked()
        assert WatchedExecutor.last.n_joins == 0
        await serves(host, 6, first=10)


async def test_with_both_replicas_gone_requests_fail_and_say_what_is_gone(divided: Path) -> None:
    async with serving(divided) as host:
        await kill("shard-1", "shard-3")
        for request_id in (2, 3):
            answer = await ask(host, request(request_id))
            assert isinstance(answer, ErrorReply)
            assert answer.code == "unavailable"
            assert "users (segments 0 to 1)" in answer.message
            assert "items (segments 2 to 4)" in answer.message
        assert Watched.last.n_kept == 0


def with_default_rows(asked: ScoreRequest, user: float = 0.0) -> NDArray[np.float64]:
    """Score with default rows for those of group 1: users 0 to 7 and items 8 on."""
    whole = tiny.weights

    def holed(seed: int = 20) -> dict[str, NDArray[np.float32]]:
        weights = whole(seed)
        weights["users"][:8] = user
        weights["items"][8:] = 0
        return weights

    tiny.weights = holed
    try:
        return expected(asked)
    finally:
        tiny.weights = whole


async def test_with_both_replicas_gone_default_rows_may_stand_in_and_the_answer_says_so(
    divided: Path,
) -> None:
    async with serving(divided, missing="default") as host:
        await kill("shard-1", "shard-3")
        for request_id in (2, 3, 4):
            asked = request(request_id)
            answer = await ask(host, asked)
            assert isinstance(answer, ScoreReply)
            assert answer.degraded
            want = with_default_rows(asked)
            np.testing.assert_allclose(answer.scores[:, 0], want, rtol=1e-5)
        counted = await stats(host)
        assert counted["answered_degraded"] == 3
        assert Watched.last.n_kept == 0


@pytest.fixture
def keyed(divided: Path, tmp_path: Path) -> Path:
    """Let users be a table of keys in the store, wholly in group 1, with a default row."""
    placement = Placement(
        groups=(
            (Piece("items", 0, 2), Piece("genres", 0, 1)),
            (Piece("users", 0, 1), Piece("items", 2, 5)),
        )
    )
    bundle = divide(divided.parent / "bundle", tmp_path / "bundle", placement)
    header = build_keyed(
        bundle / "tables" / "keyed",
        [(np.arange(8), tiny.weights()["users"][:8])],
        dim=4,
        dtype="fp32",
        default=np.full(4, 0.5, np.float32),
    )
    file = bundle / "manifest.json"
    manifest = codec.loads(file.read_text())
    changes: dict[str, Any] = {
        "rows": 8,
        "file": "keyed",
        "keyed": True,
        "segments": 1,
        "version": header.version,
    }
    tables = tuple(
        attrs.evolve(table, **changes) if table.name == "users" else table
        for table in manifest.tables
    )
    file.write_text(codec.dumps(attrs.evolve(manifest, tables=tables)))
    return bundle


async def test_default_rows_are_the_tables_own(keyed: Path) -> None:
    async with serving(keyed, missing="default") as host:
        asked = request(3)
        assert_scores(await ask(host, asked), asked)
        await kill("shard-1", "shard-3")
        answer = await ask(host, asked)
    assert isinstance(answer, ScoreReply)
    assert answer.degraded
    want = with_default_rows(asked, user=0.5)
    np.testing.assert_allclose(answer.scores[:, 0], want, rtol=1e-5)


async def test_of_requests_that_share_a_batch_only_those_are_degraded_that_miss_rows(
    divided: Path,
) -> None:
    items = load_bundle(divided).manifest
    assert {table.name: table.segments for table in items.tables}["items"] == 5

    def of_items(request_id: int, rows: list[int]) -> ScoreRequest:
        asked = request(request_id, len(rows))
        blocks = {block.names[0]: block for block in asked.blocks}
        blocks["item_id"] = attrs.evolve(blocks["item_id"], values=np.array([rows]))
        return attrs.evolve(asked, blocks=tuple(blocks.values()))

    asked = [of_items(8, [1, 2]), of_items(9, [1, 16]), of_items(1, [1, 2])]
    async with serving(divided, missing="default") as host:
        await kill("shard-1", "shard-3")
        await ask(host, request(2))
        answers = await ask_all(host, asked)
    marks = {}
    for request_id, answer in answers.items():
        assert isinstance(answer, ScoreReply)
        marks[request_id] = answer.degraded
    assert marks == {8: False, 9: True, 1: True}
    assert_scores(answers[8], asked[0])


async def test_a_replica_that_is_back_is_asked_again(
    divided: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(divided, restart_s=1.0) as host:
        await kill("shard-2")
        await serves(host, 4)
        dead = Mortal.alive["shard-2"]
        # On this clock; it is opened in a thread, which knows no clock.
        while Mortal.alive["shard-2"] is dead or not Mortal.alive["shard-2"]._versions.ready:  # noqa: ASYNC110
            await trio.sleep(0.1)
        await trio.sleep(0.5)
        await serves(host, 4)
        assert Mortal.alive["shard-2"].n_asked >= 1
        counted = await stats(host)
        assert counted["dead_replicas"] == 1


async def test_a_shard_without_the_model_sends_the_gateway_to_its_double(divided: Path) -> None:
    async with serving(divided) as host:
        Mortal.alive["shard-0"]._versions.ready.clear()
        await serves(host, 6)
        counted = await stats(host)
        assert counted["retries"] >= 1
        assert "dead_replicas" not in counted
        Mortal.alive["shard-2"]._versions.ready.clear()
        answer = await ask(host, request(1))
        assert isinstance(answer, ErrorReply)
        assert answer.code == "unavailable"
        assert "no such model" in answer.message
        assert Watched.last.n_kept == 0


async def test_lookups_of_requests_that_ran_out_of_time_are_not_kept(
    divided: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(divided) as host:
        for name in ("shard-1", "shard-3"):
            Mortal.alive[name].is_mute = True
        answers = await ask_all(host, [request(i, budget_us=30_000) for i in range(2, 6)])
        assert {getattr(answer, "code", "ok") for answer in answers.values()} == {"deadline"}
        assert Watched.last.n_kept == 0
        await trio.sleep(0.1)
        assert WatchedExecutor.last.n_joins == 0

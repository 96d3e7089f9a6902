"""One body of tests for references within a process and between processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import trio
import trio.testing

from runtime.actor import Actor, Context, Ref
from runtime.bus import Bus
from runtime.host import Host
from runtime.mailbox import Mailbox
from runtime.supervisor import RestartPolicy
from runtime.topology import Topology
from tests.runtime.actors import Echo, topology_of
from transport.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from transport.messages import ErrorReply, Ping, Pong

POLICY = RestartPolicy(first_delay_s=0.05)


@attrs.define
class Pair:
    """An actor, and how another sees it."""

    ref: Ref
    host: Host


Open: TypeAlias = Callable[..., AbstractAsyncContextManager[Pair]]


@asynccontextmanager
async def in_one_process(
    tmp_path: Path, actor: Callable[[Context], Actor] = Echo, mailbox: int = 64
) -> AsyncIterator[Pair]:
    host = Host(topology_of("a", "b", mailbox=mailbox), {"b": actor}, policy=POLICY)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield Pair(host.ref("b"), host)
        nursery.cancel_scope.cancel()


def spread_over(tmp_path: Path, mailbox: int = 64) -> Topology:
    return attrs.evolve(topology_of("a", "b", mailbox=mailbox), run_folder=tmp_path)


@asynccontextmanager
async def over_the_bus(
    tmp_path: Path, actor: Callable[[Context], Actor] = Echo, mailbox: int = 64
) -> AsyncIterator[Pair]:
    topology = spread_over(tmp_path, mailbox)
    here, there = Bus(topology, "node-a"), Bus(topology, "node-b")
    asker = Host(topology, {"a": Echo}, remote=here.ref, policy=POLICY)
    host = Host(topology, {"b": actor}, remote=there.ref, policy=POLICY)
    async with trio.open_nursery() as nursery:
        await nursery.start(there.run, host.mailbox)
        await nursery.start(here.run, asker.mailbox)
        await nursery.start(host.run)
        yield Pair(asker.ref("b"), host)
        nursery.cancel_scope.cancel()


@pytest.fixture(params=[in_one_process, over_the_bus])
def connected(request: pytest.FixtureRequest) -> Open:
    opener: Open = request.param
    return opener


async def eventually(condition: Callable[[], bool]) -> None:
    """Poll for what another thread (ZeroMQ's) has a part in."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.005)


async def test_an_ask_gets_its_answer(connected: Open, tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        assert pair.ref.name == "b"
        answer = await pair.ref.ask(Ping(request_id=7), budget=5)
        assert answer == Pong(request_id=7, status="b")


async def test_many_asks_at_once_get_their_own_answers(connected: Open, tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:

        async def ask(number: int) -> None:
            answer = await pair.ref.ask(Ping(request_id=number), budget=5)
            assert answer == Pong(request_id=number, status="b")

        async with trio.open_nursery() as nursery:
            for number in range(1, 50):
                nursery.start_soon(ask, number)


class Keeper(Echo):
    """Keeps what it is told, for the test."""

    last: list[Ping]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.told = Keeper.last = []  # type: ignore[assignment]


async def test_tells_arrive_in_order(connected: Open, tmp_path: Path) -> None:
    async with connected(tmp_path, Keeper) as pair:
        for number in range(1, 31):
            pair.ref.tell(Ping(request_id=number))
        await eventually(lambda: len(Keeper.last) == 30)
        assert [message.request_id for message in Keeper.last] == list(range(1, 31))


async def test_an_ask_without_an_answer_ends_at_its_deadline(
    connected: Open, tmp_path: Path
) -> None:
    async with connected(tmp_path) as pair:
        await pair.ref.ask(Ping(request_id=1), budget=5)
        with pytest.raises(DeadlineExceeded, match="b: no answer within 20 ms"):
            await pair.ref.ask(Ping(request_id=1001), budget=0.02)
        with pytest.raises(DeadlineExceeded):
            await pair.ref.ask(Ping(request_id=1001), budget=-1)
        assert await pair.ref.ask(Ping(request_id=2), budget=5)


async def test_an_error_for_an_answer_is_raised_with_its_field(
    connected: Open, tmp_path: Path
) -> None:
    async with connected(tmp_path) as pair:
        with pytest.raises(InvalidRequest, match="user: missing") as caught:
            await pair.ref.ask(Ping(request_id=1002), budget=5)
        assert caught.value.field == "user"


async def test_an_actor_that_dies_fails_its_asks_at_once_and_serves_again_after_its_restart(
    connected: Open, tmp_path: Path
) -> None:
    async with connected(tmp_path) as pair:
        failed = []

        async def ask(number: int) -> None:
            with pytest.raises(Unavailable, match="b died"):
                await pair.ref.ask(Ping(request_id=number), budget=60)
            failed.append(number)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 1001)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.start_soon(ask, 1000)
            assert sorted(failed) == [1000, 1001]
            with pytest.raises(Unavailable, match="restarted"):
                await pair.ref.ask(Ping(request_id=1), budget=60)
            await eventually(lambda: pair.host.mailbox("b").state == "open")  # type: ignore[union-attr]
            await trio.sleep(0.06)  # the moment for which a refusal is remembered
            assert await pair.ref.ask(Ping(request_id=1), budget=60)


class Idle(Echo):
    """Does not read its mailbox."""

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await self.context.stopping.wait()


async def test_a_full_mailbox_refuses_asks_at_once(connected: Open, tmp_path: Path) -> None:
    async with connected(tmp_path, Idle, mailbox=3) as pair:
        for number in range(1, 4):
            pair.ref.tell(Ping(request_id=number))
        await eventually(lambda: len(pair.host.mailbox("b")) == 3)  # type: ignore[arg-type]
        with pytest.raises(Overloaded, match="b: 3 messages are waiting"):
            await pair.ref.ask(Ping(request_id=4), budget=60)


async def test_a_full_mailbox_soon_refuses_tells(connected: Open, tmp_path: Path) -> None:
    async with connected(tmp_path, Idle, mailbox=3) as pair:

        def is_refused() -> bool:
            try:
                pair.ref.tell(Ping(request_id=1))
            except Overloaded:
                return True
            return False

        await eventually(is_refused)


async def test_an_actor_that_has_ended_is_unavailable(connected: Open, tmp_path: Path) -> None:
    async with connected(tmp_path) as pair:
        await pair.ref.ask(Ping(request_id=1), budget=5)
        assert await pair.host.stop(1)
        with pytest.raises(Unavailable, match="b is not running"):
            await pair.ref.ask(Ping(request_id=1), budget=60)


async def test_a_reply_that_comes_twice_is_the_actors_fault(
    connected: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stutterer(Echo):
        async def run(
            self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        ) -> None:
            task_status.started()
            for envelope in await mailbox.receive_batch(1):
                assert envelope.reply is not None
                envelope.reply(Pong(request_id=1, status="once"))
                envelope.reply(ErrorReply(request_id=1, code="internal", message="twice"))

    async with connected(tmp_path, Stutterer) as pair:
        answer = await pair.ref.ask(Ping(request_id=1), budget=5)
        assert answer == Pong(request_id=1, status="once")
        await eventually(lambda: "an ask is answered once" in caplog.text)

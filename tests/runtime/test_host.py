from __future__ import annotations

import pytest
import trio
import trio.testing

from runtime.actor import Context
from runtime.errors import ActorDied, StartError
from runtime.host import Host
from runtime.mailbox import Mailbox
from runtime.supervisor import Phase, RestartPolicy, sole
from tests.runtime.actors import Echo, topology_of
from transport.errors import Unavailable
from transport.messages import Ping, Pong


async def test_the_actors_of_a_host_reach_each_other_by_name() -> None:
    host = Host(topology_of("a", "b"), {"a": Echo, "b": Echo})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        answer = await host.ref("b").ask(Ping(request_id=5), budget=1)
        assert answer == Pong(request_id=5, status="b")
        assert host.ref("b") is host.ref("b")
        assert await host.stop(1)


async def test_an_unknown_actor_is_a_key_error() -> None:
    host = Host(topology_of("a", "b"), {"a": Echo})
    with pytest.raises(KeyError, match="nobody"):
        host.ref("nobody")
    with pytest.raises(KeyError, match="not in this process"):
        host.ref("b")


class Slow(Echo):
    """Takes its time to become ready, and to finish."""

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await trio.sleep(2)
        self.context.report_ready(0.5)
        await trio.sleep(2)
        task_status.started()
        while await mailbox.receive_batch(1):
            pass
        await trio.sleep(3)


async def test_a_host_has_started_when_every_actor_is_ready_and_reports_progress(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reports: list[tuple[str, Phase, float]] = []
    host = Host(
        topology_of("slow", "a"),
        {"slow": Slow, "a": Echo},
        report=lambda *report: reports.append(report),
    )
    async with trio.open_nursery() as nursery:
        before = trio.current_time()
        await nursery.start(host.run)
        assert trio.current_time() - before == 4
        nursery.cancel_scope.cancel()
    assert reports.index(("a", "ready", 1.0)) < reports.index(("slow", "starting", 0.5))
    assert ("slow", "ready", 1.0) in reports


async def test_actors_stop_one_after_the_other_in_the_order_of_the_topology(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended: list[tuple[str, float]] = []

    def report(actor: str, phase: Phase, progress: float) -> None:
        if phase == "ended":
            ended.append((actor, trio.current_time()))

    host = Host(topology_of("slow", "a"), {"slow": Slow, "a": Echo}, report=report)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        before = trio.current_time()
        assert await host.stop(5)
    assert [(name, at - before) for name, at in ended] == [("slow", 3), ("a", 3)]


async def test_an_actor_that_takes_too_long_to_stop_is_cancelled_and_leaves_no_ask_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host(topology_of("slow", "a"), {"slow": Slow, "a": Echo})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)

        async def ask() -> None:
            with pytest.raises(Unavailable, match="slow has ended"):
                await host.ref("slow").ask(Ping(request_id=1), budget=100)

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        assert not await host.stop(1)
        assert trio.current_time() - before == 1


class Draining(Echo):
    """Needs its mailbox to finish: told a number when it was asked to stop."""

    drains_itself = True

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await self.context.stopping.wait()
        assert len(await mailbox.receive_batch(1)) == 1
        mailbox.close()


async def test_an_actor_that_drains_itself_is_told_things_until_it_closes_its_mailbox(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = Host(topology_of("gateway"), {"gateway": Draining})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)

        async def finish() -> None:
            await trio.sleep(1)
            host.ref("gateway").tell(Ping(request_id=3))

        nursery.start_soon(finish)
        assert await host.stop(5)


class Hopeless(Echo):
    """Cannot start."""

    def __init__(self, context: Context) -> None:
        raise StartError("bundle: no such folder")


async def test_a_host_that_cannot_start_says_why_and_ends_the_others() -> None:
    host = Host(topology_of("a", "b"), {"a": Echo, "b": Hopeless})
    async with trio.open_nursery() as nursery:
        with pytest.raises(ActorDied, match="no such folder"):
            await nursery.start(host.run)


async def test_a_host_ends_when_an_actor_is_given_up(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(topology_of("a", "b"), {"a": Echo, "b": Echo}, policy=RestartPolicy(most=1))

    async def kill_twice() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            for _ in range(2):
                with pytest.raises(Unavailable, match=r"b died|b has ended"):
                    await host.ref("b").ask(Ping(request_id=1000), budget=1)
                await trio.sleep(1)

    with pytest.raises(ExceptionGroup) as caught:
        await kill_twice()
    assert isinstance(sole(caught.value), ActorDied)
    assert "asked to die" in str(sole(caught.value))
    with pytest.raises(Unavailable, match="not running"):
        host.ref("a").tell(Ping(request_id=1))
    assert len(caplog.records) == 1

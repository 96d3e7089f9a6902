from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ActorDied, StartError
from runtime.mailbox import Mailbox
from runtime.supervisor import RestartPolicy, Restarts, describe, sole, supervise


def test_each_restart_waits_twice_as_long_up_to_the_longest() -> None:
    restarts = Restarts(RestartPolicy(most=5, within_s=60, first_delay_s=0.5, longest_delay_s=3))
    delays = []
    for second in range(5):
        restarts, delay = restarts.died(float(second))
        delays.append(delay)
    assert delays == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_one_death_too_many_within_the_period_is_given_up() -> None:
    restarts = Restarts(RestartPolicy(most=2, within_s=10))
    for at in (0.0, 1.0):
        restarts, delay = restarts.died(at)
        assert delay is not None
    assert restarts.died(9.9)[1] is None


def test_old_deaths_are_forgotten_and_with_them_the_back_off() -> None:
    restarts = Restarts(RestartPolicy(most=1, within_s=10, first_delay_s=0.25))
    for at in (0.0, 10.0, 20.0):
        restarts, delay = restarts.died(at)
        assert delay == 0.25


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50).map(sorted), st.integers(0, 5))
def test_no_period_ever_holds_more_restarts_than_allowed(deaths: list[float], most: int) -> None:
    policy = RestartPolicy(most=most, within_s=7)
    restarts = Restarts(policy)
    restarted = []
    for at in deaths:
        restarts, delay = restarts.died(at)
        if delay is None:
            break
        restarted.append(at)
        assert policy.first_delay_s <= delay <= policy.longest_delay_s
    for at in restarted:
        assert sum(at - 7 < other <= at for other in restarted) <= most


Body = Callable[[Mailbox, "trio.TaskStatus[None]"], Awaitable[None]]


class Scripted:
    """An actor whose lives are given, one function each."""

    def __init__(self, body: Body) -> None:
        self.body = body

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self.body(mailbox, task_status)


class Play:
    """Supervises an actor with scripted lives and notes its phases, with their times."""

    def __init__(self, *lives: Body, policy: RestartPolicy | None = None) -> None:
        self.lives = iter(lives)
        self.mailbox = Mailbox("star")
        self.stopping = trio.Event()
        self.phases: list[tuple[float, str]] = []
        self.policy = policy or RestartPolicy(most=3, within_s=60, first_delay_s=1)

    async def run(self) -> None:
        started = trio.current_time()
        await supervise(
            self.mailbox,
            lambda: Scripted(next(self.lives)),
            stopping=self.stopping,
            policy=self.policy,
            hopeless=(StartError,),
            fatal=(MemoryError,),
            on_phase=lambda phase: self.phases.append((trio.current_time() - started, phase)),
        )


async def serve(mailbox: Mailbox, status: trio.TaskStatus[None]) -> None:
    status.started()
    while await mailbox.receive_batch(8):
        pass


async def die_ready(mailbox: Mailbox, status: trio.TaskStatus[None]) -> None:
    status.started()
    async with trio.open_nursery():
        await trio.sleep(2)
        raise ZeroDivisionError("a fault")


async def die_at_start(mailbox: Mailbox, status: trio.TaskStatus[None]) -> None:
    raise StartError("port 7400 is in use")


async def test_an_actor_that_dies_is_replaced_after_the_back_off(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    play = Play(die_ready, die_ready, serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.run)
        await trio.sleep(20)
        play.stopping.set()
        play.mailbox.close()
    assert play.phases == [
        (0, "starting"),
        (0, "ready"),
        (2, "away"),
        (3, "starting"),
        (3, "ready"),
        (5, "away"),
        (7, "starting"),
        (7, "ready"),
        (20, "ended"),
    ]
    assert len(caplog.records) == 2
    assert "star died" in caplog.text
    assert "ZeroDivisionError: a fault" in caplog.text
    assert caplog.records[0].exc_info is not None


async def test_an_actor_that_keeps_dying_is_given_up_with_its_cause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = Play(*[die_ready] * 9)
    with pytest.raises(ActorDied, match="star: ZeroDivisionError: a fault") as caught:
        await play.run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert [phase for _, phase in play.phases].count("ready") == 4
    assert play.mailbox.state == "ended"


async def test_a_hopeless_start_is_not_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    play = Play(die_at_start, serve)
    with pytest.raises(ActorDied) as caught:
        await play.run()
    assert isinstance(caught.value.__cause__, StartError)
    assert play.phases == [(0, "starting"), (0, "ended")]


async def test_what_would_be_hopeless_at_the_start_is_retried_once_the_actor_has_been_ready(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = Play(die_ready, die_at_start, serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.run)
        await trio.sleep(20)
        assert play.phases[-1][1] == "ready"
        play.stopping.set()
        play.mailbox.close()


@pytest.mark.parametrize("is_ready", [True, False])
async def test_what_only_a_new_process_mends_is_given_up_at_once(
    autojump_clock: trio.testing.MockClock, is_ready: bool
) -> None:
    async def lose(mailbox: Mailbox, status: trio.TaskStatus[None]) -> None:
        if is_ready:
            status.started()
        async with trio.open_nursery():
            raise MemoryError("gone for good")

    play = Play(lose, serve)
    with pytest.raises(ActorDied) as caught:
        await play.run()
    assert isinstance(caught.value.__cause__, MemoryError)
    phases = [phase for _, phase in play.phases]
    assert phases == ["starting", *(["ready"] if is_ready else []), "ended"]


async def test_a_return_that_nobody_asked_for_is_a_death(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def leave(mailbox: Mailbox, status: trio.TaskStatus[None]) -> None:
        status.started()

    play = Play(leave, serve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.run)
        await trio.sleep(0.5)
        assert play.phases[-1] == (0, "away")
        await trio.sleep(1)
        assert play.phases[-1] == (1, "ready")
        nursery.cancel_scope.cancel()


async def test_a_stop_during_the_back_off_ends_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    play = Play(die_ready)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.run)
        await trio.sleep(2.5)
        play.stopping.set()
    assert play.phases[-1] == (2.5, "ended")


def test_one_exception_in_groups_is_itself() -> None:
    fault = ValueError("x")
    assert sole(ExceptionGroup("", [ExceptionGroup("", [fault])])) is fault
    both = ExceptionGroup("", [fault, KeyError("y")])
    assert sole(both) is both
    assert sole(fault) is fault


def test_a_description_is_one_line() -> None:
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(ValueError()) == "ValueError"

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from runtime.errors import ActorDied, StartError
from runtime.service import BlockingService, Service
from runtime.topology import Topology, all_in_one
from tests.runtime.actors import topology_of, toy
from transport.errors import DeadlineExceeded, InvalidRequest, Unavailable

ROOT = Path(__file__).parents[2]
THREE = {"item": [1, 2, 3]}


async def test_a_service_scores_in_the_callers_event_loop(tmp_path: Path) -> None:
    async with Service.open(toy(tmp_path)) as service:
        answer = await service.score(user={"x": 7}, candidates=THREE)
        assert answer.scores.tolist() == [7, 8, 9]
        rows = [{"item": 1}, {"item": 2}]
        answer = await service.score(model="toy-0", user={"x": 1}, candidates=rows, budget=5)
        assert answer.outputs["y"].tolist() == [1, 2]
        assert await service.stats() == {"gateway": {"open": 1}}


async def test_errors_reach_the_caller_as_they_are_and_the_service_serves_on(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with Service.open(toy(tmp_path)) as service:
        with pytest.raises(InvalidRequest, match="x: is -3") as caught:
            await service.score(user={"x": -3}, candidates=THREE)
        assert caught.value.field == "x"
        with pytest.raises(DeadlineExceeded):
            await service.score(user={"x": -1}, candidates=THREE, budget=0.01)
        with pytest.raises(InvalidRequest, match="budget"):
            await service.score(user={"x": 1}, candidates=THREE, budget=0)
        with pytest.raises(InvalidRequest, match="feature 'other': 2 values for 1"):
            await service.score(user={"x": 1}, candidates={"item": [1], "other": [1, 2]})
        with pytest.raises(Unavailable, match="gateway died"):
            await service.score(user={"x": -2}, candidates=THREE)
        await trio.sleep(0.15)  # the back-off before the first restart
        await service.score(user={"x": 1}, candidates=THREE)


async def test_which_of_several_models_must_be_said(tmp_path: Path) -> None:
    async with Service.open(toy(tmp_path, n_models=2)) as service:
        with pytest.raises(InvalidRequest, match="want one of toy-0, toy-1") as caught:
            await service.score(user={"x": 1}, candidates=THREE)
        assert caught.value.field == "model"


async def test_what_the_body_raises_leaves_the_service_unwrapped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        async with Service.open(toy(tmp_path)):
            raise ZeroDivisionError("mine")
    with trio.CancelScope() as scope:
        async with Service.open(toy(tmp_path)):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_service_finishes_what_it_took_before_it_ends(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        scores = []

        async with Service.open(toy(tmp_path)) as service:

            async def ask() -> None:
                answer = await service.score(user={"x": 2000}, candidates=THREE)
                scores.append(answer.scores)

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert len(scores) == 1


async def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def start(what: Topology | Path | str) -> None:
        async with Service.open(what):
            raise AssertionError("started")

    with pytest.raises(StartError, match="no good"):
        await start(toy(tmp_path, refuse="no good"))
    with pytest.raises(StartError, match="there is no bundle"):
        await start(all_in_one(tmp_path / "absent"))
    with pytest.raises(StartError, match="there is no bundle"):
        await start(str(tmp_path / "absent"))
    with pytest.raises(StartError, match=r"absent\.toml: cannot be read"):
        await start(tmp_path / "absent.toml")
    with pytest.raises(StartError, match="has no gateway"):
        await start(topology_of("a"))


async def test_an_actor_that_is_given_up_ends_the_body(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def wear_out() -> None:
        async with Service.open(toy(tmp_path)) as service:
            while True:
                try:
                    await service.score(user={"x": -2}, candidates=THREE)
                except Unavailable:
                    await trio.sleep(0.05)

    with pytest.raises(ActorDied, match="gateway: ZeroDivisionError: asked to die"):
        await wear_out()


@pytest.fixture
def blocking(tmp_path: Path) -> Iterator[BlockingService]:
    with BlockingService(toy(tmp_path)) as service:
        yield service


def test_threads_score_at_the_same_time(blocking: BlockingService) -> None:
    wrong = []

    def work(x: int) -> None:
        for _ in range(20):
            answer = blocking.score(user={"x": x}, candidates=THREE, budget=20)
            if answer.scores.tolist() != [x, x + 1, x + 2]:
                wrong.append((x, answer.scores))

    threads = [threading.Thread(target=work, args=(x,)) for x in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert blocking.stats() == {"gateway": {"open": 1}}


def test_a_thread_gets_the_errors_of_a_client(blocking: BlockingService) -> None:
    with pytest.raises(InvalidRequest, match="x: is -3"):
        blocking.score(user={"x": -3}, candidates=THREE)
    with pytest.raises(DeadlineExceeded, match="no answer within"):
        blocking.score(user={"x": -1}, candidates=THREE, budget=0.01)
    with pytest.raises(Unavailable, match="gateway died"):
        blocking.score(user={"x": -2}, candidates=THREE)


def test_a_closed_service_refuses_and_can_be_closed_again(tmp_path: Path) -> None:
    service = BlockingService(toy(tmp_path))
    service.close()
    service.close()
    with pytest.raises(Unavailable, match="closed"):
        service.score(user={"x": 1}, candidates=THREE)


def test_closing_finishes_what_other_threads_asked(tmp_path: Path) -> None:
    service = BlockingService(toy(tmp_path))
    answers = []
    asked = threading.Event()

    def work() -> None:
        asked.set()
        answers.append(service.score(user={"x": 2000}, candidates=THREE))

    thread = threading.Thread(target=work)
    thread.start()
    asked.wait()
    service.stats()  # answered after the request was taken: both go the same way
    service.close()
    thread.join()
    assert len(answers) == 1


def test_a_blocking_service_that_cannot_start_raises_in_the_caller(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no good"):
        BlockingService(toy(tmp_path, refuse="no good"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_service_says_what_to_do(blocking: BlockingService) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            blocking.score(user={"x": 1}, candidates=THREE)
        except StartError as error:
            os.write(writing, str(error).encode())
        blocking.close()
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert "made before a fork" in pipe.read()
    blocking.score(user={"x": 1}, candidates=THREE)


def test_an_interpreter_with_a_service_exits_cleanly(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from runtime.service import BlockingService;"
        "from tests.runtime.actors import toy; s = BlockingService(toy(Path(sys.argv[1])));"
        "print(s.score(user={'x': 4}, candidates={'item': [1]}).scores)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[4.]\n", "")

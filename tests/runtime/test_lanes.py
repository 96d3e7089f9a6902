from __future__ import annotations

import threading
from functools import partial

import pytest
import trio
from outcome import Outcome

from runtime.lanes import LaneThreads


async def test_each_lane_runs_its_calls_in_order_on_a_thread_of_its_own() -> None:
    lanes: LaneThreads[tuple[int, int]] = LaneThreads(2, "test")
    results: list[tuple[int, int, int]] = []

    def done(lane: int, result: Outcome[tuple[int, int]]) -> None:
        number, thread = result.unwrap()
        assert threading.get_ident() == here
        results.append((lane, number, thread))

    def numbered(number: int) -> tuple[int, int]:
        return number, threading.get_ident()

    here = threading.get_ident()
    for number in range(20):
        lane = number % 2
        lanes.submit(lane, partial(numbered, number), partial(done, lane))
    await lanes.aclose()
    for lane in (0, 1):
        assert [number for each, number, _ in results if each == lane] == list(range(lane, 20, 2))
    threads = {lane: {thread for each, _, thread in results if each == lane} for lane in (0, 1)}
    assert len(threads[0]) == len(threads[1]) == 1
    assert threads[0] != threads[1]


async def test_what_a_call_raises_is_its_outcome() -> None:
    lanes: LaneThreads[float] = LaneThreads(1, "test")
    seen: list[str] = []

    def done(result: Outcome[float]) -> None:
        with pytest.raises(ZeroDivisionError):
            result.unwrap()
        seen.append("raised")

    lanes.submit(0, lambda: 1 / 0, done)
    await lanes.aclose()
    assert seen == ["raised"]


async def test_what_done_raises_comes_out_of_watch() -> None:
    lanes: LaneThreads[None] = LaneThreads(1, "test")

    def done(result: Outcome[None]) -> None:
        raise KeyError("a bug")

    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lanes.watch)
            lanes.submit(0, lambda: None, done)
    await lanes.aclose()


async def test_closing_waits_for_a_launch_even_when_cancelled() -> None:
    lanes: LaneThreads[None] = LaneThreads(1, "test")
    go = threading.Event()
    finished: list[bool] = []
    lanes.submit(0, lambda: finished.append(go.wait(5.0)), lambda _: None)
    with trio.CancelScope() as scope:
        scope.cancel()
        trio.lowlevel.current_trio_token().run_sync_soon(go.set)
        await lanes.aclose()
    assert finished == [True]

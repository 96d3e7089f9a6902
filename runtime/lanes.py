"""Threads that run launches: one a lane, kept for the lane's life.

``trio.to_thread`` would do, at about 60 us a call: it finds or starts a thread, takes a limiter's
token and wakes a task. A lane runs thousands of launches a second, one after the other, and nobody
can cancel one: so each lane has a thread that takes calls off a queue and hands results back to
the event loop by ``run_sync_soon``. Whoever launches gets the result in a callback, not a task.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, NoReturn, TypeAlias, TypeVar

import outcome
import trio

T = TypeVar("T")
Done: TypeAlias = Callable[[outcome.Outcome[T]], None]


class LaneThreads(Generic[T]):
    """Runs calls on the threads of lanes. Used from the event loop that made it.

    Args:
        n_lanes: How many threads; each runs its calls in the order in which they came.
        name: For the threads' names.
    """

    def __init__(self, n_lanes: int, name: str) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._n_running = 0
        self._quiet = trio.Event()
        self._quiet.set()
        self._failure: Exception | None = None
        self._failed = trio.Event()
        self._calls: list[queue.SimpleQueue[tuple[Callable[[], T], Done[T]] | None]] = [
            queue.SimpleQueue() for _ in range(n_lanes)
        ]
        for lane, calls in enumerate(self._calls):
            threading.Thread(
                target=self._work, args=(calls,), name=f"{name} lane {lane}", daemon=True
            ).start()

    def submit(self, lane: int, call: Callable[[], T], done: Done[T]) -> None:
        """Run ``call`` on a lane's thread; then ``done`` in the event loop, with its outcome.

        ``done`` is called exactly once, unless the event loop ends before. What it raises comes out
        of ``watch``.
        """
        if self._n_running == 0:
            self._quiet = trio.Event()
        self._n_running += 1
        self._calls[lane].put((call, done))

    async def watch(self) -> NoReturn:
        """Wait for a ``done`` that raises, and raise that; to be run beside whoever submits."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def aclose(self) -> None:
        """Wait until every call is done, and end the threads. Shielded: launches are not abandoned.

        What a launch reads may be freed after this, not before.
        """
        with trio.CancelScope(shield=True):
            await self._quiet.wait()
        for calls in self._calls:
            calls.put(None)

    def _work(self, calls: queue.SimpleQueue[tuple[Callable[[], T], Done[T]] | None]) -> None:
        while (item := calls.get()) is not None:
            call, done = item
            result: outcome.Outcome[T] = outcome.capture(call)
            try:
                self._token.run_sync_soon(self._deliver, done, result)
            except trio.RunFinishedError:
                return
            del call, done, item, result

    def _deliver(self, done: Done[T], result: outcome.Outcome[T]) -> None:
        self._n_running -= 1
        if self._n_running == 0:
            self._quiet.set()
        try:
            done(result)
        except Exception as error:  # in the event loop's own hands it would end the whole process
            self._failure = self._failure or error
            self._failed.set()

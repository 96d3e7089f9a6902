"""One version of a model at work in an executor: its engine, its lanes' threads and its timer.

On a card, launches are queued from the event loop and awaited by their lanes' threads.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import outcome
import trio
from numpy import float32
from numpy.typing import NDArray
from outcome import Outcome

from actors.engine import Engine, Work
from actors.hot_asker import HotAsker
from kernels.errors import DeviceLost, KernelsError
from kernels.executor import QueuedExecutor
from kernels.gpu.executor import GpuExecutor
from runtime.lanes import LaneThreads
from runtime.metrics import Metrics
from runtime.window import Window

log = logging.getLogger(__name__)

LOST = "the executor lost its card and is being restarted"

# A launch that is predicted to be shorter runs in the event loop: handing it to its lane's thread
# and back costs 0.1 to 0.4 ms of the processor's time.
_INLINE_S = 0.0004


class Serving:
    """Runs what an engine's windows hold, when they are to run. Used from one event loop.

    Args:
        engine: Owned from here on: ``aclose`` closes it.
        name: The actor's, for messages and the names of threads.
        metrics: Shared with the actor.
        hot: Makes the part of batches that is of cached tables, if there are any.
    """

    def __init__(
        self, engine: Engine, name: str, metrics: Metrics, hot: HotAsker | None = None
    ) -> None:
        self.engine = engine
        self.hot = hot
        self._name = name
        self._metrics = metrics
        self._timer = trio.CancelScope()
        self._pumped = trio.Event()
        self._lanes: LaneThreads[NDArray[float32]] | None = None
        dense = engine.dense
        self._queued: QueuedExecutor | None = dense if isinstance(dense, GpuExecutor) else None
        self._scope = trio.CancelScope()

    def start(self, nursery: trio.Nursery) -> None:
        """Launch what is due until ``aclose``.

        Args:
            nursery: Gets what a launch raises: ``DeviceLost``, where the card is gone and with it
                all that was on its way there.
        """
        self._lanes = LaneThreads(self.engine.dense.n_lanes, self._name)
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                assert self._lanes is not None
                if self.hot is not None:
                    self.hot.start(nursery)
                nursery.start_soon(self._lanes.watch)
                nursery.start_soon(self._tick)

    def statistics(self) -> dict[str, Any]:
        """Return what is told beside the metrics: of hot rows, and of the card's buckets."""
        found = {} if self.hot is None else self.hot.statistics()
        dense = self.engine.dense
        if isinstance(dense, GpuExecutor):
            done = dense.statistics()
            launches = done.launches_by_bucket
            found["buckets"] = {str(bucket): launches.get(bucket, 0) for bucket in done.buckets}
            found["padding"] = {
                "rows": round(done.padding, 4),
                "requests": round(done.padding_requests, 4),
                "steps": round(done.padding_steps, 4),
            }
        return found

    async def wait_idle(self) -> None:
        """Wait until nothing is running or waiting to."""
        while not self.engine.idle:
            self._pumped = trio.Event()
            await self._pumped.wait()

    async def wait_quiet(self) -> None:
        """Wait until every launch is done, and end the lanes' threads. Shielded."""
        if self._lanes is not None:
            await self._lanes.aclose()

    async def aclose(self) -> None:
        """Give everything back, once every launch is done. Shielded; also if never started."""
        self._scope.cancel()
        await self.wait_quiet()
        self.engine.close()

    def pump(self) -> None:
        """Launch what is to run now, and set the timer for what comes next."""
        engine, lanes = self.engine, self._lanes
        assert lanes is not None
        now = trio.current_time()
        if self.hot is not None:
            self.hot.tick(now)
        for window in engine.windows(now):
            launched = functools.partial(self._launched, window, now)
            if self._queued is not None:
                try:
                    bucket = self._queued.start(window.lane, len(window.slices), window.n_rows)
                except KernelsError as error:
                    self._finish(window, now, outcome.Error(error))
                    continue
                self._metrics.count("padding_rows", bucket.rows - window.n_rows)
                self._metrics.count("padding_requests", bucket.requests - len(window.slices))
                finish = functools.partial(self._queued.finish, window.lane)
                lanes.submit(window.lane, finish, launched)
                continue
            run = functools.partial(
                engine.dense.run, window.lane, len(window.slices), window.n_rows
            )
            if engine.predict(window) < _INLINE_S:
                self._finish(window, trio.current_time(), outcome.capture(run))
            else:
                lanes.submit(window.lane, run, launched)
        times = [engine.wake_at(now), None if self.hot is None else self.hot.wake_at()]
        self._timer.deadline = min((each for each in times if each is not None), default=math.inf)
        self._pumped.set()

    def _launched(
        self, window: Window[Work], launched: float, result: Outcome[NDArray[float32]]
    ) -> None:
        """Answer a window's requests, and launch what the idle lane makes room for."""
        self._finish(window, launched, result)
        self.pump()

    def _finish(
        self, window: Window[Work], launched: float, result: Outcome[NDArray[float32]]
    ) -> None:
        engine = self.engine
        try:
            scores = result.unwrap()
        except DeviceLost:
            engine.failed(window, LOST, "unavailable")
            raise
        except KernelsError as error:
            log.exception("%s: a launch failed", self._name)
            engine.failed(window, str(error))
        else:
            engine.done(window, scores, launched, trio.current_time())

    async def _tick(self) -> None:
        """Pump whenever the timer runs out; ``pump`` sets it."""
        while True:
            with trio.CancelScope(deadline=self._timer.deadline) as self._timer:
                await trio.sleep_forever()
            self.pump()

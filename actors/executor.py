"""The executor: joins a batch's parts, shares launches among requests, sends scores back.

On a card, launches are queued from the event loop and awaited by their lanes' threads. When the
card is lost, the executor answers ``unavailable`` to all that it holds and ends with
``DeviceLost``, which ends the node's process: whoever started it starts another.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import NoReturn

import numpy as np
import outcome
import trio
from numpy.typing import NDArray
from outcome import Outcome

from actors.dense import ExecutorOptions, open_dense
from actors.engine import Engine, Work
from actors.join import BlockLayout
from actors.options import read_options
from actors.scatter import placement_of
from actors.usual import answer_usual
from kernels.bundle.load import load_bundle
from kernels.errors import DeviceLost, KernelsError
from kernels.executor import QueuedExecutor
from kernels.gpu.executor import GpuExecutor
from runtime.actor import Context, Envelope
from runtime.errors import StartError
from runtime.lanes import LaneThreads
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from runtime.window import Window, WindowPolicy
from transport.errors import Overloaded, Unavailable
from transport.messages import (
    Batch,
    LookupBatch,
    RowsPart,
    ScoresBatch,
)

log = logging.getLogger(__name__)

# Messages taken from the mailbox at a time.
_RECEIVE_MOST = 256
# A launch that is predicted to be shorter runs in the event loop: handing it to its lane's thread
# and back costs 0.1 to 0.4 ms of the processor's time.
_INLINE_S = 0.0004
# Before the process ends, for the last answers to leave: they are on their way to the kernel, in
# the hands of ZeroMQ's thread.
_LAST_WORDS_S = 0.05
_LOST = "the executor lost its card and is being restarted"


class Executor:
    """Serves one model. Answers each request of each ``Batch`` once, to its gateway."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = read_options(ExecutorOptions, context.name, context.options)
        self._metrics = Metrics()
        self._timer = trio.CancelScope()
        self._pumped = trio.Event()
        self._lanes: LaneThreads[NDArray[np.float32]]
        self._queued: QueuedExecutor | None = None
        self._token: trio.lowlevel.TrioToken
        self._is_open = False

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty and every launch is done."""
        self._token = trio.lowlevel.current_trio_token()
        engine = await trio.to_thread.run_sync(self._open)
        self._is_open = True
        self._lanes = LaneThreads(engine.dense.n_lanes, self._context.name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lanes.watch)
                nursery.start_soon(self._tick, engine)
                task_status.started()
                while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                    for envelope in envelopes:
                        self._serve(engine, envelope)
                    self._pump(engine)
                while not engine.idle:
                    self._pumped = trio.Event()
                    await self._pumped.wait()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            lost = group.subgroup(DeviceLost)
            if lost is None:
                raise
            await self._lanes.aclose()
            await self._abandon(engine, mailbox, lost)
        finally:
            await self._lanes.aclose()
            engine.close()

    async def _abandon(self, engine: Engine, mailbox: Mailbox, error: BaseException) -> NoReturn:
        """Answer what is held, in the mailbox too, and end."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        log.error("%s: its card is lost: %s", self._context.name, error)
        with trio.CancelScope(shield=True):
            mailbox.close()
            while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                for envelope in envelopes:
                    self._serve(engine, envelope)
            engine.abandon(_LOST)
            await trio.sleep(_LAST_WORDS_S)
        raise error

    def _open(self) -> Engine:
        """Load the dense graph; the slow part of starting."""
        name = self._context.name
        served = [m for m in self._context.topology.models.values() if name in m.executors]
        if len(served) != 1:
            names = ", ".join(model.name for model in served) or "none"
            raise StartError(
                f"actor {name}: an executor serves one model; the topology says {names}"
            )
        [model] = served
        options = self._options
        bundle = load_bundle(model.bundle)
        placement = placement_of(self._context.topology, model.name, bundle.manifest)
        dense = open_dense(bundle, options, name, self._report)
        self._queued = dense if isinstance(dense, GpuExecutor) else None
        policy: WindowPolicy[Work] = WindowPolicy(
            max_rows=dense.max_rows,
            max_requests=dense.max_requests,
            n_lanes=dense.n_lanes,
            bucket=dense.bucket,
            linger=options.linger_us * 1e-6,
            backlog_rows=options.backlog_rows,
        )
        for n_rows, seconds in dense.measure():
            policy.learn(n_rows, seconds)
        return Engine(
            version=bundle.manifest.version,
            dense=dense,
            layout=BlockLayout.of(bundle.manifest, placement.shards, placement.device),
            policy=policy,
            tell=self._tell,
            metrics=self._metrics,
        )

    def _report(self, progress: float) -> None:
        """Say how far compiling has come, while that is what opening waits for; in any thread."""
        if not self._is_open:
            self._token.run_sync_soon(self._context.report_ready, progress)

    def _serve(self, engine: Engine, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Batch):
            engine.begin(message, envelope.received_at)
        elif isinstance(message, RowsPart | LookupBatch):
            engine.add(message, envelope.received_at)
        else:
            answer_usual(envelope, self._metrics)

    def _pump(self, engine: Engine) -> None:
        """Launch what is to run now, and set the timer for what comes next."""
        now = trio.current_time()
        for window in engine.windows(now):
            launched = functools.partial(self._launched, engine, window, now)
            if self._queued is not None:
                try:
                    self._queued.start(window.lane, len(window.slices), window.n_rows)
                except KernelsError as error:
                    self._finish(engine, window, now, outcome.Error(error))
                    continue
                finish = functools.partial(self._queued.finish, window.lane)
                self._lanes.submit(window.lane, finish, launched)
                continue
            run = functools.partial(
                engine.dense.run, window.lane, len(window.slices), window.n_rows
            )
            if engine.predict(window) < _INLINE_S:
                self._finish(engine, window, trio.current_time(), outcome.capture(run))
            else:
                self._lanes.submit(window.lane, run, launched)
        wake_at = engine.wake_at(now)
        self._timer.deadline = math.inf if wake_at is None else wake_at
        self._pumped.set()

    def _launched(
        self,
        engine: Engine,
        window: Window[Work],
        launched: float,
        result: Outcome[NDArray[np.float32]],
    ) -> None:
        """Answer a window's requests, and launch what the idle lane makes room for."""
        self._finish(engine, window, launched, result)
        self._pump(engine)

    def _finish(
        self,
        engine: Engine,
        window: Window[Work],
        launched: float,
        result: Outcome[NDArray[np.float32]],
    ) -> None:
        try:
            scores = result.unwrap()
        except DeviceLost:
            engine.failed(window, _LOST, "unavailable")
            raise
        except KernelsError as error:
            log.exception("%s: a launch failed", self._context.name)
            engine.failed(window, str(error))
        else:
            if self._queued is not None:
                n_padding = engine.dense.bucket(window.n_rows) - window.n_rows
                self._metrics.count("padding_rows", n_padding)
            engine.done(window, scores, launched, trio.current_time())

    async def _tick(self, engine: Engine) -> None:
        """Pump whenever the timer runs out; ``_pump`` sets it."""
        while True:
            with trio.CancelScope(deadline=self._timer.deadline) as self._timer:
                await trio.sleep_forever()
            self._pump(engine)

    def _tell(self, gateway: str, scores: ScoresBatch) -> None:
        try:
            self._context.ref(gateway).tell(scores)
        except (Overloaded, Unavailable) as error:
            # The gateway itself is gone or stuck; its clients' time-outs are all that is left.
            self._metrics.count("undelivered", len(scores.requests))
            log.warning("%s to %s: %s", self._context.name, gateway, error)

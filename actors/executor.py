"""The executor: joins a batch's parts, shares launches among requests, sends scores back.

It may hold several versions of its model, each with an engine and lanes of its own; a batch is
served by the one that it names. When the card is lost, the executor answers ``unavailable`` to all
that it holds and ends with ``DeviceLost``, which ends the node's process: whoever started it starts
another.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NoReturn

import trio

from actors.dense import ExecutorOptions, open_dense
from actors.engine import Engine, Work
from actors.join import BlockLayout
from actors.options import read_options
from actors.scatter import placement_of
from actors.serving import LOST, Serving
from actors.usual import answer_usual
from kernels.bundle.load import load_bundle
from kernels.errors import DeviceLost
from runtime.actor import Context, Envelope
from runtime.errors import StartError
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from runtime.topology import ModelSpec
from runtime.window import WindowPolicy
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
# Before the process ends, for the last answers to leave: they are on their way to the kernel, in
# the hands of ZeroMQ's thread.
_LAST_WORDS_S = 0.05


class Executor:
    """Serves one model. Answers each request of each ``Batch`` once, to its gateway."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = read_options(ExecutorOptions, context.name, context.options)
        self._metrics = Metrics()
        self._servings: dict[str, Serving] = {}  # by version, the last that was loaded at the end
        self._token: trio.lowlevel.TrioToken
        self._is_open = False

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty and every launch is done."""
        self._token = trio.lowlevel.current_trio_token()
        model = self._served()
        try:
            engine = await trio.to_thread.run_sync(self._open, model, model.bundle)
            self._is_open = True
            async with trio.open_nursery() as nursery:
                self._serve_version(engine, nursery)
                task_status.started()
                while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                    for envelope in envelopes:
                        self._serve(envelope)
                    for serving in self._servings.values():
                        serving.pump()
                for serving in self._servings.values():
                    await serving.wait_idle()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            lost = group.subgroup(DeviceLost)
            if lost is None:
                raise
            for serving in self._servings.values():
                await serving.wait_quiet()
            await self._abandon(mailbox, lost)
        finally:
            for serving in self._servings.values():
                await serving.aclose()

    async def _abandon(self, mailbox: Mailbox, error: BaseException) -> NoReturn:
        """Answer what is held, in the mailbox too, and end."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        log.error("%s: its card is lost: %s", self._context.name, error)
        with trio.CancelScope(shield=True):
            mailbox.close()
            while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                for envelope in envelopes:
                    self._serve(envelope)
            for serving in self._servings.values():
                serving.engine.abandon(LOST)
            await trio.sleep(_LAST_WORDS_S)
        raise error

    def _served(self) -> ModelSpec:
        """Return the model that the topology has this executor serve."""
        name = self._context.name
        served = [m for m in self._context.topology.models.values() if name in m.executors]
        if len(served) != 1:
            names = ", ".join(model.name for model in served) or "none"
            raise StartError(
                f"actor {name}: an executor serves one model; the topology says {names}"
            )
        return served[0]

    def _open(self, model: ModelSpec, path: Path) -> Engine:
        """Load a bundle's dense graph: in a thread, as it takes seconds."""
        options = self._options
        bundle = load_bundle(path)
        placement = placement_of(model, bundle)
        dense = open_dense(
            bundle, options, self._context.name, placement.device_tables, self._report
        )
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

    def _serve_version(self, engine: Engine, nursery: trio.Nursery) -> None:
        """Take batches of an engine's version from now on."""
        serving = Serving(engine, self._context.name, self._metrics)
        self._servings[engine.version] = serving
        nursery.start_soon(serving.run)

    def _report(self, progress: float) -> None:
        """Say how far compiling has come, while that is what opening waits for; in any thread."""
        if not self._is_open:
            self._token.run_sync_soon(self._context.report_ready, progress)

    def _serve(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Batch):
            serving = self._servings.get(message.version)
            if serving is None:  # any of them refuses it
                serving = next(reversed(self._servings.values()))
            serving.engine.begin(message, envelope.received_at)
        elif isinstance(message, RowsPart | LookupBatch):
            serving = self._servings.get(message.version)
            if serving is None:  # the gateway was told, when the head came
                self._metrics.count("strays")
            else:
                serving.engine.add(message, envelope.received_at)
        else:
            answer_usual(envelope, self._metrics)

    def _tell(self, gateway: str, scores: ScoresBatch) -> None:
        try:
            self._context.ref(gateway).tell(scores)
        except (Overloaded, Unavailable) as error:
            # The gateway itself is gone or stuck; its clients' time-outs are all that is left.
            self._metrics.count("undelivered", len(scores.requests))
            log.warning("%s to %s: %s", self._context.name, gateway, error)

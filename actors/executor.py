"""The executor: joins a batch's parts, shares launches among requests, sends scores back.

It may hold several versions of its model, each with an engine and lanes of its own; a batch is
served by the one that it names. When the card is lost, the executor answers ``unavailable`` to all
that it holds and ends with ``DeviceLost``, which ends the node's process: whoever started it starts
another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

import trio

from actors.block_layout import BlockLayout
from actors.card_rows import CardLayout
from actors.dense import ExecutorOptions, open_dense
from actors.engine import Engine, Work
from actors.hot_asker import HotAsker
from actors.hot_open import hot_tables
from actors.layouts import Layouts, placement_of
from actors.options import read_options
from actors.serving import LOST, Serving
from actors.usual import answer_usual
from actors.versions import QUESTIONS, Versions
from kernels.bundle.load import Bundle
from kernels.errors import DeviceLost
from kernels.gpu.executor import GpuExecutor
from kernels.gpu.filler import RowFiller
from kernels.host import HostExecutor
from runtime.actor import Context, Envelope
from runtime.errors import StartError
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from runtime.topology import ModelSpec
from runtime.window import WindowPolicy
from transport.errors import Overloaded, Unavailable
from transport.messages import Batch, LookupBatch, PartsLate, RowsPart, ScoresBatch
from transport.updates import RowsChanged

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
        self._model = self._served()
        self._versions: Versions[Serving]

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty and every launch is done."""
        self._versions = versions = Versions(
            self._context,
            [self._model],
            self._open,
            on_ready=lambda serving: serving.start(nursery),
            close_version=_retire,
        )
        try:
            async with trio.open_nursery() as nursery:
                await versions.start()
                task_status.started()
                while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                    for envelope in envelopes:
                        if isinstance(envelope.message, QUESTIONS):
                            versions.serve(envelope, nursery)
                        else:
                            self._serve(envelope)
                    for serving in versions.ready.values():
                        serving.pump()
                for serving in list(versions.ready.values()):
                    await serving.wait_idle()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            lost = group.subgroup(DeviceLost)
            if lost is None:
                raise
            for serving in versions.ready.values():
                await serving.wait_quiet()
            await self._abandon(mailbox, lost)
        finally:
            while versions.ready:
                _, serving = versions.ready.popitem()
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
            for serving in self._versions.ready.values():
                serving.engine.abandon(LOST)
            await trio.sleep(_LAST_WORDS_S)
        raise error

    def _served(self) -> str:
        """Return the name of the model that the topology has this executor serve."""
        name = self._context.name
        served = [m for m in self._context.topology.models.values() if name in m.executors]
        if len(served) != 1:
            names = ", ".join(model.name for model in served) or "none"
            raise StartError(
                f"actor {name}: an executor serves one model; the topology says {names}"
            )
        return served[0].name

    def _open(self, model: str, bundle: Bundle, progress: Callable[[float], None]) -> Serving:
        """Load a bundle's dense graph: in a thread, as it takes seconds."""
        spec = self._context.topology.models[model]
        placement = placement_of(spec, bundle)
        dense = open_dense(
            bundle,
            self._options,
            self._context.name,
            placement.device_tables,
            progress,
            hot_tables=placement.hot_tables,
        )
        try:
            filler = dense.filler if isinstance(dense, GpuExecutor) else None
            tables = dense.tables if isinstance(dense, GpuExecutor) and filler else None
            layout = BlockLayout.of(
                bundle.manifest, placement, spec.replicas, dense.sequences, tables
            )
            if isinstance(dense, GpuExecutor):
                dense.prepare(layout.at)
            engine = self._engine(dense, bundle.manifest.version, layout)
            hot = self._hot(spec, bundle, placement, engine, layout.card, filler)
        except BaseException:
            dense.close()
            raise
        return Serving(engine, self._context.name, self._metrics, hot)

    def _engine(
        self, dense: HostExecutor | GpuExecutor, version: str, layout: BlockLayout
    ) -> Engine:
        options = self._options
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
            version=version,
            dense=dense,
            layout=layout,
            policy=policy,
            tell=self._tell,
            metrics=self._metrics,
        )

    def _hot(
        self,
        model: ModelSpec,
        bundle: Bundle,
        layouts: Layouts,
        engine: Engine,
        card: CardLayout | None,
        filler: RowFiller | None,
    ) -> HotAsker | None:
        """Make what keeps the hot rows of cached tables, if there are any."""
        if layouts.hot is None:
            return None
        kept = None if card is None or filler is None else (card.tables, filler.most_rows)
        tables = hot_tables(self._context.name, model, bundle, layouts, kept)
        return HotAsker(tables, layouts.hot, self._context, self._metrics, engine.add, filler)

    def _serve(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, Batch):
            serving = self._versions.ready.get((self._model, message.version))
            if serving is None:  # any of them refuses it
                serving = self._versions.of(self._model)
            serving.engine.begin(message, envelope.received_at)
        elif isinstance(message, RowsPart | LookupBatch):
            serving = self._versions.ready.get((self._model, message.version))
            if serving is None:  # the gateway was told, when the head came
                self._metrics.count("strays")
            else:
                self._take(serving, message, envelope.received_at)
        elif isinstance(message, RowsChanged):
            serving = self._versions.ready.get((self._model, message.version))
            if serving is not None and serving.hot is not None:
                serving.hot.changed(message)
        else:
            serving = self._versions.of(self._model)
            answer_usual(envelope, self._metrics, serving.statistics())

    def _take(self, serving: Serving, message: RowsPart | LookupBatch, at: float) -> None:
        """Take a part of a batch, or what this executor is to make one of."""
        hot = serving.hot
        if isinstance(message, RowsPart) and message.gateway == self._context.name:
            if hot is not None:
                hot.answered(message)
        elif isinstance(message, LookupBatch) and hot is not None and message.part == hot.part:
            hot.ask(message, at)
        else:
            serving.engine.add(message, at)

    def _tell(self, gateway: str, message: ScoresBatch | PartsLate) -> None:
        try:
            self._context.ref(gateway).tell(message)
        except (Overloaded, Unavailable) as error:
            # The gateway itself is gone or stuck; its clients' time-outs are all that is left.
            if isinstance(message, ScoresBatch):
                self._metrics.count("undelivered", len(message.requests))
            log.warning("%s to %s: %s", self._context.name, gateway, error)


async def _retire(serving: Serving) -> None:
    """Let a version that is not in use any more finish what it has, and give it back."""
    try:
        await serving.wait_idle()
    finally:
        await serving.aclose()

"""The embedding shard: ids to pooled rows, sent straight to the executor that joins them.

A shard holds some tables of each model that names it, as memory-mapped files. Which tables, all
sides derive from the bundle and the topology (``scatter.placement_of``). It may hold several
versions of a model; a lookup says which it means.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import attrs
import numpy as np
import trio

from actors.options import read_options
from actors.scatter import placement_of
from actors.usual import answer_usual
from actors.versions import QUESTIONS, Versions
from kernels.bundle.load import Bundle
from kernels.lookup import PooledLookup
from runtime.actor import Context, Envelope
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from transport.errors import Overloaded, Unavailable
from transport.messages import (
    ERROR_CODES,
    LookupBatch,
    RowsPart,
    ScoresBatch,
)

log = logging.getLogger(__name__)

# Batches taken from the mailbox at a time.
_RECEIVE_MOST = 64
# Above this many rows to fetch, a lookup runs in a thread (about 60 us to get there and back), so
# that this process's other actors are not held up; 20,000 rows of 64 floats take about 2 ms.
_THREAD_ROWS = 20_000


@attrs.frozen(kw_only=True)
class ShardOptions:
    """A shard has no options of its own."""


@attrs.frozen(eq=False)
class _Held:
    """This shard's part of one version of a model."""

    user: PooledLookup
    candidate: PooledLookup


class EmbeddingShard:
    """Answers each ``LookupBatch`` with one ``RowsPart`` to the executor that the batch names.

    A batch whose budget is spent is dropped: the gateway has answered it. A part that cannot be
    delivered fails its requests at the gateway at once.
    """

    def __init__(self, context: Context) -> None:
        read_options(ShardOptions, context.name, context.options)
        self._context = context
        models = context.topology.models.values()
        own = [model.name for model in models if context.name in model.shards]
        self._versions = Versions(context, own, self._open)
        self._metrics = Metrics()

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty."""
        async with trio.open_nursery() as nursery:
            await self._versions.start()
            task_status.started()
            while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                for envelope in envelopes:
                    if isinstance(envelope.message, QUESTIONS):
                        self._versions.serve(envelope, nursery)
                    else:
                        await self._serve(envelope)
            nursery.cancel_scope.cancel()

    def _open(self, model: str, bundle: Bundle, progress: Callable[[float], None]) -> _Held:
        """Map the tables and touch their pages, so that the first requests find them warm."""
        spec = self._context.topology.models[model]
        placement = placement_of(spec, bundle)
        user, candidate = placement.shards[spec.group_of(self._context.name)]
        tables = {table: bundle.table(table) for table in {*user.tables, *candidate.tables}}
        for read, table in enumerate(tables.values()):
            _touch(table)
            progress((read + 1) / len(tables))
        return _Held(PooledLookup(tables, user), PooledLookup(tables, candidate))

    async def _serve(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, LookupBatch):
            if envelope.received_at + message.budget_us * 1e-6 <= trio.current_time():
                self._metrics.count("expired")
                return
            self._send(message, await self._look_up(message, envelope.received_at))
        else:
            answer_usual(envelope, self._metrics)

    async def _look_up(self, batch: LookupBatch, received_at: float) -> RowsPart:
        held = self._versions.ready.get((batch.model, batch.version))
        if held is None:
            ready = self._versions.ready
            versions = [version[:12] for model, version in ready if model == batch.model]
            has = f"version {' and '.join(versions)}" if versions else "no such model"
            return _failed(
                batch, f"{self._context.name}: {has}, not {batch.model} {batch.version[:12]}"
            )
        n_rows = batch.user_ids.size + batch.candidate_ids.size
        if n_rows > _THREAD_ROWS:
            user, candidate = await trio.to_thread.run_sync(_rows_of, held, batch)
        else:
            user, candidate = _rows_of(held, batch)
        spent_us = int((trio.current_time() - received_at) * 1e6)
        self._metrics.count("batches")
        self._metrics.count("rows", n_rows)
        self._metrics.observe("lookup_us", spent_us)
        return RowsPart(
            gateway=batch.gateway,
            seq=batch.seq,
            version=batch.version,
            part=batch.part,
            user=user,
            candidate=candidate,
            lookup_us=spent_us,
        )

    def _send(self, batch: LookupBatch, part: RowsPart) -> None:
        try:
            self._context.ref(batch.executor).tell(part)
        except (Overloaded, Unavailable) as error:
            self._metrics.count("undelivered")
            self._tell_gateway(batch, error)

    def _tell_gateway(self, batch: LookupBatch, error: Overloaded | Unavailable) -> None:
        n_requests = batch.user_ids.shape[1]
        failure = ScoresBatch(
            seq=batch.seq,
            requests=np.arange(n_requests, dtype=np.int32),
            codes=np.full(n_requests, ERROR_CODES.index(error.code), np.uint8),
            scores=np.empty((0, 0), np.float32),
            message=f"{self._context.name} to {batch.executor}: {error}",
        )
        try:
            self._context.ref(batch.gateway).tell(failure)
        except (Overloaded, Unavailable) as second:
            log.warning("%s: batch %d: %s; then %s", self._context.name, batch.seq, error, second)


def _rows_of(held: _Held, batch: LookupBatch) -> tuple[np.ndarray, np.ndarray]:
    return (
        held.user.run(batch.user_ids, batch.user_weights),
        held.candidate.run(batch.candidate_ids, batch.candidate_weights),
    )


def _failed(batch: LookupBatch, message: str) -> RowsPart:
    empty = np.empty((0, 0), np.float32)
    return RowsPart(
        gateway=batch.gateway,
        seq=batch.seq,
        version=batch.version,
        part=batch.part,
        user=empty,
        candidate=empty,
        code="unavailable",
        message=message,
    )


def _touch(table: np.ndarray) -> None:
    """Read one number of every page of a memory-mapped table."""
    page = 4096 // table.itemsize
    np.add.reduce(table.reshape(-1)[::page])

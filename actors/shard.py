"""The embedding shard: ids to pooled rows, sent straight to the executor that joins them.

A shard is a replica of one group of each model that names it: it holds that group's tables
(``held.py``). It may hold several versions of a model; a lookup says which it means. What updates
have changed of a table is looked at first (``update_shard.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from actors.held import HeldPart
from actors.layouts import placement_of
from actors.options import read_options
from actors.parts import failed_part, part_not_held, part_of, send_part
from actors.update_gate import Gate
from actors.update_replica import Replica
from actors.update_shard import UPDATE_QUESTIONS, ShardUpdates, UpdateOptions
from actors.usual import answer_usual
from actors.versions import QUESTIONS, Versions
from kernels.bundle.load import Bundle
from kernels.errors import LookupFailed
from runtime.actor import Context, Envelope
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from transport.messages import LookupBatch, RowsPart

# Batches taken from the mailbox at a time.
_RECEIVE_MOST = 64
# Above this many rows to fetch, a lookup runs in a thread (about 60 us to get there and back), so
# that this process's other actors are not held up; 20,000 rows of 64 floats take about 2 ms.
_THREAD_ROWS = 20_000


class _Held(NamedTuple):
    """One version of a model."""

    part: HeldPart
    replica: Replica | None


class EmbeddingShard:
    """Answers each ``LookupBatch`` with one ``RowsPart`` to the executor that the batch names.

    A batch whose budget is spent is dropped: the gateway has answered it. A part that cannot be
    delivered fails its requests at the gateway at once.
    """

    def __init__(self, context: Context) -> None:
        options = read_options(UpdateOptions, context.name, context.options)
        self._context = context
        models = context.topology.models.values()
        own = [model.name for model in models if context.name in model.shards]
        self._versions = Versions(
            context, own, self._open, on_ready=self._start, close_version=self._close
        )
        self._metrics = Metrics()
        self._gate = Gate()
        self._updates = ShardUpdates(context, self._metrics, self._gate, options)
        self._nursery: trio.Nursery | None = None

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._versions.start()
                task_status.started()
                while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                    for envelope in envelopes:
                        if isinstance(envelope.message, QUESTIONS):
                            self._versions.serve(envelope, nursery)
                        elif isinstance(envelope.message, UPDATE_QUESTIONS):
                            self._updates.take(envelope)
                        else:
                            await self._serve(envelope)
                nursery.cancel_scope.cancel()
        finally:
            self._updates.close_opened()

    def _open(self, model: str, bundle: Bundle, progress: Callable[[float], None]) -> _Held:
        """Open what this shard holds of a bundle: in a thread, as it reads the tables."""
        spec = self._context.topology.models[model]
        group = spec.group_of(self._context.name)
        part = HeldPart.open(bundle, placement_of(spec, bundle), group, progress)
        return _Held(part, self._updates.open(model, bundle, part.tables))

    def _start(self, held: _Held) -> None:
        if held.replica is not None:
            assert self._nursery is not None
            self._updates.start(held.replica, self._nursery)

    async def _close(self, held: _Held) -> None:
        if held.replica is not None:
            await self._updates.close(held.replica)

    async def _serve(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, LookupBatch):
            if envelope.received_at + message.budget_us * 1e-6 <= trio.current_time():
                self._metrics.count("expired")
                return
            part = await self._look_up(message, envelope.received_at)
            send_part(self._context, self._metrics, message, part)
        else:
            answer_usual(envelope, self._metrics, self._updates.statistics())

    async def _look_up(self, batch: LookupBatch, received_at: float) -> RowsPart:
        held = self._versions.ready.get((batch.model, batch.version))
        if held is None:
            return part_not_held(self._context.name, batch, self._versions.ready)
        if held.replica is not None and held.replica.is_seeding:
            return failed_part(batch, f"{self._context.name}: takes over updates of another")
        n_rows = batch.user_ids.size + batch.candidate_ids.size + batch.keys.size
        try:
            if n_rows > _THREAD_ROWS:
                async with self._gate.reading():
                    user, candidate, rows = await trio.to_thread.run_sync(held.part.look_up, batch)
            else:
                user, candidate, rows = held.part.look_up(batch)
        except (LookupFailed, ValueError) as error:
            self._metrics.count("refused")
            return failed_part(batch, f"{self._context.name}: {error}", "internal")
        return part_of(batch, user, candidate, rows, received_at, self._metrics)

"""What an updater does with updates that arrive: check, number, make durable, answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
import trio

from actors.update_fed import FedVersion
from actors.update_routes import Routes
from actors.versions import Versions
from kernels.errors import StateError
from kernels.store.changes import Change
from runtime.actor import Reply
from runtime.metrics import Metrics
from transport.messages import ErrorReply
from transport.updates import UpdateReply, UpdateRequest

log = logging.getLogger(__name__)

_NO_ROOM: Final = "there is no room on the disk"


@attrs.frozen(eq=False)
class Arrival:
    """An update that was received, and how to answer it."""

    request: UpdateRequest
    answer: Reply


class Intake:
    """Takes updates of the models that an updater serves.

    Attributes:
        appending: Held while a stream is written to.
    """

    def __init__(
        self, versions: Versions[FedVersion], metrics: Metrics, max_unapplied_bytes: int
    ) -> None:
        """Take nothing yet.

        Args:
            versions: The updater's.
            metrics: The updater's.
            max_unapplied_bytes: See ``UpdaterOptions``.
        """
        self.appending = trio.Lock()
        self._versions = versions
        self._metrics = metrics
        self._max_unapplied_bytes = max_unapplied_bytes

    async def accept(self, arrivals: Sequence[Arrival], *, gaps: bool = False) -> None:
        """Keep updates, with one fsync for all of a model, and answer them.

        Args:
            arrivals: In their order.
            gaps: Take what follows a gap in a source's positions; else it is refused, as what is
                before it may yet come, and would then count as taken.
        """
        by_model: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            if arrival.request.model in self._versions.current:
                by_model.setdefault(arrival.request.model, []).append(arrival)
            else:
                known = ", ".join(sorted(self._versions.current)) or "none"
                problem = f"model: no model {arrival.request.model!r} here; there are {known}"
                self._refuse(arrival, "invalid", problem, "model")
        for model, of_model in by_model.items():
            async with self.appending:
                await self._append(model, of_model, gaps)

    async def _append(self, model: str, arrivals: Sequence[Arrival], gaps: bool) -> None:
        fed = self._versions.of(model)
        now, at_us = trio.current_time(), time.time_ns() // 1000
        positions = dict(fed.stream.positions)
        room = self._max_unapplied_bytes - fed.unapplied_bytes
        changes: list[Change] = []
        settled: list[tuple[Arrival, int]] = []
        for arrival in arrivals:
            request = arrival.request
            if len(request.keys):
                problem = fed.routes.problem_of(request.table, request.keys, request.rows)
                if problem is not None:
                    self._refuse(arrival, "invalid", f"{problem[0]}: {problem[1]}", problem[0])
                    continue
                stands = positions.get(request.source, 0)
                if 0 < request.position <= stands:
                    self._metrics.count("repeated")
                elif request.position > stands + 1 and not gaps:
                    text = f"position {request.position} follows {stands}, where the source stands"
                    self._refuse(arrival, "unavailable", text)
                    continue
                elif room < 0:
                    limit = self._max_unapplied_bytes
                    text = f"replicas have yet to apply {limit} bytes, as many as may wait"
                    self._refuse(arrival, "overloaded", text)
                    continue
                else:
                    changes.append(_change(request, fed.routes, at_us))
                    room -= changes[-1].size_bytes
                    if request.position:
                        positions[request.source] = request.position
            settled.append((arrival, len(changes)))
        first = fed.stream.newest
        kept, why = await self._keep(fed, changes, now)
        for other in self._beside(model, fed):
            fitting = [change for change in changes[:kept] if other.routes.fits(change)]
            self._metrics.count("unfit", kept - len(fitting))
            await self._keep(other, fitting, now)
        for arrival, n_before in settled:
            if n_before <= kept:
                arrival.answer(_reply(arrival.request, fed, first + n_before))
            else:
                self._refuse(arrival, "unavailable", why)

    async def _keep(self, fed: FedVersion, changes: list[Change], now: float) -> tuple[int, str]:
        """Make changes durable; return how many were, and why not all."""
        if not changes:
            return 0, ""
        try:
            kept = await trio.to_thread.run_sync(fed.stream.append, changes, now)
        except StateError as error:
            log.error("update of model %s: %s", fed.routes.model, error)
            return 0, str(error)
        self._metrics.count("updates", kept)
        self._metrics.count("updated_rows", sum(len(change.keys) for change in changes[:kept]))
        self._metrics.observe("durable_us", (trio.current_time() - now) * 1e6, kept)
        fed.notify()
        return kept, _NO_ROOM

    def _beside(self, model: str, current: FedVersion) -> list[FedVersion]:
        """Return the other versions that are loaded: they are to have what comes from now on."""
        ready = self._versions.ready.items()
        return [fed for (name, _), fed in ready if name == model and fed is not current]

    def _refuse(self, arrival: Arrival, code: str, message: str, field: str = "") -> None:
        self._metrics.count(f"refused_{code}")
        request_id = arrival.request.request_id
        arrival.answer(ErrorReply(request_id=request_id, code=code, message=message, field=field))


def _reply(request: UpdateRequest, fed: FedVersion, number: int) -> UpdateReply:
    return UpdateReply(
        request_id=request.request_id,
        number=number,
        applied=fed.applied,
        position=fed.stream.positions.get(request.source, 0),
        behind=fed.behind,
    )


def _change(request: UpdateRequest, routes: Routes, at_us: int) -> Change:
    return Change(
        stream=0,
        number=0,
        at_us=at_us,
        table=request.table,
        dtype=routes.row_type(request.table),
        keys=np.ascontiguousarray(request.keys),
        rows=routes.encode(request.table, request.rows),
        source=request.source,
        position=request.position,
    )

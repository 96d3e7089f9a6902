"""Has shards and executors load again what a gateway uses and they lack.

That happens where what was deployed was not kept: the run folder was lost with its machine, or a
bundle could not be opened when its actor was restarted. The gateway notices as requests fail.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final

import trio

from actors.versions import Versions
from runtime.actor import Context
from transport.errors import RequestError
from transport.versions import LoadVersion, UseVersion, VersionRequest, VersionState

log = logging.getLogger(__name__)

_ASK_S: Final = 1.0
# Between two looks, doubled while something stays amiss: loads that fail are not hurried.
_PACE_S: Final = 1.0
_SLOWEST_S: Final = 30.0


class Restorer:
    """Looks after the versions that one gateway uses.

    Args:
        context: The gateway's.
        versions: What it holds.
    """

    def __init__(self, context: Context, versions: Versions[Any]) -> None:
        self._context = context
        self._versions = versions
        self._suspicion = trio.Event()

    def suspect(self) -> None:
        """Note that somebody may lack something: a request failed as ``unavailable``."""
        self._suspicion.set()

    async def run(self) -> None:
        """Look whenever there is suspicion, and until nothing is missing."""
        pace = _PACE_S
        while True:
            await self._suspicion.wait()
            self._suspicion = trio.Event()
            if await self._look():
                pace = _PACE_S
            else:
                pace = min(2 * pace, _SLOWEST_S)
                self._suspicion.set()
            await trio.sleep(pace)

    async def _look(self) -> bool:
        """Ask all; return whether those that answer have what they need."""
        complete = True

        async def look(model: str, actor: str) -> None:
            nonlocal complete
            with suppress(RequestError):  # one that is away is noticed, and mended, elsewhere
                complete = await self._has(model, actor) and complete

        async with trio.open_nursery() as nursery:
            for model in list(self._versions.current):
                spec = self._context.topology.models[model]
                for actor in (*spec.shards, *spec.executors):
                    nursery.start_soon(look, model, actor)
        return complete

    async def _has(self, model: str, actor: str) -> bool:
        """Return whether an actor can serve what this gateway uses; else have it prepare for it."""
        ref = self._context.ref(actor)
        version, bundle = self._versions.current[model], self._versions.bundle(model)
        state = await ref.ask(
            VersionRequest(deployment=0, model=model, version=version), budget=_ASK_S
        )
        if not isinstance(state, VersionState) or state.state == "loading":
            return False
        if state.state != "ready":
            log.warning(
                "%s: %s has no version %s of %s (%s): it is asked to load %s",
                self._context.name,
                actor,
                version[:12],
                model,
                state.message or "it never had",
                bundle,
            )
            load = LoadVersion(deployment=0, model=model, version=version, bundle=str(bundle))
            await ref.ask(load, budget=_ASK_S)
            return False
        if state.current != version and not state.deployment:
            await ref.ask(UseVersion(deployment=0, model=model, version=version), budget=_ASK_S)
        return True

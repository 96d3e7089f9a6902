"""Whether replicas live: each is watched, and is dead from when it is lost until it serves again.

A dead one is asked over and over, as a node that was restarted takes messages long before its
tables are open.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from runtime.actor import Context
from transport.errors import DeadlineExceeded, Overloaded, Unavailable
from transport.messages import Ping, Pong, Watch

# How long a replica has to say that it serves, and how long to wait before it is asked again.
_PING_BUDGET_S: Final = 0.25
_PING_EVERY_S: Final = 0.05


class Prober:
    """Watches replicas. Used from one event loop.

    Args:
        context: Of the actor that asks.
        dead: Names of those that are known to be dead; one that serves is taken out.
        died: Called with a name, and how it is known to be dead; puts it in.
    """

    def __init__(self, context: Context, dead: set[str], died: Callable[[str, str], None]) -> None:
        self._context = context
        self._dead = dead
        self._died = died
        self._asked: set[str] = set()
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Let a nursery run what takes time; before, nobody is asked."""
        self._nursery = nursery

    def probe(self, name: str) -> None:
        """Ask a replica whether it serves, and watch it from then on; once is enough."""
        if self._nursery is not None and name not in self._asked:
            self._asked.add(name)
            self._nursery.start_soon(self._watch, name)

    async def _watch(self, name: str) -> None:
        ref = self._context.ref(name)
        while True:
            try:
                answer = await ref.ask(Ping(request_id=1), budget=_PING_BUDGET_S)
                if isinstance(answer, Pong):
                    self._dead.discard(name)
            except Unavailable as error:
                self._died(name, str(error))
            except (DeadlineExceeded, Overloaded):
                pass  # it is slow, or does not serve yet
            if name not in self._dead:
                try:
                    await ref.ask(Watch(request_id=1), budget=math.inf)
                except Unavailable as error:
                    self._died(name, str(error))
                except Overloaded:
                    pass
            await trio.sleep(_PING_EVERY_S)

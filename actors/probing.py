"""Whether replicas live: one whose node does not answer is dead until it says that it serves.

It is asked over and over, as a node that was restarted takes messages long before its tables are
open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from runtime.actor import Context
from transport.errors import DeadlineExceeded, Overloaded, Unavailable
from transport.messages import Ping, Pong

# How long a replica has to say that it serves, and how long to wait before it is asked again.
_PING_BUDGET_S: Final = 0.25
_PING_EVERY_S: Final = 0.05


class Prober:
    """Asks replicas whether they serve. Used from one event loop.

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
        """Ask a replica whether it serves, if it is not being asked already."""
        if self._nursery is not None and name not in self._asked:
            self._asked.add(name)
            self._nursery.start_soon(self._ask_until_it_serves, name)

    async def _ask_until_it_serves(self, name: str) -> None:
        """Ask a replica until it serves, or has shown itself to be slow and not dead."""
        try:
            while True:
                try:
                    answer = await self._context.ref(name).ask(
                        Ping(request_id=1), budget=_PING_BUDGET_S
                    )
                    if isinstance(answer, Pong):
                        self._dead.discard(name)
                except Unavailable as error:
                    self._died(name, str(error))
                except (DeadlineExceeded, Overloaded):
                    pass
                if name not in self._dead:
                    return
                await trio.sleep(_PING_EVERY_S)
        finally:
            self._asked.discard(name)

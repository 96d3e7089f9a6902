"""Keeps updates and lookups apart where they run in different threads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Gate:
    """Lets any number read in threads, and a change happen when none does.

    Lookups that run in the event loop need no gate: a change is made there too, without a
    checkpoint in between.
    """

    def __init__(self) -> None:
        self._n_reading = 0
        self._n_waiting = 0
        self._news = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Hold changes up; those that wait already go first."""
        while self._n_waiting:
            await self._news.park()
        self._n_reading += 1
        try:
            yield
        finally:
            self._n_reading -= 1
            self._news.unpark_all()

    async def wait_none(self) -> None:
        """Return when nobody reads, which holds until the caller's next checkpoint."""
        self._n_waiting += 1
        try:
            while self._n_reading:
                await self._news.park()
        finally:
            self._n_waiting -= 1
            self._news.unpark_all()

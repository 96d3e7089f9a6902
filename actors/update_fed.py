"""One version of a model as its updater sees it: the stream of its updates, a feed a replica."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
import trio

from actors.update_feed import Feed
from actors.update_routes import Routes
from actors.update_stream import UpdateStream
from runtime.actor import Context
from runtime.metrics import Metrics


@attrs.define(eq=False)
class FedVersion:
    """Feeds the replicas of all groups from one stream.

    Attributes:
        feeds: By replica.
    """

    routes: Routes
    stream: UpdateStream
    feeds: dict[str, Feed] = attrs.field(factory=dict)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _ended: trio.Event | None = attrs.field(default=None, init=False)

    @classmethod
    def of(cls, context: Context, stream: UpdateStream, metrics: Metrics) -> FedVersion:
        """Return what feeds a stream to all replicas, which ``run`` does."""
        fed = cls(stream.routes, stream)
        for group, replicas in enumerate(stream.routes.replicas):
            for replica in replicas:
                peers = functools.partial(fed.peers, replica)
                ref = context.ref(replica)
                fed.feeds[replica] = Feed(context.name, ref, group, stream, metrics, peers)
        return fed

    def start(self, nursery: trio.Nursery) -> None:
        """Feed the replicas until ``stop``."""
        self._ended = trio.Event()
        nursery.start_soon(self._run, self._ended)

    async def _run(self, ended: trio.Event) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for feed in self.feeds.values():
                        nursery.start_soon(feed.run)
        finally:
            ended.set()

    async def stop(self) -> None:
        """Feed nobody any more. Shielded, and short."""
        self._scope.cancel()
        if self._ended is not None:
            with trio.CancelScope(shield=True):
                await self._ended.wait()

    @property
    def behind(self) -> tuple[str, ...]:
        """The replicas that need more than is kept."""
        return tuple(
            name for name, feed in self.feeds.items() if feed.phase in ("behind", "seeding")
        )

    @property
    def applied(self) -> int:
        """The number up to which all replicas that are not behind have everything."""
        behind = self.behind
        return min(
            (feed.has for name, feed in self.feeds.items() if name not in behind),
            default=self.stream.newest,
        )

    @property
    def droppable(self) -> int:
        """The number up to which nobody needs updates any more who can still get them here."""
        return min(
            (
                feed.keeps_from if feed.phase == "seeding" else feed.has
                for feed in self.feeds.values()
                if feed.phase != "behind"
            ),
            default=self.stream.newest,
        )

    @property
    def unapplied_bytes(self) -> int:
        """How much the slowest of the replicas that keep up has yet to apply."""
        live = [feed.done_bytes for feed in self.feeds.values() if feed.phase == "live"]
        return self.stream.total_bytes - min(live, default=self.stream.total_bytes)

    def peers(self, replica: str) -> list[Feed]:
        """Return who can seed a replica: of its group, and needing nothing that was dropped."""
        mine = self.feeds[replica]
        return [
            feed
            for feed in self.feeds.values()
            if feed is not mine
            and feed.group == mine.group
            and feed.phase in ("live", "catching up")
            and feed.has >= self.stream.oldest - 1
        ]

    def notify(self) -> None:
        """Tell the feeds that there are new updates."""
        for feed in self.feeds.values():
            feed.notify()

    def statistics(self) -> Mapping[str, Any]:
        """Return how far its updates have come, for JSON."""
        now = trio.current_time()
        return {
            "newest": self.stream.newest,
            "applied": self.applied,
            "behind": list(self.behind),
            "log_bytes": self.stream.log_bytes,
            "replicas": {name: feed.statistics(now) for name, feed in self.feeds.items()},
        }

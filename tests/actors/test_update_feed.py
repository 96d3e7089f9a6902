from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from actors.update_feed import Feed
from actors.update_rules import judge
from actors.update_stream import UpdateStream
from runtime.metrics import Metrics
from tests.actors.test_update_stream import change, open_stream
from transport.errors import Overloaded, Unavailable
from transport.messages import Message
from transport.updates import SeedOrder, UpdateAck, UpdateBatch


@attrs.define(eq=False)
class FakeShard:
    """A shard that applies updates by the rules, over a way that loses, delays and refuses."""

    name: str = "a"
    stream: int = 0
    applied: int = 0
    rows: dict[int, int] = attrs.field(factory=dict)
    rng: random.Random = attrs.field(factory=lambda: random.Random(4))
    loses: float = 0.0
    refuses: float = 0.0
    is_away: bool = False
    orders: list[SeedOrder] = attrs.field(factory=list)
    numbers: list[int] = attrs.field(factory=list)
    feed: Feed | None = None
    seed: tuple[int, int] | None = None

    def tell(self, message: Message) -> None:
        if self.is_away:
            raise Unavailable("a is away")
        if self.rng.random() < self.refuses:
            raise Overloaded("a is full")
        if self.rng.random() < self.loses:
            return
        assert self.feed is not None
        code = "ok"
        if isinstance(message, SeedOrder):
            self.orders.append(message)
            if self.seed is None:
                code = "unavailable"
            else:
                self.stream, self.applied = self.seed
        else:
            assert isinstance(message, UpdateBatch)
            verdict = judge(self.stream, self.applied, message)
            if verdict == "apply":
                assert message.number > self.applied or message.stream != self.stream
                self.stream, self.applied = message.stream, message.number
                self.numbers.append(message.number)
                for key in message.keys.tolist():
                    self.rows[key] = message.number
            code = "unavailable" if verdict == "gap" else "ok"
        ack = UpdateAck(
            replica=self.name,
            model="m",
            version="v",
            stream=self.stream,
            applied=self.applied,
            code=code,
            message="a gap" if code != "ok" else "",
        )
        if self.rng.random() >= self.loses:
            trio.lowlevel.spawn_system_task(self._answer, ack)

    async def _answer(self, ack: UpdateAck) -> None:
        await trio.sleep(0.001)
        assert self.feed is not None
        self.feed.heard(ack)

    async def ask(self, message: Message, *, budget: float) -> Message:
        raise NotImplementedError


def feed_of(shard: FakeShard, stream: UpdateStream, peers: Callable[[], list[Feed]]) -> Feed:
    shard.feed = Feed("updater", shard, 0, stream, Metrics(), peers)
    return shard.feed


def publish(stream: UpdateStream, feed: Feed, *keys: int) -> None:
    stream.append([change([key]) for key in keys], trio.current_time())
    feed.notify()


async def until(check: Callable[[], bool]) -> None:
    while True:
        if check():
            return
        await trio.sleep(1.0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0.05))


@pytest.mark.parametrize(("loses", "refuses"), [(0, 0), (0.2, 0), (0, 0.3), (0.1, 0.1)])
def test_all_is_applied_once_and_in_order_over_a_bad_way(
    tmp_path: Path, loses: float, refuses: float
) -> None:
    async def main() -> None:
        stream = open_stream(tmp_path)
        shard = FakeShard(loses=loses, refuses=refuses)
        feed = feed_of(shard, stream, list)
        stream.append([change([key]) for key in range(10)], 0.0)  # before it began
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            for first in range(10, 60, 5):
                # Of which some have no rows for its group.
                publish(stream, feed, *(k if k % 3 else 39 for k in range(first, first + 5)))
                await trio.sleep(0.1)
            await until(lambda: feed.has == 60)
            assert feed.phase == "live"
            nursery.cancel_scope.cancel()
        mine = [n for n in range(1, 61) if (n <= 10 or (n - 1) % 3)]
        in_group = [n for n in mine if n - 1 < 20]
        assert shard.numbers == in_group
        stream.close()

    run(main)


def test_one_that_was_away_gets_what_it_missed(tmp_path: Path) -> None:
    async def main() -> None:
        stream = open_stream(tmp_path)
        shard = FakeShard()
        feed = feed_of(shard, stream, list)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            publish(stream, feed, 1, 2)
            await until(lambda: feed.has == 2)
            shard.is_away = True
            publish(stream, feed, 3, 4)
            await until(lambda: feed.phase == "away")
            assert feed.statistics(trio.current_time())["behind_by"] == 2
            shard.is_away = False
            await until(lambda: feed.has == 4)
            # It comes back with less, as from a disk that was lost.
            shard.stream = shard.applied = 0
            shard.numbers.clear()
            publish(stream, feed, 5)
            await until(lambda: feed.has == 5 and shard.applied == 5)
            assert shard.numbers == [1, 2, 3, 4, 5]
            nursery.cancel_scope.cancel()
        stream.close()

    run(main)


def test_one_that_needs_what_was_dropped_is_told_to_take_a_seed(tmp_path: Path) -> None:
    async def main() -> None:
        stream = open_stream(tmp_path, keep_bytes=1200)
        for number in range(1, 31):
            stream.append([change([number % 20])], 0.0)
        stream.trim(0)
        peer = feed_of(FakeShard("c"), stream, list)
        peer.has = 29
        shard = FakeShard()
        feed = feed_of(shard, stream, lambda: [peer])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            await until(lambda: len(shard.orders) == 2)  # the first failed
            assert feed.phase in ("behind", "seeding")
            shard.seed = stream.id, 29
            await until(lambda: feed.has == 30)
            assert shard.orders[0].peer == "c"
            assert shard.numbers == [30]
            nursery.cancel_scope.cancel()
        stream.close()

    run(main)


def test_a_stream_that_began_anew_is_taken_over(tmp_path: Path) -> None:
    async def main() -> None:
        shard = FakeShard(stream=99, applied=500)
        stream = open_stream(tmp_path)
        feed = feed_of(shard, stream, list)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            publish(stream, feed, 39, 1, 2)
            await until(lambda: feed.has == 3)
            assert (shard.stream, shard.applied, shard.numbers) == (stream.id, 3, [2, 3])
            nursery.cancel_scope.cancel()
        stream.close()

    run(main)


class Mute(FakeShard):
    """A shard that says where it stands, and then no more."""

    def tell(self, message: Message) -> None:
        assert isinstance(message, UpdateBatch)
        assert self.feed is not None
        self.numbers.append(message.number)
        if message.number == 0:
            self.feed.heard(UpdateAck(replica="a", model="m", version="v", stream=0, applied=0))


def test_updates_are_sent_ahead_of_answers_within_a_window(tmp_path: Path) -> None:
    async def main() -> None:
        stream = open_stream(tmp_path)
        shard = Mute()
        feed = feed_of(shard, stream, list)
        publish(stream, feed, *([1] * 40))
        with trio.move_on_after(2.0):
            await feed.run()
        assert shard.numbers == list(range(17))
        stream.close()

    run(main)

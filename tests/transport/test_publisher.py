from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import numpy as np
import pytest
import trio
import zmq
from trio.testing import MockClock

from transport.codec import Packet, decode, encode
from transport.errors import InvalidRequest, Unavailable
from transport.messages import ErrorReply, Message, Pong
from transport.publisher import Publisher
from transport.sockets import RouterSocket, SubscriberSocket, open_context
from transport.updates import UpdateReply, UpdateRequest


@attrs.define(eq=False)
class FakeUpdater:
    """Takes positions in order; refuses some the first time that they come."""

    address: str
    refuses: dict[int, str] = attrs.field(factory=dict)
    silent: set[int] = attrs.field(factory=set)
    taken: list[int] = attrs.field(factory=list)
    batches: list[int] = attrs.field(factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with open_context() as context, RouterSocket(context) as socket:
            socket.bind(self.address)
            task_status.started()
            while True:
                received = await socket.receive_batch(64)
                self.batches.append(len(received))
                for identity, frames in received:
                    message = decode(frames).message
                    assert isinstance(message, UpdateRequest)
                    answer = self._answer(message)
                    if answer is not None:
                        socket.try_send(identity, encode(Packet("", 0, answer)))

    def _answer(self, request: UpdateRequest) -> Message | None:
        position, request_id = request.position, request.request_id
        stands = self.taken[-1] if self.taken else 0
        if position in self.silent:
            self.silent.remove(position)
            return None
        code = self.refuses.pop(position, "unavailable" if position > stands + 1 else "")
        if code == "pong":
            return Pong(request_id=request_id, status="ready")
        if code:
            return ErrorReply(request_id=request_id, code=code, message=f"not {position}")
        if position == stands + 1:
            self.taken.append(position)
        return UpdateReply(
            request_id=request_id, number=len(self.taken), applied=0, position=len(self.taken)
        )


@asynccontextmanager
async def updater(folder: Path) -> AsyncIterator[FakeUpdater]:
    fake = FakeUpdater(f"ipc://{folder}/u")
    async with trio.open_nursery() as nursery:
        await nursery.start(fake.run)
        yield fake
        nursery.cancel_scope.cancel()


def request(position: int) -> UpdateRequest:
    return UpdateRequest(
        request_id=0,
        model="m",
        table="t",
        source="s",
        position=position,
        keys=np.array([position]),
        rows=np.ones((1, 2), np.float32),
    )


async def publish(address: str, positions: range, patience_s: float = 30.0) -> None:
    async with Publisher.connect(address, patience_s=patience_s) as publisher:
        for position in positions:
            await publisher.publish(request(position))
        await publisher.drain()


def run(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0.05))


def test_updates_are_sent_ahead_and_answered_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        answered: list[int] = []
        async with (
            updater(tmp_path) as fake,
            Publisher.connect(
                fake.address, on_reply=lambda request, reply: answered.append(request.position)
            ) as publisher,
        ):
            for position in range(1, 101):
                await publisher.publish(request(position))
            await publisher.drain()
            assert answered == fake.taken == list(range(1, 101))
            assert publisher.n_again == 0
            assert (await publisher.ask("m", "s")).position == 100

    run(main)


@pytest.mark.parametrize("code", ["overloaded", "unavailable"])
def test_what_is_refused_for_now_is_sent_again_in_order(tmp_path: Path, code: str) -> None:
    async def main() -> None:
        answered: list[int] = []
        async with updater(tmp_path) as fake:
            fake.refuses = {3: code, 20: code, 21: code}
            async with Publisher.connect(
                fake.address, on_reply=lambda request, reply: answered.append(request.position)
            ) as publisher:
                for position in range(1, 41):
                    await publisher.publish(request(position))
                await publisher.drain()
                assert publisher.n_again > 0
            assert answered == fake.taken == list(range(1, 41))

    run(main)


def test_what_is_refused_for_good_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with updater(tmp_path) as fake:
            fake.refuses = {5: "invalid"}
            with pytest.raises(InvalidRequest, match="not 5"):
                await publish(fake.address, range(1, 41))
            assert fake.taken[:4] == [1, 2, 3, 4]

    run(main)


def test_an_updater_that_is_started_again_gets_what_was_not_answered(tmp_path: Path) -> None:
    async def main() -> None:
        answered: list[int] = []
        taken: list[int] = []
        address = f"ipc://{tmp_path}/u"
        async with Publisher.connect(
            address, on_reply=lambda request, reply: answered.append(request.position)
        ) as publisher:
            async with updater(tmp_path) as fake:
                for position in range(1, 6):
                    await publisher.publish(request(position))
                await publisher.drain()
                fake.silent = {6, 7}
                await publisher.publish(request(6))
                await publisher.publish(request(7))
                await trio.sleep(0.5)
                taken = fake.taken
            async with updater(tmp_path) as fake:
                fake.taken = taken
                await publisher.drain()
                assert answered == fake.taken == list(range(1, 8))

    run(main)


def test_nobody_there_is_told_after_a_while(tmp_path: Path) -> None:
    async def main() -> None:
        address = f"ipc://{tmp_path}/nobody"
        with pytest.raises(Unavailable, match="no connection within 5 s"):
            await publish(address, range(1, 2), patience_s=5.0)

    run(main)


def test_one_that_always_refuses_is_told_with_its_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with updater(tmp_path) as fake:
            with pytest.raises(Unavailable, match="not 9; no better answer within 3 s"):
                await publish(fake.address, range(9, 10), patience_s=3.0)

    run(main)


def test_a_subscriber_hears_all_that_is_published(tmp_path: Path) -> None:
    async def main() -> None:
        address = f"ipc://{tmp_path}/p"
        async with open_context() as context, SubscriberSocket(context) as subscriber:
            publisher: zmq.Socket[bytes] = context.socket(zmq.PUB)
            publisher.bind(address)
            subscriber.connect(address)
            heard: list[bytes] = []
            n = 0
            with trio.fail_after(60):
                while len(heard) < 5:  # it may join late
                    n += 1
                    publisher.send_multipart([b"%d" % n, b"x"])
                    with trio.move_on_after(0.05):
                        heard += [bytes(f[0]) for f in await subscriber.receive_batch(9)]
            publisher.close(0)
            first = int(heard[0])
            assert heard == [b"%d" % number for number in range(first, first + len(heard))]

    run(main)

"""A gateway that does to its clients what a test tells it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import trio
import zmq

from transport import messages as m
from transport.codec import Packet, decode, encode
from transport.sockets import Frame, RouterSocket

Behaviour = Callable[["FakeGateway", bytes, Any], Awaitable[None]]


class FakeGateway:
    """Meets each message with the next behaviour; the last one stays.

    Attributes:
        seen: The messages that came.
    """

    def __init__(self, context: zmq.Context[Any], address: str, *behaviours: Behaviour) -> None:
        self._context = context
        self._behaviours = list(behaviours)
        self._socket = RouterSocket(context)
        self.address = self._socket.bind(address)
        self.seen: list[Any] = []

    async def run(self) -> None:
        while True:
            socket = self._socket
            for identity, frames in await socket.receive_batch(1):
                message = decode(frames).message
                self.seen.append(message)
                behaviour = self._behaviours[0]
                if len(self._behaviours) > 1:
                    del self._behaviours[0]
                await behaviour(self, identity, message)

    async def send(self, identity: bytes, message: m.Message) -> None:
        await self.send_frames(identity, encode(Packet("", 0, message)))

    async def send_frames(self, identity: bytes, frames: Sequence[Frame]) -> None:
        await self._socket.send(identity, frames)

    def restart(self) -> None:
        """Close and bind again: clients lose their connection and what they asked."""
        self._socket.close()
        self._socket = RouterSocket(self._context)
        self._socket.bind(self.address)


def scores_of(request: m.ScoreRequest) -> m.ScoreReply:
    """Answer with two outputs: twice the candidates' price, and two columns of it."""
    (prices,) = (block for block in request.blocks if block.names == ("price",))
    x = np.asarray(prices.values[0], np.float32).reshape(-1, 1)
    return m.ScoreReply(
        request_id=request.request_id,
        outputs=("ctr", "pair"),
        widths=(1, 2),
        scores=np.concatenate([2 * x, x, x + 1], axis=1),
    )


async def serve(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
    reply: m.Message
    match message:
        case m.ScoreRequest():
            reply = scores_of(message)
        case m.Ping():
            reply = m.Pong(request_id=message.request_id, status="ready")
        case m.ModelsRequest():
            models = {"m": {"version": "1"}}
            reply = m.ModelsReply(request_id=message.request_id, models=json.dumps(models))
        case _:
            stats = {"reset": message.reset}
            reply = m.StatsReply(request_id=message.request_id, stats=json.dumps(stats))
    await gateway.send(identity, reply)


async def ignore(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
    await trio.lowlevel.checkpoint()


async def restart(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
    gateway.restart()
    await trio.lowlevel.checkpoint()


async def stop(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
    gateway._socket.close()
    await trio.sleep_forever()


def refuse(code: str, *, request_id: int | None = None) -> Behaviour:
    async def behaviour(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
        at = message.request_id if request_id is None else request_id
        reply = m.ErrorReply(request_id=at, code=code, message=f"so {code}", field="price")
        await gateway.send(identity, reply)

    return behaviour


def answer_frames(make: Callable[[Any], Sequence[Frame]]) -> Behaviour:
    async def behaviour(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
        await gateway.send_frames(identity, make(message))

    return behaviour

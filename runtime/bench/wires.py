"""Wire formats: requests to frames that a link can send, and replies to id and code.

Also the few questions that a benchmark asks of a gateway beside the load.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import attrs
import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from runtime.bench.links import ID_BASE, Prepared
from transport.codec import Packet, decode, encode
from transport.errors import Unavailable
from transport.messages import (
    ErrorReply,
    Message,
    ModelsReply,
    ModelsRequest,
    Ping,
    Pong,
    ScoreReply,
    ScoreRequest,
    StatsReply,
    StatsRequest,
)
from transport.values import ERROR_CODES

_ANY_ID: Final = ID_BASE | 0x0123_4567_89AB
_U64: Final = struct.Struct(">Q")
# How the header of a reply to a client begins after the byte with its length: kind, actor "", ask
# id 0, then a uint64 of nine bytes. See section 3 of ``transport.codec``.
_SCORES: Final = b"\x02\xa0\x00\xcf"
_CODES: Final = {code: k for k, code in enumerate(ERROR_CODES)}

T = TypeVar("T", bound=Message)


def prepare(requests: Iterable[ScoreRequest]) -> list[Prepared]:
    """Encode requests for a gateway; their own ids do not matter."""
    return [
        Prepared.of(_bytes(attrs.evolve(request, request_id=_ANY_ID)), _ANY_ID)
        for request in requests
    ]


def _bytes(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(Packet(to="", ask_id=0, message=message))]


def read_reply(frames: Sequence[bytes]) -> tuple[int, int]:
    """Return id and code of a gateway's reply, without decoding any scores."""
    header = frames[1]
    if header.startswith(_SCORES, 1):
        return _U64.unpack_from(header, 5)[0], 0
    reply = decode(frames).message
    if isinstance(reply, ScoreReply):
        return reply.request_id, 0
    if isinstance(reply, ErrorReply):
        return reply.request_id, _CODES[reply.code]
    raise TypeError(f"a gateway answered a request for scores with {type(reply).__name__}")


def read_scores(frames: Sequence[bytes]) -> NDArray[np.float32]:
    """Return the scores of a gateway's reply, float32 ``[n_candidates, n_outputs]``.

    Raises:
        TypeError: It is an error.
    """
    reply = decode(frames).message
    if not isinstance(reply, ScoreReply):
        raise TypeError(f"want scores, got {reply}")
    return reply.scores


def prepare_loop(blobs: Iterable[bytes], rows: Iterable[int]) -> list[Prepared]:
    """Encode requests for ``peer_loop``."""
    return [
        Prepared.of([msgpack.packb([_ANY_ID, n]), blob], _ANY_ID)
        for blob, n in zip(blobs, rows, strict=True)
    ]


def read_loop_reply(frames: Sequence[bytes]) -> tuple[int, int]:
    """Return id and code of ``peer_loop``'s reply."""
    request_id, code = msgpack.unpackb(frames[0])
    return request_id, code


def ask(address: str, message: Message, want: type[T], *, budget_s: float) -> T:
    """Ask a gateway one thing, over a connection of its own.

    Raises:
        Unavailable: There was no answer in time, or an error.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send_multipart(_bytes(message))
        if not socket.poll(int(budget_s * 1e3)):
            raise Unavailable(f"{address}: no answer within {budget_s:g} s")
        reply = decode(socket.recv_multipart()).message
    if not isinstance(reply, want):
        raise Unavailable(f"{address}: {reply}")
    return reply


def ask_models(address: str) -> str:
    """Return the JSON of a gateway's models."""
    request = ModelsRequest(request_id=1)
    return ask(address, request, ModelsReply, budget_s=10).models


def ask_stats(address: str, *, reset: bool) -> str:
    """Return the JSON of the statistics of a gateway, and of all behind it."""
    request = StatsRequest(request_id=1, reset=reset)
    return ask(address, request, StatsReply, budget_s=5).stats


def wait_ready(address: str, *, within_s: float, alive: Callable[[], bool]) -> None:
    """Return once a gateway says that it is ready.

    Raises:
        Unavailable: It did not within that time, or was no longer ``alive``.
    """
    end = time.monotonic() + within_s
    while time.monotonic() < end and alive():
        try:
            if ask(address, Ping(request_id=1), Pong, budget_s=0.5).status == "ready":
                return
        except Unavailable:
            continue  # it does not listen yet: the next try is what this loop is for
    raise Unavailable(f"{address}: the cluster {'is not ready' if alive() else 'ended at start'}")

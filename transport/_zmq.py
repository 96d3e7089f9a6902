"""What all ZeroMQ sockets of ours have in common, whoever waits for them: options and frames."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import zmq
from zmq import backend

from transport._arrays import LARGE_BYTES, Frame
from transport.errors import AddressError, LocalProtocolError

MAX_FRAMES: Final = 2048
"""Frames of one message that are kept; the codec refuses half as many."""

# The methods of the extension type: the wrappers around them cost as much again (two frames sent
# and received: 2.3 us instead of 7.0).
get: Final[Callable[[zmq.Socket[Any], int], int]] = backend.Socket.get  # type: ignore[assignment]
"""Read an option whose value is an integer."""
_send: Final[Callable[..., object]] = backend.Socket.send
_receive: Final[Callable[..., zmq.Frame]] = backend.Socket.recv
_NOWAIT: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE) | _NOWAIT


class Sent(enum.Enum):
    """What became of a message; true if it is on its way."""

    OK = "ok"
    FULL = "full"
    """As many messages as the high-water mark allows wait for this peer."""
    GONE = "gone"
    """There is no such peer, or no connection to it."""

    def __bool__(self) -> bool:
        return self is Sent.OK


@attrs.frozen(kw_only=True)
class Security:
    """CURVE keys of one side (https://rfc.zeromq.org/spec/26/); ``zmq.curve_keypair`` makes pairs.

    Traffic is encrypted, and clients know that they talk to the holder of ``server_key``. Servers
    serve any client that knows their public key.

    Attributes:
        public_key: This side's, in Z85 as ``secret_key``.
        server_key: The server's public key on the side that connects, None on the one that binds.
    """

    public_key: bytes
    secret_key: bytes = attrs.field(repr=False)
    server_key: bytes | None = None


@attrs.frozen(kw_only=True)
class SocketOptions:
    """Configuration of a socket.

    Attributes:
        high_water_mark: Messages that wait in each direction for each peer.
        max_frame_bytes: A peer that sends a larger frame loses its connection.
        linger_s: How long messages that were sent may take to leave after the socket was closed.
        heartbeat_s: How often a silent peer is pinged; after three times this it counts as lost.
        security: Keys for tcp; None for plain text.
    """

    high_water_mark: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    max_frame_bytes: int = attrs.field(default=256 << 20, validator=attrs.validators.ge(1))
    linger_s: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))
    heartbeat_s: float = attrs.field(default=2.0, validator=attrs.validators.gt(0))
    security: Security | None = None


DEFAULTS: Final = SocketOptions()


def make_socket(context: zmq.Context[Any], kind: int, options: SocketOptions) -> zmq.Socket[Any]:
    """Return a socket with our options set, neither bound nor connected."""
    socket: zmq.Socket[Any] = context.socket(kind)
    settings = {
        zmq.SNDHWM: options.high_water_mark,
        zmq.RCVHWM: options.high_water_mark,
        zmq.MAXMSGSIZE: options.max_frame_bytes,
        zmq.LINGER: round(options.linger_s * 1000),
        zmq.HEARTBEAT_IVL: round(options.heartbeat_s * 1000),
        zmq.HEARTBEAT_TIMEOUT: round(options.heartbeat_s * 3000),
        zmq.RECONNECT_IVL: 20,
        zmq.RECONNECT_IVL_MAX: 200,
    }
    if kind == zmq.ROUTER:
        settings[zmq.ROUTER_MANDATORY] = 1  # else it drops silently at the high-water mark
    else:
        settings[zmq.IMMEDIATE] = 1  # else requests queue for a dead peer and surprise its heir
    for option, value in settings.items():
        socket.set(option, value)
    if options.security is not None:
        socket.curve_publickey = options.security.public_key
        socket.curve_secretkey = options.security.secret_key
        if options.security.server_key is not None:
            socket.curve_serverkey = options.security.server_key
        else:
            socket.curve_server = True
    return socket


def bind(socket: zmq.Socket[Any], address: str) -> str:
    """Bind, and return the address that peers connect to (``tcp://*:0`` picks a port).

    Raises:
        AddressError: It is in use, or no address of this machine.
    """
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot bind {address}: {error.strerror}") from error
    return bytes(socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()


def connect(socket: zmq.Socket[Any], address: str) -> None:
    """Connect in the background, now and whenever the connection is lost.

    Raises:
        AddressError: It is not an address.
    """
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot connect to {address}: {error.strerror}") from error


def send_nowait(socket: zmq.Socket[Any], frames: Sequence[Frame]) -> Sent:
    """Send a message or nothing. Frames from 64 KiB are not copied: leave them be."""
    last = len(frames) - 1
    if last < 0:
        raise LocalProtocolError("a message has at least one frame")
    at = 0
    try:
        for frame in frames:
            flags = _MORE if at < last else _NOWAIT
            _send(socket, frame, flags, copy=len(frame) <= LARGE_BYTES)
            at += 1
    except zmq.Again:
        return Sent.FULL
    except zmq.ZMQError as error:
        if error.errno == zmq.EHOSTUNREACH:
            return Sent.GONE
        raise
    return Sent.OK


def receive_nowait(socket: zmq.Socket[Any]) -> list[Frame]:
    """Return the frames of the next message, which must be there; large ones are not copied.

    Raises:
        zmq.Again: It is not.
    """
    frames: list[Frame] = []
    more = True
    while more:
        frame = _receive(socket, _NOWAIT, False)
        more = frame.more
        if len(frames) < MAX_FRAMES:
            frames.append(frame.bytes if len(frame) <= LARGE_BYTES else frame.buffer)
    return frames

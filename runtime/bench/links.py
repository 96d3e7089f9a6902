"""Links: how the load generator reaches a server over ZeroMQ, whatever the wire format.

Requests are encoded beforehand, with a hole where each sending's id goes; of a reply only id and
code are read. ``wires.py`` has both for each wire format.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable, Sequence

import attrs
import zmq
from zmq.backend import Socket

_ID = struct.Struct(">Q")
_WAIT = zmq.NOBLOCK
_MORE = zmq.NOBLOCK | zmq.SNDMORE
# Set in every request id, so that msgpack writes each one as a uint64, of nine bytes.
ID_BASE = 1 << 63

ReadReply = Callable[[list[bytes]], tuple[int, int]]
"""Takes the frames of a reply, returns request id and code (an index into ``ERROR_CODES``)."""


@attrs.frozen
class Prepared:
    """An encoded request with a hole of eight bytes where its id goes.

    Attributes:
        before: Frames before the one with the id.
        head: That frame up to the id; ``tail`` is the rest of it.
        after: Frames after it.
    """

    before: tuple[bytes, ...]
    head: bytes
    tail: bytes
    after: tuple[bytes, ...]

    @classmethod
    def of(cls, frames: Sequence[bytes], request_id: int) -> Prepared:
        """Find the hole in a request that was encoded with ``request_id``.

        Raises:
            ValueError: The id's eight bytes are in the frames more than once, or not at all.
        """
        mark = _ID.pack(request_id)
        if sum(frame.count(mark) for frame in frames) != 1:
            raise ValueError(f"want the request id {request_id} once in the request's frames")
        at = next(k for k, frame in enumerate(frames) if mark in frame)
        head, _, tail = frames[at].partition(mark)
        return cls(tuple(frames[:at]), head, tail, tuple(frames[at + 1 :]))


@attrs.define(eq=False)
class ZmqLink:
    """A DEALER with one connection to each of a server's addresses; see ``load.Link``.

    Attributes:
        kept: Frames of the answers to requests whose index is a multiple of ``keep_every``.
    """

    _prepared: Sequence[Prepared]
    _order: Sequence[int]
    _read: ReadReply
    _socket: Socket
    _fd: int
    _keep_every: int
    kept: dict[int, list[bytes]]

    @classmethod
    def connect(
        cls,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: Sequence[str],
        prepared: Sequence[Prepared],
        order: Sequence[int],
        read: ReadReply,
        *,
        keep_every: int = 0,
    ) -> ZmqLink:
        """Connect; request ``index`` of a run will be ``prepared[order[index]]``.

        Args:
            context: Owned by the caller.
            addresses: ZeroMQ addresses; requests go round them.
            prepared: Encoded requests.
            order: Which of them each request of the run is.
            read: Reads a reply.
            keep_every: Keep the frames of every so many answers; 0 keeps none.
        """
        socket = Socket(context, zmq.DEALER)
        # An open loop must never be held up by a queue, so these have no bound: the run has.
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.LINGER, 0)
        for address in addresses:
            socket.connect(address)
        return cls(prepared, order, read, socket, int(socket.get(zmq.FD)), keep_every, {})

    def send(self, index: int) -> bool:
        """Send request ``index``; False if no connection is up yet."""
        request = self._prepared[self._order[index]]
        send = self._socket.send
        try:
            for frame in request.before:
                send(frame, _MORE)
            header = request.head + _ID.pack(ID_BASE | index) + request.tail
            send(header, _MORE if request.after else _WAIT)
            for frame in request.after[:-1]:
                send(frame, _MORE)
            if request.after:
                send(request.after[-1], _WAIT)
        except zmq.Again:
            return False  # only the first frame can meet this: the rest follow it into its pipe
        return True

    def receive(self, outcomes: list[tuple[int, int]]) -> None:
        """Append (index, code) of every reply at hand."""
        recv, get, read = self._socket.recv, self._socket.get, self._read
        while int(get(zmq.EVENTS)) & zmq.POLLIN:
            frames = [recv(_WAIT)]
            while get(zmq.RCVMORE):
                frames.append(recv(_WAIT))
            request_id, code = read(frames)
            index = request_id & ~ID_BASE
            outcomes.append((index, code))
            if self._keep_every and index % self._keep_every == 0:
                self.kept[index] = frames

    def wait(self, seconds: float) -> None:
        """Sleep on the socket's descriptor. ``select``, since poll's unit is a millisecond."""
        # The descriptor is edge-triggered: what has come since the last look must be seen here.
        if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            select.select((self._fd,), (), (), seconds)

    def close(self) -> None:
        """Close the socket, and forget what was not sent."""
        self._socket.close()

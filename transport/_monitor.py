"""Whether a connecting socket has its connection, told by ZeroMQ's monitor of it."""

from __future__ import annotations

import sys
from typing import Any, Final

import zmq

from transport._zmq import get, receive_nowait

_EVENTS: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)


class Monitor:
    """Follows the connection of one socket. Holds no trio: others wait on ``fd``.

    Attributes:
        connected: As of the last ``refresh``.
        n_lost: How often the connection was lost.
    """

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._address = f"inproc://monitor-{id(socket):x}"
        socket.monitor(self._address, _EVENTS)
        self.pair: zmq.Socket[Any] = socket.context.socket(zmq.PAIR)
        # Events that nobody reads must not stop the I/O thread that sends them.
        self.pair.set(zmq.RCVHWM, 0)
        self.pair.set(zmq.LINGER, 0)
        self.pair.connect(self._address)
        self.fd: int = self.pair.fileno()
        self.connected = False
        self.n_lost = 0

    def refresh(self) -> None:
        """Read all that has happened since."""
        while get(self.pair, zmq.EVENTS) & zmq.POLLIN:
            event, _address = receive_nowait(self.pair)
            connected = int.from_bytes(event[:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.connected and not connected:
                self.n_lost += 1
            self.connected = connected

    def close(self) -> None:
        """Close; the monitored socket may be closed before or after."""
        self.pair.close(0)

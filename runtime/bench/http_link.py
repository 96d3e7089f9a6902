"""A link to an HTTP server: keep-alive connections, one request at a time on each."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

import attrs

from transport.values import ERROR_CODES

_OK = ERROR_CODES.index("ok")
_OVERLOADED = ERROR_CODES.index("overloaded")
_INTERNAL = ERROR_CODES.index("internal")


@attrs.define(eq=False)
class _Connection:
    socket: socket.socket
    index: int = -1
    received: bytes = b""


@attrs.define(eq=False)
class HttpLink:
    """See ``load.Link``. Bodies are sent to one path by POST.

    Attributes:
        kept: Bodies of the answers to requests whose index is a multiple of ``keep_every``.
    """

    _requests: Sequence[bytes]
    _order: Sequence[int]
    _free: list[_Connection]
    _busy: dict[int, _Connection]
    _epoll: select.epoll
    _keep_every: int
    kept: dict[int, bytes]

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        path: str,
        bodies: Sequence[bytes],
        order: Sequence[int],
        *,
        n_connections: int = 128,
        keep_every: int = 0,
    ) -> HttpLink:
        """Connect; request ``index`` of a run will have the body ``bodies[order[index]]``."""
        epoll = select.epoll()
        free = []
        for _ in range(n_connections):
            connection = _Connection(socket.create_connection((host, port)))
            connection.socket.setblocking(False)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            epoll.register(connection.socket, select.EPOLLIN)
            free.append(connection)
        requests = [
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        return cls(requests, order, free, {}, epoll, keep_every, {})

    def send(self, index: int) -> bool:
        """Send on a free connection; False if all are waiting for answers."""
        if not self._free:
            return False
        connection = self._free.pop()
        request = self._requests[self._order[index]]
        # An idle connection's send buffer is empty and larger than any of these requests.
        if connection.socket.send(request) != len(request):
            raise OSError(f"a request of {len(request)} bytes does not fit the send buffer")
        connection.index = index
        self._busy[connection.socket.fileno()] = connection
        return True

    def receive(self, outcomes: list[tuple[int, int]]) -> None:
        """Append (index, code) of every complete answer at hand."""
        for fd, _ in self._epoll.poll(0):
            connection = self._busy[fd]
            data = connection.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the HTTP server closed a connection under a request")
            connection.received += data
            head, separator, body = connection.received.partition(b"\r\n\r\n")
            if not separator or len(body) < _content_length(head):
                continue
            status = head[9:12]
            code = {b"200": _OK, b"429": _OVERLOADED, b"503": _OVERLOADED}.get(status, _INTERNAL)
            outcomes.append((connection.index, code))
            if self._keep_every and connection.index % self._keep_every == 0:
                self.kept[connection.index] = body
            connection.received = b""
            del self._busy[fd]
            self._free.append(connection)

    def wait(self, seconds: float) -> None:
        """Sleep on all connections. ``select``, since epoll's own unit is a millisecond."""
        select.select((self._epoll.fileno(),), (), (), seconds)

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._free, *self._busy.values()):
            connection.socket.close()
        self._epoll.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ConnectionError("the HTTP server sent an answer without Content-Length")

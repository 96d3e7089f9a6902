"""One connection to one server, greeted: ready for commands, or an error that says why not."""

from __future__ import annotations

import ssl
from typing import Final

import attrs
import trio

from actors.redis.errors import LinkDown, Refused
from actors.redis.server import Address, Server
from actors.redis.wire import ErrorReply, Replies, Reply, pack

# What a server says to those whom it will not let in, however often they come.
_REFUSALS: Final = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "ERR"})
_RECEIVE_MOST: Final = 1 << 18


@attrs.frozen(eq=False)
class Connection:
    """An open connection; ``receive`` is for one task, ``send`` for one other."""

    address: Address
    stream: trio.abc.Stream
    replies: Replies

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            LinkDown: The connection is lost.
        """
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._lost(error) from error

    async def receive(self) -> list[Reply]:
        """Wait for some bytes; return the replies that they complete, which may be none.

        Raises:
            LinkDown: The connection is lost, or what comes over it is no reply.
        """
        try:
            data = await self.stream.receive_some(_RECEIVE_MOST)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._lost(error) from error
        if not data:
            raise LinkDown(f"{self.address}: the server closed the connection")
        try:
            return self.replies.feed(data)
        except LinkDown as error:
            raise LinkDown(f"{self.address}: {error}") from error

    async def converse(self, commands: list[bytes]) -> list[Reply]:
        """Send packed commands and wait for a reply to each; for when nothing else is under way.

        Raises:
            LinkDown: As ``receive``.
        """
        await self.send(b"".join(commands))
        replies: list[Reply] = []
        while len(replies) < len(commands):
            replies += await self.receive()
        return replies

    def _lost(self, error: Exception) -> LinkDown:
        return LinkDown(f"{self.address}: the connection is lost: {error.__cause__ or error}")


async def open_connection(server: Server, address: Address, *, timeout_s: float) -> Connection:
    """Connect to one of a server's addresses and greet it.

    Raises:
        LinkDown: It cannot be reached, or is still loading, or did not answer within ``timeout_s``.
        Refused: It does not let us in, or is not whom its certificate is of.
    """
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(timeout_s):
            stream = await trio.open_tcp_stream(*address)
            if (encryption := server.encryption()) is not None:
                stream = trio.SSLStream(stream, encryption, server_hostname=address.host)
                await stream.do_handshake()
            connection = Connection(address, stream, Replies())
            for reply in await connection.converse(server.greeting()):
                if isinstance(reply, ErrorReply):
                    error = Refused if reply.code in _REFUSALS else LinkDown
                    raise error(f"{address}: {reply}")
    except BaseException as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        if isinstance(error, trio.TooSlowError):
            raise LinkDown(f"{address}: no answer within {timeout_s * 1e3:.0f} ms") from error
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise Refused(f"{address}: {_why(error)}") from error
        if isinstance(error, OSError | trio.BrokenResourceError | ssl.SSLError):
            raise LinkDown(f"{address}: {_why(error)}") from error
        raise
    return connection


async def ask_once(
    server: Server, address: Address, words: list[bytes], *, timeout_s: float
) -> Reply:
    """Connect, send one command, and return its reply.

    Raises:
        LinkDown: As ``open_connection``.
    """
    connection = await open_connection(server, address, timeout_s=timeout_s)
    try:
        with trio.fail_after(timeout_s):
            (reply,) = await connection.converse([pack(words)])
    except trio.TooSlowError as error:
        raise LinkDown(f"{address}: no answer within {timeout_s * 1e3:.0f} ms") from error
    finally:
        await trio.aclose_forcefully(connection.stream)
    return reply


def _why(error: BaseException) -> str:
    """Return the innermost reason, without what trio's attempts are wrapped in."""
    while isinstance(error.__cause__, BaseException) and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return _why(error.exceptions[0])
    return " ".join(str(error).split()) or type(error).__name__

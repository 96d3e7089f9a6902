"""Redis' protocol as values: commands to bytes, bytes to replies. No I/O.

RESP2 (redis.io, "Redis serialization protocol specification"), which every server speaks without
being asked to. hiredis packs and parses, in C.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Final, TypeAlias, Union

from actors.redis.errors import LinkDown
from runtime.errors import StartError

Reply: TypeAlias = Union[bytes, int, "ErrorReply", list["Reply"], None]


_MORE: Final = object()  # no reply: hiredis returns it where there is none yet


class ErrorReply(Exception):
    """A server's answer to a command that it refuses. A value: it is returned, not raised.

    Attributes:
        code: The first word: ``MOVED``, ``WRONGPASS``, ``ERR``.
    """

    @property
    def code(self) -> str:
        """The class of the error."""
        return str(self).partition(" ")[0]


def pack(words: Sequence[bytes]) -> bytes:
    """Return a command as bytes: an array of bulk strings.

    Raises:
        StartError: hiredis is not installed.
    """
    packed: bytes = _hiredis().pack_command(tuple(words))
    return packed


class Replies:
    """Bytes in, replies out, of one connection.

    Raises:
        StartError: hiredis is not installed.
    """

    def __init__(self) -> None:
        hiredis = _hiredis()
        self._reader = hiredis.Reader(replyError=ErrorReply, notEnoughData=_MORE)
        self._wrong: type[Exception] = hiredis.HiredisError

    def feed(self, data: bytes | bytearray) -> list[Reply]:
        """Take what was received; return the replies that are complete with it.

        Raises:
            LinkDown: This is no Redis.
        """
        try:
            self._reader.feed(data)
            return list(iter(self._reader.gets, _MORE))
        except self._wrong as error:
            raise LinkDown(f"what answers does not speak Redis' protocol: {error}") from error


def _hiredis() -> ModuleType:
    try:
        import hiredis
    except ImportError as error:
        raise StartError(
            "tables in Redis need hiredis: pip install 'tensorbatch[redis]'"
        ) from error
    return hiredis

"""Errors of ``transport``, named for what whoever catches them does."""

from __future__ import annotations

from typing import Final


class TransportError(Exception):
    """Base of everything that ``transport`` raises on purpose."""


class LocalProtocolError(TransportError):
    """Our side built something that the protocol does not allow: fix our code."""


class RemoteProtocolError(TransportError):
    """A peer sent something that the protocol does not allow: drop it, answer it, serve on.

    Attributes:
        request_id: Of the request at fault, where that much could be read: answer it; else None.
    """

    def __init__(self, message: str, request_id: int | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class RequestError(TransportError):
    """The server answered a request with an error. Base of those below.

    Attributes:
        code: One of ``transport.messages.ERROR_CODES``.
        field: The feature or request field at fault, or ``""``.
    """

    code = "internal"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class InvalidRequest(RequestError):
    """The request itself is wrong: fix it; sending it again gives the same answer."""

    code = "invalid"


class Overloaded(RequestError):
    """The server, or a mailbox on the way, is above its high-water mark: slow down, then retry."""

    code = "overloaded"


class DeadlineExceeded(RequestError):
    """The budget ran out before there was an answer."""

    code = "deadline"


class Unavailable(RequestError):
    """A node that the request needs is starting, draining or dead: another may answer a retry."""

    code = "unavailable"


class InternalError(RequestError):
    """The server failed on a request that was in order: report it."""

    code = "internal"


class AddressError(TransportError):
    """An address cannot be bound or connected: fix the configuration, or free the address."""


class SocketClosed(TransportError):
    """Our side closed the socket or the client: stop using it."""


_BY_CODE: Final[dict[str, type[RequestError]]] = {
    error.code: error
    for error in (InvalidRequest, Overloaded, DeadlineExceeded, Unavailable, InternalError)
}


def error_of(code: str, message: str, field: str = "") -> RequestError:
    """Return the exception that an error reply's code stands for, ready to be raised."""
    return _BY_CODE.get(code, InternalError)(message, field)

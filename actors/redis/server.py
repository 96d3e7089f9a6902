"""What a URL says of a Redis server or cluster."""

from __future__ import annotations

import ssl
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import attrs

from actors.redis.wire import pack

PORT: Final = 6379


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@attrs.frozen(kw_only=True)
class Server:
    """A server, or a cluster by some of its servers: where it is, and how one gets in.

    Attributes:
        addresses: At least one. Of a cluster any server will do: it tells of the others.
        user: The ACL user; without one and with a password, the user ``default``.
        database: Of a single server; a cluster has only 0.
        tls: Whether connections are encrypted; certificates are then checked against
            ``certificates``, or against the system's.
    """

    addresses: tuple[Address, ...]
    user: str = ""
    password: str = attrs.field(default="", repr=False)
    database: int = 0
    tls: bool = False
    certificates: str | None = None

    def __str__(self) -> str:
        return ",".join(map(str, self.addresses))

    def greeting(self) -> list[bytes]:
        """Return what a new connection says first, packed; all is well if no reply is an error."""
        words: list[list[bytes]] = []
        if self.user or self.password:
            credentials = [self.user, self.password] if self.user else [self.password]
            words.append([b"AUTH", *(text.encode() for text in credentials)])
        if self.database:
            words.append([b"SELECT", b"%d" % self.database])
        words.append([b"PING"])  # without a password, this is what is refused; and while loading
        return [pack(each) for each in words]

    def encryption(self) -> ssl.SSLContext | None:
        """Return what encrypts connections, or None."""
        return ssl.create_default_context(cafile=self.certificates) if self.tls else None


def parse(url: str, *, password: str = "", certificates: str | None = None) -> Server:
    """Read ``redis[s]://[user[:password]@]host[:port][,host[:port]...][/database]``.

    Args:
        url: The URL; user and password percent-encoded where they need be.
        password: Takes the place of one in the URL, so that files with URLs hold no secret.
        certificates: File of the certificates to trust, with ``rediss``.

    Raises:
        ValueError: It is no such URL; says why, without the password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError(f"want redis://HOST:PORT or rediss://HOST:PORT, got {_safe(url)!r}")
    secret, _, hosts = parts.netloc.rpartition("@")
    user, _, in_url = secret.partition(":")
    path = parts.path.removeprefix("/")
    if (path and not path.isdecimal()) or parts.query or parts.fragment:
        raise ValueError(f"after the address, want /DATABASE or nothing, got {_safe(url)!r}")
    return Server(
        addresses=tuple(_address(each, url) for each in hosts.split(",")),
        user=unquote(user),
        password=password or unquote(in_url),
        database=int(path or 0),
        tls=parts.scheme == "rediss",
        certificates=certificates,
    )


def _address(text: str, url: str) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} of {_safe(url)!r} is no HOST:PORT: {error}") from error
    if not host:
        raise ValueError(f"{_safe(url)!r} names no host")
    return Address(host, PORT if port is None else port)


def _safe(url: str) -> str:
    """Return a URL without what may be a password."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"

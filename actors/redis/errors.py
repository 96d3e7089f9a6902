"""Errors of ``actors.redis``, named for what whoever catches them does."""

from __future__ import annotations


class RedisError(Exception):
    """Redis did not do what it was asked: the message names the server, and says what happened."""


class LinkDown(RedisError):
    """There is no connection to a server, or it was lost: ask again, or ask another server."""


class Refused(LinkDown):
    """A server does not let us in as we are configured: fix the URL, its user or its password."""


class BadRow(RedisError):
    """What a key holds is no row of its table, or is missing: fix what is in Redis."""

"""What many keys hold, read and set together.

Keys of a single server are read with ``MGET`` s of up to ``CHUNK`` keys. A cluster takes only keys
of one slot in a command: keys that share slots, by a tag or because they are many, are an ``MGET``
a slot, others a ``GET`` each. While a slot is on its way to another server, commands about several
of its keys are refused (``TRYAGAIN``), and each key is asked for by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from actors.redis.client import Client
from actors.redis.errors import RedisError
from actors.redis.slots import slots_of
from actors.redis.wire import ErrorReply, Reply, pack

# A server does nothing else during a command: 512 rows of 256 bytes take it about 0.25 ms.
CHUNK: Final = 512

_GET: Final = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n"
_NO_SLOTS: Final = np.empty(0, np.int32)
_TEXT_OR_NONE: Final = {bytes, type(None)}


async def get(client: Client, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return what some keys hold; None for those that are missing or hold no string.

    The caller limits the time, by cancelling.

    Raises:
        RedisError: A server cannot be reached, or answered with an error; names it.
    """
    n = len(keys)
    slots = slots_of(keys) if client.is_cluster else _NO_SLOTS
    if client.is_cluster and len(np.unique(slots)) > n / 2:
        values = await client.execute([_GET % (len(key), key) for key in keys], slots)
        if not set(map(type, values)) <= _TEXT_OR_NONE:
            values = [_text(client, value) for value in values]
        return cast("list[bytes | None]", values)

    def command(group: Sequence[int]) -> list[bytes]:
        return [b"MGET", *[keys[i] for i in group]]

    found: list[bytes | None] = [None] * n
    for group, reply in await _of_groups(client, n, slots, command):
        if not isinstance(reply, list) or len(reply) != len(group):
            raise RedisError(f"{client.server}: {reply!s:.200} for MGET")
        if isinstance(group, range):
            found[group.start : group.stop] = cast("list[bytes | None]", reply)
        else:
            for i, value in zip(group, reply, strict=True):
                found[i] = cast("bytes | None", value)
    return found


async def put(client: Client, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    """Set what some keys hold. If it fails, some of them may be set.

    Raises:
        RedisError: As ``get``.
    """

    def command(group: Sequence[int]) -> list[bytes]:
        words = [b"MSET"]
        for i in group:
            words += (keys[i], values[i])
        return words

    slots = slots_of(keys) if client.is_cluster else _NO_SLOTS
    for _, reply in await _of_groups(client, len(keys), slots, command):
        if reply != b"OK":
            raise RedisError(f"{client.server}: {reply!s:.200} for MSET")


def _text(client: Client, reply: Reply) -> bytes | None:
    """Return what ``MGET`` would have for a reply to ``GET``."""
    if reply is None or isinstance(reply, bytes):
        return reply
    if isinstance(reply, ErrorReply) and reply.code == "WRONGTYPE":
        return None
    raise RedisError(f"{client.server}: {reply!s:.200} for GET")


async def _of_groups(
    client: Client,
    n: int,
    slots: NDArray[np.int32],
    command: Callable[[Sequence[int]], list[bytes]],
) -> list[tuple[Sequence[int], Reply]]:
    """Send commands of many keys each; return the positions of each one's keys and its reply.

    Args:
        client: To whom.
        n: How many keys there are.
        slots: int32 ``[n]``, of a cluster's keys.
        command: Makes the one of some of them, given their positions.
    """
    groups: list[Sequence[int]]
    if client.is_cluster:
        groups = _groups(slots)
    else:
        groups = [range(at, min(at + CHUNK, n)) for at in range(0, n, CHUNK)]
    done: list[tuple[Sequence[int], Reply]] = []
    while groups:
        first = slots[[group[0] for group in groups]] if len(slots) else slots
        replies = await client.execute([pack(command(group)) for group in groups], first)
        split: list[Sequence[int]] = []
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, ErrorReply) and reply.code == "TRYAGAIN" and len(group) > 1:
                split += [[i] for i in group]
            else:
                done.append((group, reply))
        groups = split
    return done


def _groups(slots: NDArray[np.int32]) -> list[Sequence[int]]:
    """Return positions of equal slots together, at most ``CHUNK`` of them."""
    order = np.argsort(slots, kind="stable")
    cuts = np.flatnonzero(np.diff(slots[order], prepend=-1, append=-1)).tolist()
    at = order.tolist()
    return [
        at[start : min(start + CHUNK, last)]
        for first, last in itertools.pairwise(cuts)
        for start in range(first, last, CHUNK)
    ]

"""Commands to one server or to a cluster's, together: each to the server that holds its key.

Keys of a single server are read with ``MGET`` s of up to ``CHUNK`` keys. A cluster takes only keys
of one slot in a command, so there each slot's keys are an ``MGET`` of their own: random keys are
mostly a command each, which costs about three times as much a key.

What a cluster says while it changes is followed: ``MOVED`` (noted, and the map is read again),
``ASK``, ``TRYAGAIN``. Commands whose connection is lost under way are sent once more: all that are
sent here may be done twice.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import numpy as np
import trio

from actors.redis.connection import ask_once
from actors.redis.errors import LinkDown, RedisError, Refused
from actors.redis.link import Exchange, Link
from actors.redis.server import Address, Server
from actors.redis.slots import SlotMap, slot_of, slots_of
from actors.redis.wire import ErrorReply, Reply, pack

# A server does nothing else during a command: 512 rows of 256 bytes take it about 0.25 ms.
CHUNK: Final = 512
# Times that one call follows a cluster's redirections.
_ROUNDS: Final = 6
# How often a cluster's map is read: when nothing is known to be wrong with it, when something is,
# and at most.
_CALM_S: Final = 30.0
_ALARMED_S: Final = 0.5
_LEAST_S: Final = 0.05

_ASKING: Final = pack([b"ASKING"])


@attrs.frozen(eq=False)
class Command:
    """One command, packed, about keys of one slot; the slot does not matter to a single server."""

    packed: bytes
    slot: int

    @classmethod
    def of(cls, key: bytes, *words: bytes) -> Command:
        """Make a command about one key, which ``words`` contain."""
        return cls(pack(words), slot_of(key))


@attrs.frozen(eq=False)
class _Sent:
    """Commands sent to one server.

    Attributes:
        which: Their positions among the caller's.
        asking: Whether each was sent after an ``ASKING``, which is answered, too.
    """

    address: Address
    exchange: Exchange
    which: list[int]
    asking: bool

    async def replies(self) -> list[Reply]:
        """Wait for a reply to each; raises ``LinkDown`` as ``Exchange.wait``."""
        replies = await self.exchange.wait()
        return replies[1::2] if self.asking else replies


class Client:
    """One server or cluster. ``run`` must be running for anything to happen.

    Args:
        server: Where, and how one gets in.
        timeout_s: For connecting; and silence of a server, with something to answer, after which
            it is taken for dead.
        slots: Of a cluster, as ``open_client`` read it.
    """

    def __init__(self, server: Server, *, timeout_s: float, slots: SlotMap | None) -> None:
        self.server = server
        self._timeout_s = timeout_s
        self._slots = slots
        self._links: dict[Address, tuple[Link, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self._stale = trio.Event()

    @property
    def is_cluster(self) -> bool:
        """Whether keys are divided among servers by slot."""
        return self._slots is not None

    @property
    def addresses(self) -> list[Address]:
        """The servers that hold keys."""
        return [self.server.addresses[0]] if self._slots is None else self._slots.addresses

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections, and the map of a cluster, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._keep_links()
            task_status.started()
            if self._slots is None:
                await trio.sleep_forever()
            while True:
                alarmed = any(link.is_down for link, _ in self._links.values())
                with trio.move_on_after(_ALARMED_S if alarmed else _CALM_S):
                    await self._stale.wait()
                self._stale = trio.Event()
                # If nobody can be asked, everybody's link is down, and tells whoever sends.
                with contextlib.suppress(RedisError):
                    first = [each for each, (link, _) in self._links.items() if not link.is_down]
                    slots = await _read_slots(self.server, first, self._timeout_s)
                    self._slots = slots or self._slots
                self._keep_links()
                await trio.sleep(_LEAST_S)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what some keys hold; None for those that are missing or hold no string.

        The caller limits the time, by cancelling.

        Raises:
            RedisError: A server cannot be reached, or answered with an error; names it.
        """
        values: list[bytes | None] = [None] * len(keys)

        def command(group: Sequence[int]) -> list[bytes]:
            return [b"MGET", *[keys[i] for i in group]]

        for group, reply in await self._of_groups(keys, command):
            if not isinstance(reply, list) or len(reply) != len(group):
                raise RedisError(f"{self.server}: {reply!s:.200} for MGET")
            for i, value in zip(group, reply, strict=True):
                values[i] = value  # type: ignore[assignment]
        return values

    async def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Set what some keys hold. If it fails, some of them may be set.

        Raises:
            RedisError: As ``get``.
        """

        def command(group: Sequence[int]) -> list[bytes]:
            words = [b"MSET"]
            for i in group:
                words += (keys[i], values[i])
            return words

        for _, reply in await self._of_groups(keys, command):
            if reply != b"OK":
                raise RedisError(f"{self.server}: {reply!s:.200} for MSET")

    async def _of_groups(
        self, keys: Sequence[bytes], command: Callable[[Sequence[int]], list[bytes]]
    ) -> list[tuple[Sequence[int], Reply]]:
        """Send commands of many keys each; return the positions of each one's keys and its reply.

        Args:
            keys: Of all commands.
            command: Makes the one of some of them, given their positions.
        """
        n = len(keys)
        slots: list[int] | None = None
        if self._slots is None:
            groups: list[Sequence[int]] = [
                range(at, min(at + CHUNK, n)) for at in range(0, n, CHUNK)
            ]
        else:
            by_slot = slots_of(keys)
            slots, groups = by_slot.tolist(), _groups(by_slot)
        done: list[tuple[Sequence[int], Reply]] = []
        while groups:
            commands = [
                Command(pack(command(group)), -1 if slots is None else slots[group[0]])
                for group in groups
            ]
            split: list[Sequence[int]] = []
            for group, reply in zip(groups, await self.execute(commands), strict=True):
                if isinstance(reply, ErrorReply) and reply.code == "TRYAGAIN" and len(group) > 1:
                    split += [[i] for i in group]  # its slot is on the way, key by key
                else:
                    done.append((group, reply))
            groups = split
        return done

    async def ask(self, key: bytes, *words: bytes) -> Reply:
        """Send one command about a key; return its reply.

        Raises:
            RedisError: As ``get``.
        """
        (reply,) = await self.execute([Command.of(key, *words)])
        if isinstance(reply, ErrorReply):
            raise RedisError(f"{self.server}: {reply}")
        return reply

    async def execute(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands, in order as far as they go to the same server; return their replies.

        Raises:
            RedisError: A server cannot be reached, or cannot serve: errors that mean so are raised,
                errors about the command itself are replies.
        """
        replies: list[Reply] = [None] * len(commands)
        todo: list[tuple[int, Address, bool]] = [
            (i, self._owner(command.slot), False) for i, command in enumerate(commands)
        ]
        lost = False
        for _ in range(_ROUNDS):
            sent, todo = self._send(commands, todo), []
            lost_before = lost
            for part in sent:
                try:
                    answers = await part.replies()
                except LinkDown:
                    if lost_before:
                        raise
                    lost = True
                    self._stale.set()
                    todo += [(i, self._owner(commands[i].slot), False) for i in part.which]
                    continue
                for i, answer in zip(part.which, answers, strict=True):
                    if isinstance(answer, ErrorReply) and (
                        elsewhere := self._redirected(part.address, answer)
                    ):
                        todo.append((i, *elsewhere))
                    else:
                        replies[i] = answer
            if not todo:
                return replies
        raise RedisError(f"{self.server}: the cluster sends us from server to server")

    def _send(
        self, commands: Sequence[Command], todo: Sequence[tuple[int, Address, bool]]
    ) -> list[_Sent]:
        by_server: dict[tuple[Address, bool], list[int]] = {}
        for i, address, asking in todo:
            by_server.setdefault((address, asking), []).append(i)
        sent = []
        for (address, asking), which in by_server.items():
            parts = [commands[i].packed for i in which]
            if asking:
                parts = [_ASKING + part for part in parts]
            n = len(parts) * (2 if asking else 1)
            try:
                exchange = self._link(address).begin(b"".join(parts), n)
            except LinkDown:
                self._stale.set()
                raise
            sent.append(_Sent(address, exchange, which, asking))
        return sent

    def _redirected(self, address: Address, error: ErrorReply) -> tuple[Address, bool] | None:
        """Return where else to send what a server answered with an error; None if nowhere.

        Raises:
            RedisError: The server cannot serve at all.
        """
        code, *words = str(error).split(" ")
        if code in ("MOVED", "ASK") and len(words) == 2 and self._slots is not None:
            host, _, port = words[1].rpartition(":")
            if words[0].isdecimal() and port.isdecimal():
                to = Address(host or address.host, int(port))
                if code == "MOVED":
                    self._slots.move(int(words[0]), to)
                    self._stale.set()
                return to, code == "ASK"
        if code in _CANNOT_SERVE:
            raise RedisError(f"{address}: {error}")
        return None

    def _owner(self, slot: int) -> Address:
        if self._slots is None:
            return self.server.addresses[0]
        owner = int(self._slots.owner[slot])
        if owner < 0:
            self._stale.set()
            raise RedisError(f"{self.server}: slot {slot} of the cluster is served by nobody")
        return self._slots.addresses[owner]

    def _link(self, address: Address) -> Link:
        if address not in self._links:
            if self._nursery is None:
                raise LinkDown(f"{address}: not connected yet")
            link, scope = Link(self.server, address, timeout_s=self._timeout_s), trio.CancelScope()
            self._links[address] = link, scope
            self._nursery.start_soon(_run_within, scope, link)
        return self._links[address][0]

    def _keep_links(self) -> None:
        """Connect to every server that holds keys, and leave those that do not any more."""
        wanted = self.addresses
        for address in wanted:
            self._link(address)
        for address in self._links.keys() - set(wanted):
            self._links.pop(address)[1].cancel()


# Of a server, not of the command that it answers with them.
_CANNOT_SERVE: Final = frozenset(
    {"CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOAUTH", "NOPERM", "OOM", "READONLY", "MISCONF"}
)


async def open_client(server: Server, *, timeout_s: float) -> Client:
    """Find out what kind of server it is, and return its client.

    Of several addresses that are no cluster's, the first that answers is the server.

    Raises:
        LinkDown: None of the addresses can be reached.
        Refused: A server does not let us in.
        RedisError: It is something else.
    """
    for address in server.addresses:
        first = (address, *(each for each in server.addresses if each != address))
        try:
            slots = await _read_slots(server, [address], timeout_s)
        except Refused:
            raise
        except LinkDown as error:
            failure = error
        else:
            return Client(attrs.evolve(server, addresses=first), timeout_s=timeout_s, slots=slots)
    raise failure


async def _read_slots(server: Server, first: Sequence[Address], timeout_s: float) -> SlotMap | None:
    """Ask a cluster, by whichever of its servers answers, who holds what; None if it is none."""
    failure: LinkDown | None = None
    for address in dict.fromkeys([*first, *server.addresses]):
        try:
            reply = await ask_once(server, address, [b"CLUSTER", b"SLOTS"], timeout_s=timeout_s)
        except Refused:
            raise
        except LinkDown as error:
            failure = failure or error
            continue
        if isinstance(reply, ErrorReply):
            if reply.code == "ERR":  # "This instance has cluster support disabled", or a proxy
                return None
            raise RedisError(f"{address}: {reply}")
        return SlotMap.read(reply, address)
    assert failure is not None
    raise failure


async def _run_within(scope: trio.CancelScope, link: Link) -> None:
    with scope:
        await link.run()


def _groups(slots: np.ndarray) -> list[Sequence[int]]:
    """Return positions of equal slots together, at most ``CHUNK`` of them."""
    order = np.argsort(slots, kind="stable")
    cuts = np.flatnonzero(np.diff(slots[order], prepend=-1, append=-1)).tolist()
    at = order.tolist()
    return [
        at[start : min(start + CHUNK, last)]
        for first, last in itertools.pairwise(cuts)
        for start in range(first, last, CHUNK)
    ]

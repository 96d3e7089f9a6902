"""Commands to one server or to a cluster's, together: each to the server that holds its key.

What a cluster says while it changes is followed: ``MOVED`` (noted, and the map is read again),
``ASK``. Commands whose connection is lost under way are sent once more: all that are
sent here may be done twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final, TypeAlias

import attrs
import numpy as np
import trio
from numpy.typing import NDArray

from actors.redis.connection import ask_once
from actors.redis.errors import LinkDown, RedisError, Refused
from actors.redis.link import Exchange, Link
from actors.redis.server import Address, Server
from actors.redis.slots import SlotMap, slots_of
from actors.redis.wire import ErrorReply, Reply, pack

# Times that one call follows a cluster's redirections.
_ROUNDS: Final = 6
# How often a cluster's map is read: when nothing is known to be wrong with it, when something is,
# and at most.
_CALM_S: Final = 30.0
_ALARMED_S: Final = 0.5
_LEAST_S: Final = 0.05

_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"

# Where to send some commands, whether after an ASKING, and their positions.
_To: TypeAlias = tuple[Address, bool, Sequence[int]]


@attrs.frozen(eq=False)
class _Sent:
    """Commands sent to one server.

    Attributes:
        which: Their positions among the caller's.
        asking: Whether each was sent after an ``ASKING``, which is answered, too.
    """

    address: Address
    exchange: Exchange
    which: Sequence[int]
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
                    ask = [each for each, (link, _) in self._links.items() if not link.is_down]
                    ask += self.server.addresses
                    slots = await _read_slots(self.server, ask, self._timeout_s)
                    self._slots = slots or self._slots
                self._keep_links()
                await trio.sleep(_LEAST_S)

    async def ask(self, key: bytes, *words: bytes) -> Reply:
        """Send one command about a key, which ``words`` contain; return its reply.

        Raises:
            RedisError: As ``execute``, or the reply is an error.
        """
        (reply,) = await self.execute([pack(words)], slots_of([key]))
        if isinstance(reply, ErrorReply):
            raise RedisError(f"{self.server}: {reply}")
        return reply

    async def execute(self, commands: Sequence[bytes], slots: NDArray[np.int32]) -> list[Reply]:
        """Send commands, in order as far as they go to the same server; return their replies.

        The caller limits the time, by cancelling.

        Args:
            commands: Packed.
            slots: int32 ``[n]``, of each one's keys; they do not matter to a single server.

        Raises:
            RedisError: A server cannot be reached, or cannot serve: errors that mean so are raised,
                errors about the command itself are replies.
        """
        replies: list[Reply] = [None] * len(commands)
        todo = self._owners(range(len(commands)), slots)
        lost = False
        for _ in range(_ROUNDS):
            sent = [self._send(commands, *each) for each in todo]
            todo = []
            lost_before = lost
            for part in sent:
                try:
                    answers = await part.replies()
                except LinkDown:
                    if lost_before:
                        raise
                    lost = True
                    self._stale.set()
                    todo += self._owners(part.which, slots)
                    continue
                has_errors = ErrorReply in set(map(type, answers))
                for i, answer in zip(part.which, answers, strict=True):
                    if has_errors and isinstance(answer, ErrorReply):
                        elsewhere = self._redirected(part.address, answer)
                        if elsewhere is not None:
                            todo.append((*elsewhere, [i]))
                            continue
                    replies[i] = answer
            if not todo:
                return replies
            todo = _merged(todo)
        raise RedisError(f"{self.server}: the cluster sends us from server to server")

    def _owners(self, which: Sequence[int], slots: NDArray[np.int32]) -> list[_To]:
        """Return to whom to send some commands, by their positions."""
        if not which:
            return []
        if self._slots is None:
            return [(self.server.addresses[0], False, which)]
        positions = np.asarray(which, np.intp)
        owners = self._slots.owner[slots[positions]]
        to: list[_To] = []
        for owner in np.unique(owners).tolist():
            mine: list[int] = positions[owners == owner].tolist()
            if owner < 0:
                self._stale.set()
                slot = slots[mine[0]]
                raise RedisError(f"{self.server}: slot {slot} of the cluster is served by nobody")
            to.append((self._slots.addresses[owner], False, mine))
        return to

    def _send(
        self, commands: Sequence[bytes], address: Address, asking: bool, which: Sequence[int]
    ) -> _Sent:
        parts = [commands[i] for i in which]
        if asking:
            parts = [_ASKING + part for part in parts]
        try:
            exchange = self._link(address).begin(b"".join(parts), len(parts) * (2 if asking else 1))
        except LinkDown:
            self._stale.set()
            raise
        return _Sent(address, exchange, which, asking)

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


async def _read_slots(
    server: Server, addresses: Sequence[Address], timeout_s: float
) -> SlotMap | None:
    """Ask a cluster, by whichever of some addresses answers, who holds what; None if it is none."""
    failure: LinkDown | None = None
    for address in dict.fromkeys(addresses):
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


def _merged(todo: Sequence[_To]) -> list[_To]:
    """Return the same with one entry for each server."""
    by_server: dict[tuple[Address, bool], list[int]] = {}
    for address, asking, which in todo:
        by_server.setdefault((address, asking), []).extend(which)
    return [(address, asking, which) for (address, asking), which in by_server.items()]

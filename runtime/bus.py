"""Reaches actors in other nodes, with the meaning that references have within a process.

Each node binds one ROUTER at its address and connects one DEALER (a link, ``runtime.link``) to each
node that it has something to say to, at the first word. So a pipe has one direction for words
(tells and asks, from the DEALER) and the other for answers. Packets are those of
``transport.codec``; ``to`` is the actor that is meant.

A packet with ``to`` ``"@NODE"`` is a heartbeat: a ``Ping`` from the bus of that node to this one.

Answers come with the ``ask_id`` of the ask. Those with ``ask_id`` 0 are the bus's own:

* ``Pong`` to a heartbeat; its ``request_id`` tells the incarnation of the node, so that a restart
  is noticed even if it was quicker than the heartbeat.
* ``ErrorReply`` with ``to`` the name of an actor: it refused a tell, as its mailbox is full or it
  is not there. The teller cannot be told about that message any more, but for a moment further
  tells to that actor are refused at once.
"""

from __future__ import annotations

import functools
import logging
import secrets
from collections.abc import Callable
from typing import Any, Final

import trio
import zmq

from runtime.actor import Envelope
from runtime.link import PERIOD_S, Link, heartbeat_sender
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from runtime.refs import Answer
from runtime.topology import Topology
from transport.codec import Packet, decode, encode
from transport.errors import Overloaded, RemoteProtocolError, Unavailable
from transport.messages import ErrorReply, Message, Pong
from transport.sockets import RouterSocket, open_context

log = logging.getLogger(__name__)

_RECEIVE_MOST: Final = 256


class Bus:
    """One node's connections to the others.

    Attributes:
        metrics: Counts packets that were ``damaged``, ``stray`` (for nobody here), ``refused`` by
            their actor, and answers that were ``undelivered``.
    """

    def __init__(self, topology: Topology, node: str, *, period_s: float = PERIOD_S) -> None:
        """Connect nothing yet.

        Args:
            topology: Says where the nodes are.
            node: The one that this is.
            period_s: Of heartbeats.
        """
        self.metrics = Metrics()
        self._topology = topology
        self._node = node
        self._period_s = period_s
        self._incarnation = secrets.randbits(62) + 1
        self._links: dict[str, Link] = {}
        self._context: zmq.Context[Any] | None = None
        self._nursery: trio.Nursery | None = None
        self._mailbox: Callable[[str], Mailbox | None] = lambda name: None
        self._accused: set[bytes] = set()

    def ref(self, actor: str) -> RemoteRef:
        """Return a reference to an actor of another node.

        Raises:
            KeyError: The topology has no actor of that name.
        """
        return RemoteRef(self, actor, self._topology.node_of(actor).name)

    async def run(
        self,
        mailbox: Callable[[str], Mailbox | None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry messages until cancelled; started once others can connect.

        Args:
            mailbox: Finds the mailbox of an actor of this node.
            task_status: As trio's.

        Raises:
            AddressError: The node's address cannot be bound.
        """
        self._mailbox = mailbox
        async with open_context() as context, RouterSocket(context) as socket:
            socket.bind(self._topology.address(self._node))
            self._context = context
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._serve, socket)
                    nursery.start_soon(self._beat)
                    task_status.started()
            finally:
                self._nursery = None

    def link(self, node: str) -> Link:
        """Return the link to a node, made at the first call.

        Raises:
            Unavailable: The bus does not run.
        """
        link = self._links.get(node)
        if link is None:
            if self._nursery is None or self._context is None:
                raise Unavailable(f"node {self._node} is not connected")
            address = self._topology.address(node)
            link = Link(self._context, self._node, node, address, self.metrics)
            self._links[node] = link
            self._nursery.start_soon(link.run)
        return link

    async def _serve(self, socket: RouterSocket) -> None:
        while True:
            received = await socket.receive_batch(_RECEIVE_MOST)
            now = trio.current_time()
            for identity, frames in received:
                try:
                    packet = decode(frames)
                except RemoteProtocolError as error:
                    self._accuse(identity, error)
                else:
                    self._take(socket, identity, packet, now)

    def _take(self, socket: RouterSocket, identity: bytes, packet: Packet, now: float) -> None:
        answer = functools.partial(self._answer, socket, identity, packet.to, packet.ask_id)
        sender = heartbeat_sender(packet)
        if sender is not None:
            answer(Pong(request_id=self._incarnation, status="ready"))
            if sender in self._links:
                self._links[sender].hear_from_peer()
            return
        mailbox = self._mailbox(packet.to)
        try:
            if mailbox is None:
                self.metrics.count("stray")
                raise Unavailable(f"node {self._node} has no actor {packet.to!r}")
            if packet.ask_id:
                mailbox.put_ask_nowait(packet.message, now, answer)
            else:
                mailbox.put_nowait(Envelope(packet.message, now))
        except (Overloaded, Unavailable) as error:
            self.metrics.count("refused")
            answer(ErrorReply(request_id=0, code=error.code, message=str(error)))

    def _answer(
        self, socket: RouterSocket, identity: bytes, to: str, ask_id: int, message: Message
    ) -> None:
        # Answers to an ask are known by its number; what is said about a tell names the actor.
        packet = Packet("" if ask_id else to, ask_id, message)
        if not socket.try_send(identity, encode(packet)):
            self.metrics.count("undelivered")

    def _accuse(self, identity: bytes, error: RemoteProtocolError) -> None:
        self.metrics.count("damaged")
        if identity not in self._accused:
            self._accused.add(identity)
            log.error("node %s: a peer sends damaged packets: %s", self._node, error)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(self._period_s)
            for link in self._links.values():
                link.beat()


class RemoteRef:
    """An actor of another node; see ``runtime.actor.Ref``."""

    __slots__ = ("_bus", "_node", "name")

    def __init__(self, bus: Bus, name: str, node: str) -> None:
        self.name = name
        self._bus = bus
        self._node = node

    def tell(self, message: Message) -> None:
        """Send a message to the actor's mailbox; see ``runtime.actor.Ref``."""
        self._bus.link(self._node).send(self.name, message, None)

    async def ask(self, message: Message, *, budget: float) -> Message:
        """Tell, and await the answer; see ``runtime.actor.Ref``."""
        link = self._bus.link(self._node)
        answer = Answer()
        ask_id = link.send(self.name, message, answer.deliver)
        try:
            return await answer.wait(self.name, budget)
        finally:
            link.forget(ask_id)

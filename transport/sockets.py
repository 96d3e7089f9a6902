"""ZeroMQ sockets under trio.

A ZeroMQ socket has one file descriptor that says, once, that something *may* have happened: any
operation on the socket, a send as well, may take that notice away. So a task that sleeps on the
descriptor while another sends can sleep for ever with a message at hand. The rules here that make
this impossible:

* Whoever is about to wait has read the socket's EVENTS (which takes in all notices) after its last
  operation and found nothing for itself, with no checkpoint between that and the wait.
* After each operation while somebody waits, EVENTS is read again and whoever it concerns is woken.
* One task watches the descriptor (trio allows no more); the others park. When the watch ends, for
  whatever reason, all look again, and one of them takes over the watch.

EVENTS does not say *which* peer of a ROUTER has room again, so another task's operation can take
that notice away for good: a send parked on a ROUTER also looks by itself every few milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import trio
import zmq

from transport import _zmq
from transport._arrays import Frame
from transport._monitor import Monitor
from transport._zmq import DEFAULTS, Security, Sent, SocketOptions
from transport.errors import SocketClosed

__all__ = [
    "DealerSocket",
    "Frame",
    "RouterSocket",
    "Security",
    "Sent",
    "SocketOptions",
    "SubscriberSocket",
    "open_context",
]

_IN: Final = int(zmq.POLLIN)
_OUT: Final = int(zmq.POLLOUT)
_EVENTS: Final = int(zmq.EVENTS)

_CHECKPOINT_EVERY: Final = 16
"""Messages between two full checkpoints of a busy socket: 0.2 us each, and others get a turn."""

_LOOK_AGAIN_S: Final = 0.005


@asynccontextmanager
async def open_context(n_io_threads: int = 1) -> AsyncIterator[zmq.Context[Any]]:
    """Open what sockets of one process share; inproc addresses connect within it.

    On exit it closes what is still open, and waits, at most the sockets' linger, until what was
    sent has left.
    """
    context: zmq.Context[Any] = zmq.Context(n_io_threads)
    try:
        yield context
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(context.destroy)


class _Socket:
    """Waiting and waking, for both kinds of sockets."""

    def __init__(self, context: zmq.Context[Any], kind: int, options: SocketOptions) -> None:
        self._socket = _zmq.make_socket(context, kind, options)
        self._fd = self._socket.fileno()
        self._watch: trio.CancelScope | None = None
        self._parked = trio.lowlevel.ParkingLot()
        self._n_receivers = 0
        self._n_senders = 0
        self._n_since_checkpoint = 0
        self._closed = False

    def close(self) -> None:
        """Close at once. What was sent still leaves, for at most the linger.

        Whoever waits in another task gets ``SocketClosed``.
        """
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._socket.close()

    async def aclose(self) -> None:
        """``close``, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise SocketClosed("the socket is closed")

    async def _begin(self, n_messages: int) -> None:
        """Checkpoint, in full where the last one is many messages ago."""
        self._n_since_checkpoint += n_messages
        if self._n_since_checkpoint >= _CHECKPOINT_EVERY:
            self._n_since_checkpoint = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()

    async def _receive_batch(self, most: int) -> list[list[Frame]]:
        await self._begin(0)
        while True:
            batch: list[list[Frame]] = []
            while len(batch) < most:
                # Seeing that there is nothing more costs 1.8 us this way and 4.0 us as an
                # exception, but this way each message pays it: so the first two do.
                if len(batch) < 2 and not _zmq.get(self._socket, _EVENTS) & _IN:
                    break
                try:
                    batch.append(_zmq.receive_nowait(self._socket))
                except zmq.Again:
                    break
            if batch:
                if self._watch is not None or self._parked:
                    self._look()
                self._n_since_checkpoint += len(batch)
                return batch
            if self._look() & _IN:
                continue
            self._n_receivers += 1
            try:
                await self._wait()
            finally:
                self._n_receivers -= 1
            self._check_open()

    def _try_send(self, frames: Sequence[Frame]) -> Sent:
        self._check_open()
        sent = _zmq.send_nowait(self._socket, frames)
        if self._watch is not None or self._parked:
            self._look()
        return sent

    def _look(self) -> int:
        """Read EVENTS and wake whom it concerns, after an operation or before a wait."""
        events = _zmq.get(self._socket, _EVENTS)
        if (events & _IN and self._n_receivers) or (events & _OUT and self._n_senders):
            self._wake()
        return events

    def _wake(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._parked.unpark_all()

    async def _wait(self) -> None:
        """Wait until something may have happened. The caller has looked, and not awaited since."""
        if self._watch is not None:
            await self._parked.park()
            return
        watch = self._watch = trio.CancelScope()
        try:
            with watch:
                await trio.lowlevel.wait_readable(self._fd)
        finally:
            if self._watch is watch:
                self._watch = None
            self._parked.unpark_all()

    async def _wait_to_send(self, look_again_s: float) -> None:
        self._n_senders += 1
        try:
            with trio.move_on_after(look_again_s):
                await self._wait()
        finally:
            self._n_senders -= 1
        self._check_open()


class RouterSocket(_Socket):
    """The side that binds: talks to many peers, each known by its ``identity``.

    Any task may send; one task receives.
    """

    def __init__(self, context: zmq.Context[Any], options: SocketOptions = DEFAULTS) -> None:
        super().__init__(context, zmq.ROUTER, options)
        self.address = ""
        """What peers connect to, once it is bound."""

    def bind(self, address: str) -> str:
        """Bind to an address (``tcp://127.0.0.1:0`` picks a port) and return ``self.address``.

        Raises:
            AddressError: It is in use, or no address of this machine.
        """
        self._check_open()
        self.address = _zmq.bind(self._socket, address)
        return self.address

    async def receive_batch(self, most: int) -> list[tuple[bytes, list[Frame]]]:
        """Wait for a message; return it, and those at hand, each with its sender's identity.

        Args:
            most: Return no more than this, at least 1.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """
        batch = await self._receive_batch(most)
        return [(bytes(frames[0]), frames[1:]) for frames in batch]

    def try_send(self, identity: bytes, frames: Sequence[Frame]) -> Sent:
        """Send to a peer now or not at all. Large frames must not change until they have left.

        Raises:
            SocketClosed: The socket is closed.
        """
        return self._try_send([identity, *frames])

    async def send(self, identity: bytes, frames: Sequence[Frame]) -> Sent:
        """Send to a peer, waiting for room at the high-water mark; never returns ``FULL``.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """
        await self._begin(1)
        message = [identity, *frames]
        while True:
            sent = self._try_send(message)
            if sent is not Sent.FULL:
                return sent
            self._look()
            await self._wait_to_send(_LOOK_AGAIN_S)


class DealerSocket(_Socket):
    """The side that connects: talks to one peer, and connects again whenever it is lost.

    Messages are taken only while there is a connection. Those that were on their way when it was
    lost are lost, and so may be those of the millisecond after, unless ``connected`` was asked.
    Any task may send; one task receives.
    """

    def __init__(self, context: zmq.Context[Any], options: SocketOptions = DEFAULTS) -> None:
        super().__init__(context, zmq.DEALER, options)
        self._monitor = Monitor(self._socket)
        self._monitor_watch: trio.CancelScope | None = None

    def connect(self, address: str) -> None:
        """Connect in the background.

        Raises:
            AddressError: It is not an address.
        """
        self._check_open()
        _zmq.connect(self._socket, address)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. Always false over inproc, which tells nothing."""
        if not self._closed:
            self._refresh()
        return self._monitor.connected and not self._closed

    @property
    def n_lost(self) -> int:
        """How often the connection was lost so far."""
        if not self._closed:
            self._refresh()
        return self._monitor.n_lost

    async def wait_lost(self, n_lost: int) -> int:
        """Wait until the connection was lost more than ``n_lost`` times; return how often it was.

        One task may wait for the connection to come or to go.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """
        await self._wait_connection(lambda: self.n_lost > n_lost)
        return self._monitor.n_lost

    async def wait_changed(self, connected: bool, n_lost: int) -> tuple[bool, int]:
        """Wait until ``connected`` or ``n_lost`` are no longer these; return what they are.

        One task may wait for the connection to come or to go.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """

        def changed() -> bool:
            self._refresh()  # once: what a second look found would not be waited for
            return (self._monitor.connected, self._monitor.n_lost) != (connected, n_lost)

        await self._wait_connection(changed)
        return self._monitor.connected, self._monitor.n_lost

    async def _wait_connection(self, arrived: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check_open()
            if arrived():
                return
            # ``connected`` may take the notice away while this sleeps: then it cancels the watch.
            self._monitor_watch = trio.CancelScope()
            with self._monitor_watch:
                await trio.lowlevel.wait_readable(self._monitor.fd)

    async def receive_batch(self, most: int) -> list[list[Frame]]:
        """Wait for a message; return it, and those at hand, at most ``most``.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """
        return await self._receive_batch(most)

    def try_send(self, frames: Sequence[Frame]) -> Sent:
        """Send now or not at all. Large frames must not change until they have left.

        Raises:
            SocketClosed: The socket is closed.
        """
        sent = self._try_send(frames)
        return Sent.GONE if sent is Sent.FULL and not self.connected else sent

    async def send(self, frames: Sequence[Frame]) -> None:
        """Send, waiting for a connection, and for room at the high-water mark.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """
        await self._begin(1)
        while not self._try_send(frames):
            if not self._look() & _OUT:
                await self._wait_to_send(math.inf)

    def close(self) -> None:
        """Close at once. What was sent still leaves, for at most the linger.

        Whoever waits in another task gets ``SocketClosed``.
        """
        if not self._closed:
            super().close()
            self._notice()
            self._monitor.close()

    def _refresh(self) -> None:
        before = self._monitor.connected, self._monitor.n_lost
        self._monitor.refresh()
        if (self._monitor.connected, self._monitor.n_lost) != before:
            # Sends look for such news once a millisecond only, and would feed the lost connection.
            self._look()
            self._notice()

    def _notice(self) -> None:
        if self._monitor_watch is not None:
            self._monitor_watch.cancel()
            self._monitor_watch = None


class SubscriberSocket(_Socket):
    """Hears what publishers (PUB sockets) send, all of it; one that does not keep up misses some.

    One task receives.
    """

    def __init__(self, context: zmq.Context[Any], options: SocketOptions = DEFAULTS) -> None:
        super().__init__(context, zmq.SUB, options)
        self._socket.set(zmq.SUBSCRIBE, b"")

    def connect(self, address: str) -> None:
        """Connect to a publisher in the background.

        Raises:
            AddressError: It is not an address.
        """
        self._check_open()
        _zmq.connect(self._socket, address)

    async def receive_batch(self, most: int) -> list[list[Frame]]:
        """Wait for a message; return it, and those at hand, at most ``most``.

        Raises:
            SocketClosed: The socket is closed, or was while this waited.
        """
        return await self._receive_batch(most)

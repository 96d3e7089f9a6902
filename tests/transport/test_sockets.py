"""One conformance body for all kinds of addresses, then what only some of them have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import zmq

from transport.errors import AddressError, SocketClosed
from transport.sockets import (
    DealerSocket,
    Frame,
    RouterSocket,
    Security,
    Sent,
    SocketOptions,
    open_context,
)

SOON = 20.0
"""Far beyond what anything here takes: a test that gets there has lost a message."""

TINY = SocketOptions(high_water_mark=2, linger_s=0.2)


def keys() -> dict[str, SocketOptions]:
    server_public, server_secret = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()
    return {
        "router": SocketOptions(
            security=Security(public_key=server_public, secret_key=server_secret)
        ),
        "dealer": SocketOptions(
            security=Security(public_key=public, secret_key=secret, server_key=server_public)
        ),
    }


class Pair:
    """A router and a dealer connected to it, in two contexts unless inproc."""

    def __init__(self, scheme: str, path: Path) -> None:
        self.bind = {
            "tcp": "tcp://127.0.0.1:*",
            "curve": "tcp://127.0.0.1:*",
            "ipc": f"ipc://{path}/s",
            "inproc": "inproc://s",
        }[scheme]
        self.options = keys() if scheme == "curve" else {}


@pytest.fixture(params=["tcp", "ipc", "inproc", "curve"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(request.param, tmp_path)


def run(test: Callable[..., Any], *args: object) -> None:
    async def bounded() -> None:
        with trio.fail_after(SOON):
            async with open_context() as context:
                await test(context, *args)

    trio.run(bounded)


async def conformance(context: zmq.Context[Any], pair: Pair) -> None:
    router = RouterSocket(context, pair.options.get("router", SocketOptions()))
    dealer = DealerSocket(context, pair.options.get("dealer", SocketOptions()))
    async with router, dealer:
        dealer.connect(router.bind(pair.bind))
        # Frames of all sizes arrive as they were sent, also empty ones.
        large = bytes(range(256)) * 1024
        messages: list[list[Frame]] = [
            [b"a"],
            [b"", b"b" * 100, b""],
            [b"c", b"", b"", memoryview(large)],
        ]
        for message in messages:
            await dealer.send(message)
        received: list[tuple[bytes, list[Frame]]] = []
        while len(received) < 3:
            batch = await router.receive_batch(2)
            assert 1 <= len(batch) <= 2
            received += batch
        assert [[bytes(f) for f in frames] for _, frames in received] == [
            [bytes(f) for f in frames] for frames in messages
        ]
        assert isinstance(received[2][1][3], memoryview)  # not copied
        (identity,) = {identity for identity, _ in received}
        # Replies go to their peer, and to no other.
        assert router.try_send(identity, [b"reply", large]) is Sent.OK
        assert router.try_send(b"nobody", [b"reply"]) is Sent.GONE
        assert await router.send(b"nobody", [b"reply"]) is Sent.GONE
        assert await router.send(identity, [b"again"])
        replies: list[list[Frame]] = []
        while len(replies) < 2:
            replies += await dealer.receive_batch(10)
        assert [[bytes(f) for f in frames] for frames in replies] == [[b"reply", large], [b"again"]]


def test_conformance(pair: Pair) -> None:
    run(conformance, pair)


async def lost_wake_up(context: zmq.Context[Any], pair: Pair) -> None:
    """A send takes in the notice of a message that another task sleeps for."""
    raw = context.socket(zmq.ROUTER)
    raw.linger = 0
    raw.bind(pair.bind)
    dealer = DealerSocket(context)
    dealer.connect(raw.last_endpoint.rstrip(b"\0").decode())
    got: list[Any] = []

    async def receive() -> None:
        got.extend(await dealer.receive_batch(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await dealer.send([b"q"])
        await trio.testing.wait_all_tasks_blocked()
        identity, _ = raw.recv_multipart()
        raw.send_multipart([identity, b"reply"])
        # Until the reply is at hand, without a checkpoint: the receiver sleeps on.
        poller = zmq.Poller()
        poller.register(dealer._fd, zmq.POLLIN)
        assert poller.poll(5000)
        assert dealer.try_send([b"noreply"])
        assert not poller.poll(0)  # and the notice is gone
    assert got == [[b"reply"]]
    dealer.close()
    raw.close()


@pytest.mark.parametrize("pair", ["tcp", "ipc"], indirect=True)
def test_a_send_that_takes_the_notice_of_a_message_wakes_the_receiver(pair: Pair) -> None:
    run(lost_wake_up, pair)


async def stress(context: zmq.Context[Any], pair: Pair, n_senders: int, n_each: int) -> None:
    """Both directions at a tiny high-water mark; each message must arrive, in order."""
    router = RouterSocket(context, TINY)
    router.bind(pair.bind)
    dealers = [DealerSocket(context, TINY) for _ in range(2)]
    total = n_senders * n_each * len(dealers)
    echoed = 0

    async def echo() -> None:
        nonlocal echoed
        while echoed < total:
            for identity, frames in await router.receive_batch(8):
                assert await router.send(identity, frames) is Sent.OK
                echoed += 1

    async def send(dealer: DealerSocket, sender: int) -> None:
        for i in range(n_each):
            await dealer.send([b"%d" % sender, b"%d" % i])

    async def receive(dealer: DealerSocket) -> None:
        following = [0] * n_senders
        while sum(following) < n_senders * n_each:
            for sender, i in await dealer.receive_batch(8):
                assert int(i) == following[int(sender)]
                following[int(sender)] += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for dealer in dealers:
            dealer.connect(router.address)
            nursery.start_soon(receive, dealer)
            for sender in range(n_senders):
                nursery.start_soon(send, dealer, sender)
    assert echoed == total
    for socket in (router, *dealers):
        socket.close()


@pytest.mark.parametrize("pair", ["tcp", "ipc", "inproc"], indirect=True)
def test_nothing_is_lost_or_stalls_at_the_high_water_mark(pair: Pair) -> None:
    start = time.perf_counter()
    run(stress, pair, 4, 250)
    assert time.perf_counter() - start < SOON / 2


async def full_peer(context: zmq.Context[Any], path: Path) -> None:
    """Sends to a peer that does not read wait; those to others do not, nor does receiving."""
    router = RouterSocket(context, TINY)
    router.bind(f"ipc://{path}/s")
    slow, fast = (DealerSocket(context, TINY) for _ in range(2))
    identities = []
    for dealer in (slow, fast):
        dealer.connect(router.address)
        await dealer.send([b"hello"])
        identities.append((await router.receive_batch(1))[0][0])
    n_taken = 0
    payload = bytes(1 << 20)  # more than the kernel buffers
    while router.try_send(identities[0], [payload]):
        n_taken += 1
        await trio.lowlevel.checkpoint()
    assert router.try_send(identities[0], [payload]) is Sent.FULL

    async def keep_sending() -> None:
        assert await router.send(identities[0], [b"last"]) is Sent.OK

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_sending)
        for _ in range(20):
            assert await router.send(identities[1], [b"x"]) is Sent.OK
            assert await fast.receive_batch(5)
            await fast.send([b"y"])
            assert await router.receive_batch(5)
        received: list[list[Frame]] = []
        while not received or received[-1] != [b"last"]:
            received += await slow.receive_batch(5)
    for socket in (router, slow, fast):
        socket.close()


def test_a_peer_that_does_not_read_holds_up_nobody_else(tmp_path: Path) -> None:
    run(full_peer, tmp_path)


async def no_peer(context: zmq.Context[Any], path: Path) -> None:
    dealer = DealerSocket(context)
    dealer.connect(f"ipc://{path}/s")
    assert not dealer.connected
    assert dealer.try_send([b"early"]) is Sent.GONE
    with trio.move_on_after(0.01) as scope:
        await dealer.send([b"never"])
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dealer.send, [b"first"])
        router = RouterSocket(context)
        router.bind(f"ipc://{path}/s")
        assert [frames for _, frames in await router.receive_batch(9)] == [[b"first"]]
    assert await dealer.wait_changed(False, 0) == (True, 0)
    assert dealer.connected
    # The peer goes, and its heir gets only what was sent to itself.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dealer.wait_lost, 0)
        router.close()
    assert dealer.n_lost == 1
    # Whoever still knows of no connection learns that there was one.
    assert await dealer.wait_changed(False, 0) == (False, 1)
    while dealer.try_send([b"between"]) is not Sent.GONE:
        await trio.lowlevel.checkpoint()
    heir = RouterSocket(context)
    heir.bind(f"ipc://{path}/s")
    await dealer.send([b"second"])
    assert [frames for _, frames in await heir.receive_batch(9)] == [[b"second"]]
    heir.close()
    dealer.close()


def test_messages_are_taken_only_while_there_is_a_connection(tmp_path: Path) -> None:
    run(no_peer, tmp_path)


async def look_while_waiting(context: zmq.Context[Any], path: Path) -> None:
    router = RouterSocket(context)
    router.bind(f"ipc://{path}/s")
    dealer = DealerSocket(context)
    dealer.connect(router.address)
    await dealer.send([b"x"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dealer.wait_lost, 0)
        await trio.testing.wait_all_tasks_blocked()
        router.close()
        poller = zmq.Poller()
        poller.register(dealer._monitor.fd, zmq.POLLIN)
        assert poller.poll(5000)
        while dealer.connected:  # what is ready may be a notice of the connection's start
            assert poller.poll(5000)
        # The last look took the notice that the other task sleeps for.
    dealer.close()


def test_looking_at_the_connection_does_not_hide_its_loss_from_a_waiter(tmp_path: Path) -> None:
    run(look_while_waiting, tmp_path)


async def close_while_waiting(context: zmq.Context[Any], path: Path) -> None:
    router = RouterSocket(context)
    router.bind(f"ipc://{path}/s")
    dealer = DealerSocket(context)  # connects to nothing
    n_raised = 0

    async def raises(wait: Callable[..., Any], *args: object) -> None:
        nonlocal n_raised
        with pytest.raises(SocketClosed):
            await wait(*args)
        n_raised += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises, router.receive_batch, 1)
        nursery.start_soon(raises, dealer.receive_batch, 1)
        nursery.start_soon(raises, dealer.send, [b"x"])
        nursery.start_soon(raises, dealer.wait_lost, 0)
        await trio.testing.wait_all_tasks_blocked()
        await router.aclose()
        dealer.close()
        dealer.close()
    assert n_raised == 4
    with pytest.raises(SocketClosed):
        router.try_send(b"x", [b"x"])
    with pytest.raises(SocketClosed):
        dealer.connect("ipc:///tmp/x")
    assert not dealer.connected


def test_closing_wakes_whoever_waits(tmp_path: Path) -> None:
    run(close_while_waiting, tmp_path)


def test_what_was_sent_before_closing_still_arrives(tmp_path: Path) -> None:
    async def send_and_leave(context: zmq.Context[Any]) -> None:
        dealer = DealerSocket(context)
        dealer.connect(f"ipc://{tmp_path}/s")
        for i in range(100):
            await dealer.send([b"%d" % i, bytes(10_000)])
        await dealer.aclose()

    async def receive(context: zmq.Context[Any]) -> None:
        router = RouterSocket(context)
        router.bind(f"ipc://{tmp_path}/s")
        async with open_context() as other:
            await send_and_leave(other)
        n = 0
        while n < 100:
            n += len(await router.receive_batch(100))
        router.close()

    run(receive)


async def cancelled_watch(context: zmq.Context[Any], path: Path) -> None:
    dealer = DealerSocket(context)
    dealer.connect(f"ipc://{path}/s")
    scope = trio.CancelScope()

    async def watch() -> None:
        with scope:
            await dealer.receive_batch(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(dealer.send, [b"x"])
        nursery.start_soon(dealer.send, [b"y"])
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        router = RouterSocket(context)
        router.bind(f"ipc://{path}/s")
        received = 0
        while received < 2:
            received += len(await router.receive_batch(5))
    router.close()
    dealer.close()


def test_when_the_watching_task_is_cancelled_another_takes_over(tmp_path: Path) -> None:
    run(cancelled_watch, tmp_path)


async def oversized(context: zmq.Context[Any], path: Path) -> None:
    router = RouterSocket(context, SocketOptions(max_frame_bytes=1000))
    router.bind(f"ipc://{path}/s")
    attacker, client = DealerSocket(context), DealerSocket(context)
    for dealer in (attacker, client):
        dealer.connect(router.address)
    await attacker.send([bytes(1001)])
    assert await attacker.wait_lost(0) == 1
    await client.send([bytes(1000)])
    assert [len(frames[0]) for _, frames in await router.receive_batch(9)] == [1000]
    assert client.connected
    for socket in (router, attacker, client):
        socket.close()


def test_an_oversized_frame_costs_its_sender_the_connection(tmp_path: Path) -> None:
    run(oversized, tmp_path)


async def stranger(context: zmq.Context[Any]) -> None:
    options = keys()
    router = RouterSocket(context, options["router"])
    router.bind("tcp://127.0.0.1:*")
    plain, wrong = DealerSocket(context), DealerSocket(context, keys()["dealer"])
    for dealer in (plain, wrong):
        dealer.connect(router.address)
        with trio.move_on_after(0.2):
            await dealer.send([b"x"])
        assert not dealer.connected
    for socket in (router, plain, wrong):
        socket.close()


def test_a_peer_without_the_right_keys_gets_no_connection() -> None:
    run(stranger)


async def bad_addresses(context: zmq.Context[Any]) -> None:
    first, second = RouterSocket(context), RouterSocket(context)
    address = first.bind("tcp://127.0.0.1:*")
    with pytest.raises(AddressError, match=f"cannot bind {address}: Address already in use"):
        second.bind(address)
    with pytest.raises(AddressError, match="cannot bind nonsense"):
        second.bind("nonsense")
    dealer = DealerSocket(context)
    with pytest.raises(AddressError, match="cannot connect to nonsense"):
        dealer.connect("nonsense")
    for socket in (first, second, dealer):
        socket.close()


def test_bad_addresses_are_named() -> None:
    run(bad_addresses)


async def cancellation(context: zmq.Context[Any], path: Path) -> None:
    router = RouterSocket(context)
    router.bind(f"ipc://{path}/s")
    dealer = DealerSocket(context)
    dealer.connect(router.address)
    for i in range(40):
        await dealer.send([b"%d" % i])
        with trio.CancelScope() as scope:
            scope.cancel()
            await router.receive_batch(1)
        assert scope.cancelled_caught
        assert [frames for _, frames in await router.receive_batch(1)] == [[b"%d" % i]]
    router.close()
    dealer.close()


def test_a_cancelled_receive_loses_nothing(tmp_path: Path) -> None:
    run(cancellation, tmp_path)


async def fairness(context: zmq.Context[Any], path: Path) -> None:
    router = RouterSocket(context)
    router.bind(f"ipc://{path}/s")
    dealer = DealerSocket(context)
    dealer.connect(router.address)
    for _ in range(200):
        await dealer.send([b"x"])
    while len(await router.receive_batch(1)) < 1:
        pass
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(199):
            await router.receive_batch(1)
        nursery.cancel_scope.cancel()
    assert turns >= 10
    router.close()
    dealer.close()


def test_a_busy_socket_lets_other_tasks_run(tmp_path: Path) -> None:
    run(fairness, tmp_path)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs
import pytest
import trio
import zmq

from runtime.bus import Bus
from runtime.host import Host
from runtime.topology import Topology
from tests.runtime.actors import Echo
from tests.runtime.test_refs import eventually, spread_over
from transport.codec import Packet, encode
from transport.errors import AddressError, Unavailable
from transport.messages import Ping, Pong
from transport.sockets import DealerSocket, RouterSocket, open_context

PERIOD_S = 0.05


@attrs.define
class Node:
    bus: Bus
    host: Host


@asynccontextmanager
async def node(topology: Topology, actor: str) -> AsyncIterator[Node]:
    bus = Bus(topology, f"node-{actor}", period_s=PERIOD_S)
    host = Host(topology, {actor: Echo}, remote=bus.ref)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run, host.mailbox)
        await nursery.start(host.run)
        yield Node(bus, host)
        nursery.cancel_scope.cancel()


async def is_answered(node: Node, actor: str) -> bool:
    try:
        await node.host.ref(actor).ask(Ping(request_id=1), budget=5)
    except Unavailable:
        return False
    return True


async def until_answered(node: Node, actor: str) -> None:
    with trio.fail_after(5):
        while not await is_answered(node, actor):  # noqa: ASYNC110 - the peer comes back by itself
            await trio.sleep(PERIOD_S)


async def test_words_to_a_node_that_is_not_up_yet_wait_for_it(tmp_path: Path) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "a") as a, trio.open_nursery() as nursery:

        async def ask() -> None:
            answer = await a.host.ref("b").ask(Ping(request_id=1), budget=5)
            assert answer == Pong(request_id=1, status="b")
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask)
        await trio.lowlevel.checkpoint()
        async with node(topology, "b"):
            await trio.sleep_forever()


async def test_a_node_that_never_comes_is_unavailable_soon(tmp_path: Path) -> None:
    async with node(spread_over(tmp_path), "a") as a:
        with trio.fail_after(5):
            with pytest.raises(Unavailable, match="node node-b does not answer"):
                await a.host.ref("b").ask(Ping(request_id=1), budget=60)
        with pytest.raises(Unavailable, match="node node-b does not answer"):
            a.host.ref("b").tell(Ping(request_id=1))


async def live(
    topology: Topology,
    actor: str,
    life: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    with life:
        async with node(topology, actor) as lives:
            task_status.started(lives)
            await trio.sleep_forever()


async def fail_ask(node: Node, actor: str, why: str) -> None:
    with trio.fail_after(5), pytest.raises(Unavailable, match=why):
        await node.host.ref(actor).ask(Ping(request_id=1001), budget=60)


async def test_a_node_that_ends_fails_the_asks_to_it_and_is_found_again_when_it_is_back(
    tmp_path: Path,
) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "a") as a, trio.open_nursery() as nursery:
        life = trio.CancelScope()
        await nursery.start(live, topology, "b", life)
        await until_answered(a, "b")
        async with trio.open_nursery() as asking:
            asking.start_soon(fail_ask, a, "b", r"b has ended|node-b is gone")
            await trio.sleep(PERIOD_S)
            life.cancel()
        await fail_ask(a, "b", "node-b")
        await nursery.start(live, topology, "b", trio.CancelScope())
        await until_answered(a, "b")
        nursery.cancel_scope.cancel()


async def test_a_node_that_was_restarted_gets_the_answer_to_what_it_says_first(
    tmp_path: Path,
) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "a") as a, trio.open_nursery() as nursery:
        life = trio.CancelScope()
        await nursery.start(live, topology, "b", life)
        await until_answered(a, "b")
        life.cancel()
        await fail_ask(a, "b", "node-b")
        b: Node = await nursery.start(live, topology, "b", trio.CancelScope())
        await b.host.ref("a").ask(Ping(request_id=1), budget=5)
        # b's heartbeat came before its ask: by now a holds what it says until b is reached.
        assert await is_answered(a, "b")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def impostor(topology: Topology, actor: str) -> AsyncIterator[RouterSocket]:
    """A socket where a node should be."""
    async with open_context() as context, RouterSocket(context) as socket:
        socket.bind(topology.address(f"node-{actor}"))
        yield socket


async def test_a_node_that_hangs_counts_as_dead(tmp_path: Path) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "a") as a, impostor(topology, "b"):
        await fail_ask(a, "b", "node-b does not answer")
        await fail_ask(a, "b", "node-b does not answer")


async def test_a_restart_quicker_than_the_heartbeat_fails_the_asks_before_it(
    tmp_path: Path,
) -> None:
    topology = spread_over(tmp_path)
    async with (
        node(topology, "a") as a,
        impostor(topology, "b") as peer,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(fail_ask, a, "b", "was restarted")
        n_beats = 0
        while n_beats < 2:
            for identity, frames in await peer.receive_batch(9):
                if b"@node-a" in bytes(frames[1]):
                    n_beats += 1
                    peer.try_send(
                        identity,
                        encode(Packet("", 0, Pong(request_id=n_beats, status="ready"))),
                    )


async def test_damaged_packets_are_counted_told_once_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "a") as a, node(topology, "b") as b, open_context() as context:
        async with DealerSocket(context) as vandal:
            vandal.connect(topology.address("node-b"))
            for frames in ([b"what?"], [b"TB\x01", b"\xff" * 9], [b"TB\x07", b"\x90"]):
                await vandal.send(list(frames))
            await eventually(lambda: b.bus.metrics.snapshot().get("damaged") == 3)
        assert len([r for r in caplog.records if "damaged" in r.message]) == 1
        await until_answered(a, "b")


async def test_damaged_answers_are_counted_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "a") as a, impostor(topology, "b") as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_ask, a, "b", "node-b does not answer")
            (identity, _), *_ = await peer.receive_batch(9)
            for _ in range(3):
                await peer.send(identity, [b"what?"])
            await eventually(lambda: a.bus.metrics.snapshot().get("damaged") == 3)
        assert len([r for r in caplog.records if "damaged" in r.message]) == 1


async def test_words_for_an_actor_that_is_not_here_are_refused(tmp_path: Path) -> None:
    topology = spread_over(tmp_path)
    async with node(topology, "b") as b, open_context() as context:
        stranger = DealerSocket(context)
        with closing(stranger):
            stranger.connect(topology.address("node-b"))
            await stranger.send(encode(Packet("nobody", 5, Ping(request_id=1))))
            (answer,) = await stranger.receive_batch(1)
            assert b"node node-b has no actor 'nobody'" in b"".join(bytes(f) for f in answer)
            await stranger.send(encode(Packet("nobody", 0, Ping(request_id=1))))
            await eventually(lambda: b.bus.metrics.snapshot().get("stray") == 2)


async def test_an_address_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        topology = spread_over(tmp_path)
        nodes = tuple(attrs.evolve(n, bind=f"tcp://127.0.0.1:{port}") for n in topology.nodes)
        bus = Bus(attrs.evolve(topology, nodes=nodes), "node-a")
        with pytest.raises(AddressError, match=str(port)):
            await bus.run(lambda name: None)


def test_a_bus_that_does_not_run_reaches_nobody(tmp_path: Path) -> None:
    ref = Bus(spread_over(tmp_path), "node-a").ref("b")
    with pytest.raises(Unavailable, match="node-a is not connected"):
        ref.tell(Ping(request_id=1))

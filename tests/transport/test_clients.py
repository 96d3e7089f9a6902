"""One body for both clients: the blocking one is called in worker threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgpack
import numpy as np
import pytest
import trio
import trio.testing

from tests.transport.fake_gateway import (
    Behaviour,
    FakeGateway,
    answer_frames,
    ignore,
    refuse,
    restart,
    scores_of,
    serve,
    stop,
)
from transport import errors
from transport import messages as m
from transport.blocking import BlockingClient
from transport.client import Client
from transport.codec import PREFIX, Packet, encode
from transport.exchange import RetryPolicy, Scores
from transport.sockets import open_context

SOON = 20.0
ASK: dict[str, Any] = {
    "model": "m",
    "user": {"age": 30},
    "candidates": {"price": np.array([1.5, 2.5], np.float32)},
    "budget": SOON,
}
QUICK = RetryPolicy(first_wait_s=0.001, longest_wait_s=0.002)


class Caller:
    """Calls either client's methods as coroutines."""

    def __init__(self, client: Client | BlockingClient) -> None:
        self.client = client

    async def __call__(self, method: str, **arguments: Any) -> Any:  # noqa: ANN401
        call = getattr(self.client, method)
        if isinstance(self.client, Client):
            return await call(**arguments)
        return await trio.to_thread.run_sync(partial(call, **arguments))

    async def score(self, **changes: Any) -> Scores:  # noqa: ANN401
        scores = await self("score", **(ASK | changes))
        assert isinstance(scores, Scores)
        return scores


@asynccontextmanager
async def connect(kind: str, *addresses: str) -> AsyncIterator[Caller]:
    if kind == "trio":
        async with Client.connect(*addresses, policy=QUICK) as client:
            yield Caller(client)
    else:
        with BlockingClient(*addresses, policy=QUICK) as blocking:
            yield Caller(blocking)


Setup = Callable[..., Awaitable[None]]


@pytest.fixture(params=["trio", "blocking"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Run a test with a client of one fake gateway for each list of behaviours."""

    def run(test: Setup, *scripts: list[Behaviour]) -> None:
        async def bounded() -> None:
            with trio.fail_after(SOON):
                async with open_context() as context, trio.open_nursery() as nursery:
                    gateways = []
                    for i, script in enumerate(scripts):
                        gateway = FakeGateway(context, f"ipc://{tmp_path}/{i}", *script)
                        nursery.start_soon(gateway.run)
                        gateways.append(gateway)
                    addresses = [gateway.address for gateway in gateways]
                    async with connect(request.param, *addresses) as caller:
                        await test(caller, *gateways)
                    nursery.cancel_scope.cancel()

        trio.run(bounded)

    return run


def test_scores_come_by_output(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        scores = await caller.score()
        assert scores.scores.dtype == np.float32
        np.testing.assert_array_equal(scores.scores, [3.0, 5.0])
        assert list(scores.outputs) == ["ctr", "pair"]
        assert scores.outputs["ctr"] is scores.scores
        np.testing.assert_array_equal(scores.outputs["pair"], [[1.5, 2.5], [2.5, 3.5]])
        (request,) = gateway.seen
        assert request.model == "m"
        assert request.n_candidates == 2
        assert 0 < request.budget_us <= SOON * 1e6
        assert [(b.side, b.names) for b in request.blocks] == [(0, ("age",)), (1, ("price",))]

    run(test, [serve])


def test_rows_are_sent_as_columns(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        scores = await caller.score(candidates=[{"price": 1.5, "tags": ["a"]}, {"price": 2.5}])
        np.testing.assert_array_equal(scores.scores, [3.0, 5.0])
        assert gateway.seen[0].rows == b""
        assert {b.names for b in gateway.seen[0].blocks} == {("age",), ("price",), ("tags",)}

    run(test, [serve])


def test_no_candidates_have_no_scores(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        scores = await caller.score(candidates={"price": []})
        assert scores.scores.shape == (0,)
        assert scores.outputs["pair"].shape == (0, 2)

    run(test, [serve])


def test_the_other_questions_are_answered(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        assert await caller("ping") == "ready"
        assert await caller("models") == {"m": {"version": "1"}}
        assert await caller("stats", reset=True) == {"reset": True}

    run(test, [serve])


def test_many_requests_at_a_time_get_each_its_own_answer(run: Any) -> None:  # noqa: ANN401
    held: list[tuple[bytes, m.ScoreRequest]] = []

    async def in_reverse(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
        held.append((identity, message))
        if len(held) == 8:
            while held:
                identity, message = held.pop()
                await gateway.send(identity, scores_of(message))

    async def test(caller: Caller, gateway: FakeGateway) -> None:
        async def one(price: float) -> None:
            scores = await caller.score(candidates={"price": [price]})
            np.testing.assert_array_equal(scores.scores, [2 * price])

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for i in range(8):
                    nursery.start_soon(one, float(i))
        assert len({message.request_id for message in gateway.seen}) == 16

    run(test, [in_reverse])


@pytest.mark.parametrize("code", ["overloaded", "unavailable"])
def test_a_refused_request_is_tried_again(run: Any, code: str) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        np.testing.assert_array_equal((await caller.score()).scores, [3.0, 5.0])
        assert len(gateway.seen) == 3
        budgets = [request.budget_us for request in gateway.seen]
        assert sorted(budgets, reverse=True) == budgets  # what is left, not what there was
        assert len({request.request_id for request in gateway.seen}) == 3

    run(test, [refuse(code), refuse(code), serve])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("invalid", errors.InvalidRequest),
        ("deadline", errors.DeadlineExceeded),
        ("internal", errors.InternalError),
    ],
)
def test_other_errors_are_raised_at_once(
    run: Any,  # noqa: ANN401
    code: str,
    error: type[errors.RequestError],
) -> None:
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(error, match=f"so {code}") as caught:
            await caller.score()
        assert caught.value.field == "price"
        assert len(gateway.seen) == 1

    run(test, [refuse(code)])


def test_attempts_end(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(errors.Overloaded, match="so overloaded"):
            await caller.score()
        assert len(gateway.seen) == QUICK.n_attempts

    run(test, [refuse("overloaded")])


def test_the_next_gateway_gets_what_one_refused(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, one: FakeGateway, other: FakeGateway) -> None:
        while not (one.seen and other.seen):
            await caller.score()
        assert all(isinstance(message, m.ScoreRequest) for message in other.seen)

    run(test, [refuse("unavailable")], [serve])


def test_a_lost_connection_fails_over_at_once(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, one: FakeGateway, other: FakeGateway) -> None:
        while not one.seen:
            assert len((await caller.score()).scores) == 2
        for _ in range(3):  # and goes on with the one that is left
            assert len((await caller.score()).scores) == 2
        assert len(one.seen) == 1

    run(test, [stop], [serve])


def test_no_moment_of_a_connection_is_missed(tmp_path: Path) -> None:
    """Connections come and go at all moments of a request; once in 20 to 500 one was missed."""

    async def once(i: int) -> None:
        async with open_context() as context, trio.open_nursery() as nursery:
            scripts = [[stop], [serve]]
            gateways = [
                FakeGateway(context, f"ipc://{tmp_path}/{i}-{k}", *script)
                for k, script in enumerate(scripts)
            ]
            for gateway in gateways:
                nursery.start_soon(gateway.run)
            async with connect("trio", *(gateway.address for gateway in gateways)) as caller:
                while not gateways[0].seen:
                    await caller.score()
                await caller.score()
            nursery.cancel_scope.cancel()

    async def test() -> None:
        for i in range(100):
            with trio.fail_after(SOON):
                await once(i)

    trio.run(test)


def test_a_restarted_gateway_is_found_again(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        for _ in range(3):
            assert len((await caller.score()).scores) == 2

    run(test, [restart, serve, restart, serve])


def test_silence_ends_with_the_budget(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        await caller("ping")
        with pytest.raises(errors.DeadlineExceeded, match=r"no answer within 0.02 s"):
            await caller.score(budget=0.02)
        # Its late answer harms nobody.
        assert len((await caller.score()).scores) == 2

    late: list[Any] = []

    async def later(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
        late.append((identity, message))
        await trio.lowlevel.checkpoint()

    async def both(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
        for each in (*late, (identity, message)):
            await gateway.send(each[0], scores_of(each[1]))

    run(test, [serve, later, both])


def damaged(message: m.ScoreRequest) -> list[bytes]:
    prefix, header, blob = encode(Packet("", 0, scores_of(message)))
    return [bytes(prefix), bytes(header), bytes(blob[:-1])]


@pytest.mark.parametrize(
    "make",
    [
        damaged,
        lambda message: [b"garbage"],
        lambda message: [b"TB\x09", b"\x90"],
        lambda message: [PREFIX, msgpack.packb([6, "", 0, "x", []])],
        lambda message: encode(Packet("", 0, m.Pong(request_id=message.request_id, status=""))),
        lambda message: [PREFIX, msgpack.packb([77, "", 0, 1, []])],
    ],
    ids=["cut", "garbage", "foreign version", "bad id", "another answer", "another kind"],
)
def test_a_damaged_answer_costs_one_attempt(run: Any, make: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        assert len((await caller.score()).scores) == 2
        assert len(gateway.seen) == 2

    run(test, [answer_frames(make), serve])


def test_a_foreign_server_is_named(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(errors.RemoteProtocolError, match=rf"{gateway.address}: .* version 9"):
            await caller.score()

    run(test, [answer_frames(lambda message: [b"TB\x09", b"\x90"])])


def test_an_error_for_no_known_request_fails_those_in_flight(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(errors.InvalidRequest, match="so invalid"):
            await caller.score()

    run(test, [refuse("invalid", request_id=0)])


def test_scores_of_another_number_of_candidates_are_refused(run: Any) -> None:  # noqa: ANN401
    def fewer(message: m.ScoreRequest) -> Any:  # noqa: ANN401
        reply = m.ScoreReply(
            request_id=message.request_id, outputs=("a",), widths=(1,), scores=np.zeros((1, 1), "f")
        )
        return encode(Packet("", 0, reply))

    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(errors.RemoteProtocolError, match="asked for 2 candidates"):
            await caller.score()

    run(test, [answer_frames(fewer)])


def test_a_degraded_answer_says_so(run: Any) -> None:  # noqa: ANN401
    def degrade(message: m.ScoreRequest) -> Any:  # noqa: ANN401
        reply = attrs.evolve(scores_of(message), degraded=message.model == "worn")
        return encode(Packet("", 0, reply))

    async def test(caller: Caller, gateway: FakeGateway) -> None:
        assert (await caller.score(model="worn")).degraded
        assert not (await caller.score()).degraded

    run(test, [answer_frames(degrade), answer_frames(degrade)])


def test_what_is_wrong_on_this_side_is_not_sent(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"budget": 0}, "budget"),
            ({"budget": float("nan")}, "budget"),
            ({"budget": "1"}, "budget"),
            ({"user": [1]}, "user"),
            ({"candidates": 3}, "candidates"),
            ({"candidates": {"price": {}}}, "price"),
            ({"candidates": [{"price": 1}, {"price": "x"}]}, "price"),
        ]
        for changes, field in wrong:
            with pytest.raises(errors.InvalidRequest) as caught:
                await caller.score(**changes)
            assert caught.value.field in (field, "candidates")
        assert not gateway.seen

    run(test, [serve])


def test_without_a_gateway_requests_are_unavailable(run: Any) -> None:  # noqa: ANN401
    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(errors.Unavailable, match="connection to ipc"):
            await caller.score(budget=0.4)

    run(test, [stop])


def test_a_json_answer_that_is_none_is_refused(run: Any) -> None:  # noqa: ANN401
    def bad(message: m.ModelsRequest) -> Any:  # noqa: ANN401
        reply = m.ModelsReply(request_id=message.request_id, models="[1")
        return encode(Packet("", 0, reply))

    async def test(caller: Caller, gateway: FakeGateway) -> None:
        with pytest.raises(errors.RemoteProtocolError, match="not JSON"):
            await caller("models")

    run(test, [answer_frames(bad)])


@pytest.mark.parametrize("kind", ["trio", "blocking"])
def test_an_address_that_is_none_is_refused(kind: str) -> None:
    async def test() -> None:
        with pytest.raises(errors.AddressError, match="cannot connect to nonsense"):
            async with connect(kind, "nonsense"):
                pass
        with pytest.raises(ValueError, match="at least one address"):
            async with connect(kind):
                pass

    trio.run(test)


def test_time_runs_out_on_the_clock_of_trio(tmp_path: Path) -> None:
    clock = trio.testing.MockClock()

    async def test() -> None:
        async with open_context() as context, trio.open_nursery() as nursery:

            async def silent(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
                assert message.budget_us == 1_000_000
                clock.jump(1.5)
                await trio.lowlevel.checkpoint()

            gateway = FakeGateway(context, f"ipc://{tmp_path}/0", silent)
            nursery.start_soon(gateway.run)
            async with Client.connect(gateway.address) as client:
                with pytest.raises(errors.DeadlineExceeded):
                    await client.score(**(ASK | {"budget": 1.0}))
                assert trio.current_time() >= 1.5
            nursery.cancel_scope.cancel()

    trio.run(test, clock=clock)


def test_what_the_callers_block_raises_comes_out_as_it_was() -> None:
    async def test() -> None:
        with pytest.raises(KeyError, match="mine"):
            async with Client.connect("ipc:///nowhere"):
                raise KeyError("mine")

    trio.run(test)


def test_cancelling_a_request_leaves_the_client_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_context() as context, trio.open_nursery() as nursery:
            gateway = FakeGateway(context, f"ipc://{tmp_path}/0", ignore, serve)
            nursery.start_soon(gateway.run)
            async with Client.connect(gateway.address) as client:
                with trio.move_on_after(0.01) as scope:
                    await client.score(**ASK)
                assert scope.cancelled_caught
                if not gateway.seen:
                    gateway._behaviours = [serve]
                assert len((await client.score(**ASK)).scores) == 2
            nursery.cancel_scope.cancel()

    trio.run(test)


def test_a_closed_blocking_client_says_so() -> None:
    client = BlockingClient("ipc:///nowhere")
    client.close()
    client.close()
    with pytest.raises(errors.SocketClosed):
        client.ping()


def test_closing_a_blocking_client_lets_threads_finish(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_context() as context, trio.open_nursery() as nursery:
            client = BlockingClient(f"ipc://{tmp_path}/0")

            async def close_first(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
                client.close()
                await serve(gateway, identity, message)

            gateway = FakeGateway(context, f"ipc://{tmp_path}/0", close_first)
            nursery.start_soon(gateway.run)
            assert len((await Caller(client).score()).scores) == 2
            with pytest.raises(errors.SocketClosed):
                client.ping()
            nursery.cancel_scope.cancel()

    trio.run(test)


def test_waits_double_within_their_bounds() -> None:
    policy = RetryPolicy(first_wait_s=0.01, longest_wait_s=0.03)
    assert [policy.wait_s(n, 1.0) for n in (1, 2, 3, 9)] == [0.01, 0.02, 0.03, 0.03]
    assert policy.wait_s(1, 0.0) == 0.005


def test_the_blocking_client_needs_no_event_loop() -> None:
    code = (
        "import sys, transport.blocking; "
        "assert not {'trio', 'asyncio'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

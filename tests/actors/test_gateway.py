from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from actors.executor import Executor
from actors.gateway import Gateway
from actors.shard import EmbeddingShard
from runtime.actor import Context
from runtime.host import Factory, Host
from runtime.mailbox import Mailbox
from runtime.supervisor import RestartPolicy
from runtime.topology import all_in_one
from tests import tiny
from transport.codec import Packet, decode, encode
from transport.messages import (
    Batch,
    Block,
    ErrorReply,
    Message,
    ModelsReply,
    ModelsRequest,
    Ping,
    Pong,
    ScoreReply,
    ScoreRequest,
    ScoresBatch,
    StatsReply,
    StatsRequest,
)
from transport.sockets import DealerSocket, open_context

ACTORS: dict[str, Factory] = {
    "gateway": Gateway,
    "shard-0": EmbeddingShard,
    "executor-0": Executor,
}


@asynccontextmanager
async def serving(
    bundle: Path,
    *,
    listen: str | None = None,
    gateway: Mapping[str, Any] | None = None,
    replace: Mapping[str, Factory] | None = None,
) -> AsyncIterator[Host]:
    """Run a cluster of one node in this process."""
    topology = all_in_one(bundle, model="tiny", listen=listen, gateway=gateway)
    host = Host(topology, {**ACTORS, **(replace or {})})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield host
        assert await host.stop(5.0)


def request(
    request_id: int = 1, n: int = 6, *, budget_us: int = 5_000_000, **changes: object
) -> ScoreRequest:
    """Ask for ``n`` candidates; ``changes`` replace blocks by name, or add fields."""
    rng = np.random.default_rng(request_id)
    genres = [tiny.GENRES[i % tiny.N_GENRES].encode() for i in range(n)]
    blocks = {
        "user_id": Block(
            side=0, names=("user_id",), values=np.array([[request_id % tiny.N_USERS]])
        ),
        "age": Block(side=0, names=("age",), values=np.array([[20.0 + request_id]], np.float32)),
        "history": Block(
            side=0,
            names=("history",),
            values=np.array([1, 2, 3]),
            row_splits=np.array([0, 3], np.int32),
        ),
        "item_id": Block(side=1, names=("item_id",), values=rng.integers(0, tiny.N_ITEMS, (1, n))),
        "price": Block(
            side=1, names=("price",), values=rng.standard_normal((1, n)).astype(np.float32)
        ),
        "genre": Block(
            side=1,
            names=("genre",),
            values=np.frombuffer(b"".join(genres), np.uint8),
            char_splits=np.cumsum([0, *map(len, genres)]).astype(np.int32),
        ),
    }
    fields: dict[str, Any] = {"model": "tiny", "n_candidates": n}
    for name, change in changes.items():
        if isinstance(change, Block):
            blocks[name] = change
        else:
            fields[name] = change
    return ScoreRequest(
        request_id=request_id, budget_us=budget_us, blocks=tuple(blocks.values()), **fields
    )


def expected(asked: ScoreRequest) -> NDArray[np.float64]:
    values = {block.names[0]: block.values for block in asked.blocks}
    return tiny.click(
        {
            "user_id": int(values["user_id"][0, 0]),
            "history": values["history"].tolist(),
            "age": float(values["age"][0, 0]),
        },
        {
            "item_id": values["item_id"][0],
            "genre": np.arange(asked.n_candidates) % tiny.N_GENRES,
            "price": values["price"][0],
        },
    )


async def ask(host: Host, asked: Message, budget: float = 10.0) -> Message:
    """Ask the gateway; errors come back as messages, as clients see them."""
    answers: list[Message] = []
    mailbox = host.mailbox("gateway")
    assert mailbox is not None
    done = trio.Event()

    def deliver(answer: Message) -> None:
        answers.append(answer)
        done.set()

    mailbox.put_ask_nowait(asked, trio.current_time(), deliver)
    with trio.fail_after(budget):
        await done.wait()
    return answers[0]


async def ask_all(host: Host, asked: list[ScoreRequest]) -> dict[int, Message]:
    """Ask several at once, so that the gateway finds them at hand together."""
    answers: dict[int, Message] = {}

    async def one(each: ScoreRequest) -> None:
        answers[each.request_id] = await ask(host, each)

    async with trio.open_nursery() as nursery:
        for each in asked:
            nursery.start_soon(one, each)
    return answers


def assert_scores(answer: Message, asked: ScoreRequest) -> None:
    assert isinstance(answer, ScoreReply), answer
    assert (answer.outputs, answer.widths) == (("click",), (1,))
    np.testing.assert_allclose(answer.scores[:, 0], expected(asked), rtol=1e-5)


def assert_error(answer: Message, code: str, field: str, *words: str) -> None:
    assert isinstance(answer, ErrorReply), answer
    assert (answer.code, answer.field) == (code, field), answer
    for word in words:
        assert word in answer.message


async def test_requests_at_hand_together_get_each_their_own_scores(tiny_bundle: Path) -> None:
    asked = [request(i, n) for i, n in enumerate([1, 6, 3, 40, 17], start=1)]
    async with serving(tiny_bundle) as host:
        answers = await ask_all(host, asked)
    for each in asked:
        assert_scores(answers[each.request_id], each)


async def test_a_request_larger_than_the_largest_bucket_is_split_and_joined(
    tiny_bundle: Path,
) -> None:
    asked = request(3, 5000)
    async with serving(tiny_bundle) as host:
        assert_scores(await ask(host, asked), asked)


async def test_no_candidates_get_no_scores(tiny_bundle: Path) -> None:
    async with serving(tiny_bundle) as host:
        answer = await ask(host, request(1, 0))
    assert isinstance(answer, ScoreReply)
    assert answer.scores.shape == (0, 1)


WRONG: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a model that is not served": ({"model": "huge"}, "invalid", "model", "tiny"),
    "a million candidates": ({"n_candidates": 10**6}, "invalid", "n_candidates", "1000000"),
    "a spent budget": ({"budget_us": 0}, "deadline", "", "budget"),
    "an unknown feature": (
        {"age": Block(side=0, names=("agee",), values=np.ones((1, 1)))},
        "invalid",
        "agee",
        "agee",
    ),
    "an id out of range": (
        {"user_id": Block(side=0, names=("user_id",), values=np.array([[99]]))},
        "invalid",
        "user_id",
        "99",
    ),
    "ragged candidate columns": (
        {"price": Block(side=1, names=("price",), values=np.ones((1, 5), np.float32))},
        "invalid",
        "price",
        "5",
    ),
    "an id that is not a number": (
        {"item_id": Block(side=1, names=("item_id",), values=np.full((1, 6), np.nan))},
        "invalid",
        "item_id",
        "",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_request_is_refused_by_name_and_harms_no_other(
    name: str, tiny_bundle: Path
) -> None:
    changes, code, field, word = WRONG[name]
    good = request(1)
    async with serving(tiny_bundle) as host:
        answers = await ask_all(host, [request(2, **changes), good])
    assert_error(answers[2], code, field, word)
    assert_scores(answers[1], good)


class Silent:
    """An executor or shard that takes everything and answers nothing."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.seen: list[Message] = []
        Silent.last = self

    last: Silent

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        while envelopes := await mailbox.receive_batch(10):
            self.seen += [envelope.message for envelope in envelopes]


async def test_a_request_that_nobody_answers_is_answered_at_its_deadline(
    tiny_bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tiny_bundle, replace={"executor-0": Silent}) as host:
        start = trio.current_time()
        answer = await ask(host, request(1, budget_us=50_000))
        assert_error(answer, "deadline", "")
        assert 0.0499 <= trio.current_time() - start <= 0.055
        [batch] = [each for each in Silent.last.seen if isinstance(each, Batch)]
        late = ScoresBatch(
            seq=batch.seq,
            requests=np.zeros(1, np.int32),
            codes=np.zeros(1, np.uint8),
            scores=np.zeros((6, 1), np.float32),
        )
        Silent.last.context.ref("gateway").tell(late)
        assert isinstance(await ask(host, Ping(request_id=9)), Pong)


async def test_a_deadline_is_noticed_while_a_later_one_is_waited_for(
    tiny_bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    answered: dict[int, float] = {}

    async def ask_one(host: Host, number: int, budget_us: int) -> None:
        await ask(host, request(number, budget_us=budget_us))
        answered[number] = trio.current_time() - began

    async with serving(tiny_bundle, replace={"executor-0": Silent}) as host:
        began = trio.current_time()
        async with trio.open_nursery() as asking:
            asking.start_soon(ask_one, host, 1, 5_000_000)
            await trio.sleep(0.1)
            asking.start_soon(ask_one, host, 2, 30_000)
    assert 0.13 <= answered[2] < 0.15
    assert 5.0 <= answered[1] < 5.1


async def test_above_the_high_water_mark_requests_are_refused_at_once(
    tiny_bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    options = {"max_in_flight": 3}
    async with serving(tiny_bundle, gateway=options, replace={"executor-0": Silent}) as host:
        answers = await ask_all(host, [request(i, budget_us=10_000) for i in range(1, 6)])
    codes = [answer.code for answer in answers.values() if isinstance(answer, ErrorReply)]
    assert sorted(codes) == ["deadline"] * 3 + ["overloaded"] * 2


class Dying(Silent):
    """A shard that dies of the first message."""

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await mailbox.receive_batch(1)
        raise RuntimeError("the disk is gone")


async def test_while_a_shard_is_away_requests_are_refused_as_unavailable(
    tiny_bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tiny_bundle, replace={"shard-0": Dying}) as host:
        first = await ask(host, request(1, budget_us=20_000))
        assert_error(first, "deadline", "")
        second = await ask(host, request(2, budget_us=20_000))
        assert_error(second, "unavailable", "", "shard-0")


async def test_while_an_executor_is_away_another_one_serves(tiny_bundle: Path) -> None:
    topology = all_in_one(tiny_bundle, model="tiny")
    [node] = topology.nodes
    other = attrs.evolve(node.actors[-1], name="executor-1")
    model = attrs.evolve(topology.models["tiny"], executors=("executor-1", "executor-0"))
    both = attrs.evolve(
        topology,
        nodes=(attrs.evolve(node, actors=(*node.actors, other)),),
        models={"tiny": model},
    )
    away = RestartPolicy(first_delay_s=60, longest_delay_s=60)
    host = Host(both, {**ACTORS, "executor-1": Dying}, policy=away)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        # The first one's head kills executor-1; whether its shard notices in time is open.
        first = await ask(host, request(1, budget_us=300_000))
        assert isinstance(first, ErrorReply)
        assert first.code in ("unavailable", "deadline")
        assert_scores(await ask(host, request(2)), request(2))
        nursery.cancel_scope.cancel()


class Slow:
    """An executor that answers a batch after a second."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        while envelopes := await mailbox.receive_batch(10):
            for envelope in envelopes:
                batch = envelope.message
                if not isinstance(batch, Batch):
                    continue
                await trio.sleep(1.0)
                n_requests, n_rows = len(batch.n_rows), int(batch.n_rows.sum())
                scores = ScoresBatch(
                    seq=batch.seq,
                    requests=np.arange(n_requests, dtype=np.int32),
                    codes=np.zeros(n_requests, np.uint8),
                    scores=np.full((n_rows, 1), 0.5, np.float32),
                )
                self.context.ref(batch.gateway).tell(scores)


async def test_a_draining_gateway_finishes_what_it_took_and_refuses_the_rest(
    tiny_bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    answers: dict[str, Message] = {}

    async def ask_as(name: str, host: Host, request_id: int) -> None:
        answers[name] = await ask(host, request(request_id))

    topology = all_in_one(tiny_bundle, model="tiny")
    host = Host(topology, {**ACTORS, "executor-0": Slow})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        nursery.start_soon(ask_as, "taken", host, 1)
        await trio.sleep(0.1)
        nursery.start_soon(host.stop, 5.0)
        await trio.sleep(0.1)
        nursery.start_soon(ask_as, "late", host, 2)
    assert isinstance(answers["taken"], ScoreReply)
    assert_error(answers["late"], "unavailable", "", "draining")


async def test_over_a_socket_a_damaged_message_costs_its_sender_an_answer_and_nothing_else(
    tiny_bundle: Path,
) -> None:
    asked = request(7)
    async with (
        open_context() as context,
        serving(tiny_bundle, listen=f"ipc://{tiny_bundle.parent}/clients") as host,
        DealerSocket(context) as client,
    ):
        client.connect(str(host.topology.node("node").actors[0].options["listen"]))
        for damaged in ([b"x"], [b"TB\x09", b"\x90"], [b"TB\x01", b"\xc1"], [b"", b"", b""]):
            await client.send(list(damaged))
        await client.send([*encode(Packet("", 0, Ping(request_id=5)))])
        await client.send([*encode(Packet("", 0, asked))])
        answers: list[Message] = []
        while len(answers) < 6:
            answers += [decode(frames).message for frames in await client.receive_batch(10)]
    refused = [answer for answer in answers if isinstance(answer, ErrorReply)]
    assert [(each.code, each.request_id) for each in refused] == [("invalid", 0)] * 4
    assert any("version 9" in each.message for each in refused)
    assert Pong(request_id=5, status="ready") in answers
    [scores] = [answer for answer in answers if isinstance(answer, ScoreReply)]
    assert_scores(scores, asked)


async def test_a_gateway_tells_what_it_serves_and_how_long_each_stage_took(
    tiny_bundle: Path,
) -> None:
    async with serving(tiny_bundle) as host:
        models = await ask(host, ModelsRequest(request_id=1))
        await ask(host, request(2))
        stats = await ask(host, StatsRequest(request_id=3))
    assert isinstance(models, ModelsReply)
    described = json.loads(models.models)["tiny"]
    assert {each["name"] for each in described["features"]} >= {"user_id", "history", "genre"}
    assert described["outputs"] == [{"name": "click", "width": 1}]
    assert isinstance(stats, StatsReply)
    told = json.loads(stats.stats)
    for stage in ("parse_us", "join_us", "queue_us", "compute_us", "reply_us", "total_us"):
        assert told["gateway"][stage]["n"] == 1
    assert told["executor-0"]["window_requests"]["mean"] == 1
    assert told["shard-0"]["lookup_us"]["n"] == 1

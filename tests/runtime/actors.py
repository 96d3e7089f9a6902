"""Small actors for the tests of the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trio

from runtime.actor import Context, Reply
from runtime.errors import StartError
from runtime.mailbox import Mailbox
from runtime.topology import ActorSpec, ModelSpec, NodeSpec, Topology
from transport.messages import (
    ErrorReply,
    Message,
    Ping,
    Pong,
    ScoreReply,
    ScoreRequest,
    StatsReply,
    StatsRequest,
)


class Echo:
    """Answers a ``Ping`` with a ``Pong`` of the same number; some numbers do other things.

    1000: dies. 1001: leaves it unanswered. 1002: answers with an error. Tells are kept in ``told``.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.told: list[Message] = []

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        while batch := await mailbox.receive_batch(16):
            for envelope in batch:
                message = envelope.message
                assert isinstance(message, Ping)
                if message.request_id == 1000:
                    raise ZeroDivisionError("asked to die")
                if envelope.reply is None:
                    self.told.append(message)
                elif message.request_id == 1002:
                    refusal = ErrorReply(
                        request_id=1002, code="invalid", message="user: missing", field="user"
                    )
                    envelope.reply(refusal)
                elif message.request_id != 1001:
                    envelope.reply(Pong(request_id=message.request_id, status=self.context.name))


class ToyGateway:
    """Scores candidate ``i`` of user ``{"x": x}`` with ``x + i``.

    x -1: no answer. x -2: dies. x -3: an error. Others above 1000: takes a tenth of a second.
    """

    drains_itself = True

    def __init__(self, context: Context) -> None:
        self.context = context
        self.n_open = 0

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        if "refuse" in self.context.options:
            raise StartError(str(self.context.options["refuse"]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, mailbox, nursery)
            task_status.started()
            await self.context.stopping.wait()
            while self.n_open:  # noqa: ASYNC110
                await trio.sleep(0.01)
            mailbox.close()

    async def _serve(self, mailbox: Mailbox, nursery: trio.Nursery) -> None:
        while batch := await mailbox.receive_batch(16):
            for envelope in batch:
                assert envelope.reply is not None
                if isinstance(envelope.message, StatsRequest):
                    envelope.reply(StatsReply(request_id=1, stats='{"gateway": {"open": 1}}'))
                else:
                    assert isinstance(envelope.message, ScoreRequest)
                    self.n_open += 1
                    nursery.start_soon(self._answer, envelope.message, envelope.reply)

    async def _answer(self, request: ScoreRequest, reply: Reply) -> None:
        (x,) = request.blocks[0].values[0]
        if x == -2:
            raise ZeroDivisionError("asked to die")
        if x > 1000:
            await trio.sleep(0.1)
        scores = np.arange(request.n_candidates, dtype=np.float32)[:, None] + np.float32(x)
        if x == -3:
            reply(ErrorReply(request_id=1, code="invalid", message="x: is -3", field="x"))
        elif x != -1:
            reply(ScoreReply(request_id=1, outputs=("y",), widths=(1,), scores=scores))
        self.n_open -= 1


def toy(bundle: Path, n_models: int = 1, **options: str) -> Topology:
    """A cluster of a toy gateway, which says that it serves toys."""
    actor = ActorSpec(
        name="gateway", class_name="tests.runtime.actors.ToyGateway", options=dict(options)
    )
    only = ("gateway",)
    models = [
        ModelSpec(name=f"toy-{i}", bundle=bundle, shards=only, executors=only)
        for i in range(n_models)
    ]
    return Topology(
        name="toys",
        nodes=(NodeSpec(name="node", actors=(actor,)),),
        models={model.name: model for model in models},
    )


def topology_of(*names: str, mailbox: int = 64, drain_s: float = 5.0) -> Topology:
    """A cluster with an actor of each name, each in a node of its own."""
    nodes = [
        NodeSpec(
            name=f"node-{name}",
            actors=(ActorSpec(name=name, class_name="tests.runtime.actors.Echo", mailbox=mailbox),),
        )
        for name in names
    ]
    return Topology(name="test", nodes=tuple(nodes), drain_s=drain_s)

"""Small actors for the tests of the runtime."""

from __future__ import annotations

import trio

from runtime.actor import Context
from runtime.mailbox import Mailbox
from runtime.topology import ActorSpec, NodeSpec, Topology
from transport.messages import ErrorReply, Message, Ping, Pong


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

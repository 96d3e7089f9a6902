"""An actor for tests that cross processes: it answers on a socket of its own, and dies if told."""

from __future__ import annotations

import os

import trio

from kernels.errors import DeviceLost
from runtime.actor import Context
from runtime.errors import StartError
from runtime.mailbox import Mailbox
from transport.codec import Packet, decode, encode
from transport.errors import DeadlineExceeded, Unavailable
from transport.messages import ErrorReply, Ping, Pong
from transport.sockets import RouterSocket, open_context


class Echo:
    """Answers asks with its process id; clients get what the actor ``via`` of its options answers.

    A ``Ping`` with number 1000 ends the process that answers; 1002 takes a while; on 1003 it finds
    its card lost.
    """

    drains_itself = True

    def __init__(self, context: Context) -> None:
        self._context = context
        self._n_open = 0

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        if "refuse" in self._context.options:
            raise StartError(str(self._context.options["refuse"]))
        if "die" in self._context.options:
            os._exit(9)
        for step in range(4):
            self._context.report_ready(step / 4)
            await trio.lowlevel.checkpoint()
        listen = self._context.options.get("listen")
        async with open_context() as context, trio.open_nursery() as nursery:
            if listen is not None:
                socket = RouterSocket(context)
                socket.bind(listen)
                nursery.start_soon(self._serve_clients, socket, nursery)
            nursery.start_soon(self._serve_mailbox, mailbox)
            task_status.started()
            await self._context.stopping.wait()
            while self._n_open:  # noqa: ASYNC110
                await trio.sleep(0.01)
            mailbox.close()
            nursery.cancel_scope.cancel()

    async def _serve_mailbox(self, mailbox: Mailbox) -> None:
        while batch := await mailbox.receive_batch(8):
            for envelope in batch:
                assert isinstance(envelope.message, Ping)
                if envelope.message.request_id == 1000:
                    os._exit(9)
                if envelope.message.request_id == 1003:
                    raise DeviceLost("cuEventSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS")
                if envelope.reply is not None:
                    envelope.reply(Pong(request_id=1, status=str(os.getpid())))

    async def _serve_clients(self, socket: RouterSocket, nursery: trio.Nursery) -> None:
        while True:
            for identity, frames in await socket.receive_batch(8):
                message = decode(frames).message
                assert isinstance(message, Ping)
                if self._context.stopping.is_set():
                    self._answer(socket, identity, self._refusal(message, "unavailable"))
                else:
                    self._n_open += 1
                    nursery.start_soon(self._relay, socket, identity, message)

    async def _relay(self, socket: RouterSocket, identity: bytes, message: Ping) -> None:
        if message.request_id == 1002:
            await trio.sleep(0.5)
        answer: Pong | ErrorReply
        try:
            found = await self._context.ref(self._context.options["via"]).ask(message, budget=1)
            assert isinstance(found, Pong)
            answer = Pong(request_id=message.request_id, status=found.status)
        except (Unavailable, DeadlineExceeded) as error:
            answer = self._refusal(message, error.code)
        self._answer(socket, identity, answer)
        self._n_open -= 1

    def _refusal(self, message: Ping, code: str) -> ErrorReply:
        return ErrorReply(request_id=message.request_id, code=code, message=self._context.name)

    def _answer(self, socket: RouterSocket, identity: bytes, answer: Pong | ErrorReply) -> None:
        socket.try_send(identity, encode(Packet("", 0, answer)))

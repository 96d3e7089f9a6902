"""References to actors, and the asker's side of an ask.

A reference to an actor of this process hands the message object over as it is; nobody may change a
message after it was told. A reference to an actor elsewhere is ``runtime.bus.RemoteRef``; both pass
one conformance suite.
"""

from __future__ import annotations

import trio

from runtime.actor import Envelope
from runtime.mailbox import Mailbox
from transport.errors import DeadlineExceeded, error_of
from transport.messages import ErrorReply, Message


class Answer:
    """What an asker waits on; ``deliver`` is given to whoever carries the answer back."""

    __slots__ = ("_event", "_message")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._message: Message | None = None

    def deliver(self, message: Message) -> None:
        """Hand over the answer. One that comes after the asker gave up goes nowhere."""
        self._message = message
        self._event.set()

    async def wait(self, name: str, budget: float) -> Message:
        """Return the answer of the actor ``name``.

        Raises:
            DeadlineExceeded: It did not come within ``budget`` seconds.
            RequestError: The answer was an ``ErrorReply``: the error of its code.
        """
        with trio.move_on_after(max(budget, 0.0)):
            await self._event.wait()
        if self._message is None:
            raise DeadlineExceeded(f"{name}: no answer within {budget * 1e3:g} ms")
        if isinstance(self._message, ErrorReply):
            raise error_of(self._message.code, self._message.message, self._message.field)
        return self._message


class LocalRef:
    """An actor of this process."""

    __slots__ = ("_mailbox",)

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    @property
    def name(self) -> str:
        """The actor's name in the topology."""
        return self._mailbox.name

    def tell(self, message: Message) -> None:
        """Put a message in the actor's mailbox; see ``runtime.actor.Ref``."""
        self._mailbox.put_nowait(Envelope(message, trio.current_time()))

    async def ask(self, message: Message, *, budget: float) -> Message:
        """Tell, and await the answer; see ``runtime.actor.Ref``."""
        answer = Answer()
        asked = self._mailbox.put_ask_nowait(message, trio.current_time(), answer.deliver)
        try:
            return await answer.wait(self.name, budget)
        finally:
            asked.forget()

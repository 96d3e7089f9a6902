"""What an actor is, and all that it may ask of its surroundings.

An actor is an object with ``run``, named by a topology, alone in reading its mailbox. It reaches
others by name through ``Context.ref``, the same way whether they live in this process or in
another, and says a thing in one of two ways: ``tell`` (never blocks, no answer) or ``ask`` (awaits
the answer within a budget).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from transport.messages import Message

if TYPE_CHECKING:
    from runtime.deployed import Deployed
    from runtime.mailbox import Mailbox
    from runtime.topology import Topology


class Reply(Protocol):
    """Answers one ask. If it is never called, the asker times out."""

    def __call__(self, message: Message) -> None:
        """Send the answer; a second call raises ``LocalProtocolError``."""


@attrs.frozen(eq=False)
class Envelope:
    """A message in a mailbox.

    Attributes:
        received_at: ``trio.current_time()`` at which it reached this process: budgets in the
            message count from here.
        reply: Answers the ask, or None if it was a tell.
    """

    message: Message
    received_at: float
    reply: Reply | None = None


class Ref(Protocol):
    """An actor, seen from another."""

    @property
    def name(self) -> str:
        """The actor's name in the topology."""

    def tell(self, message: Message) -> None:
        """Put a message in the actor's mailbox and return at once.

        Raises:
            Overloaded: The mailbox, or the way to it, is at its high-water mark. Not delivered.
            Unavailable: The actor is not there, or has closed its mailbox. Not delivered.
        """

    async def ask(self, message: Message, *, budget: float) -> Message:
        """Tell, and await the answer for at most ``budget`` seconds.

        Raises:
            Overloaded: As for ``tell``.
            Unavailable: As for ``tell``, or the actor died before it answered.
            DeadlineExceeded: No answer came in time.
            RequestError: The answer was an ``ErrorReply``: the error of its code.
        """


class Context(Protocol):
    """What the runtime gives each actor."""

    @property
    def name(self) -> str:
        """This actor's name in the topology."""

    @property
    def topology(self) -> Topology:
        """The whole cluster's topology."""

    @property
    def stopping(self) -> trio.Event:
        """Set when the actor is to refuse new work, finish what it took, and return."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The actor's own table of the topology file, without ``class`` and ``mailbox``."""

    def ref(self, actor: str) -> Ref:
        """Return a reference to an actor by name; cheap, and the same object each time.

        Raises:
            KeyError: The topology has no actor of that name.
        """

    def deployed(self, model: str) -> Deployed | None:
        """Return what was deployed here of a model; None if it is as the topology says."""

    async def keep_deployed(self, model: str, deployed: Deployed) -> None:
        """Write down what the actor holds of a model, for its next life; done on return.

        Raises:
            OSError: It cannot be written; then nothing has changed.
        """

    def report_ready(self, progress: float) -> None:
        """Say how far warming up has come, from 0 to 1, before ``task_status.started()``."""


class Actor(Protocol):
    """Implemented by the classes that a topology names: ``cls(context)`` makes one.

    ``run`` calls ``task_status.started()`` when it can answer, then serves its mailbox until that
    is closed and empty, finishes what it took, and returns. An exception out of ``run`` is the
    actor's death, as is a return that nobody asked for: its supervisor restarts it, with a new
    object and the same mailbox.

    To stop an actor, its supervisor sets ``context.stopping`` and closes its mailbox. An actor
    that needs its mailbox to finish what it took, as results come back through it, says
    ``drains_itself = True`` in its class: then closing the mailbox is left to it.

    ``run`` may not hold the event loop for long (half a second is what liveness allows): what
    takes longer, loading for instance, belongs in ``trio.to_thread.run_sync``.
    """

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty, and all that was taken is done."""

"""A bounded mailbox: many tell, one actor reads, in batches.

A mailbox outlives the actor object that reads it, and goes through these states:

    open --close()--> closed --abandon()--> ended
     | ^                                     ^
     | +--reopen()--+                        |
     +--abandon()--> away --abandon()--------+

*open*: takes envelopes. *closed*: the actor was asked to end; it can still receive what is there.
*away*: the actor died and its replacement does not run yet. *ended*: for good. All but *open*
refuse with ``Unavailable``.

Nobody waits for an answer that cannot come: ``abandon`` answers every ask that the actor leaves
behind, those in the mailbox and those that it took, with ``Unavailable``. Tells have nobody to
answer: they are counted in ``n_dropped``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import trio

from runtime.actor import Envelope
from transport.errors import LocalProtocolError, Overloaded, Unavailable
from transport.messages import ErrorReply, Message

CAPACITY: Final = 4096
"""Envelopes that wait at most, where the topology does not say: a few hundred milliseconds of
work at 10,000 messages/s, so what lies at the end is not past every sensible budget already."""

State: TypeAlias = Literal["open", "closed", "away", "ended"]


class Asked:
    """The reply to one ask: callable once. Given to the actor as ``Envelope.reply``."""

    __slots__ = ("_deliver", "_open")

    def __init__(self, deliver: Callable[[Message], None], open_asks: dict[Asked, None]) -> None:
        self._deliver: Callable[[Message], None] | None = deliver
        self._open = open_asks
        open_asks[self] = None

    def __call__(self, message: Message) -> None:
        """Send the answer.

        Raises:
            LocalProtocolError: It was answered before.
        """
        deliver, self._deliver = self._deliver, None
        if deliver is None:
            raise LocalProtocolError("an ask is answered once, and this one was")
        self.forget()
        deliver(message)

    def forget(self) -> None:
        """Note that nobody waits any more; an answer is still taken, and goes nowhere."""
        self._open.pop(self, None)


class Mailbox:
    """Holds envelopes until their actor takes them; bounded, so that overload is seen at once.

    Attributes:
        name: The actor's.
        capacity: The high-water mark, in envelopes.
        n_overloaded: Puts that were refused at the high-water mark.
        n_dropped: Tells that an actor left behind when it ended.
    """

    def __init__(self, name: str = "actor", capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"{name}: a mailbox holds at least one envelope, not {capacity}")
        self.name = name
        self.capacity = capacity
        self.n_overloaded = 0
        self.n_dropped = 0
        self._state: State = "open"
        self._envelopes: deque[Envelope] = deque()
        self._reader = trio.lowlevel.ParkingLot()
        self._open_asks: dict[Asked, None] = {}

    def __len__(self) -> int:
        return len(self._envelopes)

    def __bool__(self) -> bool:
        return True  # an empty mailbox is a mailbox

    @property
    def state(self) -> State:
        """See the module's docstring."""
        return self._state

    def put_nowait(self, envelope: Envelope) -> None:
        """Append an envelope.

        Raises:
            Overloaded: ``capacity`` envelopes are waiting.
            Unavailable: The mailbox is not open.
        """
        if self._state != "open":
            raise Unavailable(f"{self.name} is {_WHY[self._state]}")
        if len(self._envelopes) >= self.capacity:
            self.n_overloaded += 1
            raise Overloaded(f"{self.name}: {self.capacity} messages are waiting")
        self._envelopes.append(envelope)
        self._reader.unpark_all()

    def put_ask_nowait(
        self, message: Message, received_at: float, deliver: Callable[[Message], None]
    ) -> Asked:
        """Append an ask; ``deliver`` gets its answer, the actor's or that of ``abandon``.

        Raises:
            Overloaded: As ``put_nowait``.
            Unavailable: As ``put_nowait``.
        """
        if len(self._open_asks) >= _OPEN_ASKS_MOST * self.capacity:
            # Whoever asks in this process takes an ask back when it gives up; askers elsewhere
            # cannot, and an actor that forgets to answer them must not fill the memory.
            next(iter(self._open_asks))(self._refusal("does not answer"))
        asked = Asked(deliver, self._open_asks)
        try:
            self.put_nowait(Envelope(message, received_at, asked))
        except (Overloaded, Unavailable):
            asked.forget()
            raise
        return asked

    async def receive_batch(self, most: int) -> list[Envelope]:
        """Wait until there is an envelope; take up to ``most`` of those at hand, in order.

        Always a checkpoint, so that a busy actor starves nobody; if cancelled, nothing is taken.

        Returns:
            At least one envelope; an empty list once the mailbox is closed and empty.
        """
        if self._envelopes or self._state != "open":
            await trio.lowlevel.checkpoint()
        while not self._envelopes:
            if self._state != "open":
                return []
            await self._reader.park()
        if len(self._envelopes) <= most:
            batch = list(self._envelopes)
            self._envelopes.clear()
            return batch
        return [self._envelopes.popleft() for _ in range(most)]

    def close(self) -> None:
        """Take no more; what is in it can still be received."""
        if self._state == "open":
            self._state = "closed"
            self._reader.unpark_all()
        elif self._state == "away":
            self._state = "ended"

    def abandon(self, why: str, *, for_good: bool) -> None:
        """Answer what the actor left behind, and refuse more: its supervisor calls this.

        Args:
            why: For the askers, after the actor's name: "died", "was stopped".
            for_good: It is not going to be replaced.
        """
        self._state = "ended" if for_good else "away"
        for asked in list(self._open_asks):
            asked(self._refusal(why))
        self.n_dropped += sum(envelope.reply is None for envelope in self._envelopes)
        self._envelopes.clear()

    def reopen(self) -> None:
        """Take messages again, for the replacement of an actor that died."""
        if self._state == "away":
            self._state = "open"

    def _refusal(self, why: str) -> ErrorReply:
        return ErrorReply(request_id=0, code="unavailable", message=f"{self.name} {why}")


# Asks that an actor may hold unanswered, in capacities of its mailbox.
_OPEN_ASKS_MOST: Final = 16

_WHY: Final = {"closed": "draining", "away": "being restarted", "ended": "not running"}

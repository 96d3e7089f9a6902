"""A bounded mailbox: many tell, one actor reads, in batches."""

from __future__ import annotations

from runtime.actor import Envelope


class Mailbox:
    """Holds envelopes until their actor takes them; bounded, so that overload is seen at once."""

    def put_nowait(self, envelope: Envelope) -> None:
        """Append an envelope.

        Raises:
            Overloaded: ``capacity`` envelopes are waiting.
            Unavailable: The mailbox is closed.
        """
        raise NotImplementedError

    async def receive_batch(self, most: int) -> list[Envelope]:
        """Wait until there is an envelope; take up to ``most`` of those at hand, in order.

        Returns:
            At least one envelope; an empty list once the mailbox is closed and empty.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Take no more; what is in it can still be received."""
        raise NotImplementedError

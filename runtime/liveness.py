"""Whether a peer lives, as a value: periods pass, signs of life come."""

from __future__ import annotations

import attrs


@attrs.frozen
class Liveness:
    """What is known of a peer.

    Time is counted in heartbeat periods that *we* lived through: an event loop that was held up
    does not take its peers for dead.

    Attributes:
        most_missed: Periods without a sign of life after which the peer counts as dead. Three, as
            ZeroMQ's guide has it (zguide, Paranoid Pirate).
        missed: Such periods so far.
        incarnation: Which life of the peer was heard last; None before the first sign.
    """

    most_missed: int = 3
    missed: int = 0
    incarnation: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether to go on sending. A peer that was not heard yet gets the benefit of the doubt."""
        return self.missed < self.most_missed

    def period_passed(self) -> Liveness:
        """Return what is known after one more period in which nothing was heard."""
        return attrs.evolve(self, missed=self.missed + 1)

    def lost(self) -> Liveness:
        """Return what is known after the connection was lost."""
        return attrs.evolve(self, missed=self.most_missed)

    def heard(self, incarnation: int | None = None) -> Liveness:
        """Return what is known after a sign of life, which may say of which life."""
        known = self.incarnation if incarnation is None else incarnation
        return attrs.evolve(self, missed=0, incarnation=known)

    def is_reborn(self, incarnation: int) -> bool:
        """Whether a sign of that life says that the one known before is over."""
        return self.incarnation is not None and self.incarnation != incarnation

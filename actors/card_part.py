"""The part of a batch that is of cached tables, where an executor keeps hot rows on its card.

Of the batch's distinct keys it has the slots of those whose rows are there, which it holds a
*lease* of until the batch is answered, and the rows of the others, as the card stores them.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.hot import SlotSet
from transport.messages import LookupBatch, RowsPart

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@attrs.define(eq=False)
class Lease:
    """What a batch has of cached tables: slots, and which of its rows have none.

    Attributes:
        slots: int32 ``[n]``, of its distinct keys, table by table; ``~i`` of the ``i``-th that has
            none.
        splits: int64 ``[n_tables + 1]``: table ``t`` has ``slots[splits[t]:splits[t + 1]]``.
        tables: int64 ``[n_misses]``, the table of each key that has none.
        at: int64 ``[n_misses]``, where its row begins among the part's rows.
    """

    slots: I32
    splits: I64
    tables: I64
    at: I64
    _of: SlotSet | None = None

    def release(self) -> None:
        """Give the slots back, as no launch reads them for this batch any more. Idempotent."""
        held, self._of = self._of, None
        if held is not None:
            held.release(self.slots, self.splits)


@attrs.frozen(kw_only=True, eq=False)
class CardPart(RowsPart):
    """The part of a batch that is of cached tables; ``rows`` are those that have no slot."""

    lease: Lease


def let_go(part: RowsPart | LookupBatch) -> None:
    """Give back what a part holds, as its batch needs it no longer."""
    if isinstance(part, CardPart):
        part.lease.release()

"""What runs a dense graph: the interface that the host and the GPU executor share."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.lengths.columns import Shortened
from kernels.program import Bucket


@attrs.frozen(eq=False)
class Bags:
    """One side's ids, for tables that the executor itself holds.

    Attributes:
        ids: int32 ``[n, n_ids]``; ``kernels.device_tables`` says which, and in which order.
        weights: float32 ``[n, n_weights]``.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    def part(self, start: int, stop: int) -> Bags:
        """Return the same memory's rows ``start`` to ``stop``."""
        return Bags(self.ids[start:stop], self.weights[start:stop])


@attrs.define(eq=False)
class Spare:
    """Rows of a batch that its lane's card has not: copied there with it (``kernels.arenas``).

    Attributes:
        rows: uint8 ``[n_bytes]``, end to end, as the card stores them.
        at: Where they are copied to: byte in the tables.
        n_bytes: How many are used, from the first on; for whoever stages a batch to say.
    """

    rows: NDArray[np.uint8]
    at: int
    n_bytes: int = 0


@attrs.frozen(eq=False)
class Staging:
    """A lane's input buffers: a window copies its parts in, ``DenseExecutor.run`` reads them.

    Rows need not lie back to back. What is assigned is converted to the arrays' own dtypes.

    Attributes:
        user: float32 or float16 ``[max_requests, user width]``.
        candidate: float32 or float16 ``[max_rows, candidate width]``.
        request_of_row: int64 or int32 ``[max_rows]``, index into ``user`` for each row.
        user_bags: Of lookups in tables that the executor holds, whose columns ``user`` then lacks.
        candidate_bags: The same of candidates.
        length: Steps of the sequences that may be shorter, of which ``user`` and ``candidate``
            have so many then: see ``kernels.lengths``. 0 if there are none such.
        spare: Of tables of which the executor holds some rows.
    """

    user: NDArray[np.floating[Any]]
    candidate: NDArray[np.floating[Any]]
    request_of_row: NDArray[np.signedinteger[Any]]
    user_bags: Bags | None = None
    candidate_bags: Bags | None = None
    length: int = 0
    spare: Spare | None = None


class DenseExecutor(Protocol):
    """Runs the dense graph of one bundle on a few lanes. Synchronous; knows no event loop."""

    @property
    def n_lanes(self) -> int:
        """Launches that may be under way at once."""

    @property
    def max_rows(self) -> int:
        """Rows of the largest bucket: the most that one launch takes."""

    @property
    def max_requests(self) -> int:
        """Requests of the largest bucket."""

    @property
    def n_outputs(self) -> int:
        """Columns of the scores."""

    @property
    def sequences(self) -> Shortened | None:
        """The sequences that may be shorter than they are; None if there are none."""

    def bucket(self, n_rows: int) -> int:
        """Return the rows of the bucket that ``n_rows`` runs in; time predictions key on it."""

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        """Return the buffers of a lane. They belong to the caller while the lane is idle.

        Args:
            lane: The lane.
            shape: Of what is to be staged and run next: its rows and requests, and steps of its
                longest sequence. Without it, sequences have their whole length.
        """

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        """Run what was staged; block until it is done. Called from a worker thread, one a lane.

        Returns:
            float32 ``[n_rows, n_outputs]``, owned by the caller.
        """

    def close(self) -> None:
        """Give everything back. No launch may be under way."""


class QueuedExecutor(DenseExecutor, Protocol):
    """A ``DenseExecutor`` whose launches can be queued without waiting for them."""

    def start(self, lane: int, n_requests: int, n_rows: int) -> Bucket:
        """Queue what was staged, and return at once: the bucket that it runs in."""

    def finish(self, lane: int) -> NDArray[np.float32]:
        """Wait for what ``start`` queued on a lane, and return as ``run`` does. From any thread."""

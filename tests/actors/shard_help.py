"""What shards answer, where tests and benchmarks stand in for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from transport.messages import LookupBatch, RowsPart

_NO_COLUMNS = np.empty((0, 0), np.float32)


def rows_part(asked: LookupBatch, rows: NDArray[np.uint8]) -> RowsPart:
    """Return the answer to a lookup that wants rows alone, as they are stored."""
    return RowsPart(
        gateway=asked.gateway,
        seq=asked.seq,
        version=asked.version,
        part=asked.part,
        attempt=asked.attempt,
        user=_NO_COLUMNS,
        candidate=_NO_COLUMNS,
        rows=rows,
    )

"""What an executor is told of its cached tables, and of the shards that have their rows."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.replicas import LateAfter
from kernels.bundle.manifest import Table
from kernels.hot import HotRows, Sizes
from kernels.shards import ShardLayout

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@attrs.frozen(kw_only=True, eq=False)
class HotTable:
    """A table whose hot rows are kept.

    Attributes:
        number: Among the model's fetched tables, in the order of ``LookupBatch.key_splits``.
        max_bytes: Of all that is kept of it.
        stale_s: How old a row may be.
        group_of: int32 ``[segments]``, the group of shards that has each segment.
        default_row: uint8 ``[row_bytes]``, what stands for a row that no shard is left to send;
            None to fail then.
    """

    number: int
    table: Table
    max_bytes: int
    stale_s: float
    group_of: I32
    default_row: U8 | None = None

    def open(self) -> HotRows:
        """Return an empty place for its rows.

        Raises:
            ValueError: ``max_bytes`` have no room for any.
        """
        table = self.table
        most_rows = None if table.keyed else table.rows
        try:
            sizes = Sizes.fitting(table.row_bytes, self.max_bytes, most_rows)
        except ValueError as error:
            raise ValueError(f"cached: table {table.name!r}: {error}") from error
        return HotRows(sizes, self.stale_s)


@attrs.frozen(eq=False)
class Group:
    """A group of shards that has rows of cached tables.

    Attributes:
        replicas: The shards' names.
        user: What it pools besides; a fetch asks for none of it.
        candidate: The same of candidates.
        late_after: Learns when its answers are late.
        no_ids: Ids and weights of the user side, and of candidates, for no request.
    """

    replicas: tuple[str, ...]
    user: ShardLayout
    candidate: ShardLayout
    late_after: LateAfter = attrs.Factory(LateAfter)
    no_ids: tuple[I64, F32, I64, F32] = attrs.field(init=False)

    @no_ids.default
    def _make_no_ids(self) -> tuple[I64, F32, I64, F32]:
        return (
            np.empty((len(self.user.id_rows), 0), np.int64),
            np.empty((len(self.user.weight_rows), 0), np.float32),
            np.empty((len(self.candidate.id_rows), 0), np.int64),
            np.empty((len(self.candidate.weight_rows), 0), np.float32),
        )

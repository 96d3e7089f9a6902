"""How a tile kernel is cut, and how its tensor cores take weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs
import numpy as np

from kernels.plan.pack import F32, U8, pack_chunks, pack_fragments, rank_columns, rank_tiles
from kernels.plan.steps import Stream
from kernels.program import Precision

_GROUP_ROWS: Final = 64


@attrs.frozen
class TileShape:
    """How a tile kernel is cut.

    Attributes:
        rows: Of a tile; 16 or more for tensor cores, 64 for warpgroups (sm_90a).
        cluster: Blocks that share a tile.
        warps: That consume.
    """

    rows: int
    cluster: int
    warps: int = 8

    @property
    def groups(self) -> int:
        """Warpgroups that multiply; 0 where each warp multiplies by itself."""
        return self.warps // 4 if self.rows == _GROUP_ROWS else 0

    @property
    def side_warps(self) -> int:
        """Warps that run what neither feeds a Linear nor waits for one, while weights stream in.

        With the producer's and eight at the Linears, three are twelve: one more, and a thread had
        128 registers instead of 168. Sums of warpgroups are content with those.
        """
        return 7 if self.groups else 3

    @property
    def linear(self) -> str:
        """The device code's template for a Linear."""
        return "GroupLinear" if self.groups else "Linear"

    @property
    def quantum(self) -> int:
        """Columns of which the cluster computes a multiple: the rest are zeros."""
        return 8 * self.cluster * max(self.groups, 1)

    def depth(self, per_chunk: int) -> int:
        """Return the rows of weights of a step: of two products a warp, of one a warpgroup."""
        return (2 if self.groups else 4) * per_chunk

    def columns(self, n: int) -> int:
        """Return how many of a Linear's ``n`` columns each block computes, with its zeros."""
        return rank_tiles(n, self.cluster, max(self.groups, 1)) * 8

    def share(self, array: F32, rank: int) -> F32:
        """Return what of ``[..., n]`` is for one block's columns."""
        return rank_columns(array, rank, self.cluster, max(self.groups, 1))

    def step_bytes(self, n: int) -> int:
        """Return the bytes of a step of a Linear of ``n`` columns, for one block."""
        return self.columns(n) * (32 if self.groups else 64)

    def steps(self, stream: Stream, source: int) -> int:
        """Return the steps of one of a Linear's sources; of each block's columns, if awaited."""
        k = len(stream.blocks[source])
        return (
            self.columns(k) if source == stream.awaited else k + stream.depth - 1
        ) // stream.depth

    def packed(self, stream: Stream, rank: int, precision: Precision) -> Iterator[U8]:
        """Pack a Linear's weights for one block, each source's, as its tensor cores read them."""
        for source in stream.order:
            block = stream.blocks[source]
            if not self.groups:
                yield pack_fragments(block, rank, self.cluster, precision)
                continue
            own = self.steps(stream, source) * stream.depth
            awaited = source == stream.awaited
            padded = np.zeros((own * (self.cluster if awaited else 1), block.shape[1]), np.float32)
            padded[: len(block)] = block
            if awaited:
                padded = np.roll(padded, -rank * own, axis=0)
            yield pack_chunks(self.share(padded, rank), precision)

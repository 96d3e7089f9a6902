"""How a wide linear layer is cut into tiles, and what a block then needs."""

from __future__ import annotations

import enum

import attrs

from kernels.wide.layer import WideLayer


class Method(enum.StrEnum):
    """Which device code runs it."""

    WGMMA = "wgmma"
    MMA = "mma"


@attrs.frozen
class WideConfig:
    """One way to run a layer; the heads of the device files say what the numbers do.

    Attributes:
        method: WGMMA for sm_90a, MMA elsewhere.
        tile_rows: 64 or 128.
        tile_columns: 32, 64, 128 or, with WGMMA, 256.
        stages: Slots of the ring, 2 to 8.
        split: Parts of K, one a block of the cluster.
        share_weights: Row tiles of a cluster, which share weights.
        share_rows: Column tiles of a cluster, which share rows.
        blocks_per_sm: How many blocks registers must leave room for.
        alternate: Whether each of two warpgroups takes every other tile, 128 x 128, so that one
            multiplies while the other ends; where a cluster has several tiles.
        max_clusters: Clusters launched at most; each strides through the tiles. 0: one a tile.
    """

    method: Method
    tile_rows: int
    tile_columns: int
    stages: int
    split: int = 1
    share_weights: int = 1
    share_rows: int = 1
    blocks_per_sm: int = 1
    alternate: bool = False
    max_clusters: int = 0

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.split * self.share_weights * self.share_rows

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one slot."""
        return (self.tile_rows + self.tile_columns) * 128

    @property
    def threads(self) -> int:
        """Threads of a block."""
        if self.method is Method.MMA:
            warps_n = self.tile_columns // 32
            return min(self.tile_rows // 16, 8 // warps_n) * warps_n * 32
        return self.tile_rows * 2 + (128 if self.tile_columns == 256 or self.alternate else 32)

    @property
    def exchange_bytes(self) -> int:
        """Shared memory that a block's share of split sums takes, while they are exchanged."""
        return self.tile_rows * self.tile_columns * 4 if self.split > 1 else 0

    def fixed_bytes(self, n_staged: int) -> int:
        """Return the shared memory of a block besides its ring, which a large exchange uses too."""
        if self.method is Method.MMA:
            return 0
        staged = n_staged * self.tile_rows * self.tile_columns * 2 // self.split
        exchange = self.exchange_bytes if self.exchange_bytes <= 16384 else 0
        return 1024 + staged + exchange + self.tile_columns * 4

    @property
    def sums_fit(self) -> bool:
        """Whether a block's registers hold sums and epilogue without spilling, as compiled."""
        if self.tile_columns == 256 or self.alternate:
            return self.blocks_per_sm == 1
        warps = -(-self.threads // 32) * self.blocks_per_sm
        registers = min(
            255, 16384 // 32 // -(-warps // 4) // 8 * 8
        )  # a quarter of the warps a scheduler
        return registers >= self.tile_columns // 2 + (26 if self.split > 1 else 56)

    def shared_bytes(self, n_staged: int) -> int:
        """Return the dynamic shared memory of a block, as the device code lays it out."""
        return self.stages * self.stage_bytes + self.fixed_bytes(n_staged)

    def cluster_tiles(self, layer: WideLayer) -> int:
        """Return how many tiles a layer has for clusters to take."""
        rows = -(-layer.rows // (self.tile_rows * self.share_weights))
        columns = -(-layer.n // (self.tile_columns * self.share_rows))
        return rows * columns * layer.groups

    def clusters(self, layer: WideLayer) -> int:
        """Return how many clusters are launched."""
        tiles = self.cluster_tiles(layer)
        return min(tiles, self.max_clusters) if self.max_clusters else tiles

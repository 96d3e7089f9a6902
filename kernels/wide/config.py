"""How a wide linear layer is cut into tiles, and what a block then needs."""

from __future__ import annotations

import enum

import attrs

from kernels.wide.layer import Epilogue, WideLayer


class Method(enum.StrEnum):
    """Which device code runs it."""

    WGMMA = "wgmma"
    MMA = "mma"


@attrs.frozen
class WideConfig:
    """One way to run a layer; the heads of the device files say what the numbers do.

    Attributes:
        method: WGMMA for halves on sm_90a, MMA elsewhere.
        tile_rows: 64 or 128.
        tile_columns: 32, 64, 128 or, with WGMMA, 256.
        stages: Slots of the ring, 2 to 8.
        split: Parts of K: 1, 2, 4 or 8, one a block of a cluster.
        blocks_per_sm: How many blocks registers must leave room for.
        max_clusters: Clusters launched at most; each strides through the tiles. 0: one a tile.
        eights: Whether X and W are e4m3, so that columns have scales beside their biases.
    """

    method: Method
    tile_rows: int
    tile_columns: int
    stages: int
    split: int = 1
    blocks_per_sm: int = 1
    max_clusters: int = 0
    eights: bool = False

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
        return self.tile_rows * 2 + (128 if self.tile_columns == 256 else 32)

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
        return 1024 + staged + exchange + self.tile_columns * (8 if self.eights else 4)

    def registers_fit(self, epilogue: Epilogue) -> bool:
        """Return whether registers hold sums and epilogue without spilling.

        A guess from what compiled kernels use; an epilogue of the emitter's own gets some more.
        """
        used = (24 if epilogue.text else 0) + (8 if self.eights else 0)
        if self.split > 1:
            used += self.tile_columns // 2 + 26  # a part at a time is finished
        else:
            used += self.tile_columns // 2 + 48 + 14 * epilogue.n_staged
        if self.tile_columns == 256:
            # Warpgroups move registers; with a split K some bytes spilled.
            return self.split == self.blocks_per_sm == 1 and used <= 224
        warps_of_a_scheduler = -(-self.threads // 32 * self.blocks_per_sm // 4)
        return used <= min(255, 512 // warps_of_a_scheduler // 8 * 8)

    def shared_bytes(self, n_staged: int) -> int:
        """Return the dynamic shared memory of a block, as the device code lays it out."""
        return self.stages * self.stage_bytes + self.fixed_bytes(n_staged)

    def cluster_tiles(self, layer: WideLayer) -> int:
        """Return how many tiles a layer has for clusters to take."""
        rows = -(-layer.rows // self.tile_rows)
        columns = -(-layer.n // self.tile_columns)
        return rows * columns * layer.groups

    def clusters(self, layer: WideLayer) -> int:
        """Return how many clusters are launched."""
        tiles = self.cluster_tiles(layer)
        return min(tiles, self.max_clusters) if self.max_clusters else tiles

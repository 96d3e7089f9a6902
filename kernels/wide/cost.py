"""The config of a layer by a cost model of clocks: waves of tiles, bytes from L2, exchanges."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from kernels.program import Target
from kernels.wide.config import Method, WideConfig
from kernels.wide.layer import WideLayer

L2_BYTES_PER_CLOCK = 36.0
"""What a multiprocessor gets of L2 when all of them read."""

LAUNCH_CLOCKS = 4000
"""A dependent launch: wait, first loads, last stores."""

EXCHANGE_CLOCKS = 900
"""Exchange of split sums, besides their bytes."""

_SHAPES = ((64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128), (128, 256))
_SPLITS = (1, 2, 4, 8)
_SHARES = ((1, 1), (2, 1), (1, 2))


def choose(layer: WideLayer, target: Target) -> WideConfig:
    """Return the config that the model holds fastest."""
    if target.arch != "sm_90a":
        return _choose_mma(layer, target)
    return min(candidates(layer, target), key=lambda config: clocks(layer, config, target))


def resident_clusters(config: WideConfig, n_staged: int, target: Target) -> int:
    """Return how many clusters run at once.

    Multiprocessors come in groups of 14 to 18 that a cluster cannot straddle, so clusters of 4 or 8
    leave some idle (an H200 of 132 ran 30 of 4 and 15 of 8 at one block a multiprocessor).
    """
    per_sm = min(
        (target.shared_bytes + 1024) // (config.shared_bytes(n_staged) + 1024),
        config.blocks_per_sm,
    )
    whole = target.n_sms * per_sm // config.cluster
    return max(1, whole - per_sm * {1: 0, 2: 0, 4: 3, 8: 1}[config.cluster])


def candidates(layer: WideLayer, target: Target) -> Iterator[WideConfig]:
    """Yield the configs that fit, stages and grid filled in."""
    for rows, columns in _SHAPES:
        for split in _SPLITS:
            for share_weights, share_rows in _SHARES:
                config = WideConfig(
                    Method.WGMMA, rows, columns, 2, split, share_weights, share_rows
                )
                if config.cluster > 8 or split > layer.k_tiles or rows // split < 8:
                    continue
                if rows * share_weights >= 2 * max(layer.rows, 64):
                    continue
                if (rows, columns, split) == (128, 128, 1):
                    filled = _fill(layer, attrs.evolve(config, alternate=True), target)
                    if filled is not None and filled.cluster_tiles(layer) > filled.max_clusters:
                        yield filled
                for blocks in (1, 2, 3):
                    filled = _fill(layer, attrs.evolve(config, blocks_per_sm=blocks), target)
                    if filled is not None:
                        yield filled


def _fill(layer: WideLayer, config: WideConfig, target: Target) -> WideConfig | None:
    """Add stages and a grid; None if it does not fit."""
    n_staged = layer.epilogue.n_staged
    blocks = config.blocks_per_sm
    if not config.sums_fit:
        return None
    room = (target.shared_bytes + 1024) // blocks - 1024 - config.fixed_bytes(n_staged)
    stages = min(8, room // config.stage_bytes)
    if config.split > 1:
        needed = max(-(-layer.k_tiles // config.split), config.exchange_bytes // config.stage_bytes)
        stages = min(stages, max(3, needed))
    if stages < 3:
        return None
    config = attrs.evolve(config, stages=stages)
    if config.split == 1:
        config = attrs.evolve(config, max_clusters=resident_clusters(config, n_staged, target))
    return config


def clocks(layer: WideLayer, config: WideConfig, target: Target) -> float:
    """Return the model's time of a layer, in clocks."""
    n_staged = layer.epilogue.n_staged
    tiles = config.cluster_tiles(layer)
    resident = resident_clusters(config, n_staged, target)
    waves = -(-tiles // resident)
    blocks_per_sm = max(1.0, min(tiles, resident) * config.cluster / target.n_sms)
    k_tiles = -(-layer.k_tiles // config.split)
    area = config.tile_rows * config.tile_columns
    multiply = k_tiles * max(2 * area // 64, 128) * blocks_per_sm
    loads = (
        k_tiles
        * 128
        * (config.tile_rows / config.share_rows + config.tile_columns / config.share_weights)
    )
    ends = area * 2 * (1 + n_staged) / config.split
    exchange = 0.0
    if config.split > 1:
        exchange = EXCHANGE_CLOCKS + area * 4 * (config.split - 1) / config.split / 20
    finish = area / config.split * (0.06 + 0.02 * n_staged)
    traffic = (loads + ends) * blocks_per_sm / L2_BYTES_PER_CLOCK
    return LAUNCH_CLOCKS + waves * (max(multiply + finish, traffic) + exchange)


def _choose_mma(layer: WideLayer, target: Target) -> WideConfig:
    """Return the largest tile of which there is one for each multiprocessor, or the smallest."""
    for rows, columns, stages in ((128, 128, 4), (128, 64, 4), (64, 64, 4)):
        config = WideConfig(Method.MMA, rows, columns, stages)
        if config.cluster_tiles(layer) >= target.n_sms:
            return config
    return WideConfig(Method.MMA, 64, 32, 6)

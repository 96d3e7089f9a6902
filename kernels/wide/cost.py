"""The config of a layer by a model of its time: launch, waves of tiles, exchange of split sums.

The constants were fitted to 640 measured configs of eight layers at 64, 512 and 4,096 rows (H200,
dependent launches in a graph; tests/gpu/RUNS.md, 2026-11-24). What it chose was 1.8 % slower than
the fastest config measured, on average, and 10 % at worst.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from kernels.program import Target
from kernels.wide.config import Method, WideConfig
from kernels.wide.layer import WideLayer

LAUNCH_US = 1.5
"""A dependent launch: the wait, the first loads, the last stores."""

WEIGHT_BYTES_PER_US = 1.58e6
"""At which weights come from device memory: a launch hides behind the one before only in part."""

STEP_US = {
    (64, 32): 0.142,
    (64, 64): 0.167,
    (64, 128): 0.231,
    (128, 32): 0.223,
    (128, 64): 0.225,
    (128, 128): 0.366,
    (128, 256): 0.644,
}
"""By tile rows and columns: a step of 128 bytes of K, with STEADY_STAGES in the ring.

Measured of 16-bit floats; wgmma takes as long for as many bytes of e4m3.
"""

STEADY_STAGES = 5
STALL = 0.089
"""What share a step takes longer for each stage that is lacking."""

FINISH_US, STAGED_US = 1.34, 0.47
"""The end of a 128 x 128 tile, and what each staged matrix adds."""

EXCHANGE_US, EXCHANGED_US = 0.42, 4.2
"""The exchange of split sums, and what a 128 x 128 tile would add if all its sums moved."""

_SPLITS = (1, 2, 4, 8)


def choose(layer: WideLayer, target: Target) -> WideConfig:
    """Return the config that the model holds fastest.

    Raises:
        ValueError: The layer reads or stores e4m3, which the card has no kernels for.
    """
    if target.arch != "sm_90a" and (layer.eights or layer.stores_eights):
        raise ValueError(f"{target.arch}: only sm_90a has kernels of e4m3")
    if target.arch != "sm_90a" or layer.floats:
        return _choose_mma(layer, target)
    return min(candidates(layer, target), key=lambda config: estimate_us(layer, config, target))


def resident_clusters(layer: WideLayer, config: WideConfig, target: Target) -> int:
    """Return how many clusters run at once.

    Multiprocessors come in groups of 14 to 18 that a cluster cannot straddle, so clusters of 4 or 8
    leave some idle (an H200 of 132 ran 30 of 4 and 15 of 8 at one block a multiprocessor).
    """
    shared = config.shared_bytes(layer.epilogue.n_staged) + 1024
    per_sm = min((target.shared_bytes + 1024) // shared, config.blocks_per_sm)
    lost = {1: 0, 2: 0, 4: 3, 8: 1}[config.split]
    return max(1, target.n_sms * per_sm // config.split - per_sm * lost)


def candidates(layer: WideLayer, target: Target) -> Iterator[WideConfig]:
    """Yield the configs for sm_90a that fit, stages and grid filled in."""
    for rows, columns in STEP_US:
        for split in _SPLITS:
            if split > layer.k_tiles or rows >= 2 * max(layer.rows, 64):
                continue
            for blocks in (1, 2, 3):
                config = WideConfig(
                    Method.WGMMA, rows, columns, 0, split, blocks, eights=layer.eights
                )
                filled = _fill(layer, config, target)
                if filled is not None:
                    yield filled


def _fill(layer: WideLayer, config: WideConfig, target: Target) -> WideConfig | None:
    """Add stages and a grid; None if it does not fit.

    More than one block a multiprocessor leaves room for those of the next launch, which fetch their
    weights meanwhile.
    """
    if not config.registers_fit(layer.epilogue):
        return None
    fixed = config.fixed_bytes(layer.epilogue.n_staged)
    room = (target.shared_bytes + 1024) // config.blocks_per_sm - 1024 - fixed
    stages = min(8, room // config.stage_bytes)
    if config.split > 1:
        used = max(-(-layer.k_tiles // config.split), config.exchange_bytes // config.stage_bytes)
        stages = min(stages, max(3, used))
    if stages < 3:
        return None
    config = attrs.evolve(config, stages=stages)
    if config.split == 1:
        config = attrs.evolve(config, max_clusters=resident_clusters(layer, config, target))
    return config


def estimate_us(layer: WideLayer, config: WideConfig, target: Target) -> float:
    """Return the model's time of a layer, in microseconds."""
    tiles = config.cluster_tiles(layer)
    resident = resident_clusters(layer, config, target)
    waves = -(-tiles // resident)
    blocks_per_sm = -(-min(tiles, resident) * config.split // target.n_sms)
    lacking = max(0, STEADY_STAGES - config.stages)
    step = STEP_US[config.tile_rows, config.tile_columns] * (1 + STALL * lacking)
    size = config.tile_rows * config.tile_columns / 128**2 * blocks_per_sm
    finish = size / config.split * (FINISH_US + STAGED_US * layer.epilogue.n_staged)
    steps = -(-layer.k_tiles // config.split)
    busy = waves * (steps * step * blocks_per_sm + finish)
    if config.split > 1:
        busy += EXCHANGE_US + EXCHANGED_US * size * (config.split - 1) / config.split
    weight_bytes = layer.groups * layer.k * layer.n * layer.element_bytes
    fetch = weight_bytes / WEIGHT_BYTES_PER_US
    return LAUNCH_US + float((busy**4 + fetch**4) ** 0.25)  # the larger, without ties


def _choose_mma(layer: WideLayer, target: Target) -> WideConfig:
    """Return the largest tile of which there is one for each multiprocessor, or the smallest."""
    for rows, columns, stages in ((128, 128, 4), (128, 64, 4), (64, 64, 4)):
        config = WideConfig(Method.MMA, rows, columns, stages)
        if config.cluster_tiles(layer) >= target.n_sms:
            return config
    return WideConfig(Method.MMA, 64, 32, 6)

"""The layout of a wide layer's weights and bias on the card; the same for every config."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.halves import to_bf16, to_fp16
from kernels.program import Precision
from kernels.wide.layer import K_TILE, WideLayer


def packed_bytes(layer: WideLayer) -> int:
    """Return the size of what ``pack`` makes."""
    return layer.bias_offset + layer.groups * layer.bias_columns * 4


def to_storage(values: NDArray[np.float32], precision: Precision) -> NDArray[np.uint16]:
    """Return the bits of 16-bit floats: fp16 saturated to finite values, bf16 rounded to even."""
    if precision is Precision.FP16:
        return to_fp16(values)
    if precision is Precision.BF16:
        return to_bf16(values)
    raise ValueError(f"a wide layer stores 16-bit floats, not {precision}")


def pack(
    layer: WideLayer,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    precision: Precision,
) -> NDArray[np.uint8]:
    """Return weights and bias as the kernels read them.

    Weights come first: 16-bit ``[groups, k_tiles, n_padded, 64]``, swizzled and permuted as the
    head of ``wide_sm90.cuh`` says, then zeros that a last tile of columns may read into; at
    ``layer.bias_offset`` the bias, float32 ``[groups, bias_columns]``.

    Args:
        layer: The layer.
        weight: ``[k, n]``, or ``[groups, k, n]``; segments one after the other along k.
        bias: ``[n]`` or ``[groups, n]``; None for none.
        precision: FP16 or BF16.

    Returns:
        uint8 ``[packed_bytes(layer)]``.
    """
    g, n = layer.groups, layer.n
    source = to_storage(np.asarray(weight, np.float32).reshape(g, layer.k, n), precision)
    tiles = np.zeros((g, layer.k_tiles * K_TILE, layer.n_padded), np.uint16)
    row = padded_row = 0
    for k in layer.segments:
        tiles[:, padded_row : padded_row + k, :n] = source[:, row : row + k]
        row += k
        padded_row += -(-k // K_TILE) * K_TILE
    # Axes: group, tile, part, element, 32 columns, t, j, e; to (32 columns, j, t, e) in front.
    blocks = tiles.reshape(g, layer.k_tiles, 8, 8, layer.n_padded // 32, 4, 4, 2)
    rows = blocks.transpose(0, 1, 4, 6, 5, 7, 2, 3).reshape(g, layer.k_tiles, -1, 8, 8)
    line = np.arange(layer.n_padded)[:, None]
    swizzled = rows[:, :, line, np.arange(8)[None, :] ^ (line % 8)]
    blob = np.zeros(packed_bytes(layer), np.uint8)
    packed = np.ascontiguousarray(swizzled).reshape(-1).view(np.uint8)
    blob[: packed.size] = packed
    if bias is not None:
        floats = np.zeros((g, layer.bias_columns), np.float32)
        floats[:, :n] = np.asarray(bias, np.float32).reshape(g, n)
        blob[layer.bias_offset :] = floats.reshape(-1).view(np.uint8)
    return blob

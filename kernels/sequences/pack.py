"""Weights of sequence programs as B fragments of m16n8k16 products.

The lane of column ``8 tile + lane / 4`` holds, of each product's 16 rows of the weight, four: in the
tensor core's own order rows ``2 (lane % 4) + {0, 1, 8, 9}``; in the order of *neighbours*, which lets
the other operand come straight from 16 bytes of a row, two products' rows ``8 (lane % 4) + {0 .. 7}``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.plan.pack import to_storage
from kernels.program import Precision

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def tiles_of(columns: int) -> int:
    """Return how many tiles of 8 columns hold so many."""
    return -(-columns // 8)


def _padded(weight: F32, rows: int) -> F32:
    padded = np.zeros((rows, tiles_of(weight.shape[1]) * 8), np.float32)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded


def pack_neighbours(weight: F32, precision: Precision) -> U8:
    """Pack ``[k, n]``, k a multiple of 16, as ``[k / 32][tile][lane][8]`` halves.

    The last 16 rows, where k is no multiple of 32, are one product: ``4 (lane % 4) + {0 .. 3}``, and
    zeros in the second half.
    """
    k, n = weight.shape
    whole, tiles = k // 32, tiles_of(n)
    parts = _padded(weight[: whole * 32], whole * 32).reshape(whole, 4, 8, tiles, 8)
    if k % 32:
        last = np.zeros((1, 4, 8, tiles, 8), np.float32)
        last[0, :, :4] = _padded(weight[whole * 32 :], 16).reshape(4, 4, tiles, 8)
        parts = np.concatenate([parts, last])
    # step, quarter, row; tile, column -> step, tile, column, quarter, row
    ordered = to_storage(parts.transpose(0, 3, 4, 1, 2), precision)
    return np.ascontiguousarray(ordered).view(np.uint8).ravel()


def pack_plain(weight: F32, precision: Precision) -> U8:
    """Pack ``[k, n]`` as ``[k / 16][tile][lane][4]`` halves, k rounded up, in the core's own order."""
    k, n = weight.shape
    steps, tiles = -(-k // 16), tiles_of(n)
    # step, upper half, quarter, pair; tile, column
    parts = _padded(weight, steps * 16).reshape(steps, 2, 4, 2, tiles, 8)
    ordered = to_storage(parts.transpose(0, 4, 5, 2, 1, 3), precision)
    return np.ascontiguousarray(ordered).view(np.uint8).ravel()


def pack_floats(vector: F32) -> U8:
    """Pack ``[n]`` as fp32, zeros up to whole tiles."""
    padded = np.zeros(tiles_of(vector.shape[0]) * 8, np.float32)
    padded[: vector.shape[0]] = vector
    return padded.view(np.uint8)


def join(*parts: U8) -> U8:
    """Concatenate, with zeros up to a multiple of 16 bytes."""
    whole = np.concatenate(parts)
    return np.concatenate([whole, np.zeros(-whole.size % 16, np.uint8)])

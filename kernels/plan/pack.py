"""Weights in the order in which kernels read them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.halves import to_bf16, to_fp16, to_tf32
from kernels.program import Precision

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


def to_storage(array: NDArray[np.generic], precision: Precision) -> NDArray[np.uint16]:
    """Round floats to 16-bit storage, to nearest even; fp16 saturates at its largest finite."""
    return to_bf16(array) if precision is Precision.BF16 else to_fp16(array)


def pack_fragments(weight: F32, rank: int, cluster: int, precision: Precision) -> U8:
    """Pack one block's columns of a Linear as B fragments of m16n8k16 products.

    Args:
        weight: float32 ``[k, n]``.
        rank: Of the block in its cluster; it computes tiles of 8 columns ``[rank t, (rank + 1) t)``
            where ``t = ceil(ceil(n / 8) / cluster)``.
        cluster: Blocks that share the columns.
        precision: TF32 and FP32 have floats: ``pack_floats``.

    Returns:
        ``[k / 32][tile][lane][8]`` halves, k rounded up: two products' fragments a lane, in the
        order of the PTX ISA's figure for .m16n8k16 B: rows 2 (lane % 4) + {0, 1, 8, 9}, column
        lane / 4.
    """
    if not precision.has_halves:
        return pack_floats(weight, rank, cluster, precision)
    k, n = weight.shape
    steps, tiles = -(-k // 32), rank_tiles(n, cluster)
    padded = np.zeros((steps * 32, tiles * 8 * cluster), np.float32)
    padded[:k, :n] = weight
    mine = padded[:, rank * tiles * 8 : (rank + 1) * tiles * 8]
    # step, product, upper half, quarter, pair; tile, column
    split = to_storage(mine, precision).reshape(steps, 2, 2, 4, 2, tiles, 8)
    ordered = split.transpose(0, 5, 6, 3, 1, 2, 4)
    return np.ascontiguousarray(ordered).view(np.uint8).ravel()


def pack_floats(weight: F32, rank: int, cluster: int, precision: Precision) -> U8:
    """Pack one block's columns of a Linear as B fragments of m16n8k8 products of tf32.

    Returns:
        ``[k / 16][tile][lane][4]`` floats, k rounded up: two products' fragments a lane, in the
        order of the PTX ISA's figure for .m16n8k8 B: rows lane % 4 + {0, 4}, column lane / 4. They
        are rounded for TF32; of FP32 all bits are there, and kernels split them.
    """
    k, n = weight.shape
    steps, tiles = -(-k // 16), rank_tiles(n, cluster)
    padded = np.zeros((steps * 16, tiles * 8 * cluster), np.float32)
    padded[:k, :n] = to_tf32(weight) if precision is Precision.TF32 else weight
    mine = padded[:, rank * tiles * 8 : (rank + 1) * tiles * 8]
    # step, product and half, quarter; tile, column
    ordered = mine.reshape(steps, 4, 4, tiles, 8).transpose(0, 3, 4, 2, 1)
    return np.ascontiguousarray(ordered).view(np.uint8).ravel()


def pack_chunks(columns: F32, precision: Precision) -> U8:
    """Pack one block's columns of a Linear as wgmma reads B: in chunks, not swizzled.

    Args:
        columns: float32 ``[k, columns]``, both multiples of 8.
        precision: Of the halves; FP32 has none.

    Returns:
        ``[k / 8][column][8 of k]`` halves.
    """
    halves = to_storage(columns, precision).reshape(len(columns) // 8, 8, -1)
    return np.ascontiguousarray(halves.transpose(0, 2, 1)).view(np.uint8).ravel()


def rank_tiles(n: int, cluster: int, multiple: int = 1) -> int:
    """Return the tiles of 8 columns that each block of a cluster computes of ``n`` columns."""
    return math.ceil(math.ceil(n / 8) / (cluster * multiple)) * multiple


def rank_columns(array: F32, rank: int, cluster: int, multiple: int = 1) -> F32:
    """Return what of ``[..., n]`` is for one block's columns, zeros beyond n."""
    n = array.shape[-1]
    width = rank_tiles(n, cluster, multiple) * 8
    padded = np.zeros((*array.shape[:-1], width * cluster), np.float32)
    padded[..., :n] = array
    return padded[..., rank * width : (rank + 1) * width]


class Blob:
    """Grows a byte array; every part starts at a multiple of ``alignment``."""

    def __init__(self, alignment: int = 256) -> None:
        self.alignment = alignment
        self.size = 0
        self._parts: list[U8] = []

    def add(self, part: NDArray[np.generic]) -> int:
        """Append an array's bytes; return where they begin."""
        raw = np.ascontiguousarray(part).view(np.uint8).ravel()
        start = -(-self.size // self.alignment) * self.alignment
        self._parts += [np.zeros(start - self.size, np.uint8), raw]
        self.size = start + raw.size
        return start

    def bytes(self) -> U8:
        """Return everything so far."""
        return np.concatenate([*self._parts, np.zeros(0, np.uint8)])

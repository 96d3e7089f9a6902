"""Weights of sequence programs as fragments of m16n8k16 products.

The lane of column ``8 tile + lane / 4`` of a B fragment holds four of a product's 16 rows: in the
tensor core's own order rows ``2 (lane % 4) + {0, 1, 8, 9}``; in the order of *neighbours*, which
lets the other operand come straight from 16 bytes of a row, two products' rows
``8 (lane % 4) + {0 .. 7}``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels.plan.pack import to_storage
from kernels.program import Precision

Floats: TypeAlias = NDArray[np.floating[Any]]
"""float32 or float64; rounded once, to storage."""
U8: TypeAlias = NDArray[np.uint8]


def tiles_of(columns: int) -> int:
    """Return how many tiles of 8 columns hold so many."""
    return -(-columns // 8)


def _padded(weight: Floats, rows: int, multiple: int = 8) -> Floats:
    padded = np.zeros((rows, -(-weight.shape[1] // multiple) * multiple), weight.dtype)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded


def _bytes(fragments: Floats, precision: Precision) -> U8:
    return np.ascontiguousarray(to_storage(fragments, precision)).view(np.uint8).ravel()


def _quarters(weight: Floats) -> Floats:
    """Split ``[k, n]``, k a multiple of 16, to ``[k / 32, 4, 8, n]``: a quarter of a quad's 8 rows.

    The last 16 rows, where k is no multiple of 32, are 4 a quarter, then zeros.
    """
    k, n = weight.shape
    whole = k // 32
    parts = weight[: whole * 32].reshape(whole, 4, 8, n)
    if k % 32:
        last = np.zeros((1, 4, 8, n), weight.dtype)
        last[0, :, :4] = weight[whole * 32 :].reshape(4, 4, n)
        parts = np.concatenate([parts, last])
    return parts


def pack_neighbours(weight: Floats, precision: Precision) -> U8:
    """Pack ``[k, n]``, k a multiple of 16, as ``[k / 32][tile][lane][8]`` halves.

    The last 16 rows, where k is no multiple of 32, are one product; the second is zeros.
    """
    parts = _quarters(_padded(weight, weight.shape[0]))
    split = parts.reshape(*parts.shape[:3], -1, 8)  # step, quarter, row; tile, column
    return _bytes(split.transpose(0, 3, 4, 1, 2), precision)


def pack_plain(weight: Floats, precision: Precision) -> U8:
    """Pack ``[k, n]`` as ``[k / 16][tile][lane][4]`` halves, k rounded up, in the core's order."""
    steps = -(-weight.shape[0] // 16)
    # step, upper half, quarter, pair; tile, column
    parts = _padded(weight, steps * 16).reshape(steps, 2, 4, 2, -1, 8)
    return _bytes(parts.transpose(0, 4, 5, 2, 1, 3), precision)


def pack_pairs(weight: Floats, precision: Precision) -> U8:
    """Pack ``[k, n]`` as ``[k / 16][n / 16][lane][2 tiles][4]`` halves, in the core's order."""
    steps = -(-weight.shape[0] // 16)
    # step, upper half, quarter, pair; pair of tiles, tile, column
    parts = _padded(weight, steps * 16, 16).reshape(steps, 2, 4, 2, -1, 2, 8)
    return _bytes(parts.transpose(0, 4, 6, 2, 5, 1, 3), precision)


def pack_transposed(weight: Floats, precision: Precision) -> U8:
    """Pack the transpose of ``[k, n]`` as A fragments, ``[n / 16][k / 16][lane][8]`` halves.

    n is a multiple of 16; k stands in the order of neighbours.
    """
    parts = _quarters(weight)
    # step, quarter, product, upper half, pair; block of 16 columns, its upper half, column
    split = parts.reshape(parts.shape[0], 4, 2, 2, 2, -1, 2, 8)
    # block; step, product; column, quarter; upper half, upper columns, pair
    ordered = split.transpose(5, 0, 2, 7, 1, 3, 6, 4)
    products = ordered.reshape(ordered.shape[0], -1, 32, 8)[:, : weight.shape[0] // 16]
    return _bytes(products, precision)


def neighbours(columns: int) -> NDArray[np.intp]:
    """Return which column stands at each place where results are in the order of neighbours.

    A lane's columns of 4 tiles (of 2, in the last 16 where 32 does not divide) are 8 in a row.
    """
    order = np.empty(columns, np.intp)
    for place in range(columns):
        tile, quarter, odd = place // 8, place % 8 // 2, place % 2
        first = tile // 4 * 32
        tiles = min(4, (columns - first) // 8)
        order[place] = first + quarter * 2 * tiles + tile % 4 * 2 + odd
    return order


def pack_floats(vector: Floats) -> U8:
    """Pack ``[n]`` as fp32, zeros up to whole tiles."""
    padded = np.zeros(tiles_of(vector.shape[0]) * 8, np.float32)
    padded[: vector.shape[0]] = vector
    return padded.view(np.uint8)


def join(*parts: U8) -> U8:
    """Concatenate, with zeros up to a multiple of 16 bytes."""
    whole = np.concatenate(parts)
    return np.concatenate([whole, np.zeros(-whole.size % 16, np.uint8)])

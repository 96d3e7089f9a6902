"""Floats rounded to fewer bits: sixteen-bit ones as arrays of their bits, and back; tf32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U16 = NDArray[np.uint16]
F32 = NDArray[np.float32]


def to_fp16(values: NDArray[Any]) -> U16:
    """Round to the nearest half, ties to even; beyond its largest finite number to that one."""
    largest = np.float32(np.finfo(np.float16).max)
    clipped = np.clip(np.asarray(values, np.float32), -largest, largest)
    with np.errstate(under="ignore"):
        return clipped.astype(np.float16).view(np.uint16)


def to_bf16(values: NDArray[Any]) -> U16:
    """Round to the nearest bfloat16, ties to even; NaN stays NaN, too large becomes infinite."""
    floats = np.ascontiguousarray(values, np.float32)
    bits = floats.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    # Rounding a NaN can carry into its sign and leave a zero.
    rounded = np.where(np.isnan(floats), bits | np.uint32(0x400000), rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: U16) -> F32:
    """Return the numbers that bfloat16 bits stand for: every one is a float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(array: NDArray[np.generic]) -> NDArray[np.float32]:
    """Round floats to 11 significant bits, to nearest, ties away from zero, as ``cvt.rna`` does."""
    values = np.ascontiguousarray(array, np.float32)
    bits = values.view(np.uint32) + np.uint32(0x1000) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), bits.view(np.float32), values)

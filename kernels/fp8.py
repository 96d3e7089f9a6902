"""Floats of eight bits, e4m3: rounding to them and back, and the scales that values get for it.

Four bits of exponent and three of mantissa (arXiv 2209.05433): steps of 1/8 to 1/16 of a value over
a range of 2^15, from 2^-6 to 448, and a little below. So a scale need only put the largest values
somewhere below 448; it costs nothing to leave room for larger ones than were seen. That is why
activations have one scale a tensor, found ahead from representative inputs: a scale a row would be
known only once the whole row is, which the blocks that share a row compute side by side.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

LARGEST: Final = 448.0

ROOM: Final = 4.0
"""How many times larger than any that was seen a value may be before it saturates."""


class Scales(enum.StrEnum):
    """What has a scale of its own, of a Linear's weights."""

    TENSOR = "tensor"
    ROW = "row"
    """Each output: a row of the weight as torch has it."""


@attrs.frozen(eq=False)
class Fp8:
    """The choice that Linears with launches of their own multiply e4m3, on sm_90a.

    Those that read what another of them left do; what a tile of rows left they read as before.

    Attributes:
        inputs: Representative blocks by the names of the graph's inputs, float ``[n, width]``: what
            they lead to decides the scales of activations.
        request_of_row: int ``[rows]``; may be None if no value of requests goes to rows.
        scales: What has a scale of its own, of the weights.
    """

    inputs: Mapping[str, NDArray[Any]]
    request_of_row: NDArray[np.integer[Any]] | None = None
    scales: Scales = Scales.ROW


def scale_of(values: NDArray[Any]) -> float:
    """Return what values like these are to be multiplied by before they are rounded."""
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max(initial=0.0))
    return LARGEST / (ROOM * largest) if largest > np.finfo(np.float32).tiny else 1.0


def to_e4m3(values: NDArray[Any]) -> U8:
    """Round to the nearest e4m3, ties to even; beyond the largest to that one; NaN stays NaN."""
    floats = np.asarray(values, np.float32)
    size = np.minimum(np.abs(floats), np.float32(LARGEST))
    with np.errstate(invalid="ignore"):
        exponent = np.maximum(np.frexp(size)[1], -5)
        steps = np.rint(np.ldexp(size, 4 - exponent))
        # 8 to 15 steps are a normal number's, 16 the next exponent's 8, fewer than 8 a subnormal's.
        bits = np.where(steps < 8, steps, (exponent + 6) * 8 + steps - 8)
        bits = np.where(np.isnan(floats), 0x7F, np.minimum(np.nan_to_num(bits), 0x7E))
    return bits.astype(np.uint8) | (np.signbit(floats).astype(np.uint8) << np.uint8(7))


def from_e4m3(bits: U8) -> F32:
    """Return the numbers that e4m3 bits stand for."""
    return _NUMBERS[bits]


def _numbers() -> F32:
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    steps = np.where(exponent > 0, 8 + mantissa, mantissa).astype(np.float32)
    size = np.ldexp(steps, np.where(exponent > 0, exponent - 10, -9))
    size[(bits & 0x7F) == 0x7F] = np.nan
    return np.where(bits & 0x80, -size, size).astype(np.float32)


_NUMBERS: Final = _numbers()

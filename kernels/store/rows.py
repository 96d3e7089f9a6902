"""Rows as bytes: what segments store and what shards send.

A row is its numbers, little-endian, one after the other: ``fp32``, ``fp16``, ``bf16``, or ``int8``
followed by a float32 ``scale`` (not aligned), each number being ``scale * q``, q from -127 to 127.

C does the work where there is a compiler (``rows.h``); numpy does the same, bit for bit, and is the
oracle of the tests.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kernels.halves import from_bf16, to_bf16, to_fp16
from kernels.store import _c

RowType = Literal["fp32", "fp16", "bf16", "int8"]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

ROW_TYPES: Final[tuple[RowType, ...]] = get_args(RowType)
_ITEM_BYTES: Final = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_SCALE_BYTES: Final = 4


def row_bytes(dtype: RowType, dim: int) -> int:
    """Return the bytes of one stored row.

    Raises:
        ValueError: There is no such dtype.
    """
    return item_bytes(dtype) * dim + (_SCALE_BYTES if dtype == "int8" else 0)


def item_bytes(dtype: RowType) -> int:
    """Return the bytes of one stored number.

    Raises:
        ValueError: There is no such dtype.
    """
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"dtype: want one of {', '.join(ROW_TYPES)}, got {dtype!r}")
    return _ITEM_BYTES[dtype]


def type_code(dtype: RowType) -> int:
    """Return the number that C has for a dtype."""
    return ROW_TYPES.index(dtype)


def encode_rows(rows: F32, dtype: RowType, *, native: bool = True) -> U8:
    """Store rows.

    fp16 is rounded to even and ends at its largest finite number, bf16 is rounded to even, int8 is
    ``rint(x / scale)`` with ``scale = max(abs(row)) / 127``. NaN stays NaN except as int8.

    Args:
        rows: float32 ``[n, dim]``.
        dtype: What to store.
        native: False to use numpy even where C is there.

    Returns:
        uint8 ``[n, row_bytes(dtype, dim)]``, C-ordered; of fp32 it may be ``rows`` itself.

    Raises:
        ValueError: ``rows`` has another shape or dtype, or an int8 row is not finite.
    """
    _check_matrix("rows", rows, np.dtype(np.float32))
    rows = np.ascontiguousarray(rows)
    n, dim = rows.shape
    width = row_bytes(dtype, dim)
    if dtype == "fp32":
        return rows.view(np.uint8).reshape(n, width)
    native_code = _c.store() if native else None
    if native_code is None:
        return _numpy_encode(rows, dtype)
    out = np.empty((n, width), np.uint8)
    ffi = native_code.ffi
    bad = native_code.lib.tb_encode(
        ffi.from_buffer("float[]", rows),
        n,
        dim,
        type_code(dtype),
        ffi.from_buffer("uint8_t[]", out),
    )
    if bad >= 0:
        raise _not_finite(bad)
    return out


def decode_rows(
    encoded: U8, dtype: RowType, dim: int, out: F32 | None = None, *, native: bool = True
) -> F32:
    """Return stored rows as float32.

    Args:
        encoded: uint8 ``[n, row_bytes(dtype, dim)]``, C-ordered.
        dtype: What is stored.
        dim: Numbers a row.
        out: float32 ``[n, dim]`` to write to, C-ordered. A new array by default.
        native: False to use numpy even where C is there.

    Returns:
        ``out``.

    Raises:
        ValueError: An argument has another shape, dtype or memory layout.
    """
    width = row_bytes(dtype, dim)
    check_encoded("encoded", encoded, width)
    n = len(encoded)
    if out is None:
        out = np.empty((n, dim), np.float32)
    elif out.shape != (n, dim) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out: want C-ordered float32 {(n, dim)}, got {out.dtype} {out.shape}")
    native_code = _c.store() if native else None
    if native_code is None:
        out[...] = _numpy_decode(encoded, dtype, dim)
    else:
        ffi = native_code.ffi
        native_code.lib.tb_decode(
            ffi.from_buffer("uint8_t[]", encoded),
            n,
            dim,
            type_code(dtype),
            ffi.from_buffer("float[]", out),
        )
    return out


def check_encoded(name: str, encoded: NDArray[Any], width: int) -> None:
    """Check an array of stored rows.

    Raises:
        ValueError: It is not C-ordered uint8 ``[n, width]``.
    """
    _check_matrix(name, encoded, np.dtype(np.uint8))
    if encoded.shape[1] != width or not encoded.flags.c_contiguous:
        raise ValueError(f"{name}: want C-ordered rows of {width} bytes, got {encoded.shape}")


def _check_matrix(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if array.dtype != dtype or array.ndim != 2:
        raise ValueError(f"{name}: want {dtype} of two dimensions, got {array.dtype} {array.shape}")


def _not_finite(row: int) -> ValueError:
    return ValueError(f"row {row} is not finite, which int8 cannot store")


def _numpy_encode(rows: F32, dtype: RowType) -> U8:
    n, dim = rows.shape
    if dtype == "int8":
        largest = np.abs(rows).max(axis=1, initial=0)
        if len(bad := np.flatnonzero(~np.isfinite(largest))):
            raise _not_finite(int(bad[0]))
        scale = (largest / np.float32(127)).astype("<f4")
        divisor = np.where(scale > 0, scale, np.float32(1))
        # Of the smallest numbers the scale is so coarse that quotients pass 127.
        q = np.clip(np.rint(rows / divisor[:, np.newaxis]), -127, 127).astype(np.int8)
        q[scale == 0] = 0
        return np.hstack([q.view(np.uint8), scale.view(np.uint8).reshape(n, _SCALE_BYTES)])
    halves = (to_fp16 if dtype == "fp16" else to_bf16)(rows)
    return halves.astype("<u2", copy=False).view(np.uint8).reshape(n, 2 * dim)


def _numpy_decode(encoded: U8, dtype: RowType, dim: int) -> F32:
    if dtype == "int8":
        scale = np.ascontiguousarray(encoded[:, dim:]).view("<f4")
        with np.errstate(over="ignore"):  # 127 times a rounded scale may pass the largest float
            return np.asarray(encoded[:, :dim].view(np.int8) * scale.astype(np.float32), np.float32)
    n = len(encoded)
    if dtype == "bf16":
        return from_bf16(encoded.view("<u2").reshape(n, dim))
    floats: F32 = encoded.view("<f2" if dtype == "fp16" else "<f4").reshape(n, dim)
    return floats.astype(np.float32)

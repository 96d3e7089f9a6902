from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from kernels.store.rows import ROW_TYPES, RowType, decode_rows, encode_rows, row_bytes
from tests.kernels.store.helpers import BOTH, needs_c

F32 = NDArray[np.float32]
# Relative to a row's largest number: half of the last place, or half of a step of 1/127.
ERROR = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.51 / 127}

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 70))
FINITE = hnp.arrays(
    np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
ANY = hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32))


def test_a_rows_bytes() -> None:
    assert [row_bytes(dtype, 10) for dtype in ROW_TYPES] == [40, 20, 20, 14]
    with pytest.raises(ValueError, match="want one of fp32, fp16, bf16, int8, got 'fp8'"):
        row_bytes("fp8", 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("dtype", ROW_TYPES)
def test_a_decoded_row_is_near_what_was_stored(dtype: RowType, native: bool) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 37), np.float32)
    rows[7] = 0
    encoded = encode_rows(rows, dtype, native=native)
    assert encoded.shape == (50, row_bytes(dtype, 37))
    decoded = decode_rows(encoded, dtype, 37, native=native)
    error = np.abs(decoded - rows).max(axis=1)
    assert (error <= ERROR[dtype] * np.abs(rows).max(axis=1)).all()


@needs_c
@pytest.mark.parametrize("dtype", ROW_TYPES)
@settings(deadline=None, max_examples=150)
@given(rows=FINITE)
def test_c_and_numpy_store_finite_rows_alike(dtype: RowType, rows: F32) -> None:
    encoded = encode_rows(rows, dtype)
    np.testing.assert_array_equal(encoded, encode_rows(rows, dtype, native=False))
    decoded = decode_rows(encoded, dtype, rows.shape[1])
    again = decode_rows(encoded, dtype, rows.shape[1], native=False)
    np.testing.assert_array_equal(decoded.view(np.uint32), again.view(np.uint32))


@needs_c
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@settings(deadline=None)
@given(rows=ANY)
def test_c_and_numpy_agree_on_infinities_and_nan(dtype: RowType, rows: F32) -> None:
    a = decode_rows(encode_rows(rows, dtype), dtype, rows.shape[1])
    b = decode_rows(encode_rows(rows, dtype, native=False), dtype, rows.shape[1], native=False)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(rows))


@needs_c
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_c_and_numpy_decode_every_half_alike(dtype: RowType) -> None:
    bits = np.arange(2**16, dtype="<u2").view(np.uint8).reshape(64, -1)
    a = decode_rows(bits, dtype, 1024)
    np.testing.assert_array_equal(a, decode_rows(bits, dtype, 1024, native=False))
    encoded = encode_rows(a, dtype)
    finite = np.isfinite(a)
    np.testing.assert_array_equal(encoded.view("<u2")[finite], bits.view("<u2")[finite])


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_refuses_a_row_that_is_not_finite(bad: float, native: bool) -> None:
    rows = np.zeros((5, 8), np.float32)
    rows[3, 7] = bad
    with pytest.raises(ValueError, match="row 3 is not finite"):
        encode_rows(rows, "int8", native=native)


@pytest.mark.parametrize("native", BOTH)
def test_int8_of_the_smallest_numbers_stays_in_range(native: bool) -> None:
    rows = (np.arange(1, 400, dtype=np.uint32)).view(np.float32)[:, np.newaxis].copy()
    decoded = decode_rows(encode_rows(rows, "int8", native=native), "int8", 1, native=native)
    assert (decoded >= 0).all()
    assert (np.abs(decoded - rows) <= 190 * 2.0**-149).all()


@pytest.mark.parametrize("dtype", ROW_TYPES)
def test_out_is_written_and_wrong_arguments_are_errors_that_name_them(dtype: RowType) -> None:
    rows = np.ones((3, 4), np.float32)
    encoded = encode_rows(rows, dtype)
    out = np.empty((3, 4), np.float32)
    assert decode_rows(encoded, dtype, 4, out) is out
    np.testing.assert_allclose(out, rows, rtol=1e-6)
    with pytest.raises(ValueError, match="out: want"):
        decode_rows(encoded, dtype, 4, out[:2])
    with pytest.raises(ValueError, match="encoded: want"):
        decode_rows(encoded[:, :-1], dtype, 4)
    with pytest.raises(ValueError, match="rows: want float32"):
        encode_rows(rows.astype(np.float64), dtype)

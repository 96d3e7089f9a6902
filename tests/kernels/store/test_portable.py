"""The C as it is compiled for a processor without wide vectors or an instruction for fp16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kernels import _native
from kernels import lookup as lookup_module
from kernels.lookup import PooledLookup
from kernels.store import _c
from kernels.store.build import build_keyed
from kernels.store.rows import ROW_TYPES, RowType, decode_rows, encode_rows
from kernels.store.table import StoredTable
from tests.kernels.store.helpers import needs_c
from tests.kernels.test_shards import make_lookup, make_side

pytestmark = needs_c


@pytest.fixture
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile for the least processor of the family; the other libraries come back afterwards."""
    monkeypatch.setattr(_native, "_X86", ())
    _c._load_once.cache_clear()
    lookup_module._native.cache_clear()
    yield
    _c._load_once.cache_clear()
    lookup_module._native.cache_clear()


@pytest.mark.parametrize("dtype", ROW_TYPES)
def test_rows_are_stored_and_pooled_alike_on_a_plain_processor(
    dtype: RowType, plain_processor: None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 47), np.float32) * np.float32(10.0) ** rng.integers(
        -9, 6, (300, 1)
    ).astype(np.float32)
    encoded = encode_rows(rows, dtype)
    np.testing.assert_array_equal(encoded, encode_rows(rows, dtype, native=False))
    decoded = decode_rows(encoded, dtype, 47)
    np.testing.assert_array_equal(decoded, decode_rows(encoded, dtype, 47, native=False))
    keys = rng.integers(-(2**63), 2**63 - 1, 300)
    build_keyed(tmp_path, [(keys, rows)], dim=47, dtype=dtype, n_segments=3)
    table = StoredTable.open(tmp_path)
    np.testing.assert_array_equal(table.fetch(keys), decoded)
    side = make_side([make_lookup("t", 0, 3, dim=47, offset=0, pooling="sum")])
    layout = lookup_module.shard_layout(side, {"t"})
    ids = keys[:270].reshape(3, 90)
    weights = np.empty((0, 90), np.float32)
    got = PooledLookup({"t": table}, layout).run(ids, weights)
    parts = decoded[:270].reshape(3, 90, 47)
    np.testing.assert_array_equal(got, parts[0] + parts[1] + parts[2])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_every_half_is_decoded_alike_on_a_plain_processor(
    dtype: RowType, plain_processor: None
) -> None:
    bits = np.arange(2**16, dtype="<u2").view(np.uint8).reshape(64, -1)
    decoded = decode_rows(bits, dtype, 1024)
    np.testing.assert_array_equal(decoded, decode_rows(bits, dtype, 1024, native=False))
    finite = np.isfinite(decoded)
    encoded = encode_rows(decoded, dtype)
    np.testing.assert_array_equal(encoded.view("<u2")[finite], bits.view("<u2")[finite])

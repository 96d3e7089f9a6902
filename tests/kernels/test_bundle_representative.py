"""Blocks that stand for what a bundle's model will be sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernels.bundle.representative import fp8_of
from kernels.fp8 import Scales
from tests.kernels.bundle_help import build, table, write_model
from tests.kernels.test_bundle_stores import KEYS, built, keyed


def test_lookups_pool_rows_of_their_tables(tmp_path: Path) -> None:
    body = """
        one = Gather (t, id)
        axis = Constant <value = int64[1] {1}> ()
        rows = Gather (u, past)
        sum = ReduceSum <keepdims = 0> (rows, axis)
        y = Concat <axis = 1> (one, sum, age)
    """
    signature = "(int64[B] id, int64[B, 3] past, float[B, 2] age) => (float[B, 10] y)"
    constants = {"t": table(20), "u": np.full((9, 4), 2.0, np.float32)}
    bundle = build(write_model(tmp_path / "m.onnx", signature, body, constants)).bundle
    fp8 = fp8_of(bundle, Scales.TENSOR)
    block, layout = fp8.inputs["candidate"], bundle.manifest.candidate
    first, second = layout.lookups
    assert fp8.scales is Scales.TENSOR
    assert block.shape == (128, layout.width)
    looked_up = block[:, first.offset : first.offset + 4]
    known = {tuple(row) for row in constants["t"]}
    assert {tuple(row) for row in looked_up} <= known
    assert len(np.unique(looked_up, axis=0)) > 15
    np.testing.assert_array_equal(block[:, second.offset : second.offset + 4], 6)
    assert 0.8 < block[:, -2:].std() < 1.2
    np.testing.assert_array_equal(fp8_of(bundle, Scales.ROW).inputs["candidate"], block)


def test_keys_of_a_table_of_the_store_are_drawn(tmp_path: Path) -> None:
    bundle = built(tmp_path, keyed(tmp_path / "ads"))
    fp8 = fp8_of(bundle, Scales.ROW)
    known = bundle.open_table("ads").fetch(KEYS)
    [lookup] = bundle.manifest.candidate.lookups
    block = fp8.inputs["candidate"][:, lookup.offset : lookup.offset + 4]
    assert {tuple(row) for row in block} <= {tuple(row) for row in known}
    assert fp8.inputs["user"].shape == (16, bundle.manifest.user.width)
    assert fp8.request_of_row is not None
    assert set(fp8.request_of_row) == set(range(16))

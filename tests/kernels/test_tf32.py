"""Floats on the tensor cores: the split into parts, and what is not finite or very large."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.compiler import Options, compile_graph
from kernels.halves import to_tf32
from kernels.ir.build import reshape
from kernels.ir.node import Graph
from kernels.ir.reference import evaluate
from kernels.passes.affine import linear
from kernels.program import A100, H100, Bucket, Precision, Target
from tests.kernels import passes_help, shim
from tests.kernels.emitted_help import Sample
from tests.kernels.shim_program import run_program

pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))

F32 = NDArray[np.float32]
SPLIT: Final = """
#include "tf32.cuh"
KERNEL void parts(const float* v, float* big, float* small, int n) {
  for (int i = 0; i < n; i++) {
    const Parts of = split_tf32(v[i]);
    big[i] = __uint_as_float(of.big);
    small[i] = __uint_as_float(of.small);
  }
}
"""
LARGEST: Final = float(np.finfo(np.float32).max)
K, N, STEPS = 24, 20, 5


@functools.cache
def module() -> shim.Module:
    return shim.build(SPLIT, entries=["parts"])


def parts(values: F32) -> tuple[F32, F32]:
    big, small = np.empty_like(values), np.empty_like(values)
    module().launch("parts", args=[values, big, small, len(values)])
    return big, small


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=50))
@example([0.0, -0.0, 1e-45, 1e-40, 2.0**-126, LARGEST, -LARGEST, 3.4e38, 1 + 2.0**-11])
def test_two_parts_are_the_number_to_twice_the_bits(found: list[float]) -> None:
    values = np.array(found, np.float32)
    big, small = parts(values)
    assert np.isfinite(big).all()
    # As far as the tensor cores read them.
    for each in (big, small):
        each.view(np.uint32)[...] &= np.uint32(0xFFFFE000)
    total = big.astype(np.float64) + small
    # What would round to infinity has one part alone.
    limit = np.where(np.abs(values) < 3.4e38, 2.0**-22, 2.0**-10)
    assert (np.abs(total - values) <= np.abs(values) * limit + 2.0**-137).all()


def test_what_is_not_finite_is_small_alone() -> None:
    big, small = parts(np.array([np.inf, -np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(big, 0)
    np.testing.assert_array_equal(small, [np.inf, -np.inf, np.nan])


@given(finite)
def test_weights_are_rounded_to_the_nearest(value: float) -> None:
    stored = to_tf32(np.array([value], np.float32))
    assert not stored.view(np.uint32)[0] & 0x1FFF
    if np.isfinite(stored[0]):
        assert abs(float(stored[0]) - value) <= abs(value) * 2.0**-11 + 2.0**-137
    else:
        assert abs(value) > LARGEST * (1 - 2.0**-11)


def graphs() -> dict[str, Graph]:
    """Return a Linear of a row, and the same for each step of a sequence."""
    random = np.random.default_rng(0)
    weight = random.uniform(0.1, 0.3, (K, N)) * random.choice([-1, 1], (K, N))
    bias = random.normal(0, 1, N)
    inputs, (x,) = passes_help.columns(K)
    row = Graph("row", inputs, linear([(x, weight)], bias, name="row"))
    inputs, (x,) = passes_help.columns(K * STEPS)
    steps = linear([(reshape(x, STEPS, K), weight)], bias, name="steps")
    return {"row": row, "steps": Graph("steps", inputs, reshape(steps, STEPS * N))}


@pytest.mark.parametrize("target", [H100, A100], ids=lambda target: target.arch)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
@pytest.mark.parametrize("name", ["row", "steps"])
def test_numbers_of_every_kind_pass_a_linear(
    name: str, precision: Precision, target: Target
) -> None:
    graph = graphs()[name]
    x = np.random.default_rng(1).normal(0, 1, (40, graph.inputs["candidate"].width))
    x = x.astype(np.float32)
    x[1, 3], x[2, 4], x[3, 5] = np.inf, -np.inf, np.nan
    x[4, 2], x[4, 7] = np.inf, 1e30
    x[5], x[6], x[7] = x[5] * 1e-38, x[6] * 1e30, 0
    x[8, 0] = 1e-42
    if precision is Precision.FP32:
        x[9, 1], x[10, K - 1] = LARGEST, -LARGEST
    sample = Sample({"candidate": x}, np.zeros(len(x), np.int32))
    program = compile_graph(graph, Bucket(48), target, Options(precision))
    got = run_program(program, sample.batch, seed=1)
    with np.errstate(all="ignore"):
        want = evaluate(graph, sample.inputs, sample.request_of_row)
    known = np.isfinite(want)
    np.testing.assert_array_equal(got[~known], want[~known])
    share = np.full((len(x), 1), 1e-6 if precision is Precision.FP32 else 1e-3)
    share[9:11] = 1e-3  # what would round to infinity has one part alone
    bound = np.broadcast_to(share * np.fmax(1, np.nanmax(np.abs(x), 1, keepdims=True)), want.shape)
    assert (np.abs(got[known] - want[known]) < bound[known]).all()
    assert np.isnan(want[3]).any()
    assert np.isinf(want[1]).any()

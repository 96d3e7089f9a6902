"""Weights as tile kernels read them: fragments, rounding, columns of a rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.halves import to_tf32
from kernels.plan.pack import Blob, pack_fragments, rank_columns, rank_tiles, to_storage
from kernels.plan.shape import TileShape
from kernels.plan.steps import Stream, Value
from kernels.program import Precision

F32 = NDArray[np.float32]


def unpacked(packed: NDArray[np.uint8], k: int, tiles: int) -> NDArray[np.float16]:
    """Return ``[k up to 32, tiles * 8]`` by the PTX ISA's figure for .m16n8k16 B, lane by lane."""
    steps = -(-k // 32)
    halves = packed.view(np.float16).reshape(steps, tiles, 32, 8)
    weight = np.full((steps * 32, tiles * 8), np.nan, np.float16)
    for lane in range(32):
        for place in range(8):
            product, register, half = place // 4, place // 2 % 2, place % 2
            row = 16 * product + 8 * register + 2 * (lane % 4) + half
            for step in range(steps):
                weight[step * 32 + row, lane // 4 :: 8] = halves[step, :, lane, place]
    return weight


@given(k=st.integers(1, 80), n=st.integers(1, 70), cluster=st.sampled_from([1, 2, 4, 8]))
def test_fragments_hold_every_weight_at_its_place(k: int, n: int, cluster: int) -> None:
    random = np.random.default_rng(k * 100 + n)
    weight = random.standard_normal((k, n)).astype(np.float16)
    tiles = rank_tiles(n, cluster)
    ranks = [
        unpacked(pack_fragments(weight.astype(np.float32), rank, cluster, Precision.FP16), k, tiles)
        for rank in range(cluster)
    ]
    joined = np.concatenate(ranks, 1)
    np.testing.assert_array_equal(joined[:k, :n], weight)
    assert not joined[k:].any()
    assert not joined[:, n:].any()


@given(k=st.integers(1, 80), n=st.integers(1, 150), cluster=st.sampled_from([1, 2]))
def test_chunks_hold_every_weight_at_its_place(k: int, n: int, cluster: int) -> None:
    random = np.random.default_rng(k * 100 + n)
    weight = random.standard_normal((k, n)).astype(np.float16).astype(np.float32)
    shape = TileShape(64, cluster)
    value = Value("x", halves=True, width=k)
    stream = Stream(n, (weight,), ((value, 0),), shape.depth(8))
    for awaited in (None, 0):
        stream.awaited = awaited
        joined = []
        for rank in range(cluster):
            (packed,) = shape.packed(stream, rank, Precision.FP16)
            chunks = packed.view(np.float16).reshape(-1, shape.columns(n), 8)
            mine = chunks.transpose(0, 2, 1).reshape(-1, shape.columns(n))
            if awaited is not None:  # a block begins with the rows that it has made itself
                mine = np.roll(mine, rank * shape.columns(k), axis=0)
            joined.append(mine)
        whole = np.concatenate(joined, 1)
        np.testing.assert_array_equal(whole[:k, :n], weight)
        assert not whole[k:].any()
        assert not whole[:, n:].any()


def unpacked_floats(packed: NDArray[np.uint8], k: int, tiles: int) -> F32:
    """Return ``[k up to 16, tiles * 8]`` by the PTX ISA's figure for .m16n8k8 B, lane by lane."""
    steps = -(-k // 16)
    floats = packed.view(np.float32).reshape(steps, tiles, 32, 4)
    weight = np.full((steps * 16, tiles * 8), np.nan, np.float32)
    for lane in range(32):
        for place in range(4):
            row = 8 * (place // 2) + 4 * (place % 2) + lane % 4
            for step in range(steps):
                weight[step * 16 + row, lane // 4 :: 8] = floats[step, :, lane, place]
    return weight


@given(k=st.integers(1, 80), n=st.integers(1, 70), cluster=st.sampled_from([1, 2, 4, 8]))
def test_fragments_of_floats_hold_every_weight_at_its_place(k: int, n: int, cluster: int) -> None:
    weight = np.random.default_rng(k * 100 + n).standard_normal((k, n)).astype(np.float32)
    tiles = rank_tiles(n, cluster)
    for precision, stored in ((Precision.FP32, weight), (Precision.TF32, to_tf32(weight))):
        packed = [pack_fragments(weight, rank, cluster, precision) for rank in range(cluster)]
        joined = np.concatenate([unpacked_floats(each, k, tiles) for each in packed], 1)
        np.testing.assert_array_equal(joined[:k, :n], stored)
        assert not joined[k:].any()
        assert not joined[:, n:].any()


@given(n=st.integers(1, 100), cluster=st.sampled_from([1, 2, 4, 8]))
def test_columns_of_all_ranks_are_all_columns(n: int, cluster: int) -> None:
    array = np.arange(1, n + 1, dtype=np.float32)
    parts = [rank_columns(array, rank, cluster) for rank in range(cluster)]
    joined = np.concatenate(parts)
    assert {len(part) for part in parts} == {rank_tiles(n, cluster) * 8}
    np.testing.assert_array_equal(joined[:n], array)
    assert not joined[n:].any()


def nearest_bf16(value: float) -> set[int]:
    """Return the bits of the bfloat16 numbers nearest to a finite one; two at a tie."""
    low = int(np.float32(value).view(np.uint32)) >> 16
    found = np.array([low, low + 1], np.uint32)
    numbers = (found << np.uint32(16)).view(np.float32).astype(np.float64)
    if np.isinf(numbers[1]):
        numbers[1] = np.copysign(2.0**128, numbers[1])  # as if exponents went on
    distance = np.abs(numbers - np.float64(np.float32(value)))
    return {int(each) for each in found[distance == distance.min()]}


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_rounded_to_the_nearest_and_ties_to_even(value: float) -> None:
    bits = int(to_storage(np.array([value], np.float32), Precision.BF16)[0])
    nearest = nearest_bf16(value)
    assert bits in nearest
    assert len(nearest) == 1 or bits % 2 == 0


def test_ties_of_bf16() -> None:
    # 1 + 2^-8 lies between 1 and 1 + 2^-7; 1 + 3 2^-8 between 1 + 2^-7 and 1 + 2^-6.
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20], np.float32)
    stored = to_storage(values, Precision.BF16)
    assert [hex(int(each)) for each in stored] == ["0x3f80", "0x3f82", "0xbf80", "0x3f81"]


def test_fp16_saturates_and_rounds_to_even() -> None:
    values = np.array([1e9, -np.inf, 65519.0, 2049.0, 2051.0, 2**-25, np.nan], np.float32)
    stored = to_storage(values, Precision.FP16).view(np.float16)
    np.testing.assert_array_equal(stored[:6], [65504, -65504, 65504, 2048, 2052, 0])
    assert np.isnan(stored[6])


@pytest.mark.parametrize("alignment", [16, 256])
def test_parts_of_a_blob_begin_at_multiples(alignment: int) -> None:
    blob = Blob(alignment)
    assert blob.bytes().size == 0
    parts = [np.arange(n, dtype=np.uint8) for n in (3, alignment, 1, 0, 7)]
    starts = [blob.add(part) for part in parts]
    held = blob.bytes()
    assert held.size == blob.size
    for start, part in zip(starts, parts, strict=True):
        assert start % alignment == 0
        np.testing.assert_array_equal(held[start : start + part.size], part)

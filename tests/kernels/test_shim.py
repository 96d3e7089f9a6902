"""The shim itself: kernels whose result numpy knows, and kernels with one mistake each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels import shim
from tests.kernels.shim import ShimError

pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))

Halves = NDArray[np.float16]
SEEDS = range(6)
ROOT = Path(__file__).parents[2]
ROW_TILE = shim.ENGINE / "row_tile.cuh"
INCLUDE = '#include "ptx.cuh"\n'


def run(
    body: str,
    *arrays: NDArray[Any],
    block: int = 64,
    cluster: int = 1,
    seed: int = 0,
    races: bool = False,
) -> None:
    """Run a kernel with one cluster. `base` is its shared memory, `t` the thread; args: x and y."""
    names = ("x", "y")[: len(arrays)]
    parameters = ", ".join(f"float* {name}" for name in names)
    module = shim.build(
        f"{INCLUDE}KERNEL void k({parameters}) {{\n"
        "DYNAMIC_SHARED(shared); const u32 base = shared_address(shared);\n"
        f"const int t = threadIdx.x;\n{body}\n}}"
    )
    module.launch("k", cluster, block, cluster, 4096, arrays, seed=seed, races=races)


def samples() -> shim.Module:
    text = (shim.ENGINE / "samples.cuh").read_text()
    gemms = [f"{kind}_gemm{how}" for kind in ("half", "bfloat") for how in ("", "_transposed")]
    return shim.build(text, entries=["softmax", "pack", "unpack", "fma_pairs", "lanes", *gemms])


def floats(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(n).standard_normal(n).astype(np.float32)


# ---- right results


def test_it_has_every_wrapper_of_ptx() -> None:
    ours = (shim.CUDA / "shim.h").read_text()
    theirs = (shim.CUDA / "ptx.cuh").read_text().split("#else", 1)[1]
    names = set(re.findall(r"^(?:template <[^>]*> )?DEVICE [\w ]+?(\w+)\(", theirs, re.M))
    names |= set(re.findall(r"^struct (\w+)", theirs, re.M))
    names |= set(re.findall(r"^#define (\w+)", theirs, re.M))
    assert len(names) > 50
    assert {name for name in names if not re.search(rf"\b{name}\b", ours)} == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_softmax_of_rows(seed: int) -> None:
    x = floats(8 * 300).reshape(8, 300)
    y = np.empty_like(x)
    samples().launch("softmax", 8, 128, args=[x, y, 300], seed=seed)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("entry", ["half_gemm", "bfloat_gemm"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_product_through_ldmatrix_and_mma(entry: str, transposed: bool) -> None:
    m, n, k = 32, 48, 96
    a, b = floats(m * k).reshape(m, k), floats(n * k).reshape(n, k)
    bits: list[NDArray[np.uint16]]
    if entry == "half_gemm":
        bits = [x.astype(np.float16).view(np.uint16) for x in (a, b)]
        a, b = (x.view(np.float16).astype(np.float32) for x in bits)
    else:
        bits = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
        a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in bits)
    if transposed:
        bits[1] = np.ascontiguousarray(bits[1].T)
        entry += "_transposed"
    c = np.empty((m, n), np.float32)
    grid = (m // 16, n // 16)
    samples().launch(entry, grid, 32, 1, 64 * k, [*bits, c, n, k], seed=1, races=True)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.T.astype(np.float64), atol=1e-4)


def test_conversions_to_halves_round_as_numpy_does_and_saturate() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.sort(every[np.isfinite(every)]).astype(np.float32)
    between = (finite[1:] + finite[:-1]) / 2
    far = np.float32(9e9)
    odd = np.array([1e-9, 1e9, -1e9, np.inf, np.nan], np.float32)
    near = [np.nextafter(between, far), np.nextafter(between, -far)]
    x = np.concatenate([finite, between, *near, odd])
    x = x[len(x) % 2 :]
    out = np.empty(len(x), np.uint16)
    samples().launch("pack", args=[x, out.view(np.uint32), len(x) // 2])
    expected = np.clip(x, -65504, 65504).astype(np.float16)
    np.testing.assert_array_equal(out.view(np.float16), expected)
    back = np.empty(1 << 16, np.float32)
    samples().launch("unpack", args=[every.view(np.uint16), back, 1 << 16])
    np.testing.assert_array_equal(back, every.astype(np.float32))


def test_halves_are_multiplied_and_added_with_one_rounding() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.integers(0, 1 << 16, 20_000).astype(np.uint16).view(np.float16) for _ in "abc")
    y, z = np.empty_like(a), np.empty_like(a)
    words = [x.view(np.uint32) for x in (a, b, c, y, z)]
    samples().launch("fma_pairs", args=[*words, 10_000])
    with np.errstate(all="ignore"):
        wide = [x.astype(np.longdouble) for x in (a, b, c)]  # 64 bits: no second rounding matters
        np.testing.assert_array_equal(y, (wide[0] * wide[1] + wide[2]).astype(np.float16))
        np.testing.assert_array_equal(z, (wide[0] * wide[1]).astype(np.float16))


def test_shuffles_votes_and_lanes() -> None:
    y = np.zeros((6, 32), np.float32)
    samples().launch("lanes", block=32, args=[y])
    t = np.arange(32)
    expected = [t * 0 + 7, np.minimum(t + 3, 31), np.maximum(t - 3, 0), t ^ 5, t * 0 + 117]
    expected[1] = np.where(t < 29, t + 3, t)
    expected[2] = np.where(t < 3, t, t - 3)
    np.testing.assert_array_equal(y[:5], expected)
    np.testing.assert_array_equal(y[5, :8], t[:8] ^ 1)


# ---- a row tile: clusters, a producer, a ring, copies between blocks

R, C, N, RANKS = 16, 4, 128, 4


def packed(w: Halves) -> Halves:
    """Lay weights [k, n] out as the tile's lanes read them: [rank][k / 32][tile][lane][8]."""
    lane = np.arange(32)
    e = np.arange(8)
    k = (e // 4 * 16 + e // 2 % 2 * 8 + e % 2) + (lane % 4 * 2)[:, None]  # [lane, e]
    blocks = w.reshape(N // 32, 32, C, N // 8 // C, 8)  # [k32, k, rank, tile, n]
    return np.ascontiguousarray(blocks[:, k, :, :, (lane // 4)[:, None]].transpose(3, 2, 4, 0, 1))


def run_row_tile(seed: int, mistake: str | None = None, *, races: bool = False) -> float:
    """Return the largest error of two layers."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * R, N)).astype(np.float16)
    layers = [(rng.standard_normal((N, N)) / 11).astype(np.float16) for _ in range(2)]
    weights = np.stack([packed(w) for w in layers])
    y = np.full_like(x, np.nan)
    module = shim.build(ROW_TILE.read_text(), defines={mistake: 1} if mistake else None)
    shared_bytes = 128 + 6 * R * N + 2 * 4 * 512
    args = [x, weights, y]
    module.launch("tile", 2 * C, 96, C, shared_bytes, args, seed=seed, races=races)
    expected = x.astype(np.float64)
    for w in layers:
        expected = np.maximum(expected @ w.astype(np.float64), 0)
    return float(np.abs(y - expected).max())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("races", [False, True])
def test_a_row_tile_in_a_cluster(seed: int, races: bool) -> None:
    assert run_row_tile(seed, races=races) < 4e-3


@pytest.mark.parametrize(
    "mistake",
    ["NO_FULL_WAIT", "EARLY_RELEASE", "NO_WARP_SYNC", "NO_GATHER_WAIT", "NO_START", "NO_END"],
)
def test_a_row_tile_that_leaves_out_one_wait_is_found_out(mistake: str) -> None:
    found = 0
    for seed in SEEDS:
        try:
            found += not run_row_tile(seed, mistake) < 4e-3
        except ShimError:
            found += 1
    assert found >= 3


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("NO_FULL_WAIT", "reads byte .* not ordered after a copy to rank"),
        ("EARLY_RELEASE", "copies to byte .* not ordered after .* which reads it"),
        ("NO_WARP_SYNC", "copies from byte .* not ordered after .* which wrote it"),
        ("NO_GATHER_WAIT", "reads byte .* not ordered after a copy to rank"),
        ("NO_FENCE", "copies from byte .* with no fence_async_shared since"),
    ],
)
def test_a_race_in_a_row_tile_is_reported_without_luck(mistake: str, message: str) -> None:
    with pytest.raises(ShimError, match=message):
        run_row_tile(0, mistake, races=True)


# ---- mistakes

START = "const u32 bar = base + 8 * t; mbarrier_init(bar, 1);"


def test_a_missing_barrier_changes_the_result_with_some_seed() -> None:
    wrong = 0
    for seed in SEEDS:
        y = np.zeros(64, np.float32)
        body = "store_shared_f32(base + 4 * t, t); x[t] = load_shared_f32(base + 4 * (63 - t));"
        run(body, y, seed=seed)
        wrong += not np.array_equal(y, np.arange(64)[::-1])
    assert wrong


@pytest.mark.parametrize(
    ("between", "races"),
    [
        ("", True),
        ("__syncwarp();", True),
        ("__syncthreads();", False),
        ("named_barrier(3, 64);", False),
        ("cluster_sync();", False),
        ("if (t < 32) named_barrier_arrive(3, 64); else named_barrier(3, 64);", True),
        ("warp_sum(1.f);", True),
        ("if (!t) mbarrier_arrive(bar); mbarrier_wait(bar, 0);", True),
        ("__syncwarp(); if (!(t % 32)) mbarrier_arrive(bar+8); mbarrier_wait(bar+8, 0);", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_orders_accesses_and_what_does_not(between: str, races: bool, seed: int) -> None:
    body = (
        "const u32 bar = base + 1024; if (!t) { mbarrier_init(bar, 1); mbarrier_init(bar + 8, 2); }"
        "__syncthreads(); store_shared_f32(base + 4 * t, t);\n"
        f"{between}\nx[t] = load_shared_f32(base + 4 * (63 - t));"
    )
    y = np.zeros(64, np.float32)
    if races:
        with pytest.raises(ShimError, match="race"):
            run(body, y, races=True, seed=seed)
    else:
        run(body, y, races=True, seed=seed)
        np.testing.assert_array_equal(y, np.arange(64)[::-1])


def test_a_missing_wait_for_cp_async_reads_nan() -> None:
    x, y = np.ones(256, np.float32), np.zeros(256, np.float32)
    body = "cp_async(base + 16 * t, x + 4 * t); cp_async_commit();\n{}\n"
    body += "y[t] = load_shared_f32(base + 16 * t);"
    run(body.format(""), x, y)
    assert np.isnan(y[:64]).all()
    run(body.format("cp_async_wait<0>();"), x, y)
    assert (y[:64] == 1).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("load_shared_f32(base + 4096);", "a read of 4 bytes out of bounds, at byte 4096 of 4096"),
        ("store_shared_u32(base - 4, 0);", "out of bounds, at byte -4"),
        ("load_shared_u32x4(base + 8);", "not aligned to 16"),
        ("load_shared_f32(map_to_rank(base, 0) + (1 << 24));", "no address of shared memory"),
        ("if (t == 33) x[1 << 20] = 1;", "warp 1 lane 1: touches"),
        ("if (t < 7) warp_sum(1.f); else __syncwarp();", "lanes of a warp diverge"),
        ("if (t == 3) return; warp_sum(1.f);", "ended"),
        ("named_barrier(1, 63);", "not whole warps"),
        ("if (t < 32) named_barrier(1, 64); else named_barrier(1, 32);", "is for"),
        ("mbarrier_wait(base, 0);", "no mbarrier was initialised"),
        ("if (!t) mbarrier_init(base, 1); __syncthreads(); mbarrier_init(base, 1);", "again"),
        (START + "mbarrier_arrive_expect(bar, 16); mbarrier_arrive(bar);", "more arrivals"),
        (START + "bulk_copy_to_shared(base + 1024, x, 24, bar);", "multiple of 16"),
        (START + "bulk_copy_to_shared(base + 1024, x + 1, 16, bar);", "aligned"),
        (START + "if (t == 63) bulk_copy_to_shared(base + 1024, x, 16, bar);", "under way"),
        ("map_to_rank(base, 1);", "in a cluster of 1"),
        ("cluster_wait();", "without having arrived"),
        ("x[0] = 0; for (;;) __nanosleep(9);", "no end in sight"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported(body: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "TIMEOUT_S", 1)
    with pytest.raises(ShimError, match=re.escape(message)):
        run(body, floats(64))


def test_a_deadlock_is_reported_with_who_waits_where() -> None:
    with pytest.raises(ShimError) as caught:
        run(
            "if (t == 0) mbarrier_init(base, 2);\n__syncthreads();\n"
            "if (t == 5) mbarrier_arrive(base);\n"
            "if (t < 32) mbarrier_wait(base, 0);\nnamed_barrier(1, 64);"
        )
    said = str(caught.value)
    assert "deadlock" in said
    assert "warp 0 waits at mbarrier_wait, kernel.cu:8: byte 0, parity 0" in said
    assert "1 of 2 arrivals and 0 bytes missing" in said
    assert "warp 1 waits at named_barrier, kernel.cu:9: barrier 1 has 32 of 64 threads" in said


def test_a_block_that_ends_before_its_peer_writes_to_it_is_reported() -> None:
    body = "cluster_sync(); if (cluster_rank()) store_cluster_u32(map_to_rank(base, 0), 1);"
    late = 0
    for seed in SEEDS:
        try:
            run(body, cluster=2, seed=seed)
        except ShimError as error:
            late += "whose threads have ended" in str(error)
        run(body + "cluster_sync();", cluster=2, seed=seed)
    assert late


def test_views_of_one_array_are_views_of_one_buffer() -> None:
    x = floats(64)
    expected = x * 2
    run("y[t] *= 2; if (x != y - 16) x[0] = 7;", x, x[16:], block=48)
    np.testing.assert_array_equal(x[16:], expected[16:])
    np.testing.assert_array_equal(x[:16] * 2, expected[:16])


def test_writes_to_a_read_only_array_and_past_an_end_are_reported() -> None:
    x = floats(64)
    x.flags.writeable = False
    with pytest.raises(ShimError, match="read-only"):
        run("x[t] = 1;", x)
    with pytest.raises(ShimError, match="past the end"):
        run("if (t == 63) x[t] = 1;", floats(63))


def test_arguments_must_fit_the_kernel() -> None:
    module = shim.build(INCLUDE + "KERNEL void k(float* x, int n, long long m) {}")
    with pytest.raises(ValueError, match=re.escape("[8, 4, 8] bytes, got [8, 4, 4]")):
        module.launch("k", args=[floats(4), 1, 2])
    with pytest.raises(ValueError, match="no kernel other"):
        module.launch("other")
    with pytest.raises(ValueError, match="do not divide"):
        module.launch("k", 3, 1, 2, args=[floats(4), 1, np.int64(2)])
    module.launch("k", args=[None, 1, np.int64(2)])


def test_text_that_does_not_compile_is_refused_with_the_place() -> None:
    with pytest.raises(ShimError, match=r"kernel\.cu:2:.*nonsense"):
        shim.build(INCLUDE + "KERNEL void k() { nonsense(); }")


SANITIZED = """
import numpy as np
from tests.kernels import shim
text = '#include "ptx.cuh"\\nKERNEL void k(int* x, int n) {int a[4] = {}; __syncthreads();'
text += "x[threadIdx.x] = a[n] + shuffle_xor(1u, 1); }"
x = np.zeros(64, np.int32)
for n in (1, 5):
    shim.build(text, sanitize=True).launch("k", 1, 64, args=[x, n])
    print(x.sum(), flush=True)
"""


def test_the_sanitizers_see_what_threads_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED],
        cwd=ROOT,
        env={**os.environ, **shim.sanitizer_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["64"], done.stderr
    assert done.returncode
    assert "index 5 out of bounds for type 'int [4]'" in done.stderr

"""Wide linear layers over floats of eight bits: their rounding, packing, and kernels on the CPU."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.fp8 import LARGEST, Scales, from_e4m3, to_e4m3
from kernels.ir.node import Op
from kernels.nvrtc.compile import compile_source
from kernels.program import A100, H100, Precision, Source
from kernels.wide import (
    CROSS,
    Matrix,
    Method,
    Quantised,
    WideConfig,
    WideLayer,
    activation,
    candidates,
    choose,
    emit,
    pack,
    packed_bytes,
)
from tests.kernels import shim
from tests.kernels.test_wide import Memory, aligned, floats, to_storage

runs_here = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
RELU = activation(Op.RELU)
NAN = 0x7F
WG = Method.WGMMA


def eights(
    shape: tuple[int, int], first: int, values: NDArray[Any], memory: Memory
) -> tuple[NDArray[np.uint8], Matrix]:
    """Return a matrix of NaN with values from a column on, and how a launch names these."""
    room = np.full(shape[0] * shape[1] + 16, NAN, np.uint8)
    skip = -room.ctypes.data % 16
    block = room[skip : skip + shape[0] * shape[1]].reshape(shape)
    block[: len(values), first : first + values.shape[1]] = to_e4m3(values)
    return block, Matrix(memory.at(block, first), shape[1])


def test_rounding_is_to_the_nearest_and_saturates() -> None:
    bits = np.arange(256, dtype=np.uint8)
    numbers = from_e4m3(bits)
    known = ~np.isnan(numbers)
    assert known.sum() == 254
    np.testing.assert_array_equal(to_e4m3(numbers[known]), bits[known])
    values = np.array([np.nan, 1e9, -np.inf, 1.0625, 1.1875, 464, 2**-10, 3 * 2**-10], np.float32)
    rounded = from_e4m3(to_e4m3(values))
    np.testing.assert_array_equal(rounded, [np.nan, 448, -448, 1, 1.25, 448, 0, 2**-8])


@pytest.mark.parametrize("scales", list(Scales))
def test_weights_use_the_whole_range(scales: Scales) -> None:
    layer = WideLayer(64, 24, (40, 16), 2, eights=True)
    random = np.random.default_rng(0)
    weight = random.normal(0, np.exp(random.normal(0, 2, 24)), (2, 56, 24)).astype(np.float32)
    weight[:, :, 3] = 0
    bits, factors = Quantised((4.0, 0.5), scales=scales).weights(layer, weight)
    assert len(np.unique(factors)) == (1 if scales is Scales.TENSOR else 2 * 23 + 1)
    back = from_e4m3(bits) * factors[:, None]
    back[:, :40] *= 4.0
    back[:, 40:] *= 0.5
    largest = np.abs(from_e4m3(bits)).max((0, 1))
    assert largest.max() == LARGEST
    if scales is Scales.ROW:
        assert (np.delete(largest, 3) == LARGEST).all()
        error = np.abs(back - weight) - np.abs(weight) / 16
        assert (error <= np.abs(weight).max((0, 1)) * 2.0**-17).all()


@attrs.frozen
class Case:
    """A layer, how it is cut, and how many of its rows are real."""

    layer: WideLayer
    config: WideConfig
    rows: int
    seed: int = 0


def check(case: Case) -> None:
    layer, rng = case.layer, np.random.default_rng(case.layer.k)
    n, g = layer.n * layer.groups, layer.groups
    memory, inputs, start = Memory(), [], 0
    quantised = Quantised(tuple(2.0**i for i in range(len(layer.segments))), 8.0)
    x = rng.standard_normal((case.rows, g * layer.k)).astype(np.float32)
    held: list[NDArray[Any]] = []
    for k, scale in zip(layer.segments, quantised.inputs, strict=True):
        part = x[:, start : start + g * k]
        if layer.eights:
            pitch = -(-g * k // 16) * 16 + 32
            block, matrix = eights((layer.rows, pitch), 16, part * scale, memory)
            held.append(from_e4m3(block[: case.rows, 16 : 16 + g * k]) / scale)
        else:
            halves = aligned((layer.rows, -(-g * k // 8) * 8), 0xFFFF)
            halves[: case.rows, : g * k] = to_storage(part, Precision.FP16)
            held.append(floats(halves[: case.rows, : g * k], Precision.FP16))
            matrix = memory.matrix(halves)
        inputs.append(matrix)
        start += g * k
    weight = (rng.standard_normal((g, layer.k, layer.n)) / layer.k**0.5).astype(np.float32)
    bias = rng.standard_normal((g, layer.n)).astype(np.float32)
    used = floats(to_storage(weight, Precision.FP16), Precision.FP16)
    if layer.eights:
        bits, factors = quantised.weights(layer, weight)
        scale_of_k = np.repeat(np.float32(quantised.inputs), layer.segments)
        used = from_e4m3(bits) * factors[:, None] * scale_of_k[None, :, None]
    staged = [rng.standard_normal((case.rows, n)) for _ in range(layer.epilogue.n_staged)]
    blocks = [aligned((layer.rows, -(-n // 8) * 8), 0xFFFF) for _ in staged]
    for block16, values in zip(blocks, staged, strict=True):
        block16[: case.rows, :n] = to_storage(values.astype(np.float32), Precision.FP16)
    want = np.concatenate(
        [
            np.concatenate([h[:, j * k : (j + 1) * k] for h, k in zip(held, layer.segments, strict=True)], 1)
            .astype(np.float64) @ used[j] + bias[j]
            for j in range(g)
        ],
        1,
    )  # fmt: skip
    if layer.epilogue is CROSS:
        want = staged[0] * want + staged[1]
    elif layer.epilogue is RELU:
        want = np.maximum(want, 0)
    pitch = -(-n // 16) * 16 + 16
    y = aligned((layer.rows, pitch), 0xFFFF)
    y8, out8 = eights((layer.rows, pitch), 16, np.zeros((0, 0)), memory)
    kernel = emit(layer, case.config, "wide", Precision.FP16)
    blob = np.zeros(packed_bytes(layer) + 16, np.uint8)
    blob = blob[-blob.ctypes.data % 16 :][: packed_bytes(layer)]
    blob[:] = pack(layer, weight, bias, Precision.FP16, quantised)
    launch = kernel.launch(
        0,
        counts=memory.at(np.array([case.rows, 1], np.int32)),
        weights=memory.at(blob),
        output=memory.matrix(y, 8) if layer.stores_halves else None,
        eights=out8 if layer.stores_eights else None,
        inputs=tuple(inputs),
        staged=tuple(memory.matrix(block) for block in blocks),
    )
    memory.run(kernel.text, launch, case.seed, 1)
    largest = np.abs(want).max()
    if layer.stores_halves:
        got = floats(y[: case.rows, 8 : 8 + n], Precision.FP16)
        assert np.abs(got - want).max() <= 2e-3 * largest
        assert (y[case.rows :] == 0xFFFF).all()
    if layer.stores_eights:
        got = from_e4m3(y8[: case.rows, 16 : 16 + n]) / np.float32(8)
        assert (np.abs(got - want) <= np.abs(want) / 15 + 2e-3 * largest).all()
        assert (y8[case.rows :] == NAN).all()
        assert (y8[:, :16] == NAN).all()
        assert (y8[:, 16 + n :] == NAN).all()
    else:
        assert (y8 == NAN).all()


BOTH = {"stores_halves": True, "stores_eights": True}
LAYERS = {
    "plain": WideLayer(70, 72, (400,), eights=True),
    "segments": WideLayer(64, 100, (200, 128, 13), eights=True, **BOTH),
    "odd": WideLayer(130, 71, (130,), epilogue=RELU, eights=True, **BOTH),
    "cross": WideLayer(130, 136, (272,), epilogue=CROSS, eights=True, **BOTH),
    "groups": WideLayer(64, 40, (80,), 3, RELU, eights=True, stores_halves=False, stores_eights=True),
    "first": WideLayer(70, 64, (200,), stores_halves=False, stores_eights=True),
    "long": WideLayer(64, 72, (1152,), epilogue=CROSS, eights=True, **BOTH),
}  # fmt: skip


@runs_here
@pytest.mark.parametrize(
    ("name", "config", "rows", "seed"),
    [
        ("plain", WideConfig(WG, 64, 32, 3, eights=True), 66, 0),
        ("plain", WideConfig(WG, 128, 256, 3, eights=True), 70, 1),
        ("segments", WideConfig(WG, 64, 64, 3, eights=True), 37, 1),
        ("segments", WideConfig(WG, 64, 32, 3, 4, eights=True), 64, 2),
        ("odd", WideConfig(WG, 128, 64, 3, max_clusters=1, eights=True), 129, 0),
        ("cross", WideConfig(WG, 128, 128, 3, max_clusters=1, eights=True), 130, 2),
        ("cross", WideConfig(WG, 128, 64, 3, 2, eights=True), 130, 3),
        ("groups", WideConfig(WG, 64, 32, 3, max_clusters=4, eights=True), 50, 2),
        ("first", WideConfig(WG, 64, 64, 3), 70, 4),
        ("long", WideConfig(WG, 64, 32, 3, 8, eights=True), 64, 7),
        ("long", WideConfig(WG, 64, 128, 3, 4, eights=True), 40, 8),
    ],
)
def test_the_kernels_text_agrees_with_float64(
    name: str, config: WideConfig, rows: int, seed: int
) -> None:
    check(Case(LAYERS[name], config, rows, seed))


@pytest.mark.parametrize(
    "layer",
    [
        WideLayer(64, 512, (3456,), eights=True, stores_halves=False, stores_eights=True),
        WideLayer(4096, 512, (3456,), eights=True, stores_halves=False, stores_eights=True),
        WideLayer(4096, 3456, (512,), epilogue=CROSS, eights=True, **BOTH),
        WideLayer(4096, 1024, (3456,), epilogue=RELU, eights=True, stores_halves=False, stores_eights=True),
    ],
)  # fmt: skip
def test_chosen_kernels_compile_without_spills(layer: WideLayer) -> None:
    config = choose(layer, H100)
    assert config.eights
    assert config.shared_bytes(layer.epilogue.n_staged) <= H100.shared_bytes
    text = emit(layer, config, "wide", Precision.FP16).text
    assert not compile_source(Source("wide", text, H100.arch)).problems


def test_only_hopper_has_kernels() -> None:
    with pytest.raises(ValueError, match="sm_80: only sm_90a"):
        choose(LAYERS["plain"], A100)
    assert all(each.eights for each in candidates(LAYERS["plain"], H100))


def test_what_is_stored_needs_a_place() -> None:
    layer = LAYERS["cross"]
    kernel = emit(layer, choose(layer, H100), "wide", Precision.FP16)
    one = Matrix(Memory().at(np.zeros(1, np.uint8)), 144)
    with pytest.raises(ValueError, match="other matrices"):
        kernel.launch(
            0,
            counts=one.pointer,
            weights=one.pointer,
            output=one,
            inputs=(one,),
            staged=(one, one),
        )
    uneven = WideLayer(64, 40, (24,), 2, eights=True)
    with pytest.raises(ValueError, match="multiple of 16"):
        emit(uneven, choose(uneven, H100), "wide", Precision.FP16)

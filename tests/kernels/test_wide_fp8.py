"""Wide linear layers over floats of eight bits: their rounding, packing, and kernels on the CPU."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.compiler import Options, compile_graph
from kernels.errors import GraphError
from kernels.fp8 import LARGEST, ROOM, Fp8, Scales, from_e4m3, scale_of, to_e4m3
from kernels.ir.node import Graph, Op
from kernels.nvrtc.compile import compile_source
from kernels.plan import phases
from kernels.program import A100, H100, Bucket, Precision, Source, TensorMap
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
from kernels.wide.pack import to_storage
from tests.kernels import shim
from tests.kernels.emitted_help import error_of, sample_of, small
from tests.kernels.shim_program import run_program
from tests.kernels.test_wide import Memory, aligned, floats

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
        scale_of_k = np.repeat(np.array(quantised.inputs, np.float32), layer.segments)
        used = from_e4m3(bits) * factors[:, None] * scale_of_k[None, :, None]
    staged = [rng.standard_normal((case.rows, n)) for _ in range(layer.epilogue.n_staged)]
    blocks = [aligned((layer.rows, -(-n // 8) * 8), 0xFFFF) for _ in staged]
    for block16, values in zip(blocks, staged, strict=True):
        block16[: case.rows, :n] = to_storage(values.astype(np.float32), Precision.FP16)
    parts = []
    for j in range(g):
        columns = [h[:, j * k : (j + 1) * k] for h, k in zip(held, layer.segments, strict=True)]
        parts.append(np.concatenate(columns, 1).astype(np.float64) @ used[j] + bias[j])
    want = np.concatenate(parts, 1)
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


def layer_of(
    rows: int,
    n: int,
    segments: tuple[int, ...],
    groups: int = 1,
    *,
    stores: str = "8",
    **more: Any,  # noqa: ANN401
) -> WideLayer:
    """Return a layer that stores ``8`` or ``16`` bits, or both."""
    return WideLayer(
        rows, n, segments, groups, stores_halves="16" in stores, stores_eights="8" in stores, **more
    )


LAYERS = {
    "plain": layer_of(70, 72, (400,), eights=True, stores="16"),
    "segments": layer_of(64, 100, (200, 128, 13), eights=True, stores="8, 16"),
    "odd": layer_of(130, 71, (130,), epilogue=RELU, eights=True, stores="8, 16"),
    "cross": layer_of(130, 136, (272,), epilogue=CROSS, eights=True, stores="8, 16"),
    "groups": layer_of(64, 40, (80,), 3, epilogue=RELU, eights=True),
    "first": layer_of(70, 64, (200,)),
    "long": layer_of(64, 72, (1152,), epilogue=CROSS, eights=True, stores="8, 16"),
}


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
        layer_of(64, 512, (3456,), eights=True),
        layer_of(4096, 512, (3456,), eights=True),
        layer_of(4096, 3456, (512,), epilogue=CROSS, eights=True, stores="8, 16"),
        layer_of(4096, 1024, (3456,), epilogue=RELU, eights=True),
    ],
)
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


def fp8_of(graph: Graph, scales: Scales = Scales.ROW) -> Fp8:
    """Return a choice whose scales are found from other rows than a test scores."""
    sample = sample_of(graph, 60, 7, seed=11)
    return Fp8(sample.inputs, sample.request_of_row, scales)


@runs_here
@pytest.mark.parametrize("scales", list(Scales))
@pytest.mark.parametrize(
    ("name", "wide_bytes", "n_readers"), [("dlrm_dcnv2", 256, 7), ("dlrm", 1000, 1)]
)
def test_a_program_is_right_to_three_bits(
    name: str, wide_bytes: int, n_readers: int, scales: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "WIDE_BYTES", wide_bytes)
    graph = small(name)
    sample = sample_of(graph, 37, 3)
    options = Options(fp8=fp8_of(graph, scales))
    program = compile_graph(graph, Bucket(40, 4), H100, options)
    assert sum(note.endswith("of e4m3") for note in program.notes) == n_readers
    got = run_program(program, sample.batch, seed=1)
    assert 2e-3 < error_of(graph, sample, got) < 0.1
    plain = compile_graph(graph, Bucket(40, 4), H100)
    assert program.scratch_bytes <= plain.scratch_bytes * 1.5


def test_values_that_only_fp8_reads_are_stored_so_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "WIDE_BYTES", 256)
    graph = small("dlrm_dcnv2")
    program = compile_graph(graph, Bucket(4096, 4), H100, Options(fp8=fp8_of(graph)))
    written = [each.element for facts in program.facts for each in facts.writes]
    assert {"E4m3", "Fp16"} <= set(written)
    sizes = {
        each.element_bytes
        for launch in program.launches
        for each in launch.arguments
        if isinstance(each, TensorMap)
    }
    assert sizes == {1, 2}


def test_fp8_is_refused_where_it_cannot_be() -> None:
    graph = small("dlrm_dcnv2")
    fp8 = fp8_of(graph)
    with pytest.raises(GraphError, match="need sm_90a"):
        compile_graph(graph, Bucket(40, 4), A100, Options(fp8=fp8))
    with pytest.raises(GraphError, match="with fp16 or bf16"):
        compile_graph(graph, Bucket(40, 4), H100, Options(Precision.FP32, fp8=fp8))


def test_inputs_that_are_not_the_graphs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "WIDE_BYTES", 256)
    graph = small("dlrm_dcnv2")
    fp8 = Fp8({"candidate": np.zeros((4, 3), np.float32)})
    with pytest.raises(GraphError, match="inputs to find scales from: input"):
        compile_graph(graph, Bucket(40, 4), H100, Options(fp8=fp8))


def test_scales_leave_room() -> None:
    values = np.array([3.5, -7.0, np.nan, np.inf], np.float32)
    assert scale_of(values) == LARGEST / (ROOM * 7)
    assert scale_of(np.zeros(3)) == 1

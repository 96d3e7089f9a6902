"""Wide linear layers: packing, the choice of a config, and the kernels' text on the CPU."""

from __future__ import annotations

from typing import TypeAlias

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.ir.node import Op
from kernels.nvrtc.compile import compile_source
from kernels.program import (
    A100,
    B200,
    H100,
    Launch,
    Pointer,
    Precision,
    Role,
    Source,
    Target,
    TensorMap,
)
from kernels.wide import (
    CROSS,
    Epilogue,
    Matrix,
    Method,
    WideConfig,
    WideLayer,
    activation,
    candidates,
    choose,
    emit,
    estimate_us,
    pack,
    packed_bytes,
)
from kernels.wide.pack import to_storage
from tests.kernels import shim
from tests.kernels.shim_program import tensor_map

runs_here = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
RELU = activation(Op.RELU)
TOLERANCE = {
    Precision.FP16: 2e-3,
    Precision.BF16: 1.2e-2,
    Precision.TF32: 2e-6,  # of factors that it holds
    Precision.FP32: 2e-6,
}
Bits: TypeAlias = NDArray[np.uint16] | NDArray[np.uint32]
GAIN = Epilogue(
    "Gain",
    """struct Gain {
  static constexpr int N_STAGED = 1;
  const float* gain;
  DEVICE void operator()(int row, int col, float& v0, float& v1, const F32x2* staged) const {
    v0 = v0 * gain[col] + row * staged[0].x, v1 = v1 * gain[col + 1] + row * staged[0].y;
  }
};""",
    n_staged=1,
    parameters=(("const float*", "gain"),),
)


def floats(bits: Bits, precision: Precision) -> F32:
    if not precision.has_halves:
        return bits.view(np.float32)
    if precision is Precision.FP16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bits_of(values: NDArray[np.floating], precision: Precision) -> Bits:
    stored = to_storage(values.astype(np.float32), precision)
    return stored if precision.has_halves else stored.view(np.uint32)


def rounded(values: F64, precision: Precision) -> F32:
    return floats(bits_of(values, precision), precision)


@attrs.frozen
class Case:
    """A layer, how it is cut, and how many of its rows are real."""

    layer: WideLayer
    config: WideConfig
    rows: int
    precision: Precision = Precision.FP16
    seed: int = 0
    resident: int = 1


def expected(case: Case, x: F32, weight: F32, bias: F32, staged: list[F32], gain: F32) -> F64:
    layer = case.layer
    starts = np.cumsum([0, *(k * layer.groups for k in layer.segments)])
    parts = []
    for j in range(layer.groups):
        columns = [
            x[:, start + j * k : start + (j + 1) * k]
            for start, k in zip(starts, layer.segments, strict=False)
        ]
        parts.append(np.concatenate(columns, 1).astype(np.float64) @ weight[j] + bias[j])
    y: F64 = np.concatenate(parts, 1)
    return _ended(layer, y, staged, gain)


def _ended(layer: WideLayer, y: F64, staged: list[F32], gain: F32) -> F64:
    result: F64 = y
    match layer.epilogue.type_name:
        case "Cross":
            result = staged[0] * y + staged[1]
        case "Gain":
            result = y * gain + np.arange(len(y))[:, None] * staged[0]
        case "Activate<Relu>":
            result = np.maximum(y, 0)
        case "Activate<Sigmoid>":
            result = 1 / (1 + np.exp(-y))
        case "Activate<Tanh>":
            result = np.tanh(y)
        case "ActivateLeakyRelu":
            result = np.where(y < 0, 0.1 * y, y)
        case "ActivateElu":
            result = np.where(y < 0, 0.7 * np.expm1(np.minimum(y, 0)), y)
    return result


class Memory:
    """Arrays that a launch names by absolute addresses, and that stay where they are."""

    def __init__(self) -> None:
        self.held: dict[int, NDArray[np.generic]] = {}

    def at(self, array: NDArray[np.generic], column: int = 0) -> Pointer:
        address = array.ctypes.data + column * array.itemsize
        self.held[address] = array.reshape(-1)[column:]
        return Pointer(Role.SCRATCH, address)

    def matrix(self, array: Bits, column: int = 0) -> Matrix:
        return Matrix(self.at(array, column), array.shape[1])

    def run(self, text: str, launch: Launch, seed: int, resident: int) -> None:
        arguments: list[shim.Arg] = []
        for each in launch.arguments:
            if isinstance(each, TensorMap):
                arguments.append(tensor_map(each, each.pointer.offset))
            elif isinstance(each, Pointer):
                arguments.append(self.held[each.offset])
            else:
                arguments.append(each)
        shim.build(text, entries=[launch.entry], optimize=1).launch(
            launch.entry,
            launch.grid,
            launch.block,
            launch.cluster,
            launch.shared_bytes,
            arguments,
            seed=seed,
            resident=resident,
        )


def aligned(shape: tuple[int, int], fill: int, item_bytes: int = 2) -> Bits:
    """Return a matrix that starts at 16 bytes."""
    room = np.full(shape[0] * shape[1] + 8, fill, f"u{item_bytes}")
    skip = -room.ctypes.data % 16 // item_bytes
    return room[skip : skip + shape[0] * shape[1]].reshape(shape)


def check(case: Case) -> None:
    """Run a case; what lies beside inputs and beyond real rows is NaN, and so is Y before."""
    precision = case.precision
    layer, item = attrs.evolve(case.layer, floats=not precision.has_halves), precision.item_bytes
    rng = np.random.default_rng(layer.k + layer.n)
    n, g, nan = layer.n * layer.groups, layer.groups, (1 << 8 * item) - 1
    weight = rounded(rng.standard_normal((g, layer.k, layer.n)) / layer.k**0.5, precision)
    bias = rng.standard_normal((g, layer.n)).astype(np.float32)
    x = rounded(rng.standard_normal((case.rows, g * layer.k)), precision)
    memory, inputs, start = Memory(), [], 0
    for k in layer.segments:
        block = aligned((layer.rows, -(-g * k // 8) * 8 + 24), nan, item)
        block[: case.rows, 8 : 8 + g * k] = bits_of(x[:, start : start + g * k], precision)
        inputs.append(memory.matrix(block, 8))
        start += g * k
    pitch = -(-n // 8) * 8 + 16
    extra = [aligned((layer.rows, pitch), nan, item) for _ in range(layer.epilogue.n_staged)]
    staged = [rounded(rng.standard_normal((case.rows, n)), precision) for _ in extra]
    for block, values in zip(extra, staged, strict=True):
        block[: case.rows, :n] = bits_of(values, precision)
    gain = rng.standard_normal(n + 1).astype(np.float32)
    y = aligned((layer.rows, pitch), nan, item)
    kernel = emit(layer, case.config, "wide", precision)
    blob = np.zeros(packed_bytes(layer) + 16, np.uint8)
    blob = blob[-blob.ctypes.data % 16 :][: packed_bytes(layer)]
    blob[:] = pack(layer, weight, bias, precision)
    launch = kernel.launch(
        0,
        counts=memory.at(np.array([case.rows, 1], np.int32)),
        weights=memory.at(blob),
        output=memory.matrix(y, 8),
        inputs=tuple(inputs),
        staged=tuple(memory.matrix(block) for block in extra),
        extra=(memory.at(gain),) if layer.epilogue is GAIN else (),
    )
    memory.run(kernel.text, launch, case.seed, case.resident)
    want = expected(case, x, weight, bias, staged, gain[:n])
    got = floats(y[: case.rows, 8 : 8 + n], precision)
    assert np.abs(got - want).max() <= TOLERANCE[precision] * np.abs(want).max()
    assert (y[case.rows :] == nan).all()
    assert (y[:, :8] == nan).all()
    assert (y[:, 8 + n :] == nan).all()


WG, MMA = Method.WGMMA, Method.MMA
BF16, TF32, FP32 = Precision.BF16, Precision.TF32, Precision.FP32
LAYERS = {
    "plain": WideLayer(70, 72, (200,)),
    "segments": WideLayer(64, 100, (100, 64, 13), epilogue=activation(Op.SIGMOID)),
    "odd": WideLayer(130, 71, (130,), epilogue=activation(Op.TANH)),
    "cross": WideLayer(130, 136, (136,), epilogue=CROSS),
    "groups": WideLayer(64, 40, (72,), 3, RELU),
    "odd groups": WideLayer(64, 25, (64,), 3, activation(Op.ELU, 0.7)),
    "own": WideLayer(100, 40, (264,), epilogue=GAIN),
    "one row": WideLayer(1, 40, (300,), epilogue=activation(Op.LEAKY_RELU, 0.1)),
    "long": WideLayer(64, 72, (576,), epilogue=CROSS),
}


@runs_here
@pytest.mark.parametrize(
    ("name", "config", "rows", "precision", "seed"),
    [
        ("plain", WideConfig(WG, 64, 32, 3), 66, Precision.FP16, 0),
        ("plain", WideConfig(WG, 64, 32, 3, max_clusters=2), 70, BF16, 3),
        ("segments", WideConfig(WG, 64, 64, 3), 37, Precision.FP16, 1),
        ("segments", WideConfig(WG, 64, 32, 3, 4), 64, Precision.FP16, 2),
        ("odd", WideConfig(WG, 128, 64, 3, max_clusters=1), 129, Precision.FP16, 0),
        ("odd", WideConfig(WG, 128, 32, 3, 2), 130, Precision.FP16, 5),
        ("cross", WideConfig(WG, 64, 128, 3, max_clusters=3), 100, Precision.FP16, 1),
        ("cross", WideConfig(WG, 128, 128, 3, max_clusters=1), 130, BF16, 2),
        ("cross", WideConfig(WG, 128, 64, 3, 2), 130, Precision.FP16, 3),
        ("groups", WideConfig(WG, 64, 32, 3, max_clusters=4), 50, Precision.FP16, 2),
        ("odd groups", WideConfig(WG, 64, 32, 3), 64, Precision.FP16, 0),
        ("own", WideConfig(WG, 64, 32, 4, 2), 99, Precision.FP16, 4),
        ("one row", WideConfig(WG, 64, 64, 3, 4), 1, Precision.FP16, 6),
        ("long", WideConfig(WG, 64, 32, 3, 8), 64, Precision.FP16, 7),
        ("long", WideConfig(WG, 64, 128, 3, 4), 40, Precision.FP16, 8),
        ("plain", WideConfig(WG, 128, 256, 3), 70, Precision.FP16, 1),
        ("plain", WideConfig(MMA, 64, 32, 3), 66, Precision.FP16, 0),
        ("segments", WideConfig(MMA, 64, 64, 2), 37, Precision.FP16, 1),
        ("odd", WideConfig(MMA, 128, 64, 3), 129, BF16, 2),
        ("cross", WideConfig(MMA, 128, 128, 3), 130, Precision.FP16, 3),
        ("groups", WideConfig(MMA, 64, 32, 4), 50, Precision.FP16, 4),
        ("own", WideConfig(MMA, 64, 32, 6), 99, Precision.FP16, 5),
        ("plain", WideConfig(MMA, 64, 32, 3), 66, FP32, 0),
        ("segments", WideConfig(MMA, 64, 64, 2), 37, FP32, 1),
        ("odd", WideConfig(MMA, 128, 64, 3), 129, FP32, 2),
        ("cross", WideConfig(MMA, 128, 128, 3), 130, FP32, 3),
        ("groups", WideConfig(MMA, 64, 32, 4), 50, TF32, 4),
        ("odd groups", WideConfig(MMA, 64, 32, 4), 64, FP32, 4),
        ("own", WideConfig(MMA, 64, 32, 6), 99, TF32, 5),
        ("one row", WideConfig(MMA, 64, 64, 3), 1, TF32, 6),
        ("long", WideConfig(MMA, 64, 64, 3), 40, FP32, 7),
    ],
)
def test_the_kernels_text_agrees_with_float64(
    name: str, config: WideConfig, rows: int, precision: Precision, seed: int
) -> None:
    check(Case(LAYERS[name], config, rows, precision, seed))


@runs_here
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cross", WideConfig(WG, 64, 32, 3, max_clusters=3)),
        ("long", WideConfig(WG, 64, 64, 3, 8)),
        ("long", WideConfig(WG, 64, 128, 3, 2)),
    ],
)
def test_the_order_in_which_copies_land_does_not_matter(
    name: str, config: WideConfig, seed: int
) -> None:
    check(Case(LAYERS[name], config, LAYERS[name].rows, seed=seed, resident=2))


@runs_here
def test_no_rows_store_nothing() -> None:
    for config in (WideConfig(WG, 64, 32, 3), WideConfig(WG, 64, 64, 3, 4)):
        layer, memory = LAYERS["segments"], Memory()
        y = aligned((layer.rows, 104), 0xFFFF)
        kernel = emit(layer, config, "wide", Precision.FP16)
        launch = kernel.launch(
            0,
            counts=memory.at(np.zeros(2, np.int32)),
            weights=memory.at(np.zeros(packed_bytes(layer), np.uint8)),
            output=memory.matrix(y),
            inputs=tuple(memory.matrix(aligned((64, 104), 0)) for _ in layer.segments),
        )
        memory.run(kernel.text, launch, 0, 1)
        assert (y == 0xFFFF).all()


@pytest.mark.parametrize("item_bytes", [2, 4])
def test_packed_weights_are_where_the_head_of_the_device_code_says(item_bytes: int) -> None:
    layer = WideLayer(64, 70, (100, 9), 2, floats=item_bytes == 4)
    depth, per = layer.k_tile, 16 // item_bytes
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 109, 70)).astype(np.float16).astype(np.float32)
    bias = rng.standard_normal((2, 70)).astype(np.float32)
    blob = pack(layer, weight, bias, Precision.FP16 if item_bytes == 2 else FP32)
    n_tiles = -(-100 // depth) + 1
    assert blob.size == packed_bytes(layer)
    held_as = f"<f{item_bytes}"
    tiles = blob[: 2 * n_tiles * 96 * 128].view(held_as).reshape(2, n_tiles, 96, 8, per)
    for group, k, n in rng.integers(0, [2, 109, 70], (200, 3)):
        tile, within = divmod(k, depth) if k < 100 else (n_tiles - 1, k - 100)
        t, j, e = n % 32 // 8, n % 8 // 2, n % 2
        row = n // 32 * 32 + j * 8 + t * 2 + e
        held = tiles[group, tile, row, (within // per) ^ (row % 8), within % per]
        assert held == weight[group, k, n]
    assert np.count_nonzero(tiles) == np.count_nonzero(weight)
    packed_bias = blob[layer.bias_offset :].view(np.float32).reshape(2, 256)
    np.testing.assert_array_equal(packed_bias[:, :70], bias)
    assert not packed_bias[:, 70:].any()


def test_storage_rounds_to_even_and_saturates() -> None:
    values = np.array([1e6, -1e6, 1 + 2**-11, 1 + 3 * 2**-11], np.float32)
    halves = floats(to_storage(values, Precision.FP16), Precision.FP16)
    np.testing.assert_array_equal(halves, [65504, -65504, 1, 1 + 2**-9])
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(floats(to_storage(values, BF16), BF16), [1, 1 + 2**-6])
    values = np.array([1 + 2**-11, 1 + 2**-12, 2**30], np.float32)
    np.testing.assert_array_equal(to_storage(values, TF32), [1 + 2**-10, 1, 2**30])
    np.testing.assert_array_equal(to_storage(values, FP32), values)


@pytest.mark.parametrize("rows", [1, 64, 512, 4096])
@pytest.mark.parametrize(
    ("k", "n", "groups"), [(3456, 512, 1), (512, 3456, 1), (512, 256, 8), (64, 32, 1)]
)
@pytest.mark.parametrize("epilogue", [RELU, CROSS, GAIN])
def test_what_is_chosen_fits(rows: int, k: int, n: int, groups: int, epilogue: Epilogue) -> None:
    layer = WideLayer(rows, n, (k,), groups, epilogue)
    for target in (H100, A100, B200):
        config = choose(layer, target)
        assert (config.method is Method.WGMMA) == (target is H100)
        assert config.shared_bytes(epilogue.n_staged) <= target.shared_bytes
        assert config.split <= layer.k_tiles
        assert config.split == 1 or config.max_clusters == 0  # one tile a cluster
        of_floats = choose(attrs.evolve(layer, floats=True), target)
        assert of_floats.method is Method.MMA
        assert of_floats.shared_bytes(epilogue.n_staged) <= target.shared_bytes
    best = estimate_us(layer, choose(layer, H100), H100)
    assert best == min(estimate_us(layer, each, H100) for each in candidates(layer, H100))


def test_few_rows_split_k_and_many_do_not() -> None:
    assert choose(WideLayer(64, 512, (3456,)), H100).split > 1
    many = choose(WideLayer(4096, 512, (3456,)), H100)
    assert (many.split, many.tile_rows, many.tile_columns) == (1, 128, 128)


def test_layers_that_differ_in_rows_only_share_their_text() -> None:
    config = choose(WideLayer(512, 512, (3456,)), H100)
    texts = {emit(WideLayer(r, 512, (3456,)), config, "f", Precision.FP16).text for r in (64, 512)}
    assert len(texts) == 1


def test_arguments_that_do_not_match_the_layer_are_refused() -> None:
    kernel = emit(LAYERS["cross"], choose(LAYERS["cross"], H100), "wide", Precision.FP16)
    one = Pointer(Role.SCRATCH)
    with pytest.raises(ValueError, match="staged"):
        kernel.launch(
            0, counts=one, weights=one, output=Matrix(one, 136), inputs=(Matrix(one, 136),)
        )
    uneven = WideLayer(64, 40, (12,), 2)
    with pytest.raises(ValueError, match="multiple of 8"):
        emit(uneven, choose(uneven, H100), "wide", Precision.FP16)


@pytest.mark.parametrize(
    ("target", "layer"),
    [
        (H100, WideLayer(64, 512, (3456,))),
        (H100, WideLayer(4096, 3456, (512,), epilogue=CROSS)),
        (H100, WideLayer(4096, 1024, (3456,), epilogue=RELU)),
        (H100, WideLayer(4096, 1024, (3456,), epilogue=GAIN)),
        (A100, WideLayer(4096, 3456, (512,), epilogue=CROSS)),
        (B200, WideLayer(64, 256, (512,), 8, RELU)),
    ],
)
def test_chosen_kernels_compile_without_spills(target: Target, layer: WideLayer) -> None:
    text = emit(layer, choose(layer, target), "wide", Precision.FP16).text
    assert not compile_source(Source("wide", text, target.arch)).problems

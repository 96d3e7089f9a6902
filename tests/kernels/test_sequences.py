"""Row programs over sequences: their text runs on the CPU and agrees with numpy in float64."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ir.node import Encoder, Lead, Op, TargetAttention
from kernels.nvrtc.compile import compile_source
from kernels.program import H100, TARGETS, Precision, Source, Target
from kernels.sequences.encoder import (
    EncoderShape,
    EncoderTile,
    choose_tile,
    emit_encoder,
    pack_encoder,
)
from kernels.sequences.encoder import shape_of as encoder_shape
from kernels.sequences.pack import neighbours
from kernels.sequences.target_attention import (
    WARPS,
    choose_warps_per_row,
    emit_target_attention,
    pack_target_attention,
)
from tests.kernels import sequence_help as help_
from tests.kernels import shim

runs_here = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
TOLERANCE = {Precision.FP16: 4e-3, Precision.BF16: 3e-2}


@attrs.frozen
class Attention:
    """A case: sizes, and how it is run."""

    d: int
    hidden: tuple[int, ...]
    steps: int
    warps_per_row: int = 1
    rows: int = 6
    blocks: int = 1
    arg: TargetAttention | None = None
    precision: Precision = Precision.FP16
    element: str = "Fp16"
    skip: int = 0
    requests: bool = False
    lead: Lead = Lead.ROWS
    seed: int = 0


def check_attention(case: Attention) -> None:
    rng = np.random.default_rng(case.steps + case.d)
    node = help_.target_attention(rng, case.d, case.hidden, case.steps, case.arg)
    n = 3 if case.requests else case.rows
    of_row = np.arange(case.rows, dtype=np.int32) % n
    if case.lead is Lead.REQUESTS:
        of_row[:] = 0  # nobody may ask
    query = (rng.standard_normal((case.rows, case.d)) * 0.7).astype(np.float16)
    keys = (rng.standard_normal((n, case.steps, case.d)) * 0.7).astype(np.float16)
    mask = help_.masks(rng, n, case.steps)
    lead = Lead.REQUESTS if case.requests else case.lead
    own = help_.Block.of([query], case.element)
    block = help_.Block.of([keys, mask], case.element, case.skip)
    weights, shape = pack_target_attention(node, case.precision)
    kernel = emit_target_attention(
        shape,
        "attention",
        query=own.matrix(0, case.lead),
        keys=block.matrix(0, lead),
        mask=block.matrix(1, lead),
        output=attrs.evolve(help_.output(case.d, case.precision, case.d + 8), lead=case.lead),
        warps_per_row=case.warps_per_row,
    )
    found = np.full((case.rows + 2, case.d + 8), 0xFFFF, np.uint16)  # NaN
    shim.build(kernel.text, entries=["attention"]).launch(
        "attention",
        case.blocks,
        WARPS * 32,
        shared_bytes=shape.shared_bytes(case.warps_per_row),
        args=[
            np.array([case.rows, n] if case.lead is Lead.ROWS else [-1, case.rows], np.int32),
            weights,
            of_row,
            own.part(0),
            block.part(0),
            block.part(1),
            found,
        ],
        seed=case.seed,
    )
    own_keys = of_row if case.requests else np.arange(case.rows)
    expected = help_.answer(node, [query, keys[own_keys], mask[own_keys]])
    result = help_.floats_of(found, case.precision)
    error = np.abs(result[: case.rows, : case.d] - expected).max()
    assert error < TOLERANCE[case.precision] * max(1.0, np.abs(expected).max())
    assert (found[case.rows :] == 0xFFFF).all(), "rows beyond the batch were written"
    assert (found[:, case.d :] == 0xFFFF).all(), "columns beside the result were written"


LEAKY = TargetAttention(3, Op.LEAKY_RELU, 0.1)
PLAIN = TargetAttention(3, Op.SIGMOID, softmax=False, masked=0.0)
ODD = TargetAttention(2, Op.TANH, softmax=False, masked=0.25)
NEAR = TargetAttention(3, Op.RELU, masked=-2.0)


@runs_here
@pytest.mark.parametrize(
    "case",
    [
        Attention(64, (80, 40), 100, rows=9),
        Attention(64, (80, 40), 100, 4, seed=1),
        Attention(64, (80, 40), 100, 8, seed=2, blocks=2),
        Attention(32, (36,), 50, 2, arg=TargetAttention(2, Op.RELU), seed=3),
        Attention(16, (24, 12), 16, arg=LEAKY),
        Attention(48, (40, 20), 37, 2, arg=PLAIN, seed=4),
        Attention(32, (16,), 20, 2, arg=ODD, seed=5),
        Attention(32, (16, 8), 40, 1, arg=NEAR),
        Attention(32, (16, 8), 40, 4, arg=NEAR, seed=6),
        Attention(128, (128, 64), 40, 2, seed=7),
        Attention(80, (72, 100), 33),
        Attention(64, (80, 40), 64, precision=Precision.BF16, element="Float32"),
        Attention(64, (80, 40), 40, element="Float32", skip=4),
        Attention(32, (80, 40), 40, element="Fp16", skip=3, requests=True),
        Attention(32, (80, 40), 40, lead=Lead.REQUESTS),
    ],
    ids=str,
)
def test_target_attention_agrees_with_float64(case: Attention) -> None:
    check_attention(case)


@attrs.frozen
class Block:
    """A case of the encoder: sizes, and how it is run."""

    d: int
    n_heads: int
    f: int
    steps: int
    tile: EncoderTile
    rows: int = 3
    blocks: int = 1
    activation: Op = Op.LEAKY_RELU
    precision: Precision = Precision.FP16
    element: str = "Fp16"
    skip: int = 0
    out_ld: int = 8
    lead: Lead = Lead.ROWS
    by_request: bool = False
    seed: int = 0


def check_encoder(case: Block) -> None:
    rng = np.random.default_rng(case.steps + case.d)
    arg = Encoder(case.n_heads, (case.d / case.n_heads) ** -0.5, case.activation, 0.01)
    node = help_.encoder(rng, case.d, case.f, case.steps, arg)
    n = 2 if case.by_request else case.rows
    of_row = np.arange(case.rows, dtype=np.int32) % n
    x = (rng.standard_normal((n, case.steps, case.d)) * 0.7).astype(np.float16)
    block = help_.Block.of([x], case.element, case.skip)
    width = case.steps * case.d
    weights, shape = pack_encoder(node, case.precision)
    kernel = emit_encoder(
        shape,
        case.tile,
        "encoder",
        x=block.matrix(0, Lead.REQUESTS if case.by_request else case.lead),
        output=attrs.evolve(
            help_.output(width, case.precision, width + case.out_ld), lead=case.lead
        ),
    )
    found = np.full((case.rows + 1, width + case.out_ld), 0xFFFF, np.uint16)  # NaN
    counts = [case.rows, -1] if case.lead is Lead.ROWS else [-1, case.rows]
    shim.build(kernel.text, entries=["encoder"]).launch(
        "encoder",
        case.blocks,
        case.tile.warps * 32,
        shared_bytes=case.tile.shared_bytes(shape),
        args=[np.array(counts, np.int32), weights, of_row, block.part(0), found],
        seed=case.seed,
    )
    expected = help_.answer(node, [x[of_row]]).reshape(case.rows, width)
    result = help_.floats_of(found, case.precision)
    error = np.abs(result[: case.rows, :width] - expected).max()
    assert error < 3 * TOLERANCE[case.precision] * max(1.0, np.abs(expected).max())
    assert (found[case.rows :] == 0xFFFF).all(), "rows beyond the batch were written"
    assert (found[:, width:] == 0xFFFF).all(), "columns beside the result were written"


@runs_here
@pytest.mark.parametrize(
    "case",
    [
        Block(64, 4, 256, 64, EncoderTile(2, 4)),
        Block(64, 4, 256, 64, EncoderTile(1, 8), blocks=2, seed=1),
        Block(32, 4, 64, 20, EncoderTile(2, 2), element="Float32", seed=2),
        Block(48, 4, 32, 37, EncoderTile(2, 2, resident=0), seed=3),
        Block(32, 2, 16, 16, EncoderTile(1, 1), activation=Op.RELU),
        Block(64, 2, 32, 33, EncoderTile(1, 3, resident=1), skip=3, out_ld=7, seed=4),
        Block(16, 2, 48, 9, EncoderTile(1, 2), precision=Precision.BF16),
        Block(128, 8, 32, 40, EncoderTile(1, 3), lead=Lead.REQUESTS, seed=5),
        Block(64, 4, 256, 64, EncoderTile(1, 8, split=2), seed=7),
        Block(64, 8, 80, 35, EncoderTile(1, 12, split=4), seed=8),
        Block(48, 3, 48, 50, EncoderTile(2, 8, resident=1, split=2), blocks=2, seed=9),
        Block(32, 1, 32, 40, EncoderTile(2, 4), by_request=True, seed=6),
    ],
    ids=str,
)
def test_an_encoder_agrees_with_float64(case: Block) -> None:
    check_encoder(case)


# ---- what needs no run


def kernels_of(arch: str) -> list[Source]:
    """Return kernels of many sizes as chosen for a card, with few rows and many."""
    target = TARGETS[arch]
    sources = []
    for d, hidden, steps in ((64, (80, 40), 100), (128, (128, 128), 50), (32, (36,), 20)):
        node = help_.target_attention(np.random.default_rng(0), d, hidden, steps)
        _, shape = pack_target_attention(node, Precision.FP16)
        for rows in (64, 4096):
            block = help_.Block.of([np.zeros((1, n)) for n in (d, steps * d, steps)], "Fp16")
            kernel = emit_target_attention(
                shape,
                "attention",
                query=block.matrix(0),
                keys=block.matrix(1),
                mask=block.matrix(2),
                output=help_.output(d, Precision.FP16),
                warps_per_row=choose_warps_per_row(rows, steps, target),
            )
            sources.append(Source(f"attention {d} {rows}", kernel.text, arch))
    for d, heads, f, steps in ((64, 4, 256, 64), (128, 8, 512, 128), (48, 3, 96, 20)):
        arg = Encoder(heads, 0.25, Op.LEAKY_RELU, 0.01)
        shape_ = encoder_shape(
            help_.encoder(np.random.default_rng(0), d, f, steps, arg), Precision.FP16
        )
        for rows in (64, 4096):
            tile = choose_tile(shape_, rows, target)
            block = help_.Block.of([np.zeros((1, steps * d))], "Fp16")
            out = help_.output(steps * d, Precision.FP16)
            text = emit_encoder(shape_, tile, "encoder", x=block.matrix(0), output=out).text
            sources.append(Source(f"encoder {d} {rows}", text, arch))
    return sources


@pytest.mark.parametrize("arch", TARGETS)
def test_kernels_fit_in_registers(arch: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    cubins = [compile_source(source) for source in kernels_of(arch)]
    assert {cubin.name: cubin.problems for cubin in cubins if cubin.problems} == {}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.arch)
@given(
    d=st.integers(1, 8).map(lambda n: 16 * n),
    heads=st.sampled_from([1, 2, 4, 8]),
    f=st.integers(1, 64).map(lambda n: 16 * n),
    steps=st.integers(1, 128),
    rows=st.integers(1, 5000),
)
@settings(max_examples=60, deadline=None)
def test_a_chosen_tile_fits_and_covers_the_rows(
    target: Target, d: int, heads: int, f: int, steps: int, rows: int
) -> None:
    shape = EncoderShape(Precision.FP16, d, heads, f, steps, Op.RELU)
    tile = choose_tile(shape, rows, target)
    assert tile.shared_bytes(shape) <= target.shared_bytes
    assert tile.warps % (tile.parts(shape) * tile.split) == 0
    assert 1 <= tile.groups(shape) <= 8
    assert tile.warps <= 8, "255 registers a thread"
    assert tile.parts(shape) * tile.m_tiles * 16 >= steps


@pytest.mark.parametrize("columns", [16, 32, 48, 64, 80, 128])
def test_neighbours_is_an_order_of_all_columns(columns: int) -> None:
    order = neighbours(columns)
    assert sorted(order) == list(range(columns))
    whole = columns // 32 * 32
    # The quad's second lane has columns 8 to 15 of the first 32: places 2 and 3 of each tile.
    if whole:
        places = [8 * tile + 2 + odd for tile in range(4) for odd in range(2)]
        assert list(order[places]) == list(range(8, 16))


def test_what_has_no_kernel_says_why() -> None:
    rng = np.random.default_rng(0)
    node = help_.target_attention(rng, 24, (16, 8), 10)
    with pytest.raises(ValueError, match="width 24"):
        pack_target_attention(node, Precision.FP16)
    node = help_.encoder(rng, 32, 40, 10, Encoder(2, 0.25, Op.RELU))
    with pytest.raises(ValueError, match="40 inner columns"):
        pack_encoder(node, Precision.FP16)
    with pytest.raises(ValueError, match="fp32"):
        pack_encoder(node, Precision.FP32)


@given(rows=st.integers(1, 5000), steps=st.integers(1, 300))
def test_warps_share_a_row_only_where_rows_are_few(rows: int, steps: int) -> None:
    share = choose_warps_per_row(rows, steps, H100)
    assert share in (1, 2, 4, 8)
    assert share == 1 or rows * share <= H100.n_sms * WARPS
    assert share == 1 or share <= 2 * -(-steps // 16)

"""Row programs over sequences: their text runs on the CPU and agrees with numpy in float64."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from kernels.ir.node import Encoder, Lead, Op, TargetAttention
from kernels.program import Precision
from kernels.sequences.encoder import EncoderTile, emit_encoder, pack_encoder
from kernels.sequences.target_attention import (
    WARPS,
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
    seed: int = 0


def check_attention(case: Attention) -> None:
    rng = np.random.default_rng(case.steps + case.d)
    node = help_.target_attention(rng, case.d, case.hidden, case.steps, case.arg)
    n = 3 if case.requests else case.rows
    of_row = np.arange(case.rows, dtype=np.int32) % n
    query = (rng.standard_normal((case.rows, case.d)) * 0.7).astype(np.float16)
    keys = (rng.standard_normal((n, case.steps, case.d)) * 0.7).astype(np.float16)
    mask = help_.masks(rng, n, case.steps)
    lead = Lead.REQUESTS if case.requests else Lead.ROWS
    own = help_.Block.of([query], case.element)
    block = help_.Block.of([keys, mask], case.element, case.skip)
    weights, shape = pack_target_attention(node, case.precision)
    kernel = emit_target_attention(
        shape,
        "attention",
        query=own.matrix(0),
        keys=block.matrix(0, lead),
        mask=block.matrix(1, lead),
        output=help_.output(case.d, case.precision, case.d + 8),
        warps_per_row=case.warps_per_row,
    )
    found = np.full((case.rows + 2, case.d + 8), 0xFFFF, np.uint16)  # NaN
    shim.build(kernel.text, entries=["attention"]).launch(
        "attention",
        case.blocks,
        WARPS * 32,
        shared_bytes=shape.shared_bytes(case.warps_per_row),
        args=[
            np.array([case.rows, n], np.int32),
            weights,
            of_row,
            own.part(0),
            block.part(0),
            block.part(1),
            found,
        ],
        seed=case.seed,
    )
    expected = help_.answer(node, [query, keys[of_row], mask[of_row]])
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
        Block(64, 4, 256, 64, EncoderTile(2, 4, resident=True)),
        Block(64, 4, 256, 64, EncoderTile(1, 8, resident=True), blocks=2, seed=1),
        Block(32, 4, 64, 20, EncoderTile(2, 2, resident=True), element="Float32", seed=2),
        Block(48, 4, 32, 37, EncoderTile(2, 2, resident=False), seed=3),
        Block(32, 2, 16, 16, EncoderTile(1, 1, resident=True), activation=Op.RELU),
        Block(64, 2, 32, 33, EncoderTile(1, 3, resident=False), skip=3, out_ld=7, seed=4),
        Block(16, 2, 48, 9, EncoderTile(1, 2, resident=True), precision=Precision.BF16),
        Block(128, 8, 32, 40, EncoderTile(1, 3, resident=True), lead=Lead.REQUESTS, seed=5),
        Block(32, 1, 32, 40, EncoderTile(2, 4, resident=True), by_request=True, seed=6),
    ],
    ids=str,
)
def test_an_encoder_agrees_with_float64(case: Block) -> None:
    check_encoder(case)

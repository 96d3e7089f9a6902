"""Whole programs, as the compiler emits them, on a card: they score what the oracle does.

The counterpart of ``tests/kernels/test_emitted_shim.py``. Sizes are small, so that
``compute-sanitizer`` can be run on it: ``-k small`` for what each kind of kernel takes once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import _cuda
from kernels.arenas import HotPlan
from kernels.bench.models import MODELS
from kernels.compiler import Options, compile_graph
from kernels.device_tables import DeviceTables
from kernels.fp8 import Fp8, Scales
from kernels.gpu.device import Context, Device
from kernels.gpu.loaded import LoadedProgram
from kernels.ir.node import Graph
from kernels.nvrtc import Builder, Cache, default_folder
from kernels.plan.shape import TileShape
from kernels.program import Bucket, Precision, Program, Role, Target
from tests import zoo_rows
from tests.kernels import gather_help, passes_help
from tests.kernels.emitted_help import (
    TOLERANCE,
    Sample,
    error_of,
    pairs_graph,
    peer,
    peer_sample,
    sample_of,
    small,
)
from tests.kernels.ir_graphs import random_graph
from tests.kernels.shim_program import Batch

pytestmark = pytest.mark.gpu

FP32, TF32, BF16, HALVES = (
    Options(Precision.FP32),
    Options(Precision.TF32),
    Options(Precision.BF16),
    Options(input_dtype="float16"),
)
# Of what the CPU gives: the card's exp and tanh are not exact.
FACTOR = 4.0


@attrs.frozen(eq=False)
class Card:
    """Where programs run."""

    context: Context
    stream: Any
    builder: Builder

    @property
    def target(self) -> Target:
        """What to compile for."""
        return self.context.device.target()

    def load(self, program: Program, tables: NDArray[np.uint8] | None = None) -> LoadedProgram:
        """Build and load a program; it is the caller's to close."""
        images = [cubin.image for cubin in self.builder.build_all(program.sources)]
        buffers = {}
        if tables is not None:
            memory = self.context.allocate(tables.nbytes)
            memory.write(tables)
            buffers[Role.TABLES] = memory.address
        return LoadedProgram(self.context, program, images, buffers=buffers)

    def scores(self, loaded: LoadedProgram, batch: Batch) -> NDArray[np.float32]:
        """Run a batch, its scores NaN before."""
        rows = len(batch.candidate)
        of_row = np.zeros(rows, np.int32) if batch.request_of_row is None else batch.request_of_row
        loaded.write(batch.user, batch.candidate, of_row)
        loaded.poison()
        loaded.launch(self.stream)
        _cuda.stream_synchronize(self.stream)
        return loaded.scores(rows)

    def agrees(self, graph: Graph, sample: Sample, options: Options, bucket: Bucket) -> None:
        """Run a graph on a batch, twice, and compare it with the oracle."""
        loaded = self.load(compile_graph(graph, bucket, self.target, options))
        try:
            for _ in range(2):
                got = self.scores(loaded, sample.batch)
                assert error_of(graph, sample, got) < FACTOR * TOLERANCE[options.precision]
        finally:
            loaded.close()


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Card]:
    # A sitting names a folder, in which the sanitizer's run finds what was compiled before.
    named = "XDG_CACHE_HOME" in os.environ
    cache = Cache(default_folder() if named else tmp_path_factory.mktemp("cubins"))
    context = Context(Device.open())
    stream = context.stream()
    with Builder(cache, n_workers=2, niceness=0) as builder:
        yield Card(context, stream, builder)
    context.make_current()
    _cuda.destroy_stream(stream)
    context.close()


def ragged(graph: Graph, rows: int, seed: int = 0) -> Sample:
    """Draw a batch whose requests have uneven numbers of rows."""
    of_row = zoo_rows.requests_of(rows, np.random.default_rng(seed))
    sample = sample_of(graph, rows, int(of_row[-1]) + 1, seed)
    return attrs.evolve(sample, request_of_row=of_row)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 37, 513])
def test_a_model_agrees_with_float64(name: str, rows: int, card: Card) -> None:
    for options in (Options(), BF16, TF32, FP32, HALVES):
        card.agrees(peer(name), peer_sample(name, rows), options, Bucket(rows + 3))


@pytest.mark.parametrize("options", [Options(), TF32, FP32], ids=["fp16", "tf32", "fp32"])
@pytest.mark.parametrize("name", passes_help.MODELS)
def test_small_models_with_a_user_side_agree(name: str, options: Options, card: Card) -> None:
    for rows in (1, 37):
        card.agrees(small(name), ragged(small(name), rows), options, Bucket(40, 8))


@pytest.mark.parametrize(
    "options",
    [Options(), Options(user_once=False), BF16, HALVES, TF32, FP32],
    ids=["fp16", "each row", "bf16", "halves", "tf32", "fp32"],
)
@pytest.mark.parametrize("name", passes_help.MODELS)
def test_users_may_be_ragged(name: str, options: Options, card: Card) -> None:
    for rows in (64, 513):
        card.agrees(small(name), ragged(small(name), rows), options, Bucket(600, 64))


@pytest.mark.parametrize(
    "shape",
    [
        TileShape(16, 2),
        TileShape(16, 8),
        TileShape(32, 1),
        TileShape(32, 2),
        TileShape(64, 2),
        TileShape(8, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["DeepFM", "DLRM"])
def test_every_cut_of_a_tile_agrees(name: str, shape: TileShape, card: Card) -> None:
    if card.target.arch != "sm_90a" and (shape.groups or card.target.arch == "sm_80"):
        pytest.skip("the card has no clusters, or no wgmma")
    card.agrees(peer(name), peer_sample(name, 100), Options(tile=shape), Bucket(100))


@pytest.mark.parametrize(
    "shape",
    [TileShape(16, 2), TileShape(16, 4), TileShape(64, 2)],
    ids=["fp16-2", "fp16-4", "fp16-groups"],
)
@pytest.mark.parametrize("name", ["dlrm", "dlrm_dcnv2", "deepfm"])
def test_small_models_in_clusters_agree(name: str, shape: TileShape, card: Card) -> None:
    if card.target.arch != "sm_90a" and (shape.groups or card.target.arch == "sm_80"):
        pytest.skip("the card has no clusters, or no wgmma")
    card.agrees(small(name), ragged(small(name), 37), Options(tile=shape), Bucket(40, 8))


def test_small_pairs_of_both_sides_agree(card: Card) -> None:
    for options in (Options(), FP32, TF32, BF16):
        card.agrees(pairs_graph(), ragged(pairs_graph(), 37), options, Bucket(40, 8))


@pytest.mark.parametrize("scales", list(Scales))
@pytest.mark.parametrize("rows", [1, 37, 513, 4096])
def test_floats_of_eight_bits_are_right_to_three(rows: int, scales: Scales, card: Card) -> None:
    if card.target.arch != "sm_90a":
        pytest.skip("the card has no kernels of e4m3")
    graph, sample = peer("DLRMDCNv2"), peer_sample("DLRMDCNv2", rows)
    fp8 = Fp8(peer_sample("DLRMDCNv2", 128).inputs, scales=scales)
    program = compile_graph(graph, Bucket(rows), card.target, Options(fp8=fp8))
    loaded = card.load(program)
    try:
        for _ in range(2):
            assert error_of(graph, sample, card.scores(loaded, sample.batch)) < 0.15  # of a logit
    finally:
        loaded.close()


@pytest.mark.parametrize("seed", range(40))
def test_a_random_graph_agrees(seed: int, card: Card) -> None:
    graph, make_inputs = random_graph(seed)
    made = make_inputs((1, 37, 200)[seed % 3], (1, 3, 4)[seed // 3 % 3], seed)
    sample = Sample(made.inputs, made.request_of_row)
    for options in (Options(user_once=seed % 5 > 0), FP32):
        card.agrees(graph, sample, options, Bucket(210, 4))


@pytest.mark.parametrize("name", ["din", "bst", "dlrm_dcnv2"])
def test_what_an_earlier_batch_left_does_not_matter(name: str, card: Card) -> None:
    graph = small(name)
    loaded = card.load(compile_graph(graph, Bucket(40, 4), card.target))
    sample = sample_of(graph, 40, 4)
    bad = attrs.evolve(sample, inputs={key: x * np.nan for key, x in sample.inputs.items()})
    assert np.isnan(card.scores(loaded, bad.batch)).all()
    sample = sample_of(graph, 21, 2)
    got = card.scores(loaded, sample.batch)
    loaded.close()
    assert error_of(graph, sample, got) < FACTOR * TOLERANCE[Precision.FP16]


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("kind", ["in place", "tensor cores", "wide"])
@pytest.mark.parametrize("rows", [21, 300])
@pytest.mark.parametrize("hot", [(), ("wide", "eight", "three")], ids=["whole", "hot"])
def test_small_bags_are_gathered_from_tables_on_the_card(
    kind: str, rows: int, precision: Precision, hot: tuple[str, ...], card: Card
) -> None:
    if kind == "wide" and precision is Precision.FP32:
        pytest.skip("no launches of their own for Linears of floats")
    made = gather_help.manifest()
    plan = HotPlan(max_bytes=dict.fromkeys(hot, 1100), max_rows=300, max_requests=5, n_lanes=2)
    whole = [table.name for table in made.tables if table.name not in hot]
    placed = DeviceTables.of(made, whole, precision, plan if hot else None)
    graph = gather_help.dense(made, kind)
    options = Options(precision=precision)
    case = gather_help.gathered(
        made, graph, placed, options, target=card.target, n_rows=rows, n_requests=5
    )
    loaded = card.load(case.program, case.tables)
    got = card.scores(loaded, case.batch)
    loaded.close()
    tolerance = gather_help.TOLERANCE[precision]
    np.testing.assert_allclose(got, case.expected, atol=tolerance * 2, rtol=tolerance * 4)

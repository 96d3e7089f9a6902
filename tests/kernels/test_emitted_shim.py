"""Whole programs, as the compiler emits them, run on the CPU and agree with the oracle in float64.

The six models at their sizes, smaller ones with a user side, models of the zoo, and random graphs.
Scores are compared before the last sigmoid, which would hide errors. An error is the largest
``|got - want|``, relative to the largest score where that is above 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from kernels.bench.models import MODELS
from kernels.bundle.load import load_bundle
from kernels.compiler import Options, compile_graph
from kernels.ir.build import to_rows
from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense
from kernels.plan import phases
from kernels.plan.shape import TileShape
from kernels.program import A100, B200, H100, Bucket, Precision, Program, Target, TensorMap
from tests import zoo, zoo_rows
from tests.kernels import passes_help, shim
from tests.kernels.emitted_help import (
    TOLERANCE,
    Sample,
    error_of,
    logits,
    pairs_graph,
    peer,
    peer_sample,
    sample_of,
    small,
)
from tests.kernels.ir_graphs import FUSED, JUMPY, UNFUSED, random_graph
from tests.kernels.shim_program import run_program, scratch_of
from tests.zoo_here import InProcess

pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
needs_zoo = pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")

FP32, TF32, BF16 = (Options(each) for each in (Precision.FP32, Precision.TF32, Precision.BF16))


def assert_agrees(
    graph: Graph,
    sample: Sample,
    options: Options | None = None,
    target: Target = H100,
    *,
    bucket: Bucket | None = None,
    seed: int = 0,
    races: bool = False,
    factor: float = 1.0,
) -> Program:
    """Run a graph's program on a batch; the error may be ``factor`` times the usual."""
    options = options or Options()
    batch = sample.batch
    bucket = bucket or Bucket(len(batch.candidate) + 3, len(batch.user) + 1)
    program = compile_graph(graph, bucket, target, options)
    got = run_program(program, batch, seed=seed, races=races)
    assert error_of(graph, sample, got) < factor * TOLERANCE[options.precision]
    return program


# ---- the six models


# At their sizes the CPU takes a minute for wgmma; wide Linears run as on an A100.
@pytest.mark.parametrize("name", MODELS)
def test_a_model_agrees_with_float64(name: str) -> None:
    assert_agrees(peer(name), peer_sample(name, 37), target=A100, seed=1, factor=2)


@pytest.mark.parametrize("rows", [1, 15])
@pytest.mark.parametrize("name", ["DeepFM", "DLRM", "DIN"])
def test_a_model_agrees_with_float64_on_few_rows(name: str, rows: int) -> None:
    assert_agrees(peer(name), peer_sample(name, rows), target=A100, seed=rows, factor=2)


@pytest.mark.parametrize("name", ["DeepFM", "DLRM", "DIN"])
@pytest.mark.parametrize("target", [H100, B200], ids=lambda target: target.arch)
def test_a_model_with_streams_agrees_with_float64(name: str, target: Target) -> None:
    assert_agrees(peer(name), peer_sample(name, 37), target=target, seed=5, factor=2)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "shape",
    [
        TileShape(16, 2),
        TileShape(16, 4),
        TileShape(16, 8),
        TileShape(32, 1),
        TileShape(32, 2),
        TileShape(64, 1),
        TileShape(64, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["DeepFM", "DLRM"])
def test_every_cut_of_a_tile_agrees(name: str, shape: TileShape, seed: int) -> None:
    assert_agrees(peer(name), peer_sample(name, 37), Options(tile=shape), seed=seed, factor=2)


@pytest.mark.parametrize("shape", [TileShape(16, 2), TileShape(16, 8), TileShape(32, 1)], ids=str)
@pytest.mark.parametrize("name", ["DeepFM", "DLRM"])
def test_every_cut_of_a_tile_of_floats_agrees(name: str, shape: TileShape) -> None:
    for precision in (Precision.FP32, Precision.TF32):
        options = Options(precision, tile=shape)
        assert_agrees(peer(name), peer_sample(name, 37), options, factor=2)


@pytest.mark.parametrize("name", ["MMoE", "BST", "DLRMDCNv2"])
def test_a_large_model_of_floats_agrees(name: str) -> None:
    assert_agrees(peer(name), peer_sample(name, 15), FP32, seed=1, factor=3)


@pytest.mark.parametrize("name", ["DeepFM", "DLRM", "DIN"])
def test_other_storage_agrees(name: str) -> None:
    sample = peer_sample(name, 15)
    assert_agrees(peer(name), sample, FP32, seed=1, factor=3)
    assert_agrees(peer(name), sample, TF32, seed=1, factor=2)
    assert_agrees(peer(name), sample, BF16, seed=2, factor=2)
    assert_agrees(peer(name), sample, Options(input_dtype="float16"), seed=3, factor=2)


# ---- small models with a user side


@pytest.mark.parametrize(("rows", "requests"), [(1, 1), (15, 2), (37, 5)])
@pytest.mark.parametrize("name", passes_help.MODELS)
def test_a_user_side_agrees(name: str, rows: int, requests: int) -> None:
    graph = small(name)
    sample = sample_of(graph, rows, requests, seed=rows)
    for options in (Options(), Options(user_once=False), FP32, TF32, BF16):
        assert_agrees(graph, sample, options, seed=requests, factor=3)
    assert_agrees(graph, sample, target=A100, seed=requests, factor=3)


@pytest.mark.parametrize("name", passes_help.MODELS)
def test_wide_linears_with_tensor_maps_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "WIDE_BYTES", 1000)
    graph = small(name)
    program = assert_agrees(graph, sample_of(graph, 37, 5), BF16 if name == "din" else None)
    assert any(facts.kind == "wide" for facts in program.facts)
    of_floats = assert_agrees(graph, sample_of(graph, 37, 5), FP32, factor=2)
    assert any(facts.kind == "wide" for facts in of_floats.facts)
    assert any(isinstance(each, TensorMap) for run in program.launches for each in run.arguments)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", passes_help.MODELS)
def test_blocks_of_a_cluster_wait_for_each_other(
    name: str, seed: int, races: bool, precision: Precision
) -> None:
    graph = small(name, user=seed % 2 == 0)
    sample = sample_of(graph, 18, 2, seed=seed)
    shape = TileShape(16, (4, 2, 8)[seed])
    options = Options(precision, tile=shape)
    assert_agrees(graph, sample, options, seed=seed, races=races, factor=3)


@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("name", passes_help.MODELS)
def test_warpgroups_wait_for_each_other(name: str, cluster: int, races: bool) -> None:
    graph = small(name, user=cluster == 1)
    sample = sample_of(graph, 70, 2, seed=cluster)
    shape = TileShape(64, cluster)
    assert_agrees(graph, sample, Options(tile=shape), seed=cluster, races=races, factor=3)


@pytest.mark.parametrize("options", [Options(), FP32, TF32, BF16, Options(tile=TileShape(16, 4))])
def test_pairs_of_both_sides_agree(options: Options) -> None:
    graph = pairs_graph()
    sample = sample_of(graph, 21, 3)
    for seed in range(3):
        assert_agrees(graph, sample, options, seed=seed, races=seed == 2, factor=3)


def test_small_tiles_agree() -> None:
    graph = small("mmoe")
    for rows in (1, 2, 4, 8):
        options = Options(tile=TileShape(rows, 1))
        assert_agrees(graph, sample_of(graph, 11, 2, rows), options, races=rows == 4)


# ---- what surrounds a batch


def test_a_batch_fills_its_bucket_or_not() -> None:
    graph = small("din")
    for rows, requests in ((1, 1), (16, 3), (17, 1), (32, 4)):
        sample = sample_of(graph, rows, requests, rows)
        assert_agrees(graph, sample, bucket=Bucket(32, 4), seed=rows, factor=3)


@pytest.mark.parametrize("name", ["din", "bst", "dlrm_dcnv2"])
@pytest.mark.parametrize("target", [H100, A100], ids=lambda target: target.arch)
def test_what_an_earlier_batch_left_does_not_matter(name: str, target: Target) -> None:
    graph = small(name)
    program = compile_graph(graph, Bucket(40, 4), target)
    scratch = scratch_of(program)
    sample = sample_of(graph, 40, 4)
    bad = Sample({key: each * np.nan for key, each in sample.inputs.items()}, sample.request_of_row)
    assert np.isnan(run_program(program, bad.batch, scratch=scratch)).all()
    sample = sample_of(graph, 21, 2)
    got = run_program(program, sample.batch, scratch=scratch)
    assert error_of(graph, sample, got) < 3 * TOLERANCE[Precision.FP16]


def test_a_graph_of_the_user_alone_gives_each_row_its_requests_score() -> None:
    inputs, (x,) = passes_help.columns(24, user=(24,))
    scores = passes_help.mlp(x, [16, 3], last=False)
    graph = Graph("user_alone", {"user": inputs["user"]}, to_rows(scores))
    assert_agrees(graph, sample_of(graph, 19, 4), factor=3)


# ---- models of the zoo


@needs_zoo
@pytest.mark.parametrize(
    "name",
    [
        "deepctr_AFM.dynamo",
        "deepctr_AutoInt.dynamo",
        "deepctr_CCPM.dynamo",
        "deepctr_DCNMix.dynamo",
        "deepctr_DeepFM_varlen.legacy",
        "deepctr_DIN_dice.legacy",
        "deepctr_FiBiNET.dynamo",
        "deepctr_PLE.dynamo",
        "deepctr_PNN_outer_mat.dynamo",
        "plain_DLRM_DCNv2_small_embeddingbag.dynamo",
        "plain_DLRM_v1.dynamo",
    ],
)
def test_a_model_of_the_zoo_agrees(name: str, zoo_built: Callable[[str], zoo.Built]) -> None:
    built = zoo_built(name)
    bundle = load_bundle(built.path)
    graph = logits(import_dense(bundle.dense_model(), name))
    with closing(InProcess(bundle)) as scorer:
        user, candidate = zoo.recorded_blocks(scorer, built)
    for rows, options in ((15, Options()), (37, FP32), (16, Options(input_dtype="float16"))):
        random = np.random.default_rng(rows)
        of_row = zoo_rows.requests_of(rows, random)
        blocks = {
            "user": zoo_rows.draw(bundle.manifest.user, user, int(of_row[-1]) + 1, random),
            "candidate": zoo_rows.draw(bundle.manifest.candidate, candidate, rows, random),
        }
        sample = Sample({key: blocks[key] for key in graph.inputs}, of_row)
        assert_agrees(graph, sample, options, seed=rows, factor=3)


# ---- random graphs


@pytest.mark.parametrize("seed", range(60))
def test_a_random_graph_agrees(seed: int) -> None:
    graph, make_inputs = random_graph(seed, blocks=None if seed % 2 else (*UNFUSED, *FUSED))
    graph = logits(graph)
    made = make_inputs((1, 15, 37)[seed % 3], (1, 3, 4)[seed // 3 % 3], seed)
    sample = Sample(made.inputs, made.request_of_row)
    bucket = Bucket(40, 4)
    assert_agrees(graph, sample, FP32, bucket=bucket, seed=seed % 4)
    shape = (None, TileShape(16, 8), TileShape(32, 1), TileShape(16, 2))[seed % 4]
    options = Options(tile=shape, user_once=seed % 5 > 0)
    target = A100 if seed % 4 == 2 else H100
    assert_agrees(graph, sample, options, target, bucket=bucket, seed=seed % 4)


@pytest.mark.parametrize("seed", range(200, 205))
def test_a_random_graph_with_wide_linears_agrees(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "WIDE_BYTES", 200)
    graph, make_inputs = random_graph(seed)
    made = make_inputs(37, 3, seed)
    sample = Sample(made.inputs, made.request_of_row)
    for options in (Options(), FP32):
        assert_agrees(logits(graph), sample, options, bucket=Bucket(40, 4), seed=seed % 4)


@pytest.mark.parametrize("seed", range(60, 75))
def test_a_random_graph_agrees_in_bf16(seed: int) -> None:
    graph, make_inputs = random_graph(seed)
    made = make_inputs(37, 3, seed)
    sample = Sample(made.inputs, made.request_of_row)
    assert_agrees(logits(graph), sample, BF16, bucket=Bucket(40, 4), seed=seed % 4)


@pytest.mark.parametrize("seed", range(100, 108))
def test_a_random_graph_has_no_races(seed: int) -> None:
    graph, make_inputs = random_graph(seed, blocks=(*UNFUSED, *FUSED), n_blocks=4)
    made = make_inputs(18, 3, seed)
    sample = Sample(made.inputs, made.request_of_row)
    options = Options(tile=TileShape(16, 1 + seed % 2))
    assert_agrees(logits(graph), sample, options, bucket=Bucket(20, 4), seed=seed, races=True)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_graph_whose_values_jump_agrees_in_fp32(seed: int) -> None:
    graph, make_inputs = random_graph(seed, blocks=(*UNFUSED, *JUMPY), smooth=False)
    made = make_inputs(15, 2, seed)
    sample = Sample(made.inputs, made.request_of_row)
    assert_agrees(logits(graph), sample, FP32, bucket=Bucket(16, 3), seed=seed % 4)

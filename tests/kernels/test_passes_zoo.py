"""The passes on imported graphs: the zoo's bundles and the six peers, at their real sizes."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels.bundle.load import load_bundle
from kernels.ir.check import check
from kernels.ir.node import Graph, Linear, Op
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import evaluate, flops
from kernels.passes import optimise
from tests import zoo
from tests.kernels import peer_models
from tests.kernels.passes_help import batch, ops

needs_zoo = pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")
needs_peers = pytest.mark.skipif(bool(peer_models.missing()), reason=str(peer_models.missing()))

HOST_ONLY = "deepctr_DIEN_GRU.legacy"
# One of each kind of interaction; all others take the slow run.
QUICK = (
    "deepctr_AFM.legacy",
    "deepctr_AutoInt.dynamo",
    "deepctr_DCNMix.dynamo",
    "deepctr_DIN_nonorm.dynamo",
    "deepctr_MMOE.dynamo",
    "deepctr_PNN.dynamo",
    "plain_DLRM_v1.dynamo",
)
# Nodes that are left, without inputs and constants: what a change of the passes has to beat.
LEFT = {
    "deepctr_AFM.legacy": 16,
    "deepctr_AutoInt.dynamo": 63,
    "deepctr_DCNMix.dynamo": 31,
    "deepctr_DIN_nonorm.dynamo": 14,
    "deepctr_MMOE.dynamo": 12,
    "deepctr_PNN.dynamo": 11,
    "plain_DLRM_v1.dynamo": 15,
}


def _assert_kept(graph: Graph, after: Graph, name: str) -> None:
    check(after)
    inputs, request_of_row = batch(graph)
    want = evaluate(graph, inputs, request_of_row)
    got = evaluate(after, inputs, request_of_row)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6, err_msg=name)


@functools.cache
def _peer(name: str) -> Graph:
    return peer_models.peer_graph(name)[0]


def _names() -> list[Any]:
    if not zoo.ZOO.exists():
        return []
    names = [model.name for model in zoo.models(zoo.ZOO) if model.name != HOST_ONLY]
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@needs_zoo
@pytest.mark.parametrize("name", _names())
def test_a_model_of_the_zoo_keeps_its_scores_through_every_pass(
    name: str, zoo_built: Callable[[str], zoo.Built]
) -> None:
    built = zoo_built(name)
    graph = import_dense(load_bundle(built.path).dense_model(), name)
    seen: Counter[str] = Counter()

    def trace(name: str, after: Graph) -> None:
        seen[name] += 1
        _assert_kept(graph, after, name)

    result = optimise(graph, trace)
    started = time.thread_time()
    assert optimise(graph) is not graph
    assert time.thread_time() - started < 1
    assert optimise(result) is result
    assert max(seen.values()) < 40  # rounds; there is a limit
    left = ops(result)
    if name in LEFT:
        assert sum(left.values()) - left[Op.CONST] - left[Op.INPUT] <= LEFT[name]


@needs_peers
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        pytest.param("DLRMDCNv2", {Op.LINEAR: 14, Op.CONCAT: 1}, marks=pytest.mark.slow),
        ("DLRM", {Op.LINEAR: 7, Op.CONCAT: 1, Op.MATMUL: 1}),
        ("DeepFM", {Op.LINEAR: 4, Op.CONCAT: 0}),
        ("DIN", {Op.LINEAR: 3, Op.TARGET_ATTENTION: 1, Op.CONCAT: 0}),
        ("MMoE", {Op.LINEAR: 6, Op.SOFTMAX: 1, Op.MATMUL: 1, Op.CONCAT: 0}),
        ("BST", {Op.LINEAR: 4, Op.ENCODER: 1, Op.CONCAT: 0}),
    ],
)
def test_a_peer_comes_down_to_what_it_is_made_of(name: str, wanted: dict[Op, int]) -> None:
    graph = _peer(name)
    result = optimise(graph)
    _assert_kept(graph, result, name)
    assert {op: ops(result)[op] for op in wanted} == wanted
    # Sums that have become products count now; they are next to nothing.
    assert flops(result).row <= 1.005 * flops(graph).row


@needs_peers
def test_attention_over_differences_takes_half_the_work() -> None:
    graph = _peer("DIN")
    assert flops(optimise(graph)).row < 0.6 * flops(graph).row


@needs_peers
def test_experts_and_towers_are_grouped() -> None:
    args = [node.arg for node in optimise(_peer("MMoE")).nodes() if isinstance(node.arg, Linear)]
    assert sum(arg.grouped for arg in args) == 4

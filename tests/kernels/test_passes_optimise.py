from __future__ import annotations

import time

import pytest

from kernels.ir.node import Graph, Linear, Op
from kernels.passes import optimise
from tests.kernels.passes_help import MODELS, assert_same, linears, ops


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_keeps_a_models_scores(name: str) -> None:
    graph = MODELS[name]()
    seen = []

    def trace(name: str, after: Graph) -> None:
        seen.append(name)
        assert_same(graph, after, name=name)

    assert_same(graph, optimise(graph, trace))
    assert seen


@pytest.mark.parametrize("name", MODELS)
def test_an_optimised_graph_stays_as_it_is(name: str) -> None:
    graph = optimise(MODELS[name]())
    assert optimise(graph) is graph


@pytest.mark.parametrize("name", MODELS)
def test_passes_are_deterministic(name: str) -> None:
    graph = MODELS[name]()
    one, two = optimise(graph), optimise(graph)
    assert [(n.op, n.shape, n.name) for n in one.nodes()] == [
        (n.op, n.shape, n.name) for n in two.nodes()
    ]


def test_passes_are_fast() -> None:
    graph = MODELS["mmoe"]()
    started = time.thread_time()
    optimise(graph)
    assert time.thread_time() - started < 1


def test_dlrm_has_one_linear_a_layer_and_no_concat_before_one() -> None:
    graph = optimise(MODELS["dlrm"]())
    assert ops(graph)[Op.LINEAR] == 5
    assert ops(graph)[Op.CONCAT] == 1  # what the pairwise products are of
    first_of_top = [node for node in linears(graph) if len(node.sources) == 4]
    assert len(first_of_top) == 1


def test_dlrm_dcnv2_keeps_its_low_rank_crosses() -> None:
    graph = optimise(MODELS["dlrm_dcnv2"]())
    assert ops(graph)[Op.LINEAR] == 2 + 6 + 3


def test_deepfm_has_no_concat_and_sums_its_first_order_terms_in_the_last_layer() -> None:
    graph = optimise(MODELS["deepfm"]())
    assert ops(graph)[Op.CONCAT] == 0
    assert ops(graph)[Op.LINEAR] == 3


def test_experts_and_towers_of_mmoe_are_one_wide_and_grouped_linears() -> None:
    graph = optimise(MODELS["mmoe"]())
    args = [node.arg for node in linears(graph) if isinstance(node.arg, Linear)]
    grouped = [arg.grouped for arg in args]
    # wide experts, wide gates, grouped experts, three layers of grouped towers
    assert len(args) == 6
    assert sum(grouped) == 4
    assert ops(graph)[Op.SOFTMAX] == 1
    assert ops(graph)[Op.MATMUL] == 1
    assert ops(graph)[Op.CONCAT] == 0

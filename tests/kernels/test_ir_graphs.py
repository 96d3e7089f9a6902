from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ir.check import check
from kernels.ir.node import DType, Lead, Op
from kernels.ir.reference import evaluate, evaluate_nodes
from tests.kernels.ir_graphs import BLOCKS, FUSED, JUMPY, UNFUSED, random_graph


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_random_graphs_are_well_formed_and_stay_small(seed: int, smooth: bool) -> None:
    graph, make_inputs = random_graph(seed, smooth=smooth)
    check(graph)
    sample = make_inputs(7, 3, seed)
    for node, value in evaluate_nodes([graph.output], sample.inputs, sample.request_of_row).items():
        if node.dtype is DType.FLOAT:
            assert np.isfinite(value).all(), node.name
            assert value.max(initial=0) < 1e4, node.name  # a mask is far below, so not abs
        size = {Lead.ROWS: 7, Lead.REQUESTS: 3}
        assert value.shape == tuple(size[d] if isinstance(d, Lead) else d for d in node.shape)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_smooth_graphs_are_the_same_in_float32(seed: int) -> None:
    graph, make_inputs = random_graph(seed, blocks=(*UNFUSED, *FUSED))
    sample = make_inputs(7, 3, seed)
    exact = evaluate(graph, sample.inputs, sample.request_of_row)
    found = evaluate(graph, sample.inputs, sample.request_of_row, np.float32)
    np.testing.assert_allclose(found, exact, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_a_row_depends_on_itself_and_its_request_alone(seed: int) -> None:
    graph, make_inputs = random_graph(seed)
    sample = make_inputs(6, 2, seed)
    order = np.array([5, 0, 3, 1])
    whole = evaluate(graph, sample.inputs, sample.request_of_row)
    picked = {
        name: array[order] if graph.inputs[name].lead is Lead.ROWS else array
        for name, array in sample.inputs.items()
    }
    part = evaluate(graph, picked, sample.request_of_row[order])
    np.testing.assert_allclose(part, whole[order], rtol=1e-9, atol=1e-12)


def test_a_seed_gives_one_graph_and_one_batch() -> None:
    (first, make_first), (again, make_again) = random_graph(11), random_graph(11)
    samples = make_first(5, 2, 1), make_again(5, 2, 1)
    one, other = (
        evaluate(graph, sample.inputs, sample.request_of_row)
        for graph, sample in zip((first, again), samples, strict=True)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_makes_graphs(name: str) -> None:
    for seed in range(10):
        graph, make_inputs = random_graph(seed, n_blocks=1, blocks=[name])
        check(graph)
        sample = make_inputs(3, 1)
        scores = evaluate(graph, sample.inputs, sample.request_of_row)
        assert scores.shape == (3, graph.output.width)


def test_graphs_cover_every_op() -> None:
    found = set()
    for seed in range(250):
        blocks = (*UNFUSED, *FUSED, *JUMPY)
        found |= {node.op for node in random_graph(seed, smooth=False, blocks=blocks)[0].nodes()}
    assert found == set(Op)

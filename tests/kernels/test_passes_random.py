"""Every pass keeps the oracle's values, on random graphs that resemble recommendation models.

Constants are rounded to float32 when they are folded, so values move by that: 1e-6 of the largest
score is asked for. Where weights are multiples of 1/16, so that folding is exact, 1e-9 is
(``test_passes_optimise``).
"""

from __future__ import annotations

import numpy as np
import pytest

from kernels.ir.check import check
from kernels.ir.node import Graph, Op
from kernels.ir.reference import evaluate
from kernels.passes import expand, optimise
from tests.kernels.ir_graphs import FUSED, JUMPY, UNFUSED, MakeInputs, random_graph
from tests.kernels.passes_help import ops

_TOLERANCE = 1e-6


def _assert_same(graph: Graph, other: Graph, make_inputs: MakeInputs, seed: int, name: str) -> None:
    check(other)
    batch = make_inputs(7, 3, seed)
    with np.errstate(all="ignore"):  # what a WHERE does not choose may overflow
        want = evaluate(graph, batch.inputs, batch.request_of_row)
        got = evaluate(other, batch.inputs, batch.request_of_row)
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=_TOLERANCE * scale, err_msg=name)


@pytest.mark.parametrize("seed", range(60))
def test_every_pass_keeps_the_scores_of_a_random_graph(seed: int) -> None:
    blocks = None if seed % 2 else (*UNFUSED, *FUSED)
    graph, make_inputs = random_graph(seed, blocks=blocks)

    def trace(name: str, after: Graph) -> None:
        _assert_same(graph, after, make_inputs, seed, name)

    result = optimise(graph, trace, user_once=seed % 3 > 0)
    assert optimise(result, user_once=seed % 3 > 0) is result


@pytest.mark.parametrize("seed", range(20))
def test_composites_written_out_mean_the_same(seed: int) -> None:
    graph, make_inputs = random_graph(seed, blocks=FUSED, n_blocks=3)
    result = expand(graph)
    assert not {Op.TARGET_ATTENTION, Op.ENCODER, Op.LAYER_NORM} & ops(result).keys()
    _assert_same(graph, result, make_inputs, seed, "expand")
    _assert_same(graph, optimise(result), make_inputs, seed, "expand, optimise")


@pytest.mark.parametrize("seed", range(20))
def test_graphs_whose_values_jump_are_checked_after_every_pass(seed: int) -> None:
    graph, _ = random_graph(seed, blocks=(*UNFUSED, *JUMPY), smooth=False)
    optimise(graph, lambda _, after: check(after))

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.ir.build import add, concat, linear, make, mul, reshape, scalar, to_rows, transpose
from kernels.ir.node import DType, Encoder, Graph, Lead, Op, TargetAttention, const, input_node
from kernels.ir.numpy_ops import Array
from kernels.ir.reference import evaluate, evaluate_nodes, flops

ROWS, REQUESTS = Lead.ROWS, Lead.REQUESTS
USER, CANDIDATE = input_node("user", REQUESTS, 3), input_node("candidate", ROWS, 2)
INPUTS = {"user": USER, "candidate": CANDIDATE}
JOINT = Graph("joint", INPUTS, linear((to_rows(USER), CANDIDATE), np.ones((5, 1))))


def test_scores_of_requests_and_rows() -> None:
    user, candidate = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]), np.ones((3, 2))
    scores = evaluate(JOINT, {"user": user, "candidate": candidate}, np.array([0, 1, 1]))
    assert scores.dtype == np.float64
    assert scores.tolist() == [[8.0], [62.0], [62.0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_of_the_dtype_asked_for_whatever_the_inputs_are(dtype: type) -> None:
    inputs: dict[str, Array] = {
        "user": np.ones((1, 3)).astype(np.float32),
        "candidate": np.ones((2, 2)).astype(np.float64),
    }
    values = evaluate_nodes([JOINT.output], inputs, np.zeros(2, np.int32), dtype)
    assert {value.dtype for value in values.values()} == {np.dtype(dtype)}


def test_no_rows_give_no_scores() -> None:
    inputs = {"user": np.ones((1, 3)), "candidate": np.ones((0, 2))}
    assert evaluate(JOINT, inputs, np.zeros(0, np.int32)).shape == (0, 1)


def test_a_graph_of_candidates_alone_needs_no_requests() -> None:
    graph = Graph("alone", INPUTS, mul(CANDIDATE, scalar(2.0, CANDIDATE)))
    assert evaluate(graph, {"candidate": np.ones((2, 2))}).tolist() == [[2.0, 2.0]] * 2


def test_a_graph_of_users_alone_takes_its_rows_from_request_of_row() -> None:
    graph = Graph("users", INPUTS, to_rows(USER))
    assert evaluate(graph, {"user": np.ones((2, 3))}, np.array([1, 0, 1])).shape == (3, 3)


def test_nan_and_infinity_pass_without_a_warning() -> None:
    graph = Graph("log", INPUTS, make(Op.RELU, make(Op.LOG, CANDIDATE)))
    scores = evaluate(graph, {"candidate": np.array([[-1.0, 0.0], [math.inf, math.nan]])})
    np.testing.assert_array_equal(scores, [[math.nan, 0.0], [math.inf, math.nan]])


def test_the_arrays_of_a_graph_are_not_written_to() -> None:
    candidate = np.ones((2, 2))
    candidate.setflags(write=False)
    graph = Graph("same", INPUTS, add(CANDIDATE, CANDIDATE))
    evaluate(graph, {"candidate": candidate})


@pytest.mark.parametrize(
    ("inputs", "rows", "message"),
    [
        ({"user": np.ones((1, 3))}, [0, 0], "input 'candidate' is missing"),
        ({"user": np.ones((1, 3)), "candidate": np.ones((2, 3))}, [0, 0], r"want \[rows, 2\]"),
        ({"user": np.ones((1, 3)), "candidate": np.ones((3, 2))}, [0, 0], "with 2 rows"),
        ({"user": np.ones((1, 3)), "candidate": np.ones((2, 2))}, [0, 1], "beyond the 1 given"),
        ({"user": np.ones((1, 3)), "candidate": np.ones((2, 2))}, [-1, 0], "beyond the 1 given"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: dict[str, Array], rows: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(JOINT, inputs, np.array(rows))


def test_flops_of_linears_and_matmuls_by_lead() -> None:
    hidden = linear(USER, np.ones((3, 8)))
    pairs = reshape(CANDIDATE, 2, 1)
    product = reshape(make(Op.MATMUL, pairs, transpose(pairs, 0, 2, 1)), 4)
    scores = linear(concat(to_rows(hidden), product), np.ones((12, 5)))
    found = flops(Graph("sums", INPUTS, scores))
    assert found.request == 2 * 3 * 8
    assert found.row == 2 * 2 * 2 + 2 * 12 * 5
    assert found.total(10, 2) == 10 * found.row + 2 * found.request


def test_flops_of_a_grouped_linear() -> None:
    fields = reshape(CANDIDATE, 2, 1)
    node = linear(fields, np.ones((2, 1, 3)), grouped=True)
    assert flops(Graph("grouped", INPUTS, reshape(node, 6))).row == 2 * 2 * 3


def test_flops_of_row_programs() -> None:
    steps, depth, hidden = 4, 6, 5
    x = reshape(input_node("x", ROWS, steps * depth), steps, depth)
    zeros = [np.zeros(shape) for shape in [(depth, hidden)] * 3 + [(hidden,), (hidden, 1), (1,)]]
    mask = make(Op.CAST, input_node("mask", ROWS, steps), dtype=DType.BOOL)
    query = input_node("query", ROWS, depth)
    arg = TargetAttention(2, Op.RELU)
    pooled = make(Op.TARGET_ATTENTION, query, x, mask, *map(const, zeros), arg=arg)
    each_step = 2 * depth * hidden + hidden + depth
    expected = depth * hidden + steps * each_step
    assert flops(Graph("din", {}, pooled)).row == 2 * expected
    shapes: list[tuple[int, ...]] = [(depth, 3 * depth), (3 * depth,), (depth, depth), (depth,)]
    shapes += [(depth,)] * 2 + [(depth, hidden), (hidden,), (hidden, depth)] + [(depth,)] * 3
    weights = [const(np.zeros(shape)) for shape in shapes]
    block = make(Op.ENCODER, x, *weights, arg=Encoder(2, 1.0, Op.RELU))
    expected = steps * (4 * depth * depth + 2 * depth * hidden) + 2 * steps * steps * depth
    assert flops(Graph("bst", {}, reshape(block, steps * depth))).row == 2 * expected

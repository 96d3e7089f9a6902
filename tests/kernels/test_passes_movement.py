from __future__ import annotations

import numpy as np
import pytest

from kernels.ir import build
from kernels.ir.build import concat, make, mul, reshape, slice_, transpose
from kernels.ir.node import DType, Graph, Lead, Linear, Node, Op, const, input_node
from kernels.passes import optimise
from tests.kernels.passes_help import assert_same, dense, graph_of, ops, weights


@pytest.fixture
def x() -> Node:
    return input_node("candidate", Lead.ROWS, 24)


def _optimised(value: Node) -> Graph:
    graph = graph_of(value)
    result = optimise(graph)
    assert_same(graph, result)
    return result


def test_reshapes_of_reshapes_and_back_are_nothing(x: Node) -> None:
    assert _optimised(reshape(reshape(reshape(x, 4, 6), 2, 12), 24)).output is x


def test_transposes_compose(x: Node) -> None:
    cube = reshape(x, 2, 3, 4)
    assert _optimised(transpose(transpose(cube, 0, 3, 1, 2), 0, 2, 3, 1)).output is x


def test_a_transpose_of_a_dimension_of_1_is_a_reshape(x: Node) -> None:
    assert ops(_optimised(transpose(reshape(x, 24, 1), 0, 2, 1)))[Op.TRANSPOSE] == 0


def test_slices_of_slices_concats_and_expands_read_the_value_itself(x: Node) -> None:
    both = concat(slice_(x, 1, 0, 10), mul(x, x), axis=1)
    assert _optimised(slice_(slice_(both, 1, 2, 9), 1, 1, 5)).output.sources == (x,)
    repeated = build.expand(reshape(x, 1, 24), 3, 24)
    assert Op.EXPAND not in ops(_optimised(slice_(repeated, 1, 1, 2)))


def test_neighbouring_slices_are_the_value_again(x: Node) -> None:
    parts = [reshape(slice_(x, 1, i, i + 6), 2, 3) for i in (0, 6, 12, 18)]
    assert _optimised(concat(*parts, axis=1)).output is x


def test_columns_cut_into_heads_and_back_are_two_transposes_that_cancel(x: Node) -> None:
    steps = reshape(x, 3, 8)
    heads = [reshape(slice_(steps, 2, i, i + 2), 1, 3, 2) for i in (0, 2, 4, 6)]
    stacked = concat(*heads, axis=1)
    stacked_alone = _optimised(stacked)
    assert (ops(stacked_alone)[Op.CONCAT], ops(stacked_alone)[Op.TRANSPOSE]) == (0, 1)
    back = [reshape(slice_(stacked, 1, i, i + 1), 3, 2) for i in range(4)]
    assert _optimised(concat(*back, axis=2)).output is x


def test_many_pieces_in_any_order_are_a_take(x: Node) -> None:
    order = [3, 0, 1, 5, 2, 2, 4, 1, 0]
    parts = [slice_(x, 1, 4 * i, 4 * i + 4) for i in order]
    taken = concat(*parts, axis=1)
    graph = _optimised(mul(taken, taken))
    assert (ops(graph)[Op.CONCAT], ops(graph)[Op.TAKE]) == (0, 1)


def test_an_activation_behind_a_transpose_joins_its_linear(x: Node) -> None:
    turned = transpose(dense(reshape(x, 4, 6), 5), 0, 2, 1)
    scaled = mul(turned, const(weights(1, 5, 1)))
    graph = _optimised(transpose(make(Op.TANH, scaled), 0, 2, 1))
    (linear,) = [node for node in graph.nodes() if node.op is Op.LINEAR]
    assert linear.arg == Linear(1, Op.TANH)
    assert ops(graph).keys() == {Op.INPUT, Op.RESHAPE, Op.CONST, Op.LINEAR}


def test_nothing_is_added_multiplied_or_cast(x: Node) -> None:
    y = mul(build.add(x, const(np.zeros((1, 24)))), const(np.ones((1, 1))))
    y = build.sub(make(Op.CAST, y, dtype=DType.FLOAT), const(np.zeros((1, 1))))
    assert _optimised(y).output is x


def test_equal_nodes_are_one(x: Node) -> None:
    one, two = make(Op.EXP, x), make(Op.EXP, x)
    assert ops(_optimised(build.add(one, two)))[Op.EXP] == 1


def test_constants_are_computed(x: Node) -> None:
    c = make(Op.SQRT, const(np.full((1, 24), 4.0)))
    graph = _optimised(mul(x, make(Op.ADD, c, c)))
    assert ops(graph) == {Op.INPUT: 1, Op.CONST: 1, Op.MUL: 1}
    assert graph.output.sources[1].array.reshape(-1)[0] == 4.0


def test_dimensions_of_1_are_left_out(x: Node) -> None:
    column = reshape(x, 24, 1)
    total = build.sum_(mul(column, column), 1)
    graph = _optimised(build.add(mul(column, total), column))
    assert all(len(node.shape) == 2 for node in graph.nodes() if node.op is not Op.CONST)

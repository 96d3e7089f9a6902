from __future__ import annotations

import numpy as np
import pytest

from kernels.ir import build
from kernels.ir.build import add, concat, expand, make, mul, reshape, slice_, sub, transpose
from kernels.ir.node import Graph, Lead, Linear, Node, Op, Slice, const, input_node
from kernels.passes import optimise
from tests.kernels.passes_help import assert_same, dense, graph_of, linears, mlp, ops, weights


@pytest.fixture
def x() -> Node:
    return input_node("candidate", Lead.ROWS, 24)


def _optimised(value: Node) -> Graph:
    graph = graph_of(value)
    result = optimise(graph)
    assert_same(graph, result)
    return result


def _only_linear(graph: Graph) -> Node:
    (linear,) = linears(graph)
    return linear


def test_normalisation_before_and_behind_is_folded(x: Node) -> None:
    before = add(mul(x, const(weights(1, 24))), const(weights(1, 24)))
    behind = add(mul(dense(before, 6), const(weights(1, 6))), const(weights(1, 6)))
    graph = _optimised(make(Op.RELU, behind))
    assert graph.output.arg == Linear(1, Op.RELU)
    assert ops(graph) == {Op.INPUT: 1, Op.CONST: 2, Op.LINEAR: 1}


def test_normalisation_behind_a_relu_goes_into_the_next_layer(x: Node) -> None:
    hidden = mul(dense(x, 8, Op.RELU), const(weights(1, 8)))
    assert ops(_optimised(dense(hidden, 4)))[Op.MUL] == 0


def test_a_linear_that_others_read_keeps_its_values(x: Node) -> None:
    shared = dense(x, 6)
    graph = _optimised(concat(make(Op.RELU, shared), mul(shared, shared)))
    assert ops(graph)[Op.LINEAR] == 1


@pytest.mark.parametrize(("inner", "count"), [(4, 2), (20, 1)])
def test_linears_in_a_row_are_one_only_where_that_is_less_work(
    x: Node, inner: int, count: int
) -> None:
    assert ops(_optimised(dense(dense(x, inner), 16)))[Op.LINEAR] == count


def test_a_sum_of_linears_is_one_of_more_sources(x: Node) -> None:
    squares = mul(x, x)
    graph = _optimised(add(add(dense(x, 3), make(Op.EXP, slice_(x, 1, 0, 3))), dense(squares, 3)))
    assert _only_linear(graph).arg == Linear(2)


def test_a_linear_has_one_leading_dimension_or_none(x: Node) -> None:
    y = dense(reshape(x, 2, 3, 4), 5, Op.RELU)
    assert _only_linear(_optimised(y)).dims == (6, 5)
    assert _only_linear(_optimised(dense(reshape(x, 1, 1, 24), 5))).dims == (5,)


def test_a_concat_is_read_in_its_parts(x: Node) -> None:
    graph = _optimised(dense(concat(make(Op.EXP, x), x, mul(x, x)), 3))
    assert ops(graph)[Op.CONCAT] == 0
    assert _only_linear(graph).arg == Linear(3)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_flattened_concat_is_read_in_its_parts(x: Node, axis: int) -> None:
    fields = reshape(x, 4, 6)
    both = concat(make(Op.EXP, fields), mul(fields, fields), axis=axis)
    assert ops(_optimised(dense(reshape(both, 48), 3)))[Op.CONCAT] == 0


def test_a_flattened_transpose_turns_the_weight(x: Node) -> None:
    fields = make(Op.MATMUL, reshape(x, 4, 6), transpose(reshape(x, 4, 6), 0, 2, 1))
    graph = _optimised(dense(reshape(transpose(fields, 0, 2, 1), 16), 3))
    assert ops(graph)[Op.TRANSPOSE] == 1  # the product's own


def test_overlapping_and_repeated_columns_are_one_source(x: Node) -> None:
    pieces = [slice_(x, 1, a, b) for a, b in ((8, 24), (0, 10), (4, 9), (0, 24))]
    linear = _only_linear(_optimised(dense(concat(*pieces), 3)))
    assert linear.sources[0] is x
    assert linear.arg == Linear(1)


def test_a_permutation_of_columns_turns_the_weight(x: Node) -> None:
    order = tuple(int(i) for i in np.random.default_rng(0).permutation(24))
    assert _only_linear(_optimised(dense(build.take(x, 1, order), 3))).sources[0] is x
    few = _optimised(dense(build.take(x, 1, order[:9]), 3))
    assert _only_linear(few).sources[0].op is Op.TAKE


def test_a_constant_source_is_part_of_the_bias(x: Node) -> None:
    repeated = make(Op.EXPAND, const(weights(1, 5)), shape=(Lead.ROWS, 5))
    assert _only_linear(_optimised(dense(concat(x, repeated), 3))).arg == Linear(1)


def test_a_difference_of_what_is_read_anyway_is_not_made(x: Node) -> None:
    q, h = make(Op.EXP, slice_(x, 1, 0, 12)), mul(slice_(x, 1, 12, 24), slice_(x, 1, 0, 12))
    graph = _optimised(dense(concat(q, h, sub(q, h), mul(q, h)), 3))
    assert ops(graph)[Op.SUB] == 0
    assert _only_linear(graph).arg == Linear(3)


def test_a_difference_that_nobody_reads_beside_stays(x: Node) -> None:
    q, h = make(Op.EXP, x), mul(x, x)
    assert ops(_optimised(dense(sub(q, h), 3)))[Op.SUB] == 1


def test_what_is_repeated_over_steps_is_multiplied_once(x: Node) -> None:
    q, h = slice_(x, 1, 0, 4), reshape(slice_(x, 1, 4, 24), 5, 4)
    both = concat(expand(reshape(q, 1, 4), 5, 4), h)
    graph = _optimised(dense(both, 3, Op.RELU))
    assert sorted(linear.dims for linear in linears(graph)) == [(3,), (5, 3)]
    assert ops(graph)[Op.EXPAND] == 0


def test_siblings_are_one_linear_and_their_readers_slices(x: Node) -> None:
    heads = [dense(x, n, Op.TANH) for n in (3, 4, 5)]
    graph = _optimised(concat(*reversed(heads)))
    assert _only_linear(graph).dims == (12,)


def test_columns_of_merged_siblings_begin_at_16_bytes_where_they_can(x: Node) -> None:
    heads = [dense(x, n, Op.TANH) for n in (3, 8, 16)]
    graph = _optimised(concat(*(make(Op.EXP, dense(head, 2)) for head in heads)))
    starts = {n.dims[-1]: n.arg.start for n in graph.nodes() if isinstance(n.arg, Slice)}
    assert (starts[8] % 8, starts[16] % 8) == (0, 0)


def test_siblings_with_other_activations_stay_apart(x: Node) -> None:
    graph = _optimised(concat(dense(x, 3, Op.RELU), dense(x, 3, Op.TANH)))
    assert ops(graph)[Op.LINEAR] == 2


def test_towers_are_grouped_layer_by_layer(x: Node) -> None:
    towers = [mlp(x, [8, 6, 2], last=False) for _ in range(3)]
    graph = _optimised(make(Op.SIGMOID, concat(*towers)))
    assert [isinstance(n.arg, Linear) and n.arg.grouped for n in linears(graph)] == [
        False,
        True,
        True,
    ]
    assert not {Op.CONCAT, Op.SLICE} & ops(graph).keys()


def test_pairs_of_fields_are_taken_from_one_product(x: Node) -> None:
    fields = reshape(x, 6, 4)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    left = concat(*(slice_(fields, 1, i, i + 1) for i, _ in pairs), axis=1)
    right = concat(*(slice_(fields, 1, j, j + 1) for _, j in pairs), axis=1)
    graph = _optimised(reshape(build.sum_(mul(left, right), 2), len(pairs)))
    assert ops(graph)[Op.MATMUL] == 1
    assert ops(graph)[Op.TAKE] == 1


def test_weights_are_rounded_once_to_float32(x: Node) -> None:
    scale = np.float32(1) / np.float32(3)
    graph = optimise(graph_of(mul(dense(x, 2), const(np.full((1, 2), scale)))))
    assert _only_linear(graph).sources[1].array.dtype == np.float32

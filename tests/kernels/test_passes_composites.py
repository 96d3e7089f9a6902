from __future__ import annotations

import numpy as np
import pytest

from kernels.ir import build
from kernels.ir.build import add, div, make, mul, reshape, sub
from kernels.ir.node import Encoder, Graph, Lead, Node, Op, TargetAttention, const, input_node
from kernels.passes import expand, optimise
from tests.kernels.passes_help import (
    MODELS,
    assert_same,
    attention,
    dense,
    din,
    graph_of,
    linears,
    ops,
    weights,
)


@pytest.fixture
def x() -> Node:
    return input_node("candidate", Lead.ROWS, 24)


def _optimised(value: Node) -> Graph:
    graph = graph_of(value)
    result = optimise(graph)
    assert_same(graph, result)
    return result


def _norm(x: Node) -> Node:
    last = len(x.shape) - 1
    centred = sub(x, make(Op.MEAN, x, arg=(last,)))
    variance = make(Op.MEAN, mul(centred, centred), arg=(last,))
    deviation = make(Op.SQRT, add(variance, build.scalar(2.0**-10, x)))
    return div(centred, deviation)


def test_layer_norm_written_out_is_found_with_its_gain(x: Node) -> None:
    y = add(mul(_norm(x), const(weights(1, 24))), const(weights(1, 24)))
    graph = _optimised(y)
    assert ops(graph) == {Op.INPUT: 1, Op.CONST: 2, Op.LAYER_NORM: 1}


def test_a_norm_by_another_mean_is_left_alone(x: Node) -> None:
    centred = sub(x, make(Op.MEAN, mul(x, x), arg=(1,)))
    variance = make(Op.MEAN, mul(centred, centred), arg=(1,))
    y = div(centred, make(Op.SQRT, add(variance, build.scalar(2.0**-10, x))))
    assert Op.LAYER_NORM not in ops(_optimised(y))


def test_softmax_written_out_is_found(x: Node) -> None:
    e = make(Op.EXP, sub(x, make(Op.REDUCE_MAX, x, arg=(1,))))
    assert _optimised(div(e, build.sum_(e, 1))).output.op is Op.SOFTMAX


def test_sigmoid_and_rectifiers_written_out_are_found(x: Node) -> None:
    one = const(np.ones((1, 1)))
    sigmoid = div(one, add(one, make(Op.EXP, make(Op.NEG, x))))
    assert _optimised(sigmoid).output.op is Op.SIGMOID
    assert _optimised(make(Op.MAX, const(np.zeros((1, 1))), x)).output.op is Op.RELU
    leaky = _optimised(make(Op.MAX, x, mul(x, const(np.full((1, 1), 0.25))))).output
    assert (leaky.op, leaky.arg) == (Op.LEAKY_RELU, 0.25)


@pytest.mark.parametrize("difference_first", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_din_is_attention_and_three_linears(difference_first: bool, softmax: bool) -> None:
    graph = din(difference_first=difference_first, softmax=softmax)
    result = optimise(graph)
    assert_same(graph, result)
    (found,) = [node for node in result.nodes() if node.op is Op.TARGET_ATTENTION]
    assert isinstance(found.arg, TargetAttention)
    assert (found.arg.n_layers, found.arg.activation) == (3, Op.RELU)
    assert found.arg.softmax is softmax
    assert len(list(linears(result))) == 3
    assert ops(result)[Op.CONCAT] == 0


def _pooled(scores: Node, keys: Node, mask: Node) -> Node:
    t = keys.dims[0]
    a = make(Op.WHERE, mask, reshape(scores, t), const(np.full((1, 1), -1e30)))
    return make(Op.MATMUL, reshape(make(Op.SOFTMAX, a, arg=1), 1, t), keys)


def test_attention_with_another_activation_in_the_middle_is_left_alone(x: Node) -> None:
    keys, query = reshape(x, 6, 4), reshape(build.slice_(x, 1, 0, 4), 1, 4)
    mask = make(Op.LT, build.slice_(x, 1, 0, 6), const(np.ones((1, 1))))
    hidden = dense(build.concat(build.expand(query, 6, 4), keys, mul(query, keys)), 8, Op.RELU)
    graph = _optimised(_pooled(dense(dense(hidden, 4, Op.TANH), 1), keys, mask))
    assert Op.TARGET_ATTENTION not in ops(graph)


def test_attention_of_a_first_layer_of_one_unit_is_not_taken_for_steps(x: Node) -> None:
    keys, query = reshape(x, 6, 4), reshape(build.slice_(x, 1, 0, 4), 1, 4)
    mask = make(Op.LT, build.slice_(x, 1, 0, 6), const(np.ones((1, 1))))
    hidden = dense(build.concat(build.expand(query, 6, 4), keys, mul(query, keys)), 1, Op.RELU)
    _optimised(_pooled(dense(hidden, 1), keys, mask))


def test_bst_is_an_encoder_and_linears() -> None:
    graph = optimise(MODELS["bst"]())
    (found,) = [node for node in graph.nodes() if node.op is Op.ENCODER]
    assert isinstance(found.arg, Encoder)
    assert (found.arg.n_heads, found.arg.scale) == (4, 0.25)
    assert len(list(linears(graph))) == 3
    assert Op.CONCAT not in ops(graph)


def test_attention_without_its_residual_is_left_alone(x: Node) -> None:
    steps = reshape(x, 3, 8)
    leaves = const(1 + weights(8)), const(weights(8))
    y = make(Op.LAYER_NORM, attention(steps, 2), *leaves, arg=1e-5)
    inner = dense(dense(y, 16, Op.RELU), 8)
    graph = _optimised(make(Op.LAYER_NORM, add(y, inner), *leaves, arg=1e-5))
    assert Op.ENCODER not in ops(graph)


@pytest.mark.parametrize("name", ["din", "bst"])
def test_what_is_written_out_is_found_again(name: str) -> None:
    graph = optimise(MODELS[name]())
    small = expand(graph)
    assert_same(graph, small)
    assert not {Op.TARGET_ATTENTION, Op.ENCODER, Op.LAYER_NORM} & ops(small).keys()
    assert ops(optimise(small)) == ops(graph)

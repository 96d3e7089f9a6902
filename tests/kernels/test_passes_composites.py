from __future__ import annotations

import numpy as np
import pytest

from kernels.ir import build
from kernels.ir.build import add, div, make, mul, reshape, sub
from kernels.ir.node import (
    DType,
    Encoder,
    Graph,
    Lead,
    Node,
    Op,
    TargetAttention,
    const,
    input_node,
)
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


@pytest.mark.parametrize("form", ["where", "where not", "product", "sum"])
def test_masks_and_sums_are_known_in_their_forms(x: Node, form: str) -> None:
    keys, query = reshape(x, 6, 4), reshape(build.slice_(x, 1, 0, 4), 1, 4)
    both = build.concat(build.expand(query, 6, 4), keys, sub(keys, query), mul(query, keys))
    scores = reshape(dense(dense(both, 8, Op.SIGMOID), 1), 6)
    mask = make(Op.LT, build.slice_(x, 1, 0, 6), const(np.full((1, 1), 0.25)))
    zero = const(np.zeros((1, 1)))
    if form == "where not":
        masked = make(Op.WHERE, make(Op.NOT, mask), zero, scores)
    elif form == "product":
        masked = mul(build.cast(mask, DType.FLOAT), scores)
    else:
        masked = make(Op.WHERE, mask, scores, zero)
    if form == "sum":
        pooled = build.sum_(mul(reshape(masked, 6, 1), keys), 1)
    else:
        pooled = make(Op.MATMUL, reshape(masked, 1, 6), keys)
    (found,) = [n for n in _optimised(pooled).nodes() if n.op is Op.TARGET_ATTENTION]
    assert isinstance(found.arg, TargetAttention)
    assert (found.arg.softmax, found.arg.masked) == (False, 0.0)


@pytest.mark.parametrize("heads", [1, 2])
def test_projections_may_be_apart_and_the_scale_anywhere(x: Node, heads: int) -> None:
    t, d = 3, 8
    steps = reshape(x, t, d)

    def head(value: Node, order: tuple[int, ...]) -> Node:
        if heads == 1:
            return value if order[-1] == 3 else build.transpose(value, 0, 2, 1)
        return build.transpose(reshape(value, t, heads, d // heads), *order)

    query, key, value = (dense(steps, d) for _ in range(3))
    scores = make(Op.MATMUL, head(query, (0, 2, 1, 3)), head(key, (0, 2, 3, 1)))
    scores = div(scores, const(np.full((1,) * len(scores.shape), 2.0)))
    weighted = make(Op.SOFTMAX, scores, arg=len(scores.shape) - 1)
    nan = make(Op.ISNAN, weighted)
    weighted = make(Op.WHERE, nan, build.scalar(0.0, weighted), weighted)
    mixed = make(Op.MATMUL, weighted, head(value, (0, 2, 1, 3)))
    if heads > 1:
        mixed = reshape(build.transpose(mixed, 0, 2, 1, 3), t, d)
    leaves = const(1 + weights(d)), const(weights(d))
    y = make(Op.LAYER_NORM, add(dense(mixed, d), steps), *leaves, arg=1e-5)
    inner = dense(dense(y, 16, Op.RELU), d)
    graph = _optimised(make(Op.LAYER_NORM, add(inner, y), *leaves, arg=1e-6))
    (found,) = [node for node in graph.nodes() if node.op is Op.ENCODER]
    assert found.arg == Encoder(heads, 0.5, Op.RELU, 0.0, 1e-5, 1e-6)


def test_a_normalised_linear_of_a_layer_norm_keeps_its_gain(x: Node) -> None:
    y = make(Op.LAYER_NORM, x, const(1 + weights(24)), const(weights(24)), arg=1e-5)
    graph = _optimised(add(mul(y, const(weights(1, 24))), const(weights(1, 24))))
    assert ops(graph) == {Op.INPUT: 1, Op.CONST: 2, Op.LAYER_NORM: 1}

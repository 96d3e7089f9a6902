from __future__ import annotations

import pytest

from kernels.ir import build
from kernels.ir.build import make
from kernels.ir.node import Graph, Lead, Op, input_node
from kernels.ir.reference import flops
from kernels.ir.rules import MOVEMENT
from kernels.passes import optimise
from tests.kernels.passes_help import MODELS, USER, assert_same, columns, mlp, ops, weights

_ROWS = 270  # candidates of a request: MLPerf's mean


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_user_side_keeps_its_scores(name: str) -> None:
    graph = MODELS[name](USER[name])

    def trace(name: str, after: Graph) -> None:
        assert_same(graph, after, name=name)

    assert_same(graph, optimise(graph, trace))
    assert_same(graph, optimise(graph, trace, user_once=False))


@pytest.mark.parametrize("name", MODELS)
def test_the_pass_never_adds_work_and_can_be_left_out(name: str) -> None:
    graph = MODELS[name](USER[name])
    with_it, without = optimise(graph), optimise(graph, user_once=False)
    assert flops(with_it).total(_ROWS) <= flops(without).total(_ROWS)
    assert optimise(with_it) is with_it


def test_half_of_a_wide_first_layer_is_done_once_a_request() -> None:
    inputs, (x,) = columns(512, user=(256,))
    graph = Graph("wide", inputs, make(Op.SIGMOID, mlp(x, [256, 64, 1], last=False)))
    with_it, without = optimise(graph), optimise(graph, user_once=False)
    ratio = flops(with_it).total(_ROWS) / flops(without).total(_ROWS)
    assert ratio < 0.6
    leads = [node.lead for node in with_it.nodes() if node.op is Op.LINEAR]
    assert leads.count(Lead.REQUESTS) == 1
    assert leads.count(Lead.ROWS) == 3


def test_a_tower_of_the_user_alone_is_done_for_the_requests() -> None:
    inputs, (user, candidate) = columns(32, 8, user=(32, 0))
    x = build.concat(mlp(user, [64, 16]), candidate)
    graph = optimise(Graph("towers", inputs, mlp(x, [1], last=False)))
    leads = [node.lead for node in graph.nodes() if node.op is Op.LINEAR]
    assert leads.count(Lead.REQUESTS) == 3  # two layers, and the user's half of the last


def test_an_encoder_of_the_users_sequence_is_done_for_the_requests() -> None:
    graph = optimise(MODELS["bst"](USER["bst"]))
    (encoder,) = [node for node in graph.nodes() if node.op is Op.ENCODER]
    assert encoder.lead is Lead.REQUESTS


def test_attention_reads_the_users_sequence_where_it_is() -> None:
    graph = optimise(MODELS["din"](USER["din"]))
    (attention,) = [node for node in graph.nodes() if node.op is Op.TARGET_ATTENTION]
    keys, mask = attention.sources[1:3]
    assert keys.op in MOVEMENT
    assert mask.op is Op.LT  # of flags that lie in the input: no work for the requests
    assert all(n.lead is not Lead.REQUESTS or n.op in MOVEMENT | {Op.INPUT} for n in graph.nodes())


def test_sums_over_fields_are_split_between_user_and_candidate() -> None:
    graph = optimise(MODELS["deepfm"](USER["deepfm"]))
    assert ops(graph)[Op.CONCAT] == 0
    assert any(n.op is Op.SUM and n.lead is Lead.REQUESTS for n in graph.nodes())


def test_elementwise_work_goes_with_the_linear_that_reads_it() -> None:
    inputs, (user, candidate) = columns(64, 8, user=(64, 0))
    x = build.concat(make(Op.TANH, user), candidate)
    graph = optimise(Graph("tanh", inputs, mlp(x, [16, 1], last=False)))
    (tanh,) = [node for node in graph.nodes() if node.op is Op.TANH]
    assert tanh.lead is Lead.REQUESTS


def test_a_cross_of_user_and_candidate_columns_keeps_its_concat() -> None:
    inputs, (x,) = columns(128, user=(64,))
    crossed = build.mul(x, build.linear(x, weights(128, 128)))
    written = Graph("cross", inputs, mlp(crossed, [1], last=False))
    graph = optimise(written)
    assert_same(written, graph)
    assert ops(graph)[Op.CONCAT] == 1
    assert any(n.op is Op.LINEAR and n.lead is Lead.REQUESTS for n in graph.nodes())


def test_sums_alone_are_not_moved() -> None:
    inputs, (x,) = columns(48, user=(24,))
    fields = build.reshape(x, 6, 8)
    total = build.reshape(build.sum_(build.mul(fields, fields), 1), 8)
    written = Graph("sums", inputs, make(Op.SIGMOID, total))
    graph = optimise(written)
    assert_same(written, graph)
    assert all(n.lead is not Lead.REQUESTS or n.op in MOVEMENT | {Op.INPUT} for n in graph.nodes())


def test_few_user_columns_stay_in_their_linear() -> None:
    user = input_node("user", Lead.REQUESTS, 4)
    candidate = input_node("candidate", Lead.ROWS, 8)
    x = build.linear((build.to_rows(user), candidate), weights(12, 5))
    graph = optimise(Graph("few", {"user": user, "candidate": candidate}, x))
    assert ops(graph)[Op.LINEAR] == 1

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.errors import GraphError
from kernels.ir.build import cast, concat, expand, linear, make, reshape, scalar, slice_, take
from kernels.ir.node import (
    Arg,
    DType,
    Encoder,
    Lead,
    Linear,
    Node,
    Op,
    Shape,
    Slice,
    Take,
    TargetAttention,
    TopK,
    const,
    input_node,
)
from kernels.ir.reference import evaluate_nodes
from kernels.ir.rules import ELEMENTWISE, MOVEMENT, REDUCTIONS, RULES

Array = NDArray[Any]
ROWS, REQUESTS = Lead.ROWS, Lead.REQUESTS
X = np.array([-30.0, -2.5, -1.5, -0.5, -0.0, 0.25, 1.0, 1.5, 2.5, 40.0, math.nan], np.float32)
Y = np.array([2.0, -1.0, 0.5, -0.5, 3.0, 0.25, math.nan, 4.0, -2.5, 7.0, 1.0], np.float32)
I = np.array([-7, -6, -1, 0, 1, 2, 5, 6, 7], np.int64)  # noqa: E741
J = np.array([3, -4, 2, 5, -3, 3, -2, 4, 7], np.int64)


def value(node: Node, inputs: dict[str, Array] | None = None, *of: int) -> Array:
    rows = np.asarray(of, np.int32) if of else None
    return evaluate_nodes([node], inputs or {}, rows)[node]


def relu(x: float) -> float:
    return x if math.isnan(x) else max(x, 0.0)


def softplus(x: float) -> float:
    return x if x > 36 else math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


UNARY: dict[Op, Callable[[float], float]] = {
    Op.NEG: lambda x: -x,
    Op.ABS: abs,
    Op.SIGN: lambda x: x if math.isnan(x) else float((x > 0) - (x < 0)),
    Op.FLOOR: lambda x: x if math.isnan(x) else float(math.floor(x)),
    Op.CEIL: lambda x: x if math.isnan(x) else float(math.ceil(x)),
    Op.ROUND: lambda x: x if math.isnan(x) else float(round(x)),  # half to even
    Op.SQRT: lambda x: math.sqrt(x) if x >= 0 else math.nan,
    Op.RECIPROCAL: lambda x: 1 / x if x else math.copysign(math.inf, x),
    Op.EXP: math.exp,
    Op.LOG: lambda x: math.log(x) if x > 0 else math.nan if x else -math.inf,
    Op.SIN: math.sin,
    Op.COS: math.cos,
    Op.TANH: math.tanh,
    Op.SIGMOID: sigmoid,
    Op.RELU: relu,
    Op.ERF: math.erf,
    Op.SOFTPLUS: softplus,
    Op.LEAKY_RELU: lambda x: 0.5 * x if x < 0 else x,
    Op.ELU: lambda x: 0.5 * math.expm1(x) if x < 0 else x,
    Op.ISNAN: math.isnan,
}


def test_the_table_has_one_row_for_every_op() -> None:
    assert set(RULES) == set(Op)
    assert all(op is rule.op for op, rule in RULES.items())
    assert not ELEMENTWISE & (MOVEMENT | REDUCTIONS)


@pytest.mark.parametrize("op", UNARY)
def test_an_op_of_one_float_means_what_mathematics_says(op: Op) -> None:
    arg = 0.5 if op in (Op.LEAKY_RELU, Op.ELU) else None
    node = make(op, const(X), arg=arg)
    expected = np.array([UNARY[op](float(x)) for x in X])
    np.testing.assert_allclose(value(node).astype(np.float64), expected, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("op", UNARY)
def test_an_op_keeps_the_dtype_that_it_is_evaluated_in(op: Op, dtype: type[np.generic]) -> None:
    arg = 0.5 if op in (Op.LEAKY_RELU, Op.ELU) else None
    node = make(op, const(X[:-2]), arg=arg)
    found = evaluate_nodes([node], {}, dtype=dtype)[node]
    assert found.dtype == (np.bool_ if op is Op.ISNAN else dtype)


@pytest.mark.parametrize(
    ("op", "meaning"),
    [
        (Op.ADD, lambda a, b: a + b),
        (Op.SUB, lambda a, b: a - b),
        (Op.MUL, lambda a, b: a * b),
        (Op.DIV, lambda a, b: a / b),
        (Op.MOD, math.fmod),
        (Op.MAX, lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else max(a, b)),
        (Op.MIN, lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else min(a, b)),
        (Op.EQ, lambda a, b: a == b),
        (Op.LT, lambda a, b: a < b),
        (Op.LE, lambda a, b: a <= b),
    ],
)
def test_an_op_of_two_floats(op: Op, meaning: Callable[[float, float], float]) -> None:
    expected = np.array([meaning(a, b) for a, b in zip(X.tolist(), Y.tolist(), strict=True)])
    np.testing.assert_allclose(value(make(op, const(X), const(Y))), expected, rtol=1e-14)


def test_pow_of_floats() -> None:
    base, power = np.array([2.0, 9.0, 0.5, -2.0]), np.array([10.0, 0.5, -2.0, 3.0])
    found = value(make(Op.POW, const(base), const(power)))
    np.testing.assert_allclose(found, [1024.0, 3.0, 4.0, -8.0])


@pytest.mark.parametrize(
    ("op", "meaning"),
    [
        (Op.ADD, lambda a, b: a + b),
        (Op.SUB, lambda a, b: a - b),
        (Op.MUL, lambda a, b: a * b),
        (Op.DIV, lambda a, b: int(a / b)),
        (Op.MOD, lambda a, b: a % b),
        (Op.POW, lambda a, b: a**b if b >= 0 else 0),
        (Op.MAX, max),
        (Op.MIN, min),
        (Op.EQ, lambda a, b: a == b),
        (Op.LT, lambda a, b: a < b),
        (Op.LE, lambda a, b: a <= b),
    ],
)
def test_an_op_of_two_ints(op: Op, meaning: Callable[[int, int], int]) -> None:
    expected = [meaning(a, b) for a, b in zip(I.tolist(), J.tolist(), strict=True)]
    assert value(make(op, const(I), const(J))).tolist() == expected


def test_ops_of_bools() -> None:
    a, b = const(np.array([True, True, False, False])), const(np.array([True, False] * 2))
    assert value(make(Op.AND, a, b)).tolist() == [True, False, False, False]
    assert value(make(Op.OR, a, b)).tolist() == [True, True, True, False]
    assert value(make(Op.NOT, a)).tolist() == [False, False, True, True]
    chosen = make(Op.WHERE, a, const(np.arange(4)), const(-np.arange(4)))
    assert value(chosen).tolist() == [0, 1, -2, -3]


def test_casts() -> None:
    floats = const(np.array([-2.7, -0.5, 0.0, 2.7, math.nan]))
    assert value(cast(floats, DType.INT)).tolist() == [-2, 0, 0, 2, 0]
    assert value(cast(floats, DType.BOOL)).tolist() == [True, True, False, True, True]
    assert value(cast(const(np.array([True, False])), DType.FLOAT)).tolist() == [1.0, 0.0]
    assert value(cast(const(I), DType.FLOAT)).dtype == np.float64


def test_erf_is_exact_to_the_last_digits() -> None:
    xs = np.linspace(-7, 7, 10_001)
    expected = np.array([math.erf(x) for x in xs])
    found = RULES[Op.ERF].numpy(make(Op.ERF, const(xs)), (xs,), None)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, expected, rtol=5e-16)


def test_elementwise_ops_repeat_dimensions_of_1() -> None:
    row = input_node("x", ROWS, 6)
    product = make(Op.MUL, reshape(row, 2, 3), const(np.array([[[1.0], [10.0]]])))
    assert product.shape == (ROWS, 2, 3)
    found = value(product, {"x": np.arange(12.0).reshape(2, 6)}, 0, 0)
    assert found[1].tolist() == [[6.0, 7.0, 8.0], [90.0, 100.0, 110.0]]


def test_movement() -> None:
    x = np.arange(24.0).reshape(2, 12)
    whole = reshape(input_node("x", ROWS, 12), 3, 4)
    array = x.reshape(2, 3, 4)
    cases: list[tuple[Node, Array]] = [
        (reshape(whole, 6, 2), x.reshape(2, 6, 2)),
        (make(Op.TRANSPOSE, whole, arg=(0, 2, 1)), array.transpose(0, 2, 1)),
        (slice_(whole, 2, 1, 4, 2), array[:, :, 1:4:2]),
        (concat(whole, whole, axis=1), np.concatenate([array, array], 1)),
        (concat(whole, slice_(whole, 2, 0, 1)), np.concatenate([array, array[..., :1]], 2)),
        (take(whole, 1, (2, 0, 2)), array[:, [2, 0, 2]]),
        (expand(slice_(whole, 1, 1, 2), 5, 4), array[:, 1:2].repeat(5, 1)),
    ]
    for node, expected in cases:
        found = value(node, {"x": x}, 0, 0)
        assert node.shape == (ROWS, *expected.shape[1:])
        np.testing.assert_array_equal(found, expected)


def test_a_constant_expands_to_one_a_row() -> None:
    node = make(Op.EXPAND, const(np.array([[3.0, 4.0]])), shape=(ROWS, 2))
    assert value(node, {}, 0, 0, 1).tolist() == [[3.0, 4.0]] * 3


def test_to_rows_repeats_a_requests_value_for_each_of_its_rows() -> None:
    node = make(Op.TO_ROWS, input_node("user", REQUESTS, 2))
    found = value(node, {"user": np.array([[1.0, 2.0], [3.0, 4.0]])}, 1, 1, 0)
    assert node.shape == (ROWS, 2)
    assert found.tolist() == [[3.0, 4.0], [3.0, 4.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("op", "function"),
    [
        (Op.SUM, np.sum),
        (Op.MEAN, np.mean),
        (Op.REDUCE_MAX, np.max),
        (Op.REDUCE_MIN, np.min),
        (Op.PROD, np.prod),
    ],
)
def test_reductions_leave_their_axes_as_1(op: Op, function: Callable[..., Array]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 8))
    node = make(op, reshape(input_node("x", ROWS, 8), 2, 4), arg=(1, 2))
    assert node.shape == (ROWS, 1, 1)
    np.testing.assert_allclose(
        value(node, {"x": x}, 0, 0, 0)[:, 0, 0], function(x.reshape(3, 8), axis=1)
    )


def test_softmax_layer_norm_and_top_k() -> None:
    x = np.array([[1.0, 1000.0, 3.0], [-1.0, 0.0, 1.0]])
    source = input_node("x", ROWS, 3)
    softmax = value(make(Op.SOFTMAX, source, arg=1), {"x": x}, 0, 0)
    total = math.exp(-1) + 1 + math.exp(1)
    np.testing.assert_allclose(softmax[0], [0, 1, 0], atol=1e-300)
    np.testing.assert_allclose(softmax[1], np.exp([-1, 0, 1]) / total)
    gain, offset = const(np.array([1.0, 2.0, 3.0])), const(np.array([0.0, 0.0, 1.0]))
    norm = value(make(Op.LAYER_NORM, source, gain, offset, arg=1.0), {"x": x}, 0, 0)
    deviation = math.sqrt(2 / 3 + 1)
    np.testing.assert_allclose(norm[1], [-1 / deviation, 0, 3 / deviation + 1], atol=1e-15)
    largest = make(Op.TOP_K, source, arg=TopK(1, 2))
    smallest = make(Op.TOP_K, source, arg=TopK(1, 2, largest=False))
    assert value(largest, {"x": x}, 0, 0).tolist() == [[1000.0, 3.0], [1.0, 0.0]]
    assert value(smallest, {"x": x}, 0, 0).tolist() == [[1.0, 3.0], [-1.0, 0.0]]


def test_a_linear_of_several_inputs_is_that_of_their_concat() -> None:
    numbers = np.random.default_rng(1)
    a, b = numbers.standard_normal((5, 3)), numbers.standard_normal((5, 4))
    weight = numbers.standard_normal((7, 2)).astype(np.float32)
    bias = numbers.standard_normal(2).astype(np.float32)
    inputs = (input_node("a", ROWS, 3), input_node("b", ROWS, 4))
    node = linear(inputs, weight, bias, Op.RELU)
    expected = np.maximum(np.concatenate([a, b], 1) @ weight + bias, 0)
    np.testing.assert_allclose(value(node, {"a": a, "b": b}), expected)


def test_a_grouped_linear_has_weights_for_each_group() -> None:
    numbers = np.random.default_rng(2)
    x, y = numbers.standard_normal((5, 3, 4)), numbers.standard_normal((5, 3, 2))
    weight = numbers.standard_normal((3, 6, 7)).astype(np.float32)
    bias = numbers.standard_normal((3, 7)).astype(np.float32)
    inputs = (
        reshape(input_node("x", ROWS, 12), 3, 4),
        reshape(input_node("y", ROWS, 6), 3, 2),
    )
    node = linear(inputs, weight, bias, Op.LEAKY_RELU, slope=0.5, grouped=True)
    assert node.shape == (ROWS, 3, 7)
    found = value(node, {"x": x.reshape(5, 12), "y": y.reshape(5, 6)})
    for group in range(3):
        joined = np.concatenate([x[:, group], y[:, group]], 1)
        total = joined @ weight[group] + bias[group]
        np.testing.assert_allclose(found[:, group], np.where(total < 0, total / 2, total))


def test_matmul_multiplies_the_last_two_axes() -> None:
    x = np.random.default_rng(3).standard_normal((2, 24))
    left = reshape(input_node("x", ROWS, 24), 2, 3, 4)
    node = make(Op.MATMUL, left, make(Op.TRANSPOSE, left, arg=(0, 1, 3, 2)))
    array = x.reshape(2, 2, 3, 4)
    assert node.shape == (ROWS, 2, 3, 3)
    np.testing.assert_allclose(
        value(node, {"x": x}), np.einsum("abij,abkj->abik", array, array), rtol=1e-12
    )


@pytest.mark.parametrize("softmax", [True, False])
def test_target_attention_is_the_formula_one_step_at_a_time(softmax: bool) -> None:
    rows, steps, depth, hidden = 4, 3, 5, 6
    numbers = np.random.default_rng(4)
    query, keys = (
        numbers.standard_normal((rows, depth)),
        numbers.standard_normal((rows, steps, depth)),
    )
    flags = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], np.float64)
    shapes = [(depth, hidden)] * 3 + [(hidden,), (hidden, 2), (2,), (2, 1), (1,)]
    arrays = [numbers.standard_normal(shape).astype(np.float32) for shape in shapes]
    mask = cast(input_node("mask", ROWS, steps), DType.BOOL)
    arg = TargetAttention(3, Op.TANH, softmax=softmax, masked=-1e9 if softmax else 0.0)
    node = make(
        Op.TARGET_ATTENTION,
        input_node("query", ROWS, depth),
        reshape(input_node("keys", ROWS, steps * depth), steps, depth),
        mask,
        *map(const, arrays),
        arg=arg,
    )
    w_q, w_k, w_p, b_1, w_2, b_2, w_3, b_3 = arrays
    expected = np.zeros((rows, depth))
    for r in range(rows):
        scores = np.full(steps, arg.masked)
        for t in range(steps):
            q, k = query[r], keys[r, t]
            if flags[r, t]:
                first = np.tanh(q @ w_q + k @ w_k + (q * k) @ w_p + b_1)
                scores[t] = (np.tanh(first @ w_2 + b_2) @ w_3 + b_3)[0]
        if softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        expected[r] = scores @ keys[r]
    inputs = {"query": query, "keys": keys.reshape(rows, -1), "mask": flags}
    np.testing.assert_allclose(value(node, inputs), expected, rtol=1e-10)


def norm(x: Array, gain: Array, offset: Array, epsilon: float) -> Array:
    return np.asarray((x - x.mean()) / math.sqrt(x.var() + epsilon) * gain + offset)


def test_an_encoder_is_the_formula_one_head_and_step_at_a_time() -> None:
    rows, steps, width, heads, inner = 2, 3, 4, 2, 5
    numbers = np.random.default_rng(5)
    x = numbers.standard_normal((rows, steps, width))
    shapes: list[tuple[int, ...]] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    shapes += [(width,), (width,), (width, inner), (inner,), (inner, width), (width,)]
    shapes += [(width,), (width,)]
    arrays = [numbers.standard_normal(shape).astype(np.float32) for shape in shapes]
    source = reshape(input_node("x", ROWS, steps * width), steps, width)
    arg = Encoder(heads, 0.3, Op.ELU, 0.7, 0.1, 0.2)
    node = make(Op.ENCODER, source, *map(const, arrays), arg=arg)
    w_qkv, b_qkv, w_o, b_o, gain_1, offset_1, w_1, b_1, w_2, b_2, gain_2, offset_2 = arrays
    each = width // heads
    expected = np.zeros_like(x)
    for r in range(rows):
        qkv = x[r] @ w_qkv + b_qkv
        joined = np.zeros((steps, width))
        for h in range(heads):
            part = slice(h * each, (h + 1) * each)
            query, key, values = (qkv[:, i * width : (i + 1) * width][:, part] for i in range(3))
            for t in range(steps):
                weights = np.exp([0.3 * float(query[t] @ key[s]) for s in range(steps)])
                joined[t, part] = weights / weights.sum() @ values
        for t in range(steps):
            y = norm(x[r, t] + joined[t] @ w_o + b_o, gain_1, offset_1, 0.1)
            h_t = y @ w_1 + b_1
            h_t = np.where(h_t < 0, 0.7 * np.expm1(h_t), h_t)
            expected[r, t] = norm(y + h_t @ w_2 + b_2, gain_2, offset_2, 0.2)
    np.testing.assert_allclose(value(node, {"x": x.reshape(rows, -1)}), expected, rtol=1e-10)


def rows_value(*dims: int, lead: Lead = ROWS) -> Node:
    return Node(Op.INPUT, (), (lead, *dims), arg="x", name="x")


F = const(np.zeros((1, 4)))
N = const(np.zeros((1, 4), np.int64))
B = const(np.zeros((1, 4), np.bool_))
W = const(np.zeros((4, 3)))
C3 = const(np.zeros(3))
REFUSED: list[tuple[Op, list[Node], Arg, Shape | None, str]] = [
    (Op.ADD, [F], None, None, "1 sources, want 2"),
    (Op.ADD, [rows_value(4), rows_value(5)], None, None, "do not go together"),
    (Op.ADD, [rows_value(4), rows_value(4, lead=REQUESTS)], None, None, "do not go together"),
    (Op.ADD, [rows_value(4), const(np.zeros((2, 4)))], None, None, "do not go together"),
    (Op.ADD, [rows_value(4), const(np.zeros(4))], None, None, "differ in rank"),
    (Op.ADD, [F, N], None, None, "sources are float, int"),
    (Op.ADD, [B, B], None, None, "is not for bool"),
    (Op.EXP, [N], None, None, "is not for int"),
    (Op.AND, [F, F], None, None, "is not for float"),
    (Op.WHERE, [F, F, F], None, None, "is not for float"),
    (Op.WHERE, [B, F, N], None, None, "sources are float, int"),
    (Op.LEAKY_RELU, [F], None, None, "want a float"),
    (Op.ELU, [F], math.inf, None, "arg is inf"),
    (Op.CAST, [F], None, None, "no dtype"),
    (Op.RESHAPE, [F], None, None, "no shape"),
    (Op.RESHAPE, [rows_value(4)], None, (ROWS, 5), r"makes \[rows, 5\] of \[rows, 4\]"),
    (Op.RESHAPE, [rows_value(4)], None, (4,), "makes"),
    (Op.RESHAPE, [rows_value(4)], None, (2, ROWS, 2), "behind axis 0"),
    (Op.RESHAPE, [F], None, (-2, -2), "negative"),
    (Op.EXPAND, [rows_value(4)], None, (ROWS, 8), "makes"),
    (Op.EXPAND, [rows_value(1)], None, (REQUESTS, 1), "makes"),
    (Op.TRANSPOSE, [rows_value(4)], (1, 0), None, "moves rows away"),
    (Op.TRANSPOSE, [rows_value(4)], (0, 0), None, "does not permute"),
    (Op.SLICE, [rows_value(4)], Slice(1, 2, 5), None, "Slice"),
    (Op.SLICE, [rows_value(4)], Slice(0, 0, 1), None, "works across rows"),
    (Op.SLICE, [rows_value(4)], Slice(1, 0, 4, 0), None, "Slice"),
    (Op.CONCAT, [], 1, None, "no sources"),
    (Op.CONCAT, [rows_value(4), F], 1, None, "behind"),
    (Op.CONCAT, [rows_value(4), rows_value(4)], 0, None, "works across rows"),
    (Op.CONCAT, [rows_value(4), rows_value(2, 4)], 1, None, "behind"),
    (Op.TAKE, [rows_value(4)], Take(1, (0, 4)), None, "of 4 elements"),
    (Op.TO_ROWS, [rows_value(4)], None, None, "not a value of requests"),
    (Op.SUM, [rows_value(4)], (0,), None, "works across rows"),
    (Op.SUM, [rows_value(4, 2)], (2, 1), None, "not in order"),
    (Op.SUM, [rows_value(4)], (2,), None, "axis 2"),
    (Op.MEAN, [N], (1,), None, "is not for int"),
    (Op.REDUCE_MAX, [rows_value(0)], (1,), None, "no elements"),
    (Op.SOFTMAX, [rows_value(4)], 0, None, "works across rows"),
    (Op.LAYER_NORM, [rows_value(4), C3, C3], 1e-5, None, r"gain is \[3\], want \[4\]"),
    (Op.LAYER_NORM, [rows_value(4), rows_value(4), C3], 1e-5, None, "want a constant"),
    (Op.TOP_K, [rows_value(4)], TopK(1, 5), None, "5 of"),
    (Op.MATMUL, [rows_value(2, 3), rows_value(2, 3)], None, None, " x "),
    (Op.MATMUL, [rows_value(2, 3), const(np.zeros((1, 3, 2)))], None, None, "want a lead"),
    (Op.MATMUL, [rows_value(2, 3), rows_value(3, 2, lead=REQUESTS)], None, None, "mixes"),
    (Op.LINEAR, [rows_value(4), W, C3], Linear(2), None, "3 sources for 2 inputs"),
    (Op.LINEAR, [rows_value(5), W, C3], Linear(), None, "weight is"),
    (Op.LINEAR, [rows_value(4), W, rows_value(3)], Linear(), None, "bias is"),
    (Op.LINEAR, [rows_value(0), W, C3], Linear(), None, "no columns"),
    (Op.LINEAR, [F, W, C3], Linear(), None, "want a lead"),
    (Op.LINEAR, [rows_value(4), W, C3], Linear(activation=Op.EXP), None, "activation exp"),
    (Op.LINEAR, [rows_value(2, 4), W, C3], Linear(grouped=True), None, "weight is"),
    (Op.LINEAR, [rows_value(4), W, C3], None, None, "want Linear"),
    (Op.TARGET_ATTENTION, [F], TargetAttention(2, Op.RELU), None, "1 sources for 2 layers"),
    (Op.ENCODER, [rows_value(2, 3)] * 13, Encoder(2, 1.0, Op.RELU), None, "2 heads of"),
]


@pytest.mark.parametrize(("op", "sources", "arg", "shape", "why"), REFUSED)
def test_what_cannot_be_is_refused_by_op_and_node(
    op: Op, sources: list[Node], arg: Arg, shape: Shape | None, why: str
) -> None:
    with pytest.raises(GraphError, match=rf"^{op} 'the node': .*{why}"):
        make(op, *sources, arg=arg, shape=shape, name="the node")


def test_a_shape_that_is_not_the_inferred_one_is_refused() -> None:
    with pytest.raises(GraphError, match=r"neg 'x': makes \[rows, 4\] of float, not \[rows, 5\]"):
        make(Op.NEG, rows_value(4), shape=(ROWS, 5))


def test_a_scalar_takes_rank_and_dtype_of_what_it_goes_with() -> None:
    whole = scalar(2, N)
    assert (whole.shape, whole.dtype) == ((1, 1), DType.INT)
    assert make(Op.MUL, rows_value(3, 4), scalar(0.5, rows_value(3, 4))).shape == (ROWS, 3, 4)

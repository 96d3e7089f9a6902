from __future__ import annotations

import numpy as np
import pytest

from kernels.errors import GraphError
from kernels.ir.build import (
    add,
    cast,
    concat,
    div,
    expand,
    fold,
    linear,
    make,
    mul,
    reshape,
    slice_,
    sub,
    sum_,
    take,
    to_rows,
    transpose,
)
from kernels.ir.node import DType, Lead, Linear, Node, Op, Slice, Take, const, input_node

ROWS = Lead.ROWS
X = reshape(input_node("x", ROWS, 12), 3, 4)


@pytest.mark.parametrize(
    ("node", "op", "arg", "shape"),
    [
        (add(X, X), Op.ADD, None, (ROWS, 3, 4)),
        (sub(X, X), Op.SUB, None, (ROWS, 3, 4)),
        (mul(X, X), Op.MUL, None, (ROWS, 3, 4)),
        (div(X, X), Op.DIV, None, (ROWS, 3, 4)),
        (X, Op.RESHAPE, None, (ROWS, 3, 4)),
        (transpose(X, 0, 2, 1), Op.TRANSPOSE, (0, 2, 1), (ROWS, 4, 3)),
        (slice_(X, 2, 1, 3), Op.SLICE, Slice(2, 1, 3), (ROWS, 3, 2)),
        (take(X, 1, (2, 2)), Op.TAKE, Take(1, (2, 2)), (ROWS, 2, 4)),
        (concat(X, X), Op.CONCAT, 2, (ROWS, 3, 8)),
        (expand(reshape(X, 12, 1), 12, 5), Op.EXPAND, None, (ROWS, 12, 5)),
        (sum_(X, 1, 2), Op.SUM, (1, 2), (ROWS, 1, 1)),
        (linear(X, np.ones((4, 2)), activation=Op.RELU), Op.LINEAR,
         Linear(1, Op.RELU), (ROWS, 3, 2)),
    ],
)  # fmt: skip
def test_a_helper_makes_its_op(node: Node, op: Op, arg: object, shape: object) -> None:
    assert (node.op, node.arg, node.shape, node.name) == (op, arg, shape, "x")


def test_what_has_a_lead_of_rows_or_the_dtype_already_is_left_as_it_is() -> None:
    assert to_rows(X) is X
    assert cast(X, DType.FLOAT) is X


def test_an_op_on_constants_folds_to_what_it_comes_to() -> None:
    a, b = const(np.array([1.0, 2.0])), const(np.array([4.0, 8.0]))
    folded = fold(div(a, b))
    assert (folded.op, folded.dtype, folded.array.tolist()) == (Op.CONST, DType.FLOAT, [0.25, 0.25])
    compared = fold(make(Op.LT, a, b))
    assert (compared.op, compared.dtype) == (Op.CONST, DType.BOOL)


def test_sums_of_constants_are_rounded_once() -> None:
    third = np.float32(1 / 3)
    folded = fold(sum_(const(np.full(3, third)), 0))
    assert folded.array.dtype == np.float32
    assert folded.array[0] == np.float32(3 * np.float64(third))


def test_an_op_with_a_lead_does_not_fold() -> None:
    for node in (add(X, X), make(Op.EXPAND, const(np.ones((1, 2))), shape=(ROWS, 2)), X.sources[0]):
        assert fold(node) is node


def test_a_linear_takes_constants_that_others_share() -> None:
    weight, bias = const(np.ones((4, 2))), const(np.zeros(2))
    assert linear(X, weight, bias).sources == (X, weight, bias)
    with pytest.raises(GraphError, match=r"linear 'x': weight is \[4, 2\], want \[3, 4, 2\]"):
        linear(X, weight, np.zeros((3, 2)), grouped=True)

"""Import of products of matrices: Gemm, MatMul, and Linear layers with constant weights."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from kernels.graph.model import Array
from kernels.ir.node import Linear, Op
from kernels.ir.onnx_axes import (
    drop,
    elementwise,
    expand,
    insert,
    reshape,
    swap_last,
    transpose,
    with_rows,
)
from kernels.ir.onnx_call import Call, Result, Table
from kernels.ir.onnx_ops_elementwise import f32
from kernels.ir.onnx_value import Size, Value


def linear(call: Call, x: Value, weight: Array, bias: Array | None = None) -> Value:
    """Return ``x @ weight + bias`` over the last axis of x; weight ``[k, n]``, bias ``[n]``."""
    call.not_rows(x, x.view.rank - 1)
    if bias is None:
        bias = np.zeros(weight.shape[1], np.float32)
    if x.view.at is None:
        return call.lift((x.node.array @ weight + bias).astype(np.float32))
    x = with_rows(call, x)
    constants = [call.lift(np.ascontiguousarray(each)).node for each in (weight, bias)]
    return Value(call.make(Op.LINEAR, x.node, *constants, arg=Linear()), x.view)


def matmul(call: Call, a: Value | Array, b: Value | Array) -> Value:
    """Return the product as ``numpy.matmul`` defines it."""
    left, right = call.lift(a), call.lift(b)
    if left.view.rank == 1 and right.view.rank == 1:
        return drop(call, matmul(call, insert(call, left, [0]), insert(call, right, [1])), [0, 1])
    if left.view.rank == 1:
        made = matmul(call, insert(call, left, [0]), right)
        return drop(call, made, [made.view.rank - 2])
    if right.view.rank == 1:
        made = matmul(call, left, insert(call, right, [1]))
        return drop(call, made, [made.view.rank - 1])
    rank = max(left.view.rank, right.view.rank)
    left, right = (_to_rank(call, each, rank) for each in (left, right))
    call.not_rows(left, rank - 1)
    call.not_rows(right, rank - 2)
    if left.local[-1] != right.local[-2]:
        raise call.refuse(f"multiplies {list(left.local)} with {list(right.local)}")
    if left.local[-1] == 1:
        return elementwise(call, Op.MUL, left, right)
    if (weight := _constant(right)) is not None:
        return _by_constant(call, left, weight)
    if (weight := _constant(left)) is not None:
        turned = _by_constant(call, swap_last(call, right), np.swapaxes(weight, -1, -2))
        return swap_last(call, turned)
    return _of_values(call, left, right)


def _to_rank(call: Call, value: Value, rank: int) -> Value:
    missing = rank - value.view.rank
    return insert(call, value, list(range(missing))) if missing else value


def _constant(value: Value) -> Array | None:
    """Return the array of a constant, one that is alike for every row included."""
    if value.node.op is not Op.CONST:
        return None
    if value.view.at is None:
        return value.node.array
    return None if value.view.merged > 1 else value.node.array.reshape(value.local)


def _by_constant(call: Call, x: Value, weight: Array) -> Value:
    """Multiply ``x [.., m, k]`` with ``weight [.., k, n]`` of the same rank."""
    batch, (k, n) = weight.shape[:-2], weight.shape[-2:]
    if math.prod(batch) == 1:
        return linear(call, x, weight.reshape(k, n))
    rank = x.view.rank
    groups = [axis for axis, size in enumerate(batch) if size > 1]
    if x.view.at in groups:
        raise call.refuse("has other weights for each row")
    shared = all(x.local[axis] == 1 for axis in groups)
    free = [axis for axis in range(rank - 1) if axis not in groups]
    kept: list[Size] = [x.sizes[axis] for axis in free]
    sizes = [batch[axis] for axis in groups]
    weights = weight.reshape(-1, k, n)
    if shared:  # every group reads the same: one wide Linear
        wide = weights.transpose(1, 0, 2).reshape(k, -1)
        made = linear(call, reshape(call, x, [*kept, k]), wide)
    else:
        wanted: list[Size] = list(x.sizes)
        for axis in groups:
            wanted[axis] = batch[axis]
        x = transpose(call, expand(call, x, wanted), [*free, *groups, rank - 1])
        x = reshape(call, x, [*kept, len(weights), k])
        made = _grouped(call, x, weights)
    made = reshape(call, made, [*kept, *sizes, n])
    order = [*free, *groups, rank - 1]
    return transpose(call, made, [order.index(axis) for axis in range(rank)])


def _grouped(call: Call, x: Value, weights: Array) -> Value:
    bias = np.zeros((len(weights), weights.shape[-1]), np.float32)
    constants = [call.lift(np.ascontiguousarray(each)).node for each in (weights, bias)]
    arg = Linear(grouped=True)
    return Value(call.make(Op.LINEAR, x.node, *constants, arg=arg), x.view)


def _of_values(call: Call, left: Value, right: Value) -> Value:
    """Multiply two values that have rows on the same batch axis."""
    rank = left.view.rank
    if left.view != right.view or left.view.at is None or left.view.at >= rank - 2:
        raise call.refuse("multiplies some rows with others: they stand on different axes")
    batch = tuple(
        b if a == 1 else a for a, b in zip(left.sizes[:-2], right.sizes[:-2], strict=True)
    )
    left = expand(call, left, [*batch, *left.sizes[-2:]])
    right = expand(call, right, [*batch, *right.sizes[-2:]])
    return Value(call.make(Op.MATMUL, left.node, right.node), left.view)


def _matmul(call: Call) -> Result:
    return matmul(call, call.operand(0), call.operand(1))


def _gemm(call: Call) -> Result:
    a, b = call.value(0), call.value(1)
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    if call.attribute("transA", 0):
        a = swap_last(call, a)
    if call.attribute("transB", 0):
        b = swap_last(call, b)
    weight, bias = _constant(b), call.inputs[2] if call.has(2) else None
    if weight is not None and a.node.op is not Op.CONST and alpha != 1.0:
        weight, alpha = weight * np.float32(alpha), 1.0
    row = _row(bias, beta) if weight is not None else None
    if weight is not None and row is not None:
        return linear(call, a, weight, np.broadcast_to(row, (weight.shape[1],)))
    made = matmul(call, a, b if weight is None else weight)
    if alpha != 1.0:
        made = elementwise(call, Op.MUL, made, f32(alpha))
    if bias is None or beta == 0.0:
        return made
    offset = call.operand(2)
    if beta != 1.0:
        offset = elementwise(call, Op.MUL, offset, f32(beta))
    return elementwise(call, Op.ADD, made, offset)


def _row(bias: object, beta: float) -> Array | None:
    """Return a Gemm's C as one row, if it is a constant that is alike for every row."""
    if bias is None:
        return np.zeros(1, np.float32)
    if not isinstance(bias, np.ndarray) or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    return np.asarray(bias.reshape(-1) * np.float32(beta))


LINEARS: Final[Table] = {"MatMul": _matmul, "Gemm": _gemm}

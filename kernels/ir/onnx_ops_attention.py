"""Import of Attention (opset 23): what torch's exporter makes of scaled_dot_product_attention."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from kernels.ir.node import DType, Op
from kernels.ir.onnx_axes import elementwise, expand, insert, reshape, swap_last, transpose
from kernels.ir.onnx_call import Call, Result, Table
from kernels.ir.onnx_ops_elementwise import f32
from kernels.ir.onnx_ops_linear import matmul
from kernels.ir.onnx_value import Size, Value

_NEVER: Final = f32(-math.inf)


def _attention(call: Call) -> Result:
    """``softmax(scale q k^T + mask) v`` for each head; ``[rows, heads, steps, width]``."""
    if any(call.has(i) for i in (4, 5)) or len([name for name in call.node.output if name]) > 1:
        raise call.refuse("keeps keys and values of the past")
    if call.attribute("softcap", 0.0):
        raise call.refuse("caps its scores")
    flat = call.value(0).view.rank == 3
    query = _heads(call, call.value(0), "q_num_heads")
    keys, values = (_heads(call, call.value(i), "kv_num_heads") for i in (1, 2))
    keys, values = (_like(call, each, query) for each in (keys, values))
    scale = call.attribute("scale", 1 / math.sqrt(query.local[3]))
    scores = matmul(call, query, swap_last(call, keys))
    scores = elementwise(call, Op.MUL, scores, f32(float(scale)))
    if call.has(3):
        scores = _masked(call, scores, call.value(3))
    if call.attribute("is_causal", 0):
        scores = _masked(call, scores, call.lift(np.tril(np.ones(scores.local[2:], np.bool_))))
    weights = Value(call.make(Op.SOFTMAX, scores.node, arg=scores.view.axis(3)), scores.view)
    made = matmul(call, weights, values)
    if not flat:
        return made
    made = transpose(call, made, [0, 2, 1, 3])
    return reshape(call, made, [*made.sizes[:2], made.local[2] * made.local[3]])


def _heads(call: Call, x: Value, attribute: str) -> Value:
    """Cut ``[rows, steps, heads * width]`` into heads."""
    if x.view.rank == 4:
        return x
    heads = int(call.attribute(attribute, 1))
    cut = reshape(call, x, [*x.sizes[:2], heads, x.local[2] // heads])
    return transpose(call, cut, [0, 2, 1, 3])


def _like(call: Call, x: Value, query: Value) -> Value:
    """Repeat each head of keys or values for the queries that share it."""
    times = query.local[1] // x.local[1]
    if times == 1:
        return x
    rows, heads, steps, width = x.sizes
    wide: list[Size] = [rows, heads, times, steps, width]
    repeated = expand(call, insert(call, x, [2]), wide)
    return reshape(call, repeated, [rows, query.local[1], steps, width])


def _masked(call: Call, scores: Value, mask: Value) -> Value:
    if mask.node.dtype is not DType.BOOL:
        return elementwise(call, Op.ADD, scores, mask)
    return elementwise(call, Op.WHERE, mask, scores, _NEVER)


ATTENTION: Final[Table] = {"Attention": _attention}

"""Import of reductions, normalisations and what else works along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from kernels.graph.model import Array
from kernels.ir.node import Op, TopK
from kernels.ir.onnx_axes import drop, elementwise, reshape, transpose
from kernels.ir.onnx_call import Call, Handler, Result, Table
from kernels.ir.onnx_ops_elementwise import f32
from kernels.ir.onnx_ops_linear import linear
from kernels.ir.onnx_value import Value

# Until opset 12 a Softmax was over all axes from its axis on, made one.
_SOFTMAX_ALONG_ONE_AXIS: Final = 13
# Reductions take their axes as an input from opset 18 on, ReduceSum from 13 on.
_AXES_AS_INPUT: Final = {"ReduceSum": 13}

AlongAxis: TypeAlias = Callable[[Call, Value, int], Value]


def reduce(call: Call, op: Op, value: Value, axes: Sequence[int]) -> Value:
    """Reduce over ONNX axes, which stay as 1."""
    ours = tuple(sorted(value.view.axis(call.not_rows(value, axis)) for axis in axes))
    return Value(call.make(op, value.node, arg=ours), value.view) if ours else value


def _reduction(op: Op, before: Op | None = None, after: Op | None = None) -> Handler:
    """Return the handler of a reduction; ``before`` and ``after`` are applied around it."""

    def handler(call: Call) -> Result:
        x, axes = _reduced(call)
        if before is not None:
            x = elementwise(call, before, *([x, x] if before is Op.MUL else [x]))
        made = reduce(call, op, x, axes)
        return _finish(call, made if after is None else elementwise(call, after, made), axes)

    return handler


def _reduced(call: Call) -> tuple[Value, list[int]]:
    x = call.value(0)
    axes = call.integers(1, "axes", _AXES_AS_INPUT.get(call.node.op_type, 18))
    if not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(x.view.rank))
    return x, [call.axis(axis, x.view.rank) for axis in axes]


def _finish(call: Call, made: Value, axes: Sequence[int]) -> Value:
    return made if call.attribute("keepdims", 1) or not axes else drop(call, made, axes)


def _log_sum_exp(call: Call) -> Result:
    x, axes = _reduced(call)
    return _finish(call, _log_sum(call, x, axes), axes)


def _log_sum(call: Call, x: Value, axes: Sequence[int]) -> Value:
    largest = reduce(call, Op.REDUCE_MAX, x, axes)
    powers = elementwise(call, Op.EXP, elementwise(call, Op.SUB, x, largest))
    total = elementwise(call, Op.LOG, reduce(call, Op.SUM, powers, axes))
    return elementwise(call, Op.ADD, total, largest)


def _softmax(call: Call) -> Result:
    return _along_axis(call, _softmax_of)


def _log_softmax(call: Call) -> Result:
    return _along_axis(
        call, lambda call, x, axis: elementwise(call, Op.SUB, x, _log_sum(call, x, [axis]))
    )


def _softmax_of(call: Call, x: Value, axis: int) -> Value:
    ours = x.view.axis(call.not_rows(x, axis))
    return Value(call.make(Op.SOFTMAX, x.node, arg=ours), x.view)


def _along_axis(call: Call, apply: AlongAxis) -> Value:
    x = call.value(0)
    rank = x.view.rank
    if call.opset >= _SOFTMAX_ALONG_ONE_AXIS:
        return apply(call, x, call.axis(call.attribute("axis", -1), rank))
    axis = call.axis(call.attribute("axis", 1), rank)
    return _flattened(call, x, axis, apply)


def _flattened(call: Call, x: Value, axis: int, apply: AlongAxis) -> Value:
    """Apply something to all axes from ``axis`` on, made one."""
    if axis == x.view.rank - 1:
        return apply(call, x, axis)
    if x.view.at is not None and x.view.at >= axis:
        raise call.refuse(f"works across {x.view.lead}, each of which is computed alone")
    flat = reshape(call, x, [*x.sizes[:axis], math.prod(x.local[axis:])])
    return reshape(call, apply(call, flat, axis), x.sizes)


def _layer_norm(call: Call) -> Result:
    x = call.value(0)
    axis = call.axis(call.attribute("axis", -1), x.view.rank)
    epsilon = float(call.attribute("epsilon", 1e-5))
    gain = call.array(1, "its scale").reshape(-1)
    offset = call.array(2, "its offset").reshape(-1) if call.has(2) else np.zeros_like(gain)

    def apply(call: Call, x: Value, axis: int) -> Value:
        call.not_rows(x, axis)
        width = x.local[axis]
        rows = [np.broadcast_to(each, (width,)) for each in (gain, offset)]
        constants = [call.lift(np.ascontiguousarray(each)).node for each in rows]
        return Value(call.make(Op.LAYER_NORM, x.node, *constants, arg=epsilon), x.view)

    return _flattened(call, x, axis, apply)


def _rms_norm(call: Call) -> Result:
    x = call.value(0)
    axis = call.axis(call.attribute("axis", -1), x.view.rank)
    axes = list(range(axis, x.view.rank))
    power = reduce(call, Op.MEAN, elementwise(call, Op.MUL, x, x), axes)
    scale = _inverse_root(call, power, float(call.attribute("epsilon", 1e-5)))
    return elementwise(call, Op.MUL, elementwise(call, Op.MUL, x, scale), call.operand(1))


def _inverse_root(call: Call, power: Value, epsilon: float) -> Value:
    root = elementwise(call, Op.SQRT, elementwise(call, Op.ADD, power, f32(epsilon)))
    return elementwise(call, Op.RECIPROCAL, root)


def _standardised(call: Call, x: Value, axes: Sequence[int], epsilon: float) -> Value:
    centred = elementwise(call, Op.SUB, x, reduce(call, Op.MEAN, x, axes))
    power = reduce(call, Op.MEAN, elementwise(call, Op.MUL, centred, centred), axes)
    return elementwise(call, Op.MUL, centred, _inverse_root(call, power, epsilon))


def _instance_norm(call: Call) -> Result:
    x = call.value(0)
    axes = list(range(2, x.view.rank))
    made = _standardised(call, x, axes, float(call.attribute("epsilon", 1e-5)))
    scaled = elementwise(call, Op.MUL, made, _channels(call, 1, x))
    return elementwise(call, Op.ADD, scaled, _channels(call, 2, x))


def _group_norm(call: Call) -> Result:
    x = call.value(0)
    groups, rank = int(call.attribute("num_groups")), x.view.rank
    if x.view.at != 0:
        raise call.refuse("does not have the rows in its first dimension")
    cut = reshape(call, x, [x.sizes[0], groups, x.local[1] // groups, *x.sizes[2:]])
    made = _standardised(call, cut, range(2, rank + 1), float(call.attribute("epsilon", 1e-5)))
    made = reshape(call, made, x.sizes)
    # Until opset 20 it had a scale and an offset for each group.
    gain, offset = (call.array(i, f"its input {i}") for i in (1, 2))
    if call.opset < 21:
        gain, offset = (np.repeat(each, x.local[1] // groups) for each in (gain, offset))
    scaled = elementwise(call, Op.MUL, made, _per_channel(call, gain, x))
    return elementwise(call, Op.ADD, scaled, _per_channel(call, offset, x))


def _batch_norm(call: Call) -> Result:
    if call.attribute("training_mode", 0):
        raise call.refuse("is in training mode, where it mixes rows")
    x = call.value(0)
    scale, offset, mean, variance = (
        call.array(i, f"its input {i}").astype(np.float64) for i in (1, 2, 3, 4)
    )
    gain = scale / np.sqrt(variance + float(call.attribute("epsilon", 1e-5)))
    made = elementwise(call, Op.MUL, x, _per_channel(call, gain, x))
    return elementwise(call, Op.ADD, made, _per_channel(call, offset - mean * gain, x))


def _channels(call: Call, i: int, x: Value) -> Array:
    return _per_channel(call, call.array(i, f"its input {i}"), x)


def _per_channel(call: Call, numbers: Array, x: Value) -> Array:
    """Lay one number for each channel along axis 1."""
    rank = x.view.rank
    if rank > 1:
        call.not_rows(x, 1)
    return numbers.astype(np.float32).reshape(-1, *([1] * max(rank - 2, 0)))


def _lp_norm(call: Call) -> Result:
    x = call.value(0)
    axes = [call.axis(call.attribute("axis", -1), x.view.rank)]
    if call.attribute("p", 2) == 1:
        size = reduce(call, Op.SUM, elementwise(call, Op.ABS, x), axes)
    else:
        power = reduce(call, Op.SUM, elementwise(call, Op.MUL, x, x), axes)
        size = elementwise(call, Op.SQRT, power)
    return elementwise(call, Op.DIV, x, size)


def _top_k(call: Call) -> Result:
    x = call.value(0)
    k = int(call.array(1, "k").item()) if call.opset >= 10 else int(call.attribute("k"))
    axis = call.not_rows(x, call.axis(call.attribute("axis", -1), x.view.rank))
    arg = TopK(x.view.axis(axis), k, bool(call.attribute("largest", 1)))
    return (Value(call.make(Op.TOP_K, x.node, arg=arg), x.view), None)


def _cum_sum(call: Call) -> Result:
    """Multiply with a triangle of ones."""
    x = call.value(0)
    axis = call.axis(int(call.array(1, "its axis").item()), x.view.rank)
    n = x.local[call.not_rows(x, axis)]
    triangle = np.triu(np.ones((n, n), np.float32), int(bool(call.attribute("exclusive", 0))))
    if call.attribute("reverse", 0):
        triangle = triangle[::-1, ::-1]
    order = [each for each in range(x.view.rank) if each != axis] + [axis]
    made = linear(call, transpose(call, x, order), np.ascontiguousarray(triangle))
    return transpose(call, made, [order.index(each) for each in range(x.view.rank)])


REDUCTIONS: Final[Table] = {
    "ReduceSum": _reduction(Op.SUM),
    "ReduceMean": _reduction(Op.MEAN),
    "ReduceMax": _reduction(Op.REDUCE_MAX),
    "ReduceMin": _reduction(Op.REDUCE_MIN),
    "ReduceProd": _reduction(Op.PROD),
    "ReduceL1": _reduction(Op.SUM, before=Op.ABS),
    "ReduceL2": _reduction(Op.SUM, before=Op.MUL, after=Op.SQRT),
    "ReduceSumSquare": _reduction(Op.SUM, before=Op.MUL),
    "ReduceLogSum": _reduction(Op.SUM, after=Op.LOG),
    "ReduceLogSumExp": _log_sum_exp,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "BatchNormalization": _batch_norm,
    "LpNormalization": _lp_norm,
    "TopK": _top_k,
    "CumSum": _cum_sum,
}

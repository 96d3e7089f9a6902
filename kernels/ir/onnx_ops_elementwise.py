"""Import of elementwise operators: most are one op of ours, some a few."""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import onnx

from kernels.graph.model import Array
from kernels.ir.node import DType, Op
from kernels.ir.onnx_axes import elementwise, reshape
from kernels.ir.onnx_call import Call, Handler, Result, Table
from kernels.ir.onnx_value import Value

_SELU: Final = (1.67326319217681884765625, 1.05070102214813232421875)  # of the ONNX standard
Operands = Value | Array


def f32(number: float) -> Array:
    """Return a constant scalar."""
    return np.asarray(number, np.float32)


def unary(op: Op) -> Handler:
    """Return the handler of an operator that is one op of one source."""

    def handler(call: Call) -> Result:
        return elementwise(call, op, call.operand(0))

    return handler


def _sloped(op: Op, default: float) -> Handler:
    def handler(call: Call) -> Result:
        alpha = float(call.attribute("alpha", default))
        return elementwise(call, op, call.operand(0), arg=alpha)

    return handler


def _binary(op: Op, *, swapped: bool = False) -> Handler:
    def handler(call: Call) -> Result:
        if call.attribute("broadcast", 0) and call.attribute("axis") is not None:
            raise call.refuse("broadcasts from an axis, as opset 6 did")
        left, right = call.operand(0), call.operand(1)
        return elementwise(call, op, *((right, left) if swapped else (left, right)))

    return handler


def _folded(op: Op) -> Handler:
    """Return the handler of an operator of any number of sources."""

    def handler(call: Call) -> Result:
        return functools.reduce(lambda a, b: elementwise(call, op, a, b), call.operands())

    return handler


def _mean(call: Call) -> Result:
    n = len(call.inputs)
    return elementwise(call, Op.MUL, call.lift(_sum(call)), f32(1 / n))


def _sum(call: Call) -> Value:
    parts = call.operands()
    return functools.reduce(
        lambda a, b: elementwise(call, Op.ADD, a, b), parts[1:], call.lift(parts[0])
    )


def _pow(call: Call) -> Result:
    x, power = call.operand(0), call.inputs[1]
    exponent = float(power.item()) if isinstance(power, np.ndarray) and power.size == 1 else None
    if isinstance(power, np.ndarray) and power.ndim > call.lift(x).view.rank:
        exponent = None
    match exponent:
        case 1.0:
            return x
        case 2.0:
            return elementwise(call, Op.MUL, x, x)
        case 3.0:
            return elementwise(call, Op.MUL, elementwise(call, Op.MUL, x, x), x)
        case 0.5:
            return elementwise(call, Op.SQRT, x)
        case -1.0:
            return elementwise(call, Op.RECIPROCAL, x)
        case -0.5:
            return elementwise(call, Op.RECIPROCAL, elementwise(call, Op.SQRT, x))
    if isinstance(power, np.ndarray) and power.dtype.kind in "iu":
        power = power.astype(np.float32)
    return elementwise(call, Op.POW, x, power if isinstance(power, np.ndarray) else call.operand(1))


def _mod(call: Call) -> Result:
    x, y = call.value(0), call.value(1)
    if x.node.dtype is DType.INT and not call.attribute("fmod", 0):
        return elementwise(call, Op.MOD, x, y)
    quotient = elementwise(call, Op.DIV, x, y)  # truncates, where both are integers
    if x.node.dtype is DType.FLOAT:
        size = elementwise(call, Op.FLOOR, elementwise(call, Op.ABS, quotient))
        quotient = elementwise(call, Op.MUL, elementwise(call, Op.SIGN, quotient), size)
    return elementwise(call, Op.SUB, x, elementwise(call, Op.MUL, quotient, y))


def _xor(call: Call) -> Result:
    left, right = call.operand(0), call.operand(1)
    either = elementwise(call, Op.OR, left, right)
    both = elementwise(call, Op.AND, left, right)
    return elementwise(call, Op.AND, either, elementwise(call, Op.NOT, both))


def _cast(call: Call) -> Result:
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.attribute("to")).kind
    if kind not in "fiub":
        raise call.refuse("casts to a type that is not a number")
    dtype = {"f": DType.FLOAT, "b": DType.BOOL}.get(kind, DType.INT)
    x = call.value(0)
    return x if x.node.dtype is dtype else elementwise(call, Op.CAST, x, dtype=dtype)


def clip(call: Call, x: Operands, low: float, high: float) -> Value:
    """Limit to a range; an infinite end limits nothing."""
    made = call.lift(x)
    if low > -np.finfo(np.float32).max:
        made = elementwise(call, Op.MAX, made, f32(low))
    return elementwise(call, Op.MIN, made, f32(high)) if high < np.finfo(np.float32).max else made


def _clip(call: Call) -> Result:
    x = call.value(0)
    if call.opset < 11:
        low, high = call.attribute("min", -math.inf), call.attribute("max", math.inf)
        return clip(call, x, float(low), float(high))
    for i, op in ((1, Op.MAX), (2, Op.MIN)):
        if call.has(i):
            x = elementwise(call, op, x, call.operand(i))
    return x


def _relu6_like(call: Call, x: Operands, slope: float, offset: float) -> Value:
    line = elementwise(call, Op.ADD, elementwise(call, Op.MUL, x, f32(slope)), f32(offset))
    return clip(call, line, 0.0, 1.0)


def _hard_sigmoid(call: Call) -> Result:
    slope, offset = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return _relu6_like(call, call.operand(0), float(slope), float(offset))


def _hard_swish(call: Call) -> Result:
    x = call.operand(0)
    return elementwise(call, Op.MUL, x, _relu6_like(call, x, 1 / 6, 0.5))


def _gelu(call: Call) -> Result:
    x = call.operand(0)
    if call.attribute("approximate", "none") == "tanh":
        cube = elementwise(call, Op.MUL, elementwise(call, Op.MUL, x, x), x)
        inner = elementwise(call, Op.ADD, x, elementwise(call, Op.MUL, cube, f32(0.044715)))
        inner = elementwise(call, Op.MUL, inner, f32(math.sqrt(2 / math.pi)))
        gate = elementwise(call, Op.TANH, inner)
    else:
        gate = elementwise(call, Op.ERF, elementwise(call, Op.MUL, x, f32(math.sqrt(0.5))))
    half = elementwise(call, Op.MUL, x, f32(0.5))
    return elementwise(call, Op.MUL, half, elementwise(call, Op.ADD, gate, f32(1.0)))


def _selu(call: Call) -> Result:
    alpha = float(call.attribute("alpha", _SELU[0]))
    gamma = float(call.attribute("gamma", _SELU[1]))
    made = elementwise(call, Op.ELU, call.operand(0), arg=alpha)
    return elementwise(call, Op.MUL, made, f32(gamma))


def _celu(call: Call) -> Result:
    alpha = float(call.attribute("alpha", 1.0))
    scaled = elementwise(call, Op.MUL, call.operand(0), f32(1 / alpha))
    return elementwise(call, Op.MUL, elementwise(call, Op.ELU, scaled, arg=1.0), f32(alpha))


def _mish(call: Call) -> Result:
    x = call.operand(0)
    gate = elementwise(call, Op.TANH, elementwise(call, Op.SOFTPLUS, x))
    return elementwise(call, Op.MUL, x, gate)


def _swish(call: Call) -> Result:
    x = call.operand(0)
    alpha = float(call.attribute("alpha", 1.0))
    scaled = x if alpha == 1.0 else elementwise(call, Op.MUL, x, f32(alpha))
    return elementwise(call, Op.MUL, x, elementwise(call, Op.SIGMOID, scaled))


def _softsign(call: Call) -> Result:
    x = call.operand(0)
    size = elementwise(call, Op.ADD, elementwise(call, Op.ABS, x), f32(1.0))
    return elementwise(call, Op.DIV, x, size)


def _thresholded_relu(call: Call) -> Result:
    x = call.operand(0)
    above = elementwise(call, Op.LT, f32(float(call.attribute("alpha", 1.0))), x)
    return elementwise(call, Op.WHERE, above, x, f32(0.0))


def _prelu(call: Call) -> Result:
    x, slope = call.value(0), call.operand(1)
    if isinstance(slope, np.ndarray) and slope.size == 1:
        return elementwise(call, Op.LEAKY_RELU, x, arg=float(slope.item()))
    made = call.lift(slope)
    # The slope broadcasts as usual; one for each channel is also taken to mean axis 1.
    fits = made.view.rank <= x.view.rank and all(
        a in (1, b) for a, b in zip(made.local[::-1], x.local[::-1], strict=False)
    )
    if not fits and made.view.at is None and made.view.rank == 1 and x.view.rank > 1:
        made = reshape(call, made, [*made.local, *([1] * (x.view.rank - 2))])
    below = elementwise(call, Op.MIN, x, f32(0.0))
    above = elementwise(call, Op.RELU, x)
    return elementwise(call, Op.ADD, above, elementwise(call, Op.MUL, made, below))


def _is_inf(call: Call) -> Result:
    if not (call.attribute("detect_positive", 1) and call.attribute("detect_negative", 1)):
        raise call.refuse("tells infinities by sign")
    return elementwise(call, Op.EQ, elementwise(call, Op.ABS, call.operand(0)), f32(math.inf))


def _dequantize(call: Call) -> Result:
    """``(x - zero) * scale``, scale and zero for all or one for each place of an axis."""
    x = call.value(0)
    scale = call.array(1, "its scale")
    zero = call.array(2, "its zero point") if call.has(2) else np.zeros_like(scale)
    if scale.ndim > 1:
        raise call.refuse("has a scale for each block")
    if scale.ndim == 1 and scale.size > 1:
        axis = call.axis(call.attribute("axis", 1), x.view.rank)
        behind = [1] * (x.view.rank - axis - 1)
        scale, zero = (each.reshape(-1, *behind) for each in (scale, zero))
    if x.node.dtype is not DType.FLOAT:
        x = elementwise(call, Op.CAST, x, dtype=DType.FLOAT)
    if np.any(zero):
        x = elementwise(call, Op.SUB, x, zero.astype(np.float32))
    return elementwise(call, Op.MUL, x, scale.astype(np.float32))


def _tan(call: Call) -> Result:
    x = call.operand(0)
    return elementwise(call, Op.DIV, elementwise(call, Op.SIN, x), elementwise(call, Op.COS, x))


def _where(call: Call) -> Result:
    return elementwise(call, Op.WHERE, call.operand(0), call.operand(1), call.operand(2))


ELEMENTWISE: Final[Table] = {
    **{
        name: unary(op)
        for name, op in {
            "Neg": Op.NEG,
            "Abs": Op.ABS,
            "Sign": Op.SIGN,
            "Floor": Op.FLOOR,
            "Ceil": Op.CEIL,
            "Round": Op.ROUND,
            "Sqrt": Op.SQRT,
            "Reciprocal": Op.RECIPROCAL,
            "Exp": Op.EXP,
            "Log": Op.LOG,
            "Sin": Op.SIN,
            "Cos": Op.COS,
            "Tanh": Op.TANH,
            "Sigmoid": Op.SIGMOID,
            "Relu": Op.RELU,
            "Erf": Op.ERF,
            "Softplus": Op.SOFTPLUS,
            "Not": Op.NOT,
            "IsNaN": Op.ISNAN,
        }.items()
    },
    "LeakyRelu": _sloped(Op.LEAKY_RELU, 0.01),
    "Elu": _sloped(Op.ELU, 1.0),
    "Add": _binary(Op.ADD),
    "Sub": _binary(Op.SUB),
    "Mul": _binary(Op.MUL),
    "Div": _binary(Op.DIV),
    "And": _binary(Op.AND),
    "Or": _binary(Op.OR),
    "Less": _binary(Op.LT),
    "LessOrEqual": _binary(Op.LE),
    "Greater": _binary(Op.LT, swapped=True),
    "GreaterOrEqual": _binary(Op.LE, swapped=True),
    "Sum": _folded(Op.ADD),
    "Max": _folded(Op.MAX),
    "Min": _folded(Op.MIN),
    "Mean": _mean,
    "Pow": _pow,
    "Mod": _mod,
    "Xor": _xor,
    "Equal": _binary(Op.EQ),
    "Cast": _cast,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Gelu": _gelu,
    "Selu": _selu,
    "Celu": _celu,
    "Mish": _mish,
    "Swish": _swish,
    "Softsign": _softsign,
    "ThresholdedRelu": _thresholded_relu,
    "PRelu": _prelu,
    "IsInf": _is_inf,
    "DequantizeLinear": _dequantize,
    "Tan": _tan,
    "Where": _where,
}

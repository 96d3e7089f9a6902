"""Primitives written out: softmax, layer norm, sigmoid and rectifiers become the ops that they are.

Each pattern is exact: what does not match it in every part is left as it is. Constants stand on
the right, powers are products and differences with constants are sums by now (``fold``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, const
from kernels.passes.affine import floats
from kernels.passes.rewrite import Rule, Uses, by_op
from kernels.passes.views import channels, is_scalar, is_value, scalar


def _either(node: Node) -> Iterator[tuple[Node, Node]]:
    """Yield the two sources of a commutative op in both orders."""
    left, right = node.sources
    yield left, right
    yield right, left


def _divided(node: Node) -> Iterator[tuple[Node, Node]]:
    """Yield dividend and divisor of a DIV, or of a MUL by a reciprocal."""
    if node.op is Op.DIV:
        yield node.sources[0], node.sources[1]
    elif node.op is Op.MUL:
        for one, other in _either(node):
            if other.op is Op.RECIPROCAL:
                yield one, other.sources[0]


def _softmax(node: Node, _: Uses) -> Node | None:
    """``exp(x - max x) / sum exp(x - max x)``."""
    for top, below in _divided(node):
        if top.op is not Op.EXP or below.op is not Op.SUM or below.sources[0] is not top:
            continue
        (shifted,), axes = top.sources, below.arg
        if shifted.op is not Op.SUB or not isinstance(axes, tuple) or len(axes) != 1:
            continue
        x, largest = shifted.sources
        if largest.op is Op.REDUCE_MAX and largest.sources[0] is x and largest.arg == axes:
            return make(Op.SOFTMAX, x, arg=axes[0], name=node.name)
    return None


def _softmax_of_nan(node: Node, _: Uses) -> Node | None:
    """``where(isnan(s), 0, s)`` of a SOFTMAX: what exporters put behind attention without a mask.

    A SOFTMAX of finite scores has no NaN.
    """
    condition, then, otherwise = node.sources
    guarded = condition.op is Op.ISNAN and condition.sources[0] is otherwise
    if guarded and otherwise.op is Op.SOFTMAX and is_value(then, 0.0):
        return otherwise
    return None


def _sigmoid(node: Node, _: Uses) -> Node | None:
    """``1 / (1 + exp(-x))``."""
    (below,) = node.sources
    if below.op is not Op.ADD or not is_value(below.sources[1], 1.0):
        return None
    power = below.sources[0]
    if power.op is not Op.EXP or power.shape != node.shape:
        return None
    negative = power.sources[0]
    if negative.op is Op.MUL and is_value(negative.sources[1], -1.0):
        x = negative.sources[0]
        return make(Op.SIGMOID, x, name=node.name) if x.shape == node.shape else None
    return None


def _rectifier(node: Node, _: Uses) -> Node | None:
    """``max(x, 0)`` and ``max(x, slope x)``."""
    if node.dtype is not DType.FLOAT:
        return None
    x, floor = node.sources
    if is_scalar(floor) and scalar(floor) == 0.0 and x.shape == node.shape:
        return make(Op.RELU, x, name=node.name)
    for value, scaled in _either(node):
        if scaled.op is not Op.MUL or scaled.sources[0] is not value:
            continue
        factor = scaled.sources[1]
        if is_scalar(factor) and 0.0 < scalar(factor) < 1.0 and value.shape == node.shape:
            return make(Op.LEAKY_RELU, value, arg=scalar(factor), name=node.name)
    return None


def _layer_norm(node: Node, _: Uses) -> Node | None:
    """``(x - mean x) / sqrt(mean((x - mean x)^2) + epsilon)``, gain and offset not yet in it."""
    last = len(node.shape) - 1
    for centred, deviation in _divided(node):
        if centred.op is not Op.SUB or deviation.op is not Op.SQRT or centred.shape != node.shape:
            continue
        x, mean = centred.sources
        variance, epsilon = _plus_constant(deviation.sources[0])
        square = variance.sources[0] if variance.op is Op.MEAN else None
        if square is None or square.op is not Op.MUL or epsilon is None:
            continue
        if square.sources != (centred, centred) or variance.arg != (last,):
            continue
        if mean.op is Op.MEAN and mean.sources[0] is x and mean.arg == (last,):
            ones, zeros = np.ones(node.dims[-1]), np.zeros(node.dims[-1])
            return make(Op.LAYER_NORM, x, const(ones), const(zeros), arg=epsilon, name=node.name)
    return None


def _plus_constant(node: Node) -> tuple[Node, float | None]:
    if node.op is Op.ADD and is_scalar(node.sources[1]):
        return node.sources[0], scalar(node.sources[1])
    return node, None


def _gain(node: Node, uses: Uses) -> Node | None:
    """MUL of a LAYER_NORM by a constant for each column."""
    source, factor = node.sources
    if source.op is not Op.LAYER_NORM or source.shape != node.shape or not uses.once(source):
        return None
    values = channels(factor, node.dims[-1])
    if values is None:
        return None
    x, gain, offset = source.sources
    leaves = const(floats(gain) * values), const(floats(offset) * values)
    return make(Op.LAYER_NORM, x, *leaves, arg=source.arg, name=source.name)


def _offset(node: Node, uses: Uses) -> Node | None:
    """ADD of a constant for each column to a LAYER_NORM."""
    source, term = node.sources
    if source.op is not Op.LAYER_NORM or source.shape != node.shape or not uses.once(source):
        return None
    values = channels(term, node.dims[-1])
    if values is None:
        return None
    x, gain, offset = source.sources
    moved = const(floats(offset) + values)
    return make(Op.LAYER_NORM, x, gain, moved, arg=source.arg, name=source.name)


PRIMITIVES: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.DIV: (_softmax, _layer_norm),
    Op.MUL: (_softmax, _layer_norm, _gain),
    Op.ADD: (_offset,),
    Op.RECIPROCAL: (_sigmoid,),
    Op.MAX: (_rectifier,),
    Op.WHERE: (_softmax_of_nan,),
}
primitives_rule: Final = by_op(PRIMITIVES)

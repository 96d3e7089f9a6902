"""Fold: what is known is computed, what does nothing is left out, what is there twice is one.

Normal forms: a constant stands on the right of ADD, MUL, MAX and MIN; a difference with a constant
is a sum, a quotient a product; NEG is a product; a small whole power is a product.
Constants are rounded to float32 when they are made, so results move by that rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final

import numpy as np

from kernels.ir import build
from kernels.ir.build import make
from kernels.ir.node import Constant, DType, Graph, Node, Op, const
from kernels.passes.affine import floats
from kernels.passes.movement import MOVEMENT
from kernels.passes.rewrite import Rule, Uses, by_op, with_output, with_sources
from kernels.passes.views import is_scalar, is_value, scalar

# An EXPAND of a constant is made up to so many elements; a larger one is weights from nothing.
_SMALL: Final = 1 << 16
# Constants of up to so many bytes are compared by content, larger ones by where they lie.
_COMPARED: Final = 1 << 16


def _constant(node: Node, _: Uses) -> Node | None:
    return build.fold(node) if node.width <= _SMALL or node.op is not Op.EXPAND else None


def _sorted(node: Node, _: Uses) -> Node | None:
    """A constant stands on the right."""
    left, right = node.sources
    if left.op is Op.CONST and right.op is not Op.CONST:
        return with_sources(node, (right, left))
    return None


def _neutral(node: Node, _: Uses) -> Node | None:
    """``x + 0``, ``x * 1``."""
    x, other = node.sources
    neutral = 1.0 if node.op is Op.MUL else 0.0
    return x if x.shape == node.shape and is_value(other, neutral) else None


def _associated(node: Node, uses: Uses) -> Node | None:
    """``(x + a) + b`` and ``(x * a) * b`` of constants."""
    inner, other = node.sources
    if inner.op is not node.op or other.op is not Op.CONST or not uses.once(inner):
        return None
    x, first = inner.sources
    if first.op is not Op.CONST or len(first.shape) != len(other.shape):
        return None
    if np.broadcast_shapes(first.array.shape, other.array.shape) not in (
        first.array.shape,
        other.array.shape,
    ):
        return None
    both = build.fold(make(node.op, first, other, name=other.name))
    return make(node.op, x, both, name=node.name)


def _difference(node: Node, _: Uses) -> Node | None:
    left, right = node.sources
    if right.op is Op.CONST and node.dtype is DType.FLOAT:
        return make(Op.ADD, left, const(-floats(right), right.name), name=node.name)
    if is_value(left, 0.0) and right.shape == node.shape:
        return _negated(right, node.name)
    return None


def _negated(node: Node, name: str) -> Node:
    minus = np.full((1,) * len(node.shape), -1.0 if node.dtype is DType.FLOAT else -1)
    return make(Op.MUL, node, const(minus, name), name=name)


def _negative(node: Node, _: Uses) -> Node | None:
    return _negated(node.sources[0], node.name)


def _quotient(node: Node, _: Uses) -> Node | None:
    left, right = node.sources
    if node.dtype is not DType.FLOAT:
        return None
    if right.op is Op.CONST and bool(np.all(np.abs(right.array) > np.float32(1e-30))):
        inverse = const(1.0 / floats(right), right.name)
        return make(Op.MUL, left, inverse, name=node.name)
    if is_value(left, 1.0) and right.shape == node.shape:
        return make(Op.RECIPROCAL, right, name=node.name)
    return None


def _power(node: Node, _: Uses) -> Node | None:
    x, exponent = node.sources
    if not is_scalar(exponent) or x.shape != node.shape or node.dtype is not DType.FLOAT:
        return None
    value = scalar(exponent)
    if value == 1.0:
        return x
    if value == 2.0:
        return make(Op.MUL, x, x, name=node.name)
    return None


def _where(node: Node, _: Uses) -> Node | None:
    condition, then, otherwise = node.sources
    for value, result in ((True, then), (False, otherwise)):
        if is_value(condition, value) and result.shape == node.shape:
            return result
    return then if then is otherwise and then.shape == node.shape else None


_RULES: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.ADD: (_sorted, _neutral, _associated),
    Op.MUL: (_sorted, _neutral, _associated),
    Op.MAX: (_sorted,),
    Op.MIN: (_sorted,),
    Op.SUB: (_difference,),
    Op.DIV: (_quotient,),
    Op.POW: (_power,),
    Op.NEG: (_negative,),
    Op.WHERE: (_where,),
}


FOLD: Final[Mapping[Op, tuple[Rule, ...]]] = {
    op: (_constant, *_RULES.get(op, ()), *MOVEMENT.get(op, ()))
    for op in Op
    if op not in (Op.INPUT, Op.CONST)
}
fold_rule: Final = by_op(FOLD)


def unique(graph: Graph) -> Graph:
    """Return the graph with equal nodes made one."""
    found: dict[Hashable, Node] = {}
    new: dict[Node, Node] = {}
    for node in graph.nodes():
        same = with_sources(node, [new[source] for source in node.sources])
        new[node] = found.setdefault(_key(same), same)
    return with_output(graph, new[graph.output])


def _key(node: Node) -> Hashable:
    arg: Hashable = node.arg
    if isinstance(node.arg, Constant):
        array = node.arg.array
        arg = array.tobytes() if array.nbytes <= _COMPARED else array.ctypes.data
    return node.op, node.sources, node.shape, node.dtype, arg

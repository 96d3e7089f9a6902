"""Linear: constants around a LINEAR go into its weight and bias, activations into its epilogue.

``act((x s + c) W + b)``, scaled and shifted again, is one LINEAR: batch normalisation before or
after it costs nothing. A sum of LINEARs is one LINEAR of more sources. Leading dimensions that a
reshape merges or splits are the result's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import attrs
import numpy as np

from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, Take
from kernels.passes.affine import (
    ACTIVATIONS,
    bias,
    blocks,
    inputs,
    is_plain,
    like,
    linear,
    spec,
    weight,
    wide,
)
from kernels.passes.rewrite import Rule, Uses, by_op
from kernels.passes.views import channels, interval, reshape, shaped

# Pairs are taken from the products of all fields if they are one in so many of these: half of them
# is what an interaction of all pairs needs, and a matrix instruction is ten times as fast.
_DENSE: Final = 4


def _scale_after(node: Node, uses: Uses) -> Node | None:
    """MUL of a LINEAR by a constant for each column."""
    source, factor = node.sources
    if not is_plain(source) or not uses.once(source) or source.shape != node.shape:
        return None
    scale = channels(factor, source.dims[-1])
    if scale is None:
        return None
    return linear(
        [(x, wide(w) * scale) for x, w in blocks(source)], bias(source) * scale, name=source.name
    )


def _activation(node: Node, uses: Uses) -> Node | None:
    source = node.sources[0]
    if source.op is not Op.LINEAR or spec(source).activation is not None or not uses.once(source):
        return None
    slope = float(node.arg) if isinstance(node.arg, int | float) else 0.0
    arg = attrs.evolve(spec(source), activation=node.op, slope=slope)
    return attrs.evolve(source, arg=arg)


def _constants_before(node: Node, _: Uses) -> Node | None:
    """MUL and ADD of a constant for each column of a source."""
    if spec(node).grouped:
        return None
    parts, offset, changed = blocks(node), wide(bias(node)), False
    for index, (x, w) in enumerate(parts):
        if x.op not in (Op.MUL, Op.ADD) or x.sources[0].shape != x.shape:
            continue
        values = channels(x.sources[1], x.dims[-1])
        if values is None:
            continue
        changed = True
        if x.op is Op.MUL:
            parts[index] = (x.sources[0], values[:, None] * w)
        else:
            parts[index] = (x.sources[0], w)
            offset = offset + values @ wide(w)
    return like(node, parts, offset) if changed else None


def _leading_dims(node: Node, _: Uses) -> Node | None:
    """A LINEAR has no leading dimensions behind the lead, or one: ``[lead, k]``, ``[lead, t, k]``.

    What is repeated over them keeps its own, until ``split_k`` has taken it out.
    """
    leading = node.dims[:-1]
    n = math.prod(leading)
    inner = () if n == 1 else (n,)
    if spec(node).grouped or leading == inner or any(x.op is Op.EXPAND for x in inputs(node)):
        return None
    sources = [reshape(x, (*inner, x.dims[-1])) for x in inputs(node)]
    shape = shaped(node, (*inner, node.dims[-1]))
    below = attrs.evolve(node, sources=(*sources, *node.sources[-2:]), shape=shape)
    return reshape(below, node.dims)


def _product(node: Node, uses: Uses) -> Node | None:
    """A LINEAR of a LINEAR without activation is one, where that takes fewer multiplications."""
    if spec(node).grouped or len(inputs(node)) != 1:
        return None
    (source,) = inputs(node)
    if not is_plain(source) or not uses.once(source):
        return None
    k, m = weight(source).shape
    n = weight(node).shape[-1]
    if k * n >= k * m + m * n:
        return None
    after = wide(weight(node))
    parts = [(x, wide(w) @ after) for x, w in blocks(source)]
    return like(node, parts, bias(source) @ after + bias(node))


def _sum_of_linears(node: Node, uses: Uses) -> Node | None:
    """The LINEARs among the terms of a sum become one, with what is constant, or sums columns."""
    if node.dtype is not DType.FLOAT:
        return None
    terms = _terms(node, uses)
    plain = [t for t in terms if is_plain(t) and t.shape == node.shape and uses.once(t)]
    sums = [t for t in terms if _is_column_sum(t) and t.shape == node.shape and uses.once(t)]
    shifts = [t for t in terms if channels(t, node.dims[-1]) is not None]
    if not plain or len(plain) + len(sums) + len(shifts) < 2:
        return None
    parts = [part for term in plain for part in blocks(term)]
    parts += [(t.sources[0], np.ones((t.sources[0].width, 1))) for t in sums]
    offsets = [wide(bias(term)) for term in plain]
    offsets += [wide(t.array.reshape(-1)) for t in shifts]
    offset = sum(offsets, np.zeros(node.dims[-1]))
    result = linear(parts, offset, name=plain[0].name)
    for term in terms:
        if all(term is not each for each in (*plain, *sums, *shifts)):
            result = make(Op.ADD, result, term, name=node.name)
    return result if result.shape == node.shape else None


def _is_column_sum(node: Node) -> bool:
    """Whether a node is the sum of columns of an input, which are stored as a LINEAR reads them."""
    if node.op is not Op.SUM or len(node.shape) != 2 or node.dtype is not DType.FLOAT:
        return False
    return interval(node.sources[0]).base.op in (Op.INPUT, Op.TO_ROWS)


def _terms(node: Node, uses: Uses) -> list[Node]:
    found: list[Node] = []
    for source in node.sources:
        inner = source.op is Op.ADD and uses.once(source) and source.shape == node.shape
        found.extend(_terms(source, uses) if inner else [source])
    return found


def _weighted_sum(node: Node, _: Uses) -> Node | None:
    """SUM over the last axis of constants times a value is a LINEAR of one column."""
    (source,), last = node.sources, len(node.shape) - 1
    if node.arg != (last,) or node.lead is None or source.op is not Op.MUL:
        return None
    x, factor = source.sources
    values = channels(factor, source.dims[-1])
    if values is None or x.shape != source.shape or x.dtype is not DType.FLOAT or last == 0:
        return None
    return linear([(x, values[:, None])], np.zeros(1), name=node.name)


def _weights_of_steps(node: Node, _: Uses) -> Node | None:
    """SUM over axis -2 of weights ``[.., k, 1]`` times values ``[.., k, n]`` is a MATMUL."""
    (source,), rank = node.sources, len(node.shape)
    if node.arg != (rank - 2,) or rank < 3 or source.op is not Op.MUL or node.lead is None:
        return None
    for weights, values in (source.sources, source.sources[::-1]):
        whole = values.shape == source.shape and values.dims[-1] > 1
        if whole and weights.shape == (*source.shape[:-1], 1) and weights.lead is not None:
            row = reshape(weights, (*weights.dims[:-2], 1, weights.dims[-2]))
            return make(Op.MATMUL, row, values, name=node.name)
    return None


def _pairwise_dots(node: Node, _: Uses) -> Node | None:
    """SUM of products of taken fields: the dots of pairs, taken from all dots, a MATMUL."""
    (source,) = node.sources
    if node.arg != (2,) or len(node.shape) != 3 or source.op is not Op.MUL:
        return None
    left, right = source.sources
    if left.op is not Op.TAKE or right.op is not Op.TAKE or left.shape != right.shape:
        return None
    one, two = left.arg, right.arg
    assert isinstance(one, Take)
    assert isinstance(two, Take)
    a, b = left.sources[0], right.sources[0]
    few = len(one.indices) * _DENSE < a.dims[0] * b.dims[0]
    if one.axis != 1 or two.axis != 1 or few or a.dims[1] < 2:
        return None
    n = b.dims[0]
    dots = make(Op.MATMUL, a, make(Op.TRANSPOSE, b, arg=(0, 2, 1)), name=node.name)
    pairs = tuple(i * n + j for i, j in zip(one.indices, two.indices, strict=True))
    flat = reshape(dots, (dots.width,))
    return reshape(make(Op.TAKE, flat, arg=Take(1, pairs), name=node.name), node.dims)


def _outer_product(node: Node, _: Uses) -> Node | None:
    """MATMUL over one element is a MUL."""
    left, right = node.sources
    if left.shape[-1] != 1 or node.dtype is not DType.FLOAT:
        return None
    return make(Op.MUL, left, right, name=node.name)


LINEAR: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.MUL: (_scale_after,),
    Op.ADD: (_sum_of_linears,),
    Op.SUM: (_weighted_sum, _pairwise_dots, _weights_of_steps),
    Op.MATMUL: (_outer_product,),
    Op.LINEAR: (_constants_before, _leading_dims, _product),
    **dict.fromkeys(ACTIVATIONS, (_activation,)),
}
linear_rule: Final = by_op(LINEAR)

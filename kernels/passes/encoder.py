"""A transformer block, found among its parts: ENCODER.

Heads are known by where they come from, not by how they were cut: a query, key or value of all
heads is columns of a LINEAR of x, seen as ``[t, heads, d / heads]`` and transposed. Scalar factors
on the way, wherever an exporter put them, are the scale. Whatever does not fit the op's definition
in every part is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import numpy as np

from kernels.ir.build import make
from kernels.ir.node import Encoder, Node, Op, Slice, const
from kernels.passes.affine import Array, bias, inputs, is_plain, spec, weight, wide
from kernels.passes.rewrite import Uses
from kernels.passes.views import is_scalar, scalar

# How query, key and value of one head, and of several, are transposed before they are multiplied.
_ORDERS: Final[Mapping[int, tuple[tuple[int, ...], ...]]] = {
    3: ((0, 1, 2), (0, 2, 1), (0, 1, 2)),
    4: ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)),
}


@attrs.frozen(eq=False)
class _Projection:
    """Columns of a LINEAR of x, times a scale; ``order`` is how its heads were transposed."""

    x: Node
    weight: Array
    bias: Array
    scale: float
    order: tuple[int, ...]


def encoder(node: Node, uses: Uses) -> Node | None:
    """Return the op for the second LAYER_NORM of a block."""
    if node.op is not Op.LAYER_NORM or len(node.shape) != 3:
        return None
    halves = _residual(node)
    if halves is None:
        return None
    y, second = halves
    if not _is_layer(second, uses) or not is_plain(second):
        return None
    (first,) = inputs(second)
    if not _is_layer(first, uses) or inputs(first) != (y,):
        return None
    activation = spec(first).activation
    halves = _residual(y) if y.op is Op.LAYER_NORM else None
    if halves is None or activation is None:
        return None
    x, out = halves
    if not _is_layer(out, uses) or not is_plain(out):
        return None
    attention = _attention(inputs(out)[0], x)
    if attention is None:
        return None
    heads, scale, w_qkv, b_qkv = attention
    parameters = [w_qkv, b_qkv, weight(out), bias(out), *_gains(y)]
    parameters += [weight(first), bias(first), weight(second), bias(second), *_gains(node)]
    if weight(out).shape != (x.dims[-1], x.dims[-1]):
        return None
    arg = Encoder(heads, scale, activation, spec(first).slope, _epsilon(y), _epsilon(node))
    leaves = (const(each, node.name) for each in parameters)
    return make(Op.ENCODER, x, *leaves, arg=arg, name=node.name)


def _residual(norm: Node) -> tuple[Node, Node] | None:
    """Return x and the LINEAR that is added to it under a LAYER_NORM."""
    total = norm.sources[0]
    if total.op is Op.ADD:
        for x, added in (total.sources, total.sources[::-1]):
            if added.op is Op.LINEAR and x.shape == added.shape == norm.shape:
                return x, added
    return None


def _is_layer(node: Node, uses: Uses) -> bool:
    if node.op is not Op.LINEAR or spec(node).grouped or len(inputs(node)) != 1:
        return False
    return uses.once(node)


def _gains(norm: Node) -> tuple[Array, Array]:
    return norm.sources[1].array, norm.sources[2].array


def _epsilon(norm: Node) -> float:
    assert isinstance(norm.arg, int | float)
    return float(norm.arg)


def _attention(joined: Node, x: Node) -> tuple[int, float, Array, Array] | None:
    """Return heads, scale, ``W_qkv`` and ``b_qkv`` of attention of x to itself."""
    t, d = x.dims
    mixed = joined
    if joined.op is Op.RESHAPE and joined.sources[0].op is Op.TRANSPOSE:
        swapped = joined.sources[0]
        mixed = swapped.sources[0]
        if swapped.arg != (0, 2, 1, 3) or swapped.dims != (t, mixed.dims[0], mixed.dims[-1]):
            return None
    if mixed.op is not Op.MATMUL or len(mixed.shape) not in _ORDERS:
        return None
    heads = mixed.dims[0] if len(mixed.shape) == 4 else 1
    probabilities, value = mixed.sources
    if probabilities.op is not Op.SOFTMAX or probabilities.arg != len(mixed.shape) - 1:
        return None
    scale, scores = _unscaled(probabilities.sources[0])
    if scores.op is not Op.MATMUL:
        return None
    parts = [_projection(part, heads, d) for part in (*scores.sources, value)]
    orders = _ORDERS[len(mixed.shape)]
    found = [part for part in parts if part is not None and part.x is x]
    if len(found) < 3 or any(part.order != to for part, to in zip(found, orders, strict=True)):
        return None
    query, key, values = found
    w_qkv = np.concatenate([query.weight, key.weight, values.weight * values.scale], axis=1)
    b_qkv = np.concatenate([query.bias, key.bias, values.bias * values.scale])
    return heads, scale * query.scale * key.scale, w_qkv, b_qkv


def _unscaled(node: Node) -> tuple[float, Node]:
    """Return the scalar factors of a value, and the value without them."""
    scale = 1.0
    while node.op is Op.MUL and is_scalar(node.sources[1]):
        scale *= scalar(node.sources[1])
        node = node.sources[0]
    return scale, node


def _projection(node: Node, heads: int, d: int) -> _Projection | None:
    """Follow a query, key or value up to the LINEAR that made it."""
    scale, node = _unscaled(node)
    order = tuple(range(len(node.shape)))
    if node.op is Op.TRANSPOSE:
        assert isinstance(node.arg, tuple)
        order, node = node.arg, node.sources[0]
    factor, node = _unscaled(node)
    if node.op is Op.RESHAPE and len(node.shape) == 4:
        if node.dims[1:] != (heads, d // heads):
            return None
        node = node.sources[0]
    more, node = _unscaled(node)
    start, stop = 0, node.dims[-1]
    if node.op is Op.SLICE:
        part = node.arg
        assert isinstance(part, Slice)
        if part.axis != 2 or part.step != 1 or len(node.shape) != 3:
            return None
        start, stop, node = part.start, part.stop, node.sources[0]
    if not is_plain(node) or len(inputs(node)) != 1 or stop - start != d:
        return None
    columns = wide(weight(node)[:, start:stop])
    return _Projection(
        inputs(node)[0], columns, wide(bias(node)[start:stop]), scale * factor * more, order
    )

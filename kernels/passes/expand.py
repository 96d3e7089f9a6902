"""The way back: TARGET_ATTENTION, ENCODER and LAYER_NORM written out in smaller ops.

It proves what these ops mean, and serves a planner that has no kernel for one where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from kernels.ir import build
from kernels.ir.build import add, make, mul, reshape, slice_, transpose
from kernels.ir.node import Encoder, Graph, Linear, Node, Op, TargetAttention, const
from kernels.passes.affine import activated, linear
from kernels.passes.rewrite import Rule, Uses, by_op, rewrite


def expand(graph: Graph) -> Graph:
    """Return the graph without TARGET_ATTENTION, ENCODER and LAYER_NORM."""
    return rewrite(rewrite(graph, by_op(_COMPOSITES)), by_op(_NORMS))


def expand_norms(graph: Graph) -> Graph:
    """Return the graph without LAYER_NORM."""
    return rewrite(graph, by_op(_NORMS))


def _layer_norm(node: Node, _: Uses) -> Node:
    x, gain, offset = node.sources
    last, epsilon = len(node.shape) - 1, node.arg
    assert isinstance(epsilon, int | float)
    ones = (1,) * last
    centred = build.sub(x, make(Op.MEAN, x, arg=(last,), name=node.name))
    variance = make(Op.MEAN, mul(centred, centred), arg=(last,), name=node.name)
    deviation = make(Op.SQRT, add(variance, build.scalar(epsilon, x)), name=node.name)
    scaled = mul(build.div(centred, deviation), const(gain.array.reshape(*ones, -1)))
    return add(scaled, const(offset.array.reshape(*ones, -1)))


def _target_attention(node: Node, _: Uses) -> Node:
    arg = node.arg
    assert isinstance(arg, TargetAttention)
    query, keys, mask, w_q, w_k, w_p, b_1, *rest = node.sources
    t, d = keys.dims
    row = reshape(query, 1, d)
    name = node.name
    z = linear([(keys, w_k.array), (mul(row, keys), w_p.array)], b_1.array, name=name)
    part = linear([(row, w_q.array)], np.zeros(b_1.width), name=name)
    z = activated(add(z, part), Linear(1, arg.activation, arg.slope))
    for w, b in zip(rest[:-2:2], rest[1:-2:2], strict=True):
        z = linear([(z, w.array)], b.array, activation=arg.activation, slope=arg.slope, name=name)
    w, b = rest[-2:]
    scores = reshape(linear([(z, w.array)], b.array, name=name), t)
    a = make(Op.WHERE, mask, scores, build.scalar(arg.masked, scores), name=name)
    if arg.softmax:
        a = make(Op.SOFTMAX, a, arg=1, name=name)
    return reshape(make(Op.MATMUL, reshape(a, 1, t), keys, name=name), d)


def _encoder(node: Node, _: Uses) -> Node:
    arg = node.arg
    assert isinstance(arg, Encoder)
    x, w_qkv, b_qkv, w_o, b_o, gain_1, offset_1, w_1, b_1, w_2, b_2, gain_2, offset_2 = node.sources
    t, d = x.dims
    heads, name = arg.n_heads, node.name
    scale = np.repeat([arg.scale, 1.0, 1.0], d)  # of the queries, so of the scores
    qkv = linear([(x, w_qkv.array * scale)], b_qkv.array * scale, name=name)
    query, key, value = (
        transpose(reshape(slice_(qkv, 2, i * d, (i + 1) * d), t, heads, d // heads), 0, 2, 1, 3)
        for i in range(3)
    )
    scores = make(Op.MATMUL, query, transpose(key, 0, 1, 3, 2), name=name)
    weights = make(Op.SOFTMAX, scores, arg=3, name=name)
    a = reshape(transpose(make(Op.MATMUL, weights, value, name=name), 0, 2, 1, 3), t, d)
    out = linear([(a, w_o.array)], b_o.array, name=name)
    y = make(Op.LAYER_NORM, add(x, out), gain_1, offset_1, arg=arg.epsilon_1, name=name)
    inner = linear(
        [(y, w_1.array)], b_1.array, activation=arg.activation, slope=arg.slope, name=name
    )
    total = add(y, linear([(inner, w_2.array)], b_2.array, name=name))
    return make(Op.LAYER_NORM, total, gain_2, offset_2, arg=arg.epsilon_2, name=name)


_COMPOSITES: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.TARGET_ATTENTION: (_target_attention,),
    Op.ENCODER: (_encoder,),
}
_NORMS: Final[Mapping[Op, tuple[Rule, ...]]] = {Op.LAYER_NORM: (_layer_norm,)}

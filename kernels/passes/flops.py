"""Work of a node: multiplications and additions, counted as two and one, for one row or request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from kernels.ir.node import Encoder, Graph, Lead, Node, Op, TargetAttention
from kernels.ir.rules import ELEMENTWISE, REDUCTIONS
from kernels.passes.affine import weight

# Additions, exponentials and divisions of one element; an estimate, small beside products.
_SOFTMAX: Final = 4
_LAYER_NORM: Final = 6


def flops(node: Node) -> int:
    """Return the operations of a node for one element of its lead; none for movement."""
    if node.op is Op.LINEAR:
        k, n = weight(node).shape[-2:]
        return 2 * int(k) * int(n) * math.prod(node.dims[:-1])
    if node.op is Op.MATMUL:
        return 2 * node.width * node.sources[0].dims[-1]
    if node.op is Op.TARGET_ATTENTION:
        return _target_attention(node)
    if node.op is Op.ENCODER:
        return _encoder(node)
    if node.op in REDUCTIONS:
        return node.sources[0].width
    if node.op is Op.SOFTMAX:
        return _SOFTMAX * node.width
    if node.op is Op.LAYER_NORM:
        return _LAYER_NORM * node.width
    return node.width if node.op in ELEMENTWISE and node.lead is not None else 0


def _target_attention(node: Node) -> int:
    """The first layer's query part once, all others for each step."""
    assert isinstance(node.arg, TargetAttention)
    t, d = node.sources[1].dims
    w_query, w_keys, w_product = (source.width for source in node.sources[3:6])
    layers = sum(source.width for source in node.sources[7::2])
    return 2 * w_query + 2 * t * (w_keys + w_product + layers) + t * (_SOFTMAX + 3 * d)


def _encoder(node: Node) -> int:
    assert isinstance(node.arg, Encoder)
    t, d = node.dims
    matrices = sum(source.width for source in node.sources[1:] if len(source.shape) == 2)
    attention = 4 * t * t * d + _SOFTMAX * t * t * node.arg.n_heads
    return 2 * t * matrices + attention + 2 * t * d * (1 + _LAYER_NORM)


def total(graph: Graph, sizes: Mapping[Lead, int]) -> int:
    """Return the operations of a graph for so many rows and requests."""
    return sum(flops(node) * sizes[node.lead] for node in graph.nodes() if node.lead is not None)

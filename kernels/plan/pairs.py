"""Finds dot products of all pairs of a row's vectors: what DLRM calls interaction."""

from __future__ import annotations

import attrs

from kernels.ir.node import Node, Op, Take

# What the device code takes: two m-tiles of vectors, and 16 bytes at least a lane.
_MOST_VECTORS = 32
_DIM_STEP = 32
_MOST_DIM = 128


@attrs.frozen(eq=False)
class PairDots:
    """Some of the products ``x x^T`` of a row's ``n`` vectors.

    Attributes:
        pieces: Values ``[lead, n_i, dim]`` or ``[lead, n_i dim]`` that hold the vectors, in order.
        pairs: ``(i, j)`` with ``j <= i`` of each result.
    """

    pieces: tuple[Node, ...]
    n: int
    dim: int
    pairs: tuple[tuple[int, int], ...]


def match_pair_dots(node: Node) -> PairDots | None:
    """Recognise ``node`` as elements taken from ``flatten(x @ transpose(x))``."""
    if node.op is not Op.TAKE or len(node.dims) != 1:
        return None
    assert isinstance(node.arg, Take)
    product = node.sources[0]
    while product.op is Op.RESHAPE:
        product = product.sources[0]
    if product.op is not Op.MATMUL or len(product.dims) != 2 or product.dims[0] != product.dims[1]:
        return None
    x, other = product.sources
    if other.op is not Op.TRANSPOSE or other.sources[0] is not x or other.arg != (0, 2, 1):
        return None
    n, dim = x.dims
    if n > _MOST_VECTORS or dim % _DIM_STEP or dim > _MOST_DIM:
        return None
    pairs = []
    for index in node.arg.indices:
        i, j = divmod(index, n)
        pairs.append((max(i, j), min(i, j)))
    if len(set(pairs)) != len(pairs):
        return None
    return PairDots(_pieces(x), n, dim, tuple(pairs))


def _pieces(x: Node) -> tuple[Node, ...]:
    if x.op is Op.CONCAT and x.arg == 1:
        return tuple(piece for source in x.sources for piece in _pieces(source))
    return (x,)

"""Finds dot products of all pairs of a row's vectors: what DLRM calls interaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from kernels.ir.node import DType, Node, Op, Take
from kernels.plan.index import Term
from kernels.plan.matrix import located
from kernels.plan.steps import Step, Value
from kernels.plan.tile_linear import half_view

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder

# What the device code takes: two m-tiles of vectors, and 16 bytes at least a lane.
_MOST_VECTORS = 32
_DIM_STEP = 32
_MOST_DIM = 128

# Blocks of a cluster that share the rows; more would send each other many small pieces.
_PAIR = 2


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


def pair_dots(b: TileBuilder, node: Node) -> None:
    """Make the step of a node that ``match_pair_dots`` recognised."""
    pairs, in_halves = b.pairs[node], b.precision.has_halves
    fetches, lines = [], []
    first, of_matrix, of_value = 0, "load_eight<Cfg::T, ", "chunk_of<Cfg::R>("
    if not in_halves:
        of_matrix, of_value = "load_four<", "words_of<Cfg::R>("
    for piece in pairs.pieces:
        count = piece.dims[0] if len(piece.dims) == 2 else piece.width // pairs.dim
        found = located(piece, b.matrices)
        held: Value | None = None
        if found is not None and found.first % 8 == 0 and found.matrix.row_bytes % 16 == 0:
            matrix, column = found.matrix, found.first
            row = "request(r)" if found.requests else "r"
            b.fetch(matrix, row)
            row = b.row_of(matrix, row)
            fetch = (
                f"{of_matrix}{matrix.element}>({b.parameter(matrix)} + "
                f"((u64){row} * {matrix.ld} + {column} + (v - {first}) * {pairs.dim} + "
                f"part * {pairs.dim // 4} + CHUNK) * {matrix.element_bytes})"
            )
        else:
            held, column = half_view(b, piece)
            fetches.append(held)
            fetch = (
                f"{of_value}{held.name}, r, {column} + (v - {first}) * {pairs.dim} + "
                f"part * {pairs.dim // 4} + CHUNK)"
            )
        puts = [f"return {fetch.replace('CHUNK', 'i * 4')};"]
        if in_halves:
            puts = [
                f"put_words(f + {4 * i}, {fetch.replace('CHUNK', str(8 * i))});"
                for i in range(pairs.dim // 32)
            ]
        lines.append(f"if (v < {first + count}) {{ {' '.join(puts)} }}")
        first += count
    function = f"[&](int r, int v, int part, u32* f) {{ {' else '.join(lines)} }}"
    if not in_halves:
        lines.append("return U32x4{0, 0, 0, 0};")
        function = f"[&](int r, int v, int part, int i) -> U32x4 {{ {' '.join(lines)} }}"
    value = b.value(node.width, halves=node in b.wants_halves)
    (b.halves if value.halves else b.floats)[node] = value
    table = np.full(pairs.n * pairs.n, -1, np.int32)
    for place, (i, j) in enumerate(pairs.pairs):
        table[i * pairs.n + j] = place
    direct = pairs.pairs == tuple((i, j) for i in range(pairs.n) for j in range(i))
    where = "i * (i - 1) / 2 + j"
    if not direct:
        where = b.table(table.tolist(), DType.INT, Term(f"(i * {pairs.n} + j)"))
    store = (
        f"store_shared_u16(half_address<Cfg::R>({value.name}, r, c), (u16)Cfg::T::pack2(dot, 0.f));"
        if value.halves
        else f"store_shared_f32(float_address<Cfg::R>({value.name}, r, c), dot);"
    )

    split = in_halves and b.shape.cluster == _PAIR

    def text() -> str:
        last = ""
        if value.halves and value.columns > value.width:
            last = f"zero_columns<Cfg, {value.width}, {value.columns}>(tile, {value.name}); "
        if split:
            last += f"exchange_rows<Cfg, {value.chunks}>(tile, {value.name});"
        flags = (any(i == j for i, j in pairs.pairs), *([split] if in_halves else []))
        which = ", ".join("true" if flag else "false" for flag in flags)
        name = "pair_dots" if in_halves else "pair_dots_floats"
        return (
            f"{name}<Cfg, {pairs.n}, {pairs.dim}, {which}>(tile, {function}, "
            f"[&](int r, int i, int j, float dot) {{ const int c = {where}; "
            f"if ({'true' if direct else 'c >= 0'}) {store} }}); {last}"
        )

    flops = 2 * pairs.n * pairs.n * pairs.dim
    title = f"pair dots {pairs.n} x {pairs.dim}"
    b.add(Step(title, text, tuple(fetches), (value,), shared=split, flops=flops))

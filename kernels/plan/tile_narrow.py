"""Linears of few outputs in a tile: dot products of lanes, or sums made where factors are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kernels.ir.node import Linear, Node
from kernels.plan import tile_folded, tile_linear
from kernels.plan.expression import Expression
from kernels.plan.index import Index, Term, unflat
from kernels.plan.steps import Step, Value

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder


def narrow_linear(b: TileBuilder, linear: Node, root: Node) -> None:
    """Make the steps of a Linear of few outputs whose epilogue computes ``root``."""
    assert isinstance(linear.arg, Linear)
    sources = linear.sources[: linear.arg.n_inputs]
    weight = linear.sources[-2].array.astype(np.float32)
    k, n = weight.shape
    edges = np.cumsum([0, *(source.width for source in sources)])
    weights = [weight[a:z] for a, z in itertools.pairwise(edges)]
    folded = [tile_folded.foldable(b, source, n) for source in sources]
    # The columns of each source start at a multiple of 16 bytes.
    starts = [0]
    for source, made in zip(sources, folded, strict=True):
        starts.append(starts[-1] + (0 if made else -(-source.width // 4) * 4))
    columns = starts[-1]
    padded = np.zeros((n, columns), np.float32)
    for start, rows, made in zip(starts, weights, folded, strict=False):
        if made is None:
            padded[:, start : start + len(rows)] = rows.T
    offset = b.constants.add(padded)
    if offset is None:
        tile_linear.contraction(b, linear, root)
        return
    sums = list[Value]()
    parts, reads = [], list[Value]()
    for source, start, rows, made in zip(sources, starts, weights, folded, strict=False):
        if made is not None:
            sums.append(tile_folded.fold(b, made, source, rows))
            continue
        b.place(source)
        one = b.function(source, "int k", unflat(Term("k"), source.dims))
        reads += b.touched
        eight = "[](int, float*) {}"
        if source.width >= 8:
            eight = b.function_of_eight("int k", _element_of(source), "k")
            reads += b.touched
        parts.append(
            f"narrow_part<Cfg, {n}, {source.width}, {columns}>"
            f"(constants + {offset + 4 * start}, part, sum, {eight}, {one});"
        )
    if sums and parts:
        # Apart, as they need not wait for the Linears.
        sums.append(_narrow_step(b, n, columns, parts, reads))
        parts, reads = [], []
    parts += [f"folded_part<Cfg, {n}, {sum_.width}>({sum_.name}, r, part, sum);" for sum_ in sums]
    at = unflat(Term("n"), linear.dims)
    result = tile_linear.result_store(b, linear, root, at, Term("n"))
    reads += [*sums, *b.touched]
    b.floats[root] = _narrow_step(b, n, 0 if sums else k, parts, reads, result)


def _narrow_step(
    b: TileBuilder,
    n: int,
    k: int,
    parts: Sequence[str],
    reads: Sequence[Value],
    result: tuple[Value, str] | None = None,
) -> Value:
    """Make a step of dot products of lanes; without a ``result`` its sums are stored alone."""
    if result is None:
        value = b.value(n, halves=False)
        store = f"store_shared_f32(float_address<Cfg::R>({value.name}, r, n), v);"
    else:
        value, store = result
    text = (
        f"narrow_linear<Cfg, {n}>(tile, [&](int r, int part, float* sum) {{ {' '.join(parts)} }}, "
        f"[&](int r, int n, float v) {{ {store} }});"
    )
    title = f"narrow linear {k} -> {n}" if k else f"sum of parts -> {n}"
    b.add(Step(title, lambda: text, tuple(reads), (value,), flops=2 * k * n))
    return value


def _element_of(node: Node) -> Callable[[Expression, Index], str]:
    return lambda scope, place: scope.element(node, unflat(place, node.dims))

"""A Linear of few outputs over a Linear's result: summed where the result is made, never stored.

The last layers of most towers. Each warp, or warpgroup, multiplies its columns of the result by the
few outputs' weights; what is stored, and gathered in a cluster, are these parts of the sums, which
the Linear of few outputs adds to its others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kernels.ir.node import Linear, Node, Op
from kernels.plan import tile_linear
from kernels.plan.expression import ELEMENTWISE
from kernels.plan.pack import F32
from kernels.plan.steps import Step, Value

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder


def foldable(b: TileBuilder, source: Node, n_out: int) -> Node | None:
    """Return the Linear that makes ``source``, if ``n_out`` sums can be made with it."""
    if b.lies_in_memory(source) or source in b.floats or source in b.halves:
        return None
    made = source if source.op is Op.LINEAR else None
    if source.op in ELEMENTWISE:
        made = b.fusable(source)
    if made is None or len(b.readers.get(source, [])) != 1 or source in b.wants_halves:
        return None
    assert isinstance(made.arg, Linear)
    n = made.width
    if not b.takes_fragments(made) or made.arg.grouped or tile_linear.pass_columns(b, n) < n:
        return None
    held = b.shape.columns(n) * n_out * 4
    return made if b.constants.shared_size + held <= b.constants.shared_limit else None


def fold(b: TileBuilder, made: Node, source: Node, weight: F32) -> Value:
    """Make the step that sums ``source``, which the Linear ``made`` leads to.

    Args:
        b: The tile's.
        made: A Linear that ``foldable`` found.
        source: What its epilogue makes.
        weight: float32 ``[source's width, n_out]``.

    Returns:
        Floats ``[part][n_out]``, a few parts for each block of the cluster: their sums are wanted.
    """
    shape = b.shape
    tile_linear.place_epilogue(b, made, source)
    views = [tile_linear.input_view(b, each) for each in made.sources[:-2]]
    stream, bias = tile_linear.weights_of(b, made, views)
    tile_linear.reserve_inputs(b, stream)
    ranks = range(shape.cluster)
    bias_at = b.constants.add_ranked(tuple(shape.share(bias, rank) for rank in ranks))
    factors = np.ascontiguousarray(weight.T)
    factors_at = b.constants.add_ranked(tuple(shape.share(factors, rank) for rank in ranks))
    epilogue, touched = tile_linear.epilogue_of_pairs(b, made, source, 0)
    n_out = weight.shape[1]
    unit = math.lcm(4, n_out)  # whole chunks are sent
    parts = -(-(shape.groups or shape.warps) * n_out // unit) * unit
    value = b.value(parts * shape.cluster, halves=False)

    def text() -> str:
        folded = (
            f"{shape.linear}<Cfg, {stream.n}>::fold<{n_out}, {parts}>(tile, sums, {value.name}, "
            f"constants + {bias_at}, constants + {factors_at}, {epilogue});"
        )
        return "{ " + " ".join([*tile_linear.products(b, stream), folded]) + " }"

    reads = (*(held for held, _ in stream.inputs), *touched)
    flops = 2 * stream.n * (stream.k + n_out)
    title = f"linear {stream.k} -> {stream.n}, then -> {n_out}"
    b.add(Step(title, text, reads, (value,), stream=stream, flops=flops))
    return value

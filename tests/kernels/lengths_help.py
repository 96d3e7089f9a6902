"""Small graphs with sequences, written as models write them, and ragged batches for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.build import (
    add,
    cast,
    concat,
    div,
    linear,
    make,
    mul,
    reshape,
    scalar,
    slice_,
    sub,
    sum_,
    to_rows,
    transpose,
)
from kernels.ir.node import DType, Graph, Lead, Node, Op, const, input_node
from kernels.lengths.columns import Shortened
from tests.kernels.emitted_help import Sample

STEPS, D, QUERY = 20, 8, 16
_RANDOM: Final = np.random.default_rng(5)


def array(*shape: int) -> NDArray[np.float32]:
    drawn: NDArray[np.float64] = _RANDOM.standard_normal(shape) / np.sqrt(shape[0])
    return drawn.astype(np.float32)


def dense(x: Node, n: int, activation: Op | None = None) -> Node:
    return linear(x, array(x.dims[-1], n), array(n), activation)


@attrs.frozen
class Parts:
    """What a block of a graph is made of: keys ``[., t, d]``, mask ``[., t]``, query ``[., q]``."""

    keys: Node
    mask: Node
    query: Node

    @property
    def steps(self) -> int:
        return self.keys.dims[0]

    @property
    def kept(self) -> Node:
        """The mask as bools."""
        return cast(self.mask, DType.BOOL)

    @property
    def scores(self) -> Node:
        """Of an additive attention, ``[., t]``."""
        query = reshape(dense(self.query, 8), 1, 8)
        hidden = make(Op.TANH, add(dense(self.keys, 8), query))
        return reshape(dense(hidden, 1), self.steps)

    def pooled(self, weights: Node, keys: Node | None = None) -> Node:
        keys = self.keys if keys is None else keys
        made = make(Op.MATMUL, reshape(weights, 1, self.steps), keys)
        return reshape(made, keys.dims[1])


def softmax_of_where(x: Parts) -> Node:
    scores = make(Op.WHERE, x.kept, x.scores, scalar(-1e9, x.scores))
    return x.pooled(make(Op.SOFTMAX, scores, arg=1))


def softmax_of_sum(x: Parts) -> Node:
    gone = sub(scalar(1.0, x.mask), x.mask)
    scores = add(x.scores, mul(gone, scalar(-1e4, gone)))
    return x.pooled(make(Op.SOFTMAX, scores, arg=1))


def weights_as_they_are(x: Parts) -> Node:
    kept = make(Op.LT, scalar(0.5, x.mask), x.mask)
    return x.pooled(make(Op.WHERE, kept, x.scores, scalar(0.0, x.scores)))


def masked_mean(x: Parts) -> Node:
    wide = reshape(x.mask, x.steps, 1)
    total = reshape(sum_(mul(x.keys, wide), 1), D)
    count = make(Op.MAX, sum_(x.mask, 1), scalar(1.0, total))
    return div(total, count)


def mean_of_masked(x: Parts) -> Node:
    kept = mul(x.keys, reshape(x.mask, x.steps, 1))
    return reshape(make(Op.MEAN, kept, arg=(1,)), D)


def maximum(x: Parts) -> Node:
    kept = make(Op.WHERE, reshape(x.kept, x.steps, 1), x.keys, scalar(-1e30, x.keys))
    return reshape(make(Op.REDUCE_MAX, kept, arg=(1,)), D)


def flattened(x: Parts) -> Node:
    """Each step has weights of its own, and steps that are masked out are 0."""
    kept = mul(make(Op.TANH, x.keys), reshape(x.mask, x.steps, 1))
    return dense(reshape(kept, x.steps * D), 8, Op.RELU)


def with_positions(x: Parts) -> Node:
    placed = add(x.keys, const(array(1, x.steps, D)))
    return softmax_of_where(attrs.evolve(x, keys=placed))


def transformer(x: Parts) -> Node:
    """Two heads attend to the steps that count; these are averaged."""

    def heads(value: Node) -> Node:
        return transpose(reshape(value, x.steps, 2, D // 2), 0, 2, 1, 3)

    query, key, value = (heads(dense(x.keys, D)) for _ in range(3))
    scores = make(Op.MATMUL, query, transpose(key, 0, 1, 3, 2))
    seen = reshape(x.kept, 1, 1, x.steps)
    scores = make(Op.WHERE, seen, scores, scalar(-1e9, scores))
    mixed = make(Op.MATMUL, make(Op.SOFTMAX, scores, arg=3), value)
    joined = reshape(transpose(mixed, 0, 2, 1, 3), x.steps, D)
    gain, offset = const(1 + array(D)), const(array(D))
    y = make(Op.LAYER_NORM, add(x.keys, joined), gain, offset, arg=1e-3)
    y = add(y, dense(dense(y, 12, Op.RELU), D))
    return masked_mean(attrs.evolve(x, keys=y))


SHORT: Final[Mapping[str, Callable[[Parts], Node]]] = {
    each.__name__: each
    for each in (
        softmax_of_where,
        softmax_of_sum,
        weights_as_they_are,
        masked_mean,
        mean_of_masked,
        maximum,
        flattened,
        with_positions,
        transformer,
    )
}


def unmasked(x: Parts) -> Node:
    return add(x.pooled(make(Op.SOFTMAX, x.scores, arg=1)), masked_mean(x))


def last_step(x: Parts) -> Node:
    return add(reshape(slice_(x.keys, 1, x.steps - 1, x.steps), D), masked_mean(x))


def maximum_of_zeros(x: Parts) -> Node:
    kept = mul(x.keys, reshape(x.mask, x.steps, 1))
    return reshape(make(Op.REDUCE_MAX, kept, arg=(1,)), D)


def flattened_unmasked(x: Parts) -> Node:
    return add(dense(reshape(x.keys, x.steps * D), D), masked_mean(x))


def weak_mask(x: Parts) -> Node:
    scores = make(Op.WHERE, x.kept, x.scores, scalar(-8.0, x.scores))
    return x.pooled(make(Op.SOFTMAX, scores, arg=1))


def causal(x: Parts) -> Node:
    """Of a first step that is masked out, no step is seen: a softmax over nothing."""
    before = const(np.tril(np.ones((1, x.steps, x.steps), np.bool_)))
    seen = make(Op.AND, reshape(x.kept, 1, x.steps), before)
    scores = make(Op.MATMUL, x.keys, transpose(x.keys, 0, 2, 1))
    scores = make(Op.WHERE, seen, scores, scalar(-1e9, scores))
    mixed = make(Op.MATMUL, make(Op.SOFTMAX, scores, arg=2), x.keys)
    return masked_mean(attrs.evolve(x, keys=mixed))


WHOLE: Final[Mapping[str, Callable[[Parts], Node]]] = {
    each.__name__: each
    for each in (unmasked, last_step, maximum_of_zeros, flattened_unmasked, weak_mask, causal)
}


def graph_of(
    *blocks: Callable[[Parts], Node],
    user: bool = False,
    steps: tuple[int, ...] = (STEPS,),
    padding: bool = False,
) -> Graph:
    """Return a graph with a block for each of some sequences.

    Args:
        blocks: In turn; the last one of the last sequences.
        user: Whether the sequences are of the user.
        steps: Of each sequence: its keys come first, then the masks of all.
        padding: Whether masks are 1 where there is no step.
    """
    width = sum(each * D for each in steps) + sum(steps)
    lead = Lead.REQUESTS if user else Lead.ROWS
    side = input_node("user" if user else "candidate", lead, width + (0 if user else QUERY))
    inputs = {str(side.arg): side}
    if user:
        rows = inputs["candidate"] = input_node("candidate", Lead.ROWS, QUERY)
        query = rows
    else:
        query = slice_(side, 1, width, width + QUERY)
    found, at, mask_at = [query], 0, sum(each * D for each in steps)
    for index, n in enumerate(steps):
        keys = reshape(slice_(side, 1, at, at + n * D), n, D)
        mask = slice_(side, 1, mask_at, mask_at + n)
        if padding:
            mask = sub(scalar(1.0, mask), mask)
        at, mask_at = at + n * D, mask_at + n
        parts = Parts(to_rows(keys), to_rows(mask), query)
        found.append(blocks[min(index, len(blocks) - 1)](parts))
    x = dense(concat(*found), 12, Op.RELU)
    return Graph("sequences", inputs, dense(x, 2))


def ragged(
    graph: Graph,
    shortened: Shortened,
    lengths: Mapping[str, Any],
    seed: int,
    *,
    alike: bool = False,
) -> Sample:
    """Draw a batch whose rows, or requests, have sequences of so many steps.

    Args:
        graph: The graph.
        shortened: Its marks.
        lengths: By side, int ``[n]``; a sequence that has fewer steps has all of them.
        seed: For all else; past a sequence's length are numbers like any other.
        alike: Whether all steps of a sequence without any are alike, as padding is.
    """
    random = np.random.default_rng(seed)
    inputs = {}
    for name, node in graph.inputs.items():
        n = len(lengths[name])
        block = random.normal(0, 1, (n, node.width)).astype(np.float16).astype(np.float32)
        empty = np.flatnonzero(np.asarray(lengths[name]) == (0 if alike else -1))
        for part in shortened.of(name):
            for row in empty:
                block[row, part.start : part.stop] = np.tile(
                    block[row, part.start : part.start + part.each], part.most
                )
        for mark in shortened.marks:
            part = mark.stretch
            if part.input == name:
                alive = np.arange(part.most) < np.asarray(lengths[name])[:, None]
                alive = alive[:, ::-1] if part.last else alive
                block[:, part.start : part.stop] = np.where(alive, 1 - mark.dead, mark.dead)
        inputs[name] = block
    n_requests = len(lengths.get("user", [0]))
    of_row = np.sort(random.integers(0, n_requests, len(lengths["candidate"])))
    return Sample(inputs, of_row.astype(np.int32))


def cut(sample: Sample, shortened: Shortened, length: int) -> Sample:
    """Return a batch as a bucket of a length takes it."""
    inputs = {}
    for name, block in sample.inputs.items():
        kept = shortened.kept(name, block.shape[1], length)
        inputs[name] = np.concatenate([block[:, start:stop] for start, stop in kept], 1)
        assert inputs[name].shape[1] == shortened.width(name, block.shape[1], length)
    return attrs.evolve(sample, inputs=inputs)


def length_of(sample: Sample, shortened: Shortened) -> int:
    """Return the least length of a bucket that holds a batch."""
    found = [1]
    for name, block in sample.inputs.items():

        def are_alike(most: int, rows: Any, name: str = name, block: Any = block) -> Any:  # noqa: ANN401
            return shortened.are_alike(name, block[rows], most)

        lengths = shortened.lengths(name, block, are_alike=are_alike)
        found += [] if lengths is None else lengths.tolist()
    return max(found)

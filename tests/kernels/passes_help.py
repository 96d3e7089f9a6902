"""The dense graphs of six published models, written as a torch export has them, at small sizes.

Weights are multiples of 1/16, so that folding them is exact in float32 and passes can be held to
the oracle in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.ir import build
from kernels.ir.build import add, concat, make, mul, reshape, slice_, transpose
from kernels.ir.check import check
from kernels.ir.node import Graph, Lead, Node, Op, const, input_node, topological
from kernels.ir.reference import evaluate

Array = NDArray[Any]
_RNG = np.random.default_rng(7)


def weights(*shape: int) -> Array:
    """Return random multiples of 1/16 around zero, float32."""
    return (_RNG.integers(-6, 7, shape) / 16).astype(np.float32)


def dense(x: Node, n: int, activation: Op | None = None) -> Node:
    """A Linear as exporters write it: a product, a sum, an activation, each a node."""
    product = build.linear(x, weights(x.dims[-1], n))
    shape = (1,) * (len(x.shape) - 1)
    total = add(product, const(weights(n).reshape(*shape, n)))
    return total if activation is None else make(activation, total)


def mlp(x: Node, sizes: Sequence[int], *, last: bool = True) -> Node:
    """Layers with RELU; the last without, where so said."""
    for i, n in enumerate(sizes):
        x = dense(x, n, Op.RELU if last or i < len(sizes) - 1 else None)
    return x


def columns(*widths: int, user: Sequence[int] = ()) -> tuple[dict[str, Node], list[Node]]:
    """Return the inputs of a graph and their parts, all of the rows.

    Args:
        widths: Of the parts.
        user: Columns of each part that are the user's, at its front; none where left out.
    """
    n_user = [*user, *(0 for _ in widths[len(user) :])]
    inputs = {"candidate": input_node("candidate", Lead.ROWS, sum(widths) - sum(n_user))}
    if sum(n_user):
        inputs["user"] = input_node("user", Lead.REQUESTS, sum(n_user))
        repeated = make(Op.TO_ROWS, inputs["user"])
    parts, at, user_at = [], 0, 0
    for width, n in zip(widths, n_user, strict=True):
        pieces = []
        if n:
            pieces.append(slice_(repeated, 1, user_at, user_at + n))
        if n < width:
            pieces.append(slice_(inputs["candidate"], 1, at, at + width - n))
        user_at, at = user_at + n, at + width - n
        parts.append(concat(*pieces, axis=1) if len(pieces) > 1 else pieces[0])
    return inputs, parts


def dlrm_dcnv2(user: Sequence[int] = ()) -> Graph:
    inputs, (numbers, emb) = columns(13, 6 * 8, user=user)
    x0 = concat(mlp(numbers, [16, 8]), reshape(reshape(emb, 6, 8), 48))
    x = x0
    for _ in range(3):
        low = build.linear(x, weights(56, 8))
        x = add(mul(x0, dense(low, 56)), x)
    return Graph("dlrm_dcnv2", inputs, make(Op.SIGMOID, mlp(x, [32, 16, 1], last=False)))


def dlrm(user: Sequence[int] = ()) -> Graph:
    inputs, (numbers, emb) = columns(13, 6 * 8, user=user)
    b = mlp(numbers, [16, 8])
    t = concat(reshape(b, 1, 8), reshape(emb, 6, 8), axis=1)
    dots = reshape(make(Op.MATMUL, t, transpose(t, 0, 2, 1)), 49)
    pairs = tuple(int(i) * 7 + int(j) for i, j in zip(*np.tril_indices(7, -1), strict=True))
    z = concat(b, build.take(dots, 1, pairs))
    return Graph("dlrm", inputs, make(Op.SIGMOID, mlp(z, [32, 16, 1], last=False)))


def deepfm(user: Sequence[int] = ()) -> Graph:
    inputs, (numbers, emb, first) = columns(13, 6 * 8, 6, user=user)
    fields = reshape(emb, 6, 8)
    s = build.sum_(fields, 1)
    squares = build.sum_(mul(fields, fields), 1)
    fm = build.sum_(reshape(build.sub(mul(s, s), squares), 8), 1)
    fm = mul(fm, const(np.full((1, 1), 0.5)))
    deep = mlp(concat(reshape(fields, 48), numbers), [32, 16, 1], last=False)
    total = add(add(add(deep, fm), build.sum_(first, 1)), dense(numbers, 1))
    return Graph("deepfm", inputs, make(Op.SIGMOID, total))


def din(user: Sequence[int] = (), *, difference_first: bool = True, softmax: bool = True) -> Graph:
    t, d = 10, 8
    inputs, (query, keys, mask, other) = columns(d, t * d, t, 12, user=user)
    h = reshape(keys, t, d)
    q = build.expand(reshape(query, 1, d), t, d)
    difference = build.sub(q, h) if difference_first else build.sub(h, q)
    a = mlp(concat(q, h, difference, mul(q, h)), [16, 8, 1], last=False)
    valid = make(Op.LT, const(np.full((1, 1), 0.5)), mask)
    score = -1e30 if softmax else 0.0
    a = make(Op.WHERE, valid, reshape(a, t), const(np.full((1, t), score)))
    w = make(Op.SOFTMAX, a, arg=1) if softmax else a
    s = reshape(make(Op.MATMUL, reshape(w, 1, t), h), d)
    top = mlp(concat(query, s, other), [32, 16, 1], last=False)
    return Graph("din", inputs, make(Op.SIGMOID, top))


def mmoe(user: Sequence[int] = (), n_experts: int = 4, n_tasks: int = 3) -> Graph:
    inputs, (x,) = columns(40, user=user)
    experts = [reshape(mlp(x, [32, 16]), 1, 16) for _ in range(n_experts)]
    e = concat(*experts, axis=1)
    out = []
    for _ in range(n_tasks):
        w = make(Op.SOFTMAX, dense(x, n_experts), arg=1)
        mixed = build.sum_(mul(reshape(w, n_experts, 1), e), 1)
        out.append(make(Op.SIGMOID, mlp(reshape(mixed, 16), [12, 8, 1], last=False)))
    return Graph("mmoe", inputs, concat(*out))


def attention(x: Node, heads: int) -> Node:
    """Self-attention as ``scaled_dot_product_attention`` is exported: the scale on both sides."""
    t, d = x.dims
    scale = const(np.full((1,) * 4, 0.5))
    qkv = transpose(reshape(dense(x, 3 * d), t, 3, heads, d // heads), 0, 2, 3, 1, 4)
    parts = [reshape(slice_(qkv, 1, i, i + 1), heads, t, d // heads) for i in range(3)]
    scores = make(Op.MATMUL, mul(parts[0], scale), mul(transpose(parts[1], 0, 1, 3, 2), scale))
    a = make(Op.MATMUL, make(Op.SOFTMAX, scores, arg=3), parts[2])
    return dense(reshape(transpose(a, 0, 2, 1, 3), t, d), d)


def bst(user: Sequence[int] = ()) -> Graph:
    t, d, heads = 6, 16, 4
    inputs, (seq, other) = columns(t * d, 12, user=user)
    x = reshape(seq, t, d)

    def norm(value: Node) -> Node:
        leaves = const(1 + weights(d)), const(weights(d))
        return make(Op.LAYER_NORM, value, *leaves, arg=1e-5)

    y = norm(add(x, attention(x, heads)))
    inner = make(Op.LEAKY_RELU, dense(y, 32), arg=0.0078125)
    y = norm(add(y, dense(inner, d)))
    top = mlp(concat(reshape(y, t * d), other), [32, 16, 1], last=False)
    return Graph("bst", inputs, make(Op.SIGMOID, top))


# Columns of each part that are the user's: a DIN's and a BST's sequence, half of the fields.
USER: dict[str, tuple[int, ...]] = {
    "dlrm_dcnv2": (6, 24),
    "dlrm": (0, 24),
    "deepfm": (6, 24, 3),
    "din": (0, 80, 10, 6),
    "mmoe": (20,),
    "bst": (96, 0),
}
MODELS: dict[str, Callable[..., Graph]] = {
    made.__name__: made for made in (dlrm_dcnv2, dlrm, deepfm, din, mmoe, bst)
}


def batch(graph: Graph, rows: int = 9, seed: int = 0) -> tuple[dict[str, Array], Array]:
    """Return random inputs and the request of each row: three requests, the last of one row."""
    rng = np.random.default_rng(seed)
    request_of_row = np.minimum(np.arange(rows) // (rows // 2), 2)
    request_of_row[-1] = 2
    n_requests = int(request_of_row.max()) + 1
    sizes = {Lead.ROWS: rows, Lead.REQUESTS: n_requests}
    inputs = {
        name: rng.normal(0, 0.5, (sizes[node.lead], node.width))
        for name, node in graph.inputs.items()
        if node.lead is not None
    }
    return inputs, request_of_row


def scores(graph: Graph, seed: int = 0) -> Array:
    """Evaluate a graph on a random batch, in float64."""
    inputs, request_of_row = batch(graph, seed=seed)
    return evaluate(graph, inputs, request_of_row)


def assert_same(graph: Graph, other: Graph, tolerance: float = 1e-9, name: str = "") -> None:
    """Check both, and that they mean the same on a batch, relative to the largest score."""
    check(other)
    for seed in range(2):
        want, got = scores(graph, seed), scores(other, seed)
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=name)


def ops(graph: Graph) -> Counter[Op]:
    """Count the nodes of each op."""
    return Counter(node.op for node in graph.nodes())


def linears(graph: Graph) -> Iterator[Node]:
    """Yield the LINEARs."""
    return (node for node in graph.nodes() if node.op is Op.LINEAR)


def graph_of(x: Node) -> Graph:
    """Make a graph of a value of rows, its row flat, that reads whatever inputs it reads."""
    found = {str(node.arg): node for node in topological([x]) if node.op is Op.INPUT}
    return Graph("small", found, reshape(build.to_rows(x), x.width))

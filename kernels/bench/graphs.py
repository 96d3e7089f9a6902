"""The six models as the compiler's graphs, written out in small ops; no exporter is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bench.models import Inputs, Model, Parameters
from kernels.ir.build import (
    add,
    concat,
    expand,
    linear,
    make,
    mul,
    reshape,
    scalar,
    slice_,
    sub,
    sum_,
    take,
    transpose,
)
from kernels.ir.node import Graph, Lead, Node, Op, const, input_node
from kernels.ir.reference import evaluate

_MASKED: Final = -1e30
_SLOPE: Final = 0.01  # torch's leaky_relu
_EPSILON: Final = 1e-5  # torch's LayerNorm


def graph_of(model: Model, parameters: Parameters) -> Graph:
    """Return a model as a dense graph from the block ``candidate`` to ``scores``."""
    block = input_node("candidate", Lead.ROWS, model.width)
    inputs = {}
    for name, columns in model.columns.items():
        part = slice_(block, 1, columns.start, columns.stop)
        shape = model.inputs[name]
        inputs[name] = part if len(shape) == 1 else reshape(part, *shape)
    output = _BUILDERS[model.name](_Layers(parameters), inputs)
    return Graph(model.name, {"candidate": block}, output)


@attrs.frozen
class _Layers:
    """Layers by the names of their parameters."""

    parameters: Parameters

    def linear(self, name: str, x: Node) -> Node:
        """Apply a Linear."""
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        return linear(x, weight.T, bias, name=name)

    def mlp(self, name: str, x: Node, *, last: bool = True) -> Node:
        """Apply a Sequential of Linears and ReLUs, with a ReLU at the end or not."""
        n_layers = sum(key.startswith(f"{name}.") for key in self.parameters) // 2
        for index in range(n_layers):
            x = self.linear(f"{name}.{2 * index}", x)
            if last or index < n_layers - 1:
                x = make(Op.RELU, x)
        return x

    def norm(self, name: str, x: Node) -> Node:
        """Apply a LayerNorm."""
        gain, offset = (const(self.parameters[f"{name}.{part}"]) for part in ("weight", "bias"))
        return make(Op.LAYER_NORM, x, gain, offset, arg=_EPSILON, name=name)


def _flat(x: Node) -> Node:
    return reshape(x, x.width)


def _scaled(x: Node, factor: float) -> Node:
    return mul(x, scalar(factor, x))


def _probability(x: Node) -> Node:
    return make(Op.SIGMOID, x)


def _dlrm_dcnv2(layers: _Layers, x: Mapping[str, Node]) -> Node:
    start = concat(layers.mlp("bot", x["dense"]), _flat(x["emb"]))
    crossed = start
    for index in range(3):
        low = layers.linear(f"v.{index}", crossed)
        crossed = add(mul(start, layers.linear(f"w.{index}", low)), crossed)
    return _probability(layers.mlp("top", crossed, last=False))


def _dlrm(layers: _Layers, x: Mapping[str, Node]) -> Node:
    bottom = layers.mlp("bot", x["dense"])
    vectors = concat(reshape(bottom, 1, 64), x["emb"], axis=1)
    products = make(Op.MATMUL, vectors, transpose(vectors, 0, 2, 1))
    i, j = np.tril_indices(27, -1)
    pairs = take(_flat(products), 1, tuple((i * 27 + j).tolist()))
    return _probability(layers.mlp("top", concat(bottom, pairs), last=False))


def _deepfm(layers: _Layers, x: Mapping[str, Node]) -> Node:
    emb = x["emb"]
    total = reshape(sum_(emb, 1), 16)
    squares = reshape(sum_(mul(emb, emb), 1), 16)
    pairs = _scaled(sum_(sub(mul(total, total), squares), 1), 0.5)
    deep = layers.mlp("deep", concat(_flat(emb), x["dense"]), last=False)
    first = add(sum_(x["first"], 1), layers.linear("lin", x["dense"]))
    return _probability(add(add(deep, pairs), first))


def _din(layers: _Layers, x: Mapping[str, Node]) -> Node:
    hist = x["hist"]
    query = expand(reshape(x["query"], 1, 64), 100, 64)
    features = concat(query, hist, sub(query, hist), mul(query, hist))
    scores = reshape(layers.mlp("att", features, last=False), 100)
    kept = make(Op.LT, scalar(0.5, x["mask"]), x["mask"])
    scores = make(Op.WHERE, kept, scores, scalar(_MASKED, scores))
    weights = reshape(make(Op.SOFTMAX, scores, arg=1), 1, 100)
    pooled = reshape(make(Op.MATMUL, weights, hist), 64)
    top = concat(x["query"], pooled, x["other"])
    return _probability(layers.mlp("top", top, last=False))


def _mmoe(layers: _Layers, x: Mapping[str, Node]) -> Node:
    each = [reshape(layers.mlp(f"experts.{i}", x["x"]), 1, 256) for i in range(8)]
    experts = concat(*each, axis=1)
    tasks = []
    for task in range(4):
        gate = make(Op.SOFTMAX, layers.linear(f"gates.{task}", x["x"]), arg=1)
        mixed = reshape(sum_(mul(reshape(gate, 8, 1), experts), 1), 256)
        tasks.append(_probability(layers.mlp(f"towers.{task}", mixed, last=False)))
    return concat(*tasks)


def _bst(layers: _Layers, x: Mapping[str, Node]) -> Node:
    seq = x["seq"]
    heads = reshape(layers.linear("qkv", seq), 64, 3, 4, 16)
    parts = [reshape(slice_(heads, 2, i, i + 1), 64, 4, 16) for i in range(3)]
    query, key, value = (transpose(part, 0, 2, 1, 3) for part in parts)
    scores = _scaled(make(Op.MATMUL, query, transpose(key, 0, 1, 3, 2)), 1 / math.sqrt(16))
    joined = make(Op.MATMUL, make(Op.SOFTMAX, scores, arg=3), value)
    attended = reshape(transpose(joined, 0, 2, 1, 3), 64, 64)
    first = layers.norm("n1", add(seq, layers.linear("o", attended)))
    wide = make(Op.LEAKY_RELU, layers.linear("f1", first), arg=_SLOPE)
    second = layers.norm("n2", add(first, layers.linear("f2", wide)))
    return _probability(layers.mlp("top", concat(_flat(second), x["other"]), last=False))


_BUILDERS: Final[Mapping[str, Callable[[_Layers, Mapping[str, Node]], Node]]] = {
    "DLRMDCNv2": _dlrm_dcnv2,
    "DLRM": _dlrm,
    "DeepFM": _deepfm,
    "DIN": _din,
    "MMoE": _mmoe,
    "BST": _bst,
}


def expected_scores(model: Model, parameters: Parameters, inputs: Inputs) -> NDArray[np.float64]:
    """Return a batch's scores in float64, by the oracle."""
    return evaluate(graph_of(model, parameters), {"candidate": model.block(inputs)})

"""Rewrites: other ways to write a lookup become Gathers over axis 0.

One-hot times a table, GatherND, Gather along another axis, lookups of the unique ids only, and
EmbeddingBags that exporters wrote as loops (``bags.py``). Each rule returns the nodes that replace
a node, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx

from kernels.graph.bags import rewrite_bags
from kernels.graph.facts import Dims, Facts, Kind
from kernels.graph.model import Array, Graph, attribute

Producers = Mapping[str, onnx.NodeProto]
Replacement = list[onnx.NodeProto] | None
Rule = Callable[[onnx.NodeProto, Graph, Facts, Producers], Replacement]


def apply(graph: Graph, facts: Facts, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Apply all rules to all nodes once, in place; say whether any applied."""
    producers = graph.producers()
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.nodes:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        replacement = None if rule is None else rule(node, graph, facts, producers)
        changed |= replacement is not None
        nodes += [node] if replacement is None else replacement
    graph.nodes = nodes
    return changed or rewrite_bags(graph, facts, shapes)


def _node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, [output], **attributes)


def constant(graph: Graph, name: str, value: Array) -> str:
    """Add a constant under a name that is free, and return that name."""
    while name in graph.constants:
        name += "_"
    graph.constants[name] = value
    return name


def _cast_like(node: onnx.NodeProto, graph: Graph, facts: Facts, _: Producers) -> Replacement:
    like = facts.dtypes.get(node.input[1])
    if like is None:
        return None
    to = onnx.helper.np_dtype_to_tensor_dtype(like)
    return [_node("Cast", [node.input[0]], node.output[0], to=to)]


def _sequence_at(
    node: onnx.NodeProto, graph: Graph, facts: Facts, producers: Producers
) -> Replacement:
    """Read one part of a SplitToSequence as a Slice or Gather."""
    split = producers.get(node.input[0])
    place = graph.constants.get(node.input[1])
    if split is None or split.op_type != "SplitToSequence" or place is None:
        return None
    axis, source = attribute(split, "axis", 0), split.input[0]
    dims = facts.dims.get(source)
    if dims is None or dims[axis].per_row:
        return None
    size, index, name = dims[axis].fixed, int(place.item()), node.output[0]
    sizes = [1] * size
    if len(split.input) > 1 and split.input[1]:
        lengths = graph.constants.get(split.input[1])
        if lengths is None:
            return None
        if lengths.ndim == 0:
            step = int(lengths.item())
            sizes = [min(step, size - start) for start in range(0, size, step)]
        else:
            sizes = [int(each) for each in lengths]
    elif not attribute(split, "keepdims", 1):
        at = constant(graph, name + "/index", np.asarray(index % size, np.int64))
        return [_node("Gather", [source, at], name, axis=axis)]
    start = sum(sizes[: index % len(sizes)])
    bounds = [start, start + sizes[index], axis]
    inputs = [
        constant(graph, f"{name}/{i}", np.asarray([each], np.int64))
        for i, each in enumerate(bounds)
    ]
    return [_node("Slice", [source, *inputs], name)]


def _one_hot_product(
    node: onnx.NodeProto, graph: Graph, facts: Facts, producers: Producers
) -> Replacement:
    """``one_hot(ids) @ table``, with a bias or without: rows of the table, as ids are in range."""
    table = graph.constants.get(node.input[1])
    hot = producers.get(node.input[0])
    while hot is not None and hot.op_type == "Cast":
        hot = producers.get(hot.input[0])
    if table is None or table.ndim != 2 or hot is None or hot.op_type != "OneHot":
        return None
    scaled = any(attribute(node, each, 1.0) != 1.0 for each in ("alpha", "beta"))
    if scaled or attribute(node, "transA", 0) or facts.kinds[hot.input[0]] != Kind.FEATURES:
        return None
    rows = np.ascontiguousarray(table.T) if attribute(node, "transB", 0) else table
    depth, values = graph.constants.get(hot.input[1]), graph.constants.get(hot.input[2])
    dims = facts.dims.get(hot.input[0])
    if depth is None or values is None or dims is None or depth.item() != len(rows):
        return None
    if values.tolist() != [0, 1] or attribute(hot, "axis", -1) not in (-1, len(dims)):
        return None
    name, to = node.output[0], onnx.TensorProto.INT64
    named = node.input[1] if rows is table else constant(graph, node.input[1] + "/rows", rows)
    cast = _node("Cast", [hot.input[0]], name + "/ids", to=to)
    if len(node.input) < 3 or not node.input[2]:
        return [cast, _node("Gather", [named, name + "/ids"], name)]
    return [
        cast,
        _node("Gather", [named, name + "/ids"], name + "/taken"),
        _node("Add", [name + "/taken", node.input[2]], name),
    ]


def _gather(node: onnx.NodeProto, graph: Graph, facts: Facts, producers: Producers) -> Replacement:
    if (unique := _gather_of_unique(node, facts, producers)) is not None:
        return unique
    axis, table = attribute(node, "axis", 0), graph.constants.get(node.input[0])
    if table is None or table.dtype.kind != "f" or facts.kinds[node.input[1]] != Kind.FEATURES:
        return None
    axis += table.ndim if axis < 0 else 0
    ids = facts.dims.get(node.input[1])
    if ids is None:
        return None
    if axis == 0:
        return _gather_rows_first(node, table, ids)
    rows = constant(
        graph, node.input[0] + f"/axis{axis}", np.ascontiguousarray(np.moveaxis(table, axis, 0))
    )
    taken = node.output[0] + "/rows"
    n = len(ids)
    perm = [*range(n, n + axis), *range(n), *range(n + axis, n + table.ndim - 1)]
    return [
        _node("Gather", [rows, node.input[1]], taken),
        _node("Transpose", [taken], node.output[0], perm=perm),
    ]


def _gather_rows_first(node: onnx.NodeProto, table: Array, ids: Dims) -> Replacement:
    """Move the batch to the front where ids have it elsewhere, as recurrences want them."""
    batch = [axis for axis, dim in enumerate(ids) if dim.per_row]
    if len(batch) != 1 or batch[0] == 0:
        return None
    (axis,) = batch
    n, name = len(ids), node.output[0]
    order = [axis, *(each for each in range(n) if each != axis)]
    back = [order.index(each) for each in range(n)]
    return [
        _node("Transpose", [node.input[1]], name + "/ids", perm=order),
        _node("Gather", [node.input[0], name + "/ids"], name + "/rows"),
        _node("Transpose", [name + "/rows"], name, perm=[*back, *range(n, n + table.ndim - 1)]),
    ]


def _gather_of_unique(node: onnx.NodeProto, facts: Facts, producers: Producers) -> Replacement:
    """``table[unique(ids)][inverse]`` is ``table[ids]``."""
    inner, unique = producers.get(node.input[0]), producers.get(node.input[1])
    if inner is None or unique is None or (inner.op_type, unique.op_type) != ("Gather", "Unique"):
        return None
    if attribute(node, "axis", 0) or attribute(inner, "axis", 0) or len(unique.output) < 3:
        return None
    if inner.input[1] != unique.output[0] or node.input[1] != unique.output[2]:
        return None
    dims = facts.dims.get(unique.input[0])
    if dims is None or len(dims) != 1:
        return None
    return [_node("Gather", [inner.input[0], unique.input[0]], node.output[0])]


def _gather_nd(node: onnx.NodeProto, graph: Graph, facts: Facts, _: Producers) -> Replacement:
    """``table[i, j, ...]``: rows of the table with its first axes joined."""
    table = graph.constants.get(node.input[0])
    dims = facts.dims.get(node.input[1])
    if table is None or dims is None or table.dtype.kind != "f" or attribute(node, "batch_dims", 0):
        return None
    if facts.kinds[node.input[1]] != Kind.FEATURES:
        return None
    n, name = dims[-1].fixed, node.output[0]
    strides = np.cumprod([1, *table.shape[n - 1 : 0 : -1]])[::-1].astype(np.int64)
    joined = table.reshape(-1, *table.shape[n:])
    rows = constant(graph, node.input[0] + f"/joined{n}", joined)
    by = constant(graph, name + "/strides", strides)
    axis = constant(graph, name + "/axis", np.asarray([-1], np.int64))
    if n == 1:
        if graph.opsets.get("", 1) < 13:
            squeeze = _node("Squeeze", [node.input[1]], name + "/ids", axes=[len(dims) - 1])
        else:
            squeeze = _node("Squeeze", [node.input[1], axis], name + "/ids")
        return [squeeze, _node("Gather", [rows, name + "/ids"], name)]
    if graph.opsets.get("", 1) < 13:
        total = _node("ReduceSum", [name + "/parts"], name + "/ids", axes=[-1], keepdims=0)
    else:
        total = _node("ReduceSum", [name + "/parts", axis], name + "/ids", keepdims=0)
    return [
        _node("Mul", [node.input[1], by], name + "/parts"),
        total,
        _node("Gather", [rows, name + "/ids"], name),
    ]


_RULES: Final[Mapping[str, Rule]] = {
    "CastLike": _cast_like,
    "SequenceAt": _sequence_at,
    "MatMul": _one_hot_product,
    "Gemm": _one_hot_product,
    "Gather": _gather,
    "GatherND": _gather_nd,
}

"""Joining the traced neighbours among a Concat's inputs."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import onnx

from kernels.graph.facts import Dim, Facts
from kernels.graph.model import Graph, attribute
from kernels.graph.trace import Codes


def join_neighbours(graph: Graph, facts: Facts, codes: dict[str, Codes]) -> Facts:
    """Join the traced ones among a Concat's inputs by a Concat of their own, which is then traced.

    So that a Concat of looked up rows and a computed tensor takes the rows as one stretch.
    """
    nodes: list[onnx.NodeProto] = []
    dims, dtypes, kinds = dict(facts.dims), dict(facts.dtypes), dict(facts.kinds)
    for node in graph.nodes:
        nodes.append(node)
        if node.op_type != "Concat" or node.output[0] in codes or node.output[0] not in dims:
            continue
        axis = attribute(node, "axis") % len(dims[node.output[0]])
        if dims[node.output[0]][axis].per_row:
            continue
        inputs: list[str] = []
        for is_traced, group in itertools.groupby(node.input, codes.__contains__):
            names = list(group)
            if not is_traced or len(names) < 2:
                inputs += names
                continue
            joined = f"{node.output[0]}/joined/{len(inputs)}"
            inputs.append(joined)
            nodes.insert(-1, onnx.helper.make_node("Concat", names, [joined], axis=axis))
            codes[joined] = np.concatenate([codes[name] for name in names], axis)
            size = sum(dims[name][axis].fixed for name in names)
            dims[joined] = (*dims[names[0]][:axis], Dim(size, 0), *dims[names[0]][axis + 1 :])
            dtypes[joined] = dtypes[names[0]]
            kinds[joined] = max(kinds[name] for name in names)
        if len(inputs) < len(node.input):
            nodes[-1] = onnx.helper.make_node("Concat", inputs, list(node.output), axis=axis)
    graph.nodes = nodes
    return attrs.evolve(facts, dims=dims, dtypes=dtypes, kinds=kinds)

"""Whether a graph is well formed. Runs after each pass in tests, and on every graph at load."""

from __future__ import annotations

from typing import Final

import numpy as np

from kernels.errors import GraphError
from kernels.ir.node import Constant, DType, Graph, Lead, Node, Op, Steps
from kernels.ir.rules import RULES
from kernels.ir.shapes import text

_KINDS: Final = {DType.FLOAT: np.float32, DType.INT: np.int64, DType.BOOL: np.bool_}


def check(graph: Graph) -> None:
    """Check that each node is what its op makes of its sources, and that inputs and output fit.

    Raises:
        GraphError: Something does not. Names model, op and node.
    """
    try:
        for node in _order(graph.output):
            _check_node(node)
            if node.op is Op.INPUT:
                _check_input(node, graph)
        for name, node in graph.inputs.items():
            _check_node(node)
            if node.op is not Op.INPUT or node.arg != name:
                raise _refuse(node, f"stands for the input {name!r}")
        _check_output(graph.output)
    except GraphError as error:
        raise GraphError(f"{graph.model}: {error}") from error


def _refuse(node: Node, why: str) -> GraphError:
    return GraphError(f"{node.op} {node.name!r}: {why}")


def _order(output: Node) -> list[Node]:
    """Return nodes, sources first. Unlike ``topological``, it ends where there is a cycle."""
    order: list[Node] = []
    done: dict[Node, bool] = {}  # False while the node's sources are being visited
    stack = [output]
    while stack:
        node = stack[-1]
        if node not in done:
            done[node] = False
            for source in node.sources:
                if done.get(source) is False:
                    raise _refuse(source, "needs its own value: a cycle")
                if source not in done:
                    stack.append(source)
            continue
        stack.pop()
        if not done[node]:
            done[node] = True
            order.append(node)
    return order


def _check_node(node: Node) -> None:
    for axis, dim in enumerate(node.shape):
        if isinstance(dim, Lead) and axis:
            raise _refuse(node, f"{text(node.shape)} has a lead behind axis 0")
        if not isinstance(dim, Lead) and (type(dim) not in (int, Steps) or dim < 0):
            raise _refuse(node, f"dimension {dim!r} of {text(node.shape)}")
    shape, dtype = RULES[node.op].infer(
        node.sources, node.arg, shape=node.shape, dtype=node.dtype, name=node.name
    )
    if shape != node.shape or dtype is not node.dtype:
        says, is_ = f"{text(node.shape)} of {node.dtype}", f"{text(shape)} of {dtype}"
        raise _refuse(node, f"says that it is {says}, and makes {is_}")
    if node.op is Op.CONST:
        _check_constant(node)


def _check_constant(node: Node) -> None:
    if not isinstance(node.arg, Constant):
        raise _refuse(node, f"arg is {node.arg!r}, want a Constant")
    array = node.array
    if array.shape != node.shape:
        raise _refuse(node, f"holds {list(array.shape)} and says {text(node.shape)}")
    if array.dtype != _KINDS[node.dtype]:
        raise _refuse(node, f"holds {array.dtype} and says {node.dtype}")
    if not array.flags.c_contiguous:
        raise _refuse(node, "holds an array that is not C-ordered")


def _check_input(node: Node, graph: Graph) -> None:
    if not isinstance(node.arg, str) or graph.inputs.get(node.arg) is not node:
        raise _refuse(node, f"is not among the graph's inputs: {', '.join(graph.inputs)}")
    if node.lead is None or len(node.shape) != 2 or node.dtype is not DType.FLOAT:
        raise _refuse(node, f"{text(node.shape)} of {node.dtype}, want [lead, width] of float")


def _check_output(node: Node) -> None:
    is_scores = node.lead is Lead.ROWS and len(node.shape) == 2 and node.width > 0
    if not is_scores or node.dtype is not DType.FLOAT:
        raise _refuse(
            node, f"the output is {text(node.shape)} of {node.dtype}, want [rows, n] of float"
        )

"""A bundle's dense graph becomes nodes of ours.

Constants are folded and shapes found as when a bundle is built (``kernels.graph``); what is left
goes node by node through tables of handlers, one for each family of operators. What is outside of
them, or mixes rows, is refused by a ``GraphError`` that names operator, node and model.

The graph has the inputs ``user`` float32 ``[requests, width]``, ``candidate`` float32
``[rows, width]`` and ``request_of_row`` int64 ``[rows]``, and the output ``scores`` float32
``[rows, n]``: see ``kernels.bundle.manifest``. ``Gather(x, request_of_row)`` becomes TO_ROWS.

Reading order: ``onnx_value.py`` (a node and where ONNX has its rows), ``onnx_call.py`` (what a
handler gets), ``onnx_axes.py`` (broadcasting, Reshape, Transpose, Expand), this, and
``onnx_ops_*.py`` as they are needed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx

from kernels.errors import GraphError
from kernels.graph import model as source
from kernels.graph.fold import simplify
from kernels.ir.check import check
from kernels.ir.node import DType, Graph, Lead, Node, Op, input_node
from kernels.ir.onnx_axes import with_rows
from kernels.ir.onnx_call import Call, Handler, Result
from kernels.ir.onnx_ops_attention import ATTENTION
from kernels.ir.onnx_ops_conv import CONVOLUTIONS
from kernels.ir.onnx_ops_einsum import EINSUM
from kernels.ir.onnx_ops_elementwise import ELEMENTWISE
from kernels.ir.onnx_ops_index import INDEXING
from kernels.ir.onnx_ops_linear import LINEARS
from kernels.ir.onnx_ops_movement import MOVEMENTS
from kernels.ir.onnx_ops_reduce import REDUCTIONS
from kernels.ir.onnx_value import Operand, RequestOfRow, Sizes, Value, View, settled

USER, CANDIDATE, ROWS, SCORES = "user", "candidate", "request_of_row", "scores"
_LEADS: Final = {USER: Lead.REQUESTS, CANDIDATE: Lead.ROWS}

HANDLERS: Final[Mapping[str, Handler]] = {
    **ELEMENTWISE,
    **REDUCTIONS,
    **LINEARS,
    **EINSUM,
    **ATTENTION,
    **MOVEMENTS,
    **INDEXING,
    **CONVOLUTIONS,
}

_UNKNOWN: Final = "is not an operator that the compiler of GPU kernels knows"

# What is computed of sizes on the way to a shape; anything else done with a size is refused.
_ON_SIZES: Final[Mapping[str, Callable[..., Any]]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.floordiv,
    "Equal": np.equal,
    "Where": np.where,
}


def import_dense(model: bytes | Path, name: str) -> Graph:
    """Import a dense graph, and check it.

    Args:
        model: The serialised model, or its file.
        name: Of the model, for errors.

    Raises:
        GraphError: It is no such graph, or has an operator or use of one that is not supported.
    """
    graph = _load(model, name)
    _simplify(graph)
    values: dict[str, Operand] = {**graph.constants, ROWS: RequestOfRow()}
    inputs: dict[str, Node] = {}
    for port in graph.inputs:
        if port.name in _LEADS and _width(port):
            node = input_node(port.name, _LEADS[port.name], _width(port))
            inputs[port.name] = node
            values[port.name] = Value(node, View(2, 0, node.lead))
    for each in graph.nodes:
        _import_node(graph, each, values)
    imported = Graph(name, inputs, _scores(name, values.get(SCORES)))
    check(imported)
    return imported


def _load(model: bytes | Path, name: str) -> source.Graph:
    try:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    except (OSError, google.protobuf.message.DecodeError) as error:
        raise GraphError(f"{name}: not an ONNX model: {error}") from error
    graph = source.from_model(proto, Path(name))
    graph.name = name
    ranks = {port.name: len(port.shape) for port in graph.inputs}
    wanted = {USER: 2, CANDIDATE: 2, ROWS: 1}
    if any(wanted.get(each) != rank for each, rank in ranks.items()) or graph.outputs != (SCORES,):
        raise GraphError(f"{name}: not a dense graph: from {ranks} to {list(graph.outputs)}")
    return graph


def _simplify(graph: source.Graph) -> None:
    """Fold constants, decide branches, find shapes; of operators of ONNX only."""
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            raise Call(graph.name, node, 1, ()).refuse(f"of domain {node.domain!r} {_UNKNOWN}")
    widths = {port.name: (_width(port),) for port in graph.inputs if port.name in _LEADS}
    try:
        simplify(graph, widths)
    except GraphError as error:
        text = str(error)
        raise GraphError(text if graph.name in text else f"{graph.name}: {text}") from error


def _width(port: source.Port) -> int:
    """Return the columns of a block; one that is empty is left open by ``kernels.graph``."""
    return port.shape[1] or 0


def _import_node(graph: source.Graph, node: onnx.NodeProto, values: dict[str, Operand]) -> None:
    call = Call(
        model=graph.name,
        node=node,
        opset=graph.opsets.get("", graph.opsets.get("ai.onnx", 1)),
        inputs=tuple(values.get(name) if name else None for name in node.input),
    )
    for name, operand in zip(node.input, call.inputs, strict=True):
        if name and operand is None:
            raise call.refuse(f"reads {name!r}, which nothing computes")
    try:
        made = _apply(call)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise call.refuse(f"is used in a way that is not supported: {error}") from error
    results = made if isinstance(made, tuple) else (made,)
    for name, result in zip(node.output, results, strict=False):
        if name and result is not None:
            values[name] = _settled(result)


def _apply(call: Call) -> Result:
    if any(isinstance(each, Sizes) for each in call.inputs):
        found = _of_sizes(call)
        if found is not None:
            return found
    if call.node.op_type not in HANDLERS:
        raise call.refuse(_UNKNOWN)
    return HANDLERS[call.node.op_type](call)


def _of_sizes(call: Call) -> Operand | None:
    """Compute with sizes, elementwise; None if that is not what the node does."""
    op = call.node.op_type
    objects = [each.array if isinstance(each, Sizes) else each for each in call.inputs]
    if op == "Cast":
        return call.inputs[0]
    first = call.inputs[0]
    if op == "ReduceProd" and isinstance(first, Sizes):
        product = np.prod(first.array)
        return settled([product] if call.attribute("keepdims", 1) else product)
    return settled(_ON_SIZES[op](*objects)) if op in _ON_SIZES else None


def _settled(operand: Operand) -> Operand:
    """Return a value that is a constant as its array."""
    if isinstance(operand, Value) and operand.node.op is Op.CONST and operand.view.at is None:
        return operand.node.array
    return operand


def _scores(name: str, found: Operand | None) -> Node:
    if isinstance(found, Value) and found.view == View(2, 0, Lead.ROWS):
        call = Call(name, onnx.helper.make_node("Identity", [SCORES], [SCORES]), 1, (found,))
        node = with_rows(call, found).node
        if node.dtype is DType.FLOAT:
            return node
    raise GraphError(f"{name}: output {SCORES!r} is not one row of floats for each candidate")

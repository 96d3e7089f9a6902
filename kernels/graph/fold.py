"""Folding: constants computed, branches decided, and nodes that change nothing removed.

``simplify`` repeats these and the rewrites of ``rewrite.py`` until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from kernels.graph import rewrite
from kernels.graph.facts import BATCHES, Facts, Kind, learn
from kernels.graph.model import Array, Graph, attribute, renamed

# Each round removes something; this many are far beyond what any model needs.
_ROUNDS = 50


def simplify(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    note: Callable[[Graph, Facts], None] = lambda _graph, _facts: None,
) -> Facts:
    """Simplify a graph in place and return what is known of its tensors.

    Args:
        graph: Is changed.
        shapes: Dimensions of one row, for inputs whose shape leaves them open.
        note: Called in each round before anything is changed.

    Raises:
        GraphError: The graph does not run on several batch sizes.
    """
    graph.prune()
    for _ in range(_ROUNDS):
        facts = learn(graph, shapes)
        note(graph, facts)
        _fold(graph, facts)
        changed = inline_branches(graph)
        changed |= drop_idle(graph, facts)
        graph.prune()
        changed |= rewrite.apply(graph, facts, shapes)
        graph.prune()
        if not changed:
            break
    return learn(graph, shapes)


def _fold(graph: Graph, facts: Facts) -> None:
    """Make constants of the tensors that were the same on every batch and read no input."""
    for name, kind in facts.kinds.items():
        if kind <= Kind.BATCH and name not in graph.constants:
            found = [run[name] for run in facts.values.values() if name in run]
            if len(found) >= len(BATCHES) and all(_same(found[0], each) for each in found[1:]):
                graph.constants[name] = found[0]
    # A node of several outputs, one a constant (a Split of a shape), still makes the others.
    graph.nodes = [_without(node, graph.constants) for node in graph.nodes]


def _without(node: onnx.NodeProto, constants: Mapping[str, Array]) -> onnx.NodeProto:
    """Return a node whose outputs do not have the names of constants."""
    if len(node.output) < 2 or not any(name in constants for name in node.output):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for i, name in enumerate(copy.output):
        copy.output[i] = f"{name}/folded" if name in constants else name
    return copy


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def inline_branches(graph: Graph) -> bool:
    """Replace each If whose condition is a constant by the branch that it takes."""
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.nodes:
        condition = graph.constants.get(node.input[0]) if node.op_type == "If" else None
        if condition is None:
            nodes.append(node)
            continue
        changed = True
        body = attribute(node, "then_branch" if condition.item() else "else_branch")
        prefix = node.output[0] + "/"
        inside = {each.name for each in body.initializer}
        inside.update(name for inner in body.node for name in inner.output if name)
        names = {name: prefix + name for name in inside}
        for tensor in body.initializer:
            graph.constants[names[tensor.name]] = onnx.numpy_helper.to_array(tensor)
        nodes += [_moved_out(inner, names) for inner in body.node]
        for result, output in zip(body.output, node.output, strict=True):
            if output:
                source = names.get(result.name, result.name)
                nodes.append(onnx.helper.make_node("Identity", [source], [output]))
    graph.nodes = nodes
    return changed


def _moved_out(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(renamed(node, names))
    for i, name in enumerate(copy.output):
        copy.output[i] = names.get(name, name)
    return copy


def drop_idle(graph: Graph, facts: Facts) -> bool:
    """Let the readers of nodes that change nothing read what those nodes read."""
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.output and node.output[0] not in graph.outputs:
            source = _idle_source(node, graph, facts)
            if source is not None:
                names[node.output[0]] = names.get(source, source)
    graph.rename(names)
    return bool(names)


def _idle_source(node: onnx.NodeProto, graph: Graph, facts: Facts) -> str | None:
    """Return the input that a node hands on as it is, if it does."""
    if node.domain not in ("", "ai.onnx") or not node.input:
        return None
    source: str = node.input[0]
    output: str = node.output[0]
    if node.op_type in ("Identity", "Dropout"):
        training = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        return None if training is not None and training.item() else source
    if node.op_type == "Concat" and len(node.input) == 1:
        return source
    if source not in facts.dims or output not in facts.dims:
        return None
    if node.op_type in ("Add", "Sub", "Mul", "Div"):
        return _neutral(node, graph, facts)
    if facts.dims[source] != facts.dims[output] or facts.dtypes[source] != facts.dtypes[output]:
        return None
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Cast"):
        return source
    if node.op_type in ("Slice", "Split") and _has_no_steps(node, graph):
        return source
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return source if perm is not None and list(perm) == sorted(perm) else None
    return None


def _has_no_steps(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a Slice runs forwards, so that its full length means all in order."""
    if node.op_type != "Slice" or len(node.input) < 5 or not node.input[4]:
        return True
    steps = graph.constants.get(node.input[4])
    return steps is not None and bool(np.all(steps == 1))


def _neutral(node: onnx.NodeProto, graph: Graph, facts: Facts) -> str | None:
    """Return the operand that adding zeros to, or multiplying with ones, leaves as it is."""
    neutral = 0 if node.op_type in ("Add", "Sub") else 1
    for idle, other in ((1, 0), (0, 1)):
        if idle == 0 and node.op_type in ("Sub", "Div"):
            continue
        name: str = node.input[idle]
        source: str = node.input[other]
        if facts.dims.get(source) != facts.dims.get(node.output[0]):
            continue
        if _holds_only(name, neutral, graph, facts):
            return source
    return None


def _holds_only(name: str, number: int, graph: Graph, facts: Facts) -> bool:
    if name in graph.constants:
        return bool(np.all(graph.constants[name] == number))
    if facts.kinds[name] > Kind.BATCH:
        return False
    return all(bool(np.all(run[name] == number)) for run in facts.values.values())

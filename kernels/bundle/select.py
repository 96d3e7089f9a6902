"""Selecting the part of a graph that computes some tensors from blocks of columns.

Each tensor that the part needs is one of: a constant; a value that depends on the batch size alone,
rebuilt from the number of rows; a *view*, whose rows are columns of the blocks; or made by its own
node. Used for the dense graph (blocks: the two sides) and for the programs (blocks: features).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Final

import attrs
import numpy as np
import onnx

from kernels.graph.facts import BATCHES, Facts, Kind
from kernels.graph.model import Array, Graph, reads
from kernels.graph.trace import Codes, Columns, row_columns

# Of operators that broadcast, a batch-sized operand whose rows are all alike may be one row.
BROADCASTING: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Where", "PRelu", "Mod"}
    | {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor"}
)


@attrs.frozen(eq=False)
class Selection:
    """What a part of a graph is made of.

    Attributes:
        views: Tensors that are columns of the blocks: their columns' numbers, in order.
        nodes: The nodes that stay, in topological order.
    """

    views: Mapping[str, tuple[int, ...]]
    nodes: tuple[onnx.NodeProto, ...]


def select(
    graph: Graph,
    facts: Facts,
    codes: Mapping[str, Codes],
    columns: Columns,
    outputs: Iterable[str],
) -> Selection:
    """Find out what computing ``outputs`` takes.

    Args:
        graph: Read only.
        facts: Of the graph.
        codes: Of the tensors whose elements are columns of the blocks.
        columns: Numbers those.
        outputs: Names of tensors.
    """
    producers = graph.producers()
    views: dict[str, tuple[int, ...]] = {}
    kept: set[str] = set()
    pending, seen = list(outputs), set(outputs)
    while pending:
        name = pending.pop()
        if name in graph.constants or (name in facts.kinds and is_batch_value(name, facts)):
            continue
        if name in codes and facts.row_size(name) is not None:
            found = _view(codes[name], columns)
            if found is not None:
                views[name] = found
                continue
        node = producers[name]
        kept.add(node.output[0])
        needed = reads(node)
        if replaces_shape(node, facts):
            needed = [node.input[0]]
        for each in needed:
            if each not in seen:
                seen.add(each)
                pending.append(each)
    return Selection(
        views=views,
        nodes=tuple(node for node in graph.nodes if node.output and node.output[0] in kept),
    )


def _view(codes: Codes, columns: Columns) -> tuple[int, ...] | None:
    """Return a tensor's columns, if it is not dearer to join them than to run its own node.

    Joining costs a piece for each stretch of neighbouring columns; more stretches than roots mean
    that it repeats or interleaves them, as Expand and Transpose do.
    """
    numbers = row_columns(codes)
    if numbers is None:
        return None
    elements = columns.elements(numbers)
    stretches = 1 + sum(
        a.root != b.root or a.place + 1 != b.place for a, b in itertools.pairwise(elements)
    )
    if stretches > 2 * len({element.root for element in elements}):
        return None
    return tuple(numbers)


def replaces_shape(node: onnx.NodeProto, facts: Facts) -> bool:
    """Whether a Reshape's or Expand's target is known but for the batch: it need not be read."""
    dims = facts.dims.get(node.output[0]) if node.output else None
    if dims is None or node.op_type not in ("Reshape", "Expand"):
        return False
    if node.op_type == "Reshape":
        return sum(dim.per_row > 0 for dim in dims) <= 1 and len(node.input) == 2
    source = facts.dims.get(node.input[0])
    if source is None:
        return False
    aligned = (None,) * (len(dims) - len(source)) + tuple(source)
    return all(dim.per_row == 0 or dim == have for dim, have in zip(dims, aligned, strict=True))


def shape_constant(node: onnx.NodeProto, facts: Facts) -> Array:
    """Return the target of a Reshape or Expand for which ``replaces_shape`` holds."""
    follows = -1 if node.op_type == "Reshape" else 1  # Expand by 1 keeps what is there
    dims = facts.dims[node.output[0]]
    return np.asarray([follows if dim.per_row else dim.fixed for dim in dims], np.int64)


def is_batch_value(name: str, facts: Facts) -> bool:
    """Whether a tensor depends on the batch size alone, in a way that is easily rebuilt."""
    if facts.kinds[name] > Kind.BATCH or any(name not in facts.values[b] for b in BATCHES):
        return False
    return affine(name, facts) is not None or equal_rows(name, facts) is not None


def affine(name: str, facts: Facts) -> tuple[Array, Array] | None:
    """Return ``fixed`` and ``per_row`` of a tensor of integers ``fixed + per_row * batch``."""
    found = [facts.values[batch][name] for batch in BATCHES]
    if found[0].dtype.kind not in "iu" or len({array.shape for array in found}) != 1:
        return None
    (a, b, c), (x, y, z) = BATCHES, (array.astype(np.int64) for array in found)
    per_row = (y - x) // (b - a)
    fixed = x - per_row * a
    if np.array_equal(fixed + per_row * b, y) and np.array_equal(fixed + per_row * c, z):
        return fixed, per_row
    return None


def equal_rows(name: str, facts: Facts) -> Array | None:
    """Return one row, ``[1, ...]``, of a batch-sized tensor whose rows are all alike."""
    found = [facts.values[batch][name] for batch in BATCHES]
    for batch, array in zip(BATCHES, found, strict=True):
        if not array.ndim or len(array) != batch or array.shape[1:] != found[0].shape[1:]:
            return None
        if not np.array_equal(array, np.broadcast_to(found[0][:1], array.shape)):
            return None
    return found[0][:1]

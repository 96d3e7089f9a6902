"""The oracle: a graph evaluated in numpy, in any float dtype; and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.ir.node import Encoder, Graph, Lead, Linear, Node, Op, TargetAttention, topological
from kernels.ir.numpy_ops import Array, Batch
from kernels.ir.rules import RULES
from kernels.ir.shapes import text


def evaluate(
    graph: Graph,
    inputs: Mapping[str, NDArray[Any]],
    request_of_row: NDArray[np.integer[Any]] | None = None,
    dtype: DTypeLike = np.float64,
) -> Array:
    """Return the scores, ``dtype [rows, n_outputs]``.

    ``inputs`` are ``[rows, width]`` or ``[requests, width]`` by name. ``request_of_row``, int
    ``[rows]``, may be None if no value of requests goes to rows. All floats become ``dtype``,
    constants too.

    Raises:
        ValueError: An input is missing or of another width, sizes contradict each other, or a row
            belongs to no request.
    """
    batch = make_batch([graph.output], inputs, request_of_row, dtype)
    order = list(graph.nodes())
    uses = Counter(source for node in order for source in node.sources)
    values: dict[Node, Array] = {}
    for node in order:
        values[node] = _value(node, values, batch)
        for source in node.sources:  # held no longer than needed: a batch may be large
            uses[source] -= 1
            if not uses[source]:
                del values[source]
    return values[graph.output]


def evaluate_nodes(
    roots: Iterable[Node],
    inputs: Mapping[str, NDArray[Any]],
    request_of_row: NDArray[np.integer[Any]] | None = None,
    dtype: DTypeLike = np.float64,
) -> dict[Node, Array]:
    """Return the values of all nodes that ``roots`` need; see ``evaluate``. Some are views."""
    roots = list(roots)
    batch = make_batch(roots, inputs, request_of_row, dtype)
    values: dict[Node, Array] = {}
    for node in topological(roots):
        values[node] = _value(node, values, batch)
    return values


def _value(node: Node, values: Mapping[Node, Array], batch: Batch) -> Array:
    sources = tuple(values[source] for source in node.sources)
    with np.errstate(all="ignore"):  # what NaN and infinity become is part of an op's meaning
        return RULES[node.op].numpy(node, sources, batch)


def make_batch(
    roots: Iterable[Node],
    inputs: Mapping[str, NDArray[Any]],
    request_of_row: NDArray[np.integer[Any]] | None,
    dtype: DTypeLike,
) -> Batch:
    """Check inputs against the INPUT nodes that ``roots`` need, and find the sizes of leads."""
    sizes: dict[Lead, int] = {}
    if request_of_row is not None:
        sizes[Lead.ROWS] = len(request_of_row)
    for node in topological(roots):
        if node.op is Op.INPUT:
            _measure(node, inputs, sizes)
    places = np.zeros(0, np.intp) if request_of_row is None else np.asarray(request_of_row)
    n_requests = sizes.setdefault(Lead.REQUESTS, int(places.max(initial=-1)) + 1)
    sizes.setdefault(Lead.ROWS, 0)
    if places.size and not 0 <= places.min() <= places.max() < n_requests:
        raise ValueError(f"request_of_row names requests beyond the {n_requests} given")
    return Batch(inputs, sizes, places, np.dtype(dtype))


def _measure(node: Node, inputs: Mapping[str, NDArray[Any]], sizes: dict[Lead, int]) -> None:
    lead = node.lead
    assert isinstance(node.arg, str)
    assert lead is not None
    if node.arg not in inputs:
        raise ValueError(f"input {node.arg!r} is missing")
    shape = inputs[node.arg].shape
    size = sizes.setdefault(lead, shape[0] if shape else 0)
    if shape != (size, *node.dims):
        wanted = text((lead, *node.dims))
        raise ValueError(f"input {node.arg!r} is {list(shape)}, want {wanted} with {size} {lead}")


@attrs.frozen
class Flops:
    """Floating point operations of products of matrices, two a multiply-add; nothing else counts.

    Attributes:
        row, request: For each row, and for each request.
    """

    row: int = 0
    request: int = 0

    def total(self, rows: int, requests: int = 1) -> int:
        """Return what a batch takes."""
        return self.row * rows + self.request * requests


def flops(graph: Graph) -> Flops:
    """Return what a graph takes as it is written, without padding."""
    found = dict.fromkeys(Lead, 0)
    for node in graph.nodes():
        if node.lead is not None:
            found[node.lead] += 2 * multiply_adds(node)
    return Flops(found[Lead.ROWS], found[Lead.REQUESTS])


def multiply_adds(node: Node) -> int:
    """Return a node's multiply-adds in products of matrices, for one row or request."""
    match node.arg:
        case Linear():
            return node.width * node.sources[-2].dims[-2]
        case TargetAttention():
            steps, width = node.sources[1].dims
            hidden = node.sources[6].width
            scores = sum(weight.width for weight in node.sources[7::2])
            return width * hidden + steps * (2 * width * hidden + scores + width)
        case Encoder():
            steps, width = node.dims
            weights = sum(node.sources[i].width for i in (1, 3, 7, 9))
            return steps * weights + 2 * steps * steps * width
    if node.op is Op.MATMUL:
        return node.width * node.sources[0].dims[-1]
    return 0

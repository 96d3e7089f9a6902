"""Graphs with batches for them, and how far what a program makes of them may be off.

For tests that run emitted programs: on the CPU (``test_emitted_shim.py``) and on a card
(``tests/gpu/test_emitted.py``).
"""

from __future__ import annotations

import functools
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bench.graphs import graph_of
from kernels.bench.models import MODELS
from kernels.ir.build import concat, make, reshape, take, transpose
from kernels.ir.node import Graph, Lead, Op
from kernels.ir.reference import evaluate
from kernels.program import Precision
from tests.kernels import passes_help
from tests.kernels.shim_program import Batch

# Three times the largest error that was seen: 3e-7, 6e-4, 6e-4 and 5e-3.
TOLERANCE: Final = {
    Precision.FP32: 1e-6,
    Precision.TF32: 2e-3,
    Precision.FP16: 2e-3,
    Precision.BF16: 1.5e-2,
}
F32 = NDArray[np.float32]


@attrs.frozen(eq=False)
class Sample:
    """A batch for a graph: float32 ``[n, width]`` by name, and int32 ``[rows]``."""

    inputs: dict[str, Any]
    request_of_row: NDArray[Any]

    @property
    def batch(self) -> Batch:
        """The same as programs take it."""
        n_requests = int(self.request_of_row.max()) + 1
        user = self.inputs.get("user", np.zeros((n_requests, 0)))
        candidate = self.inputs.get("candidate", np.zeros((len(self.request_of_row), 0)))
        return Batch(
            candidate.astype(np.float32),
            user.astype(np.float32),
            self.request_of_row.astype(np.int32),
        )


def sample_of(graph: Graph, rows: int, n_requests: int = 1, seed: int = 0) -> Sample:
    """Draw numbers that float16 holds; each request has a row if there are enough."""
    random = np.random.default_rng(seed)
    sizes = {Lead.ROWS: rows, Lead.REQUESTS: n_requests}
    inputs = {
        name: random.normal(0, 0.5, (sizes[node.lead or Lead.ROWS], node.width)).astype(np.float16)
        for name, node in graph.inputs.items()
    }
    of_row = np.sort(np.arange(rows) % n_requests)
    return Sample({name: each.astype(np.float32) for name, each in inputs.items()}, of_row)


def logits(graph: Graph) -> Graph:
    """Return the graph without its last sigmoids."""

    def bare(node: Any) -> Any:  # noqa: ANN401
        if node.op is Op.SIGMOID:
            return node.sources[0]
        if node.op is Op.CONCAT:
            return make(Op.CONCAT, *map(bare, node.sources), arg=node.arg)
        return node

    return attrs.evolve(graph, output=bare(graph.output))


def error_of(graph: Graph, sample: Sample, got: F32) -> float:
    with np.errstate(all="ignore"):  # what a WHERE does not choose may overflow
        want = evaluate(graph, sample.inputs, sample.request_of_row)
    assert got.shape == want.shape
    error = np.abs(got - want) / max(1.0, float(np.abs(want).max()))
    return float(np.where(np.isnan(error), np.inf, error).max())


@functools.cache
def peer(name: str) -> Graph:
    model = MODELS[name]
    return logits(graph_of(model, model.draw_parameters(0)))


def peer_sample(name: str, rows: int) -> Sample:
    model = MODELS[name]
    block = model.block(model.draw_inputs(rows, rows, Precision.FP16))
    return Sample({"candidate": block}, np.zeros(rows, np.int32))


@functools.cache
def small(name: str, *, user: bool = True) -> Graph:
    build = passes_help.MODELS[name]
    return logits(build(user=passes_help.USER[name]) if user else build())


def pairs_graph() -> Graph:
    """Return dot products of pairs: 2 vectors of the user, 5 of a candidate, one of a tower."""
    inputs, (user, fields, numbers) = passes_help.columns(2 * 32, 5 * 32, 13, user=(64,))
    tower = passes_help.mlp(numbers, [32])
    vectors = concat(reshape(tower, 1, 32), reshape(user, 2, 32), reshape(fields, 5, 32), axis=1)
    products = reshape(make(Op.MATMUL, vectors, transpose(vectors, 0, 2, 1)), 64)
    i, j = np.tril_indices(8, -1)
    pairs = take(products, 1, tuple((i * 8 + j).tolist()))
    return Graph("pairs", inputs, passes_help.mlp(concat(tower, pairs), [24, 1], last=False))

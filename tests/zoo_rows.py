"""Random inputs of any number of rows: an executor's scores against the oracle in float64.

A zoo records 1 and 37 rows. More are drawn from these, so that masks stay masks and lengths fit
their sequences: the columns of each lookup come from a recorded row of their own, and all values of
a row together from one. Rows are dealt to requests of uneven sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.executors import ExecutorName
from kernels.bundle.manifest import SideLayout
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import evaluate
from tests.zoo_here import F32, MOST_REQUESTS, InProcess

# Of the error, which is |got - want| / max(1, |want|): fp16 storage with fp32 sums on the card,
# float32 on the host, float64 rounded once in the oracle's own executor.
TOLERANCES: Final[Mapping[ExecutorName, float]] = {
    "host": 1e-4,
    "reference": 1e-6,
    "cuda": 2e-3,
    "cuda-fp32": 1e-5,
    "cuda-tf32": 2e-3,
    "cuda-bf16": 1.6e-2,
    "cuda-fp8": 5e-2,
}
_ROWS_A_REQUEST: Final = 16


def errors(scorer: InProcess, recorded: tuple[F32, F32], sizes: Sequence[int]) -> dict[int, float]:
    """Run random inputs of each number of rows; return the largest error of each.

    What a lane's staging holds beyond the batch is NaN.

    Args:
        scorer: Its graph is one that the compiler knows, and its executor takes so many rows.
        recorded: Blocks of the user and the candidate side to draw rows from.
        sizes: Numbers of rows.
    """
    manifest = scorer.bundle.manifest
    graph = import_dense(scorer.bundle.dense_model(), manifest.model)
    staging = scorer.executor.staging(0)
    found = {}
    for n_rows in sizes:
        random = np.random.default_rng(n_rows)
        request_of_row = requests_of(n_rows, random)
        n_requests = int(request_of_row[-1]) + 1
        blocks = {
            "user": draw(manifest.user, recorded[0], n_requests, random),
            "candidate": draw(manifest.candidate, recorded[1], n_rows, random),
        }
        staging.user[:], staging.candidate[:] = np.nan, np.nan
        staging.user[:n_requests] = blocks["user"]
        staging.candidate[:n_rows] = blocks["candidate"]
        staging.request_of_row[:n_rows] = request_of_row
        got = scorer.executor.run(0, n_requests, n_rows)
        inputs = {name: blocks[name] for name in graph.inputs}
        want = evaluate(graph, inputs, request_of_row, np.float64)
        found[n_rows] = largest_error(got, want)
    return found


def largest_error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Return the largest ``|got - want| / max(1, |want|)``; infinite for NaN or another shape."""
    if got.shape != want.shape:
        return float("inf")
    error = np.abs(got - want) / np.maximum(1.0, np.abs(want))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))


def requests_of(n_rows: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Deal rows to requests of uneven sizes, each of 1 or more; int64 ``[n_rows]``, ascending."""
    n_requests = min(1 + n_rows // _ROWS_A_REQUEST, MOST_REQUESTS)
    firsts = random.choice(np.arange(1, n_rows), n_requests - 1, replace=False)
    starts = np.zeros(n_rows, np.int64)
    starts[firsts] = 1
    return np.cumsum(starts)


def draw(layout: SideLayout, recorded: F32, n: int, random: np.random.Generator) -> F32:
    """Draw ``n`` rows of a side's block; see the module's text."""
    block = np.empty((n, layout.width), np.float32)
    ends = [lookup.offset + lookup.width for lookup in layout.lookups]
    parts = [(lookup.offset, end) for lookup, end in zip(layout.lookups, ends, strict=True)]
    for start, end in [*parts, (layout.width - len(layout.values), layout.width)]:
        block[:, start:end] = recorded[random.integers(0, len(recorded), n), start:end]
    return block

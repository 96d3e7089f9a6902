"""Verifying a bundle: recorded inputs through lookups and executor, against recorded outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs
import numpy as np

from kernels.bundle.executors import ExecutorName, open_executor
from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.manifest import SideName
from kernels.bundle.recorded import Case, Cases, RecordedInputs
from kernels.bundle.reference import F32
from kernels.errors import BundleError
from kernels.executor import DenseExecutor
from kernels.features.blocks import SideMatrices
from kernels.graph.model import Array
from kernels.lookup import PooledLookup, shard_layout


@attrs.frozen(kw_only=True)
class Verdict:
    """How a bundle did.

    Attributes:
        max_rel_error: Largest difference over the recorded value's size; differences of at most
            ``atol`` count for nothing.
        tables_left: Constant tables in the dense graph that rows are looked up in by ids.
    """

    cases: int
    max_abs_error: float
    max_rel_error: float
    tables_cut: int
    tables_left: int
    seconds: float
    ok: bool


def verify(
    bundle: Bundle, cases: Cases, *, rtol: float, atol: float, executor: ExecutorName = "host"
) -> Verdict:
    """Run all cases on an executor.

    Raises:
        BundleError: A case lacks an input or output that the bundle has, or its shape is wrong.
        GraphError: The bundle's graph is for the host executor alone, and another is asked for.
    """
    start = time.perf_counter()
    max_rows = max(_n_rows(case) for case in cases.values())
    opened = open_executor(executor, bundle, max_rows=max_rows, max_requests=max_rows)
    runner = Runner(bundle, opened)
    largest, relative, ok = 0.0, 0.0, True
    for name, case in sorted(cases.items()):
        scores = runner.scores(name, case.inputs)
        for output in bundle.manifest.outputs:
            if output.name not in case.outputs:
                raise BundleError(f"{name}/out/{output.name} is missing")
            want = case.outputs[output.name].astype(np.float64)
            if want.shape != (len(scores), *output.shape):
                raise BundleError(
                    f"{name}/out/{output.name}: {list(want.shape)} was recorded; the model gives "
                    f"{[len(scores), *output.shape]}"
                )
            got = scores[:, output.offset : output.offset + output.width].reshape(want.shape)
            difference = np.nan_to_num(np.abs(got - want))
            ok = ok and bool(np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True))
            largest = max(largest, float(difference.max(initial=0.0)))
            beyond = np.where(difference > atol, difference, 0.0)
            size = np.maximum(np.abs(np.nan_to_num(want)), np.finfo(np.float32).tiny)
            relative = max(relative, float((beyond / size).max(initial=0.0)))
    runner.close()
    return Verdict(
        cases=len(cases),
        max_abs_error=largest,
        max_rel_error=relative,
        tables_cut=len(bundle.manifest.tables),
        tables_left=sum(not kept.positional for kept in bundle.manifest.kept),
        seconds=round(time.perf_counter() - start, 3),
        ok=ok,
    )


def _n_rows(case: Case) -> int:
    return max((len(array) for array in case.inputs.values() if array.ndim), default=1)


class Runner:
    """Scores recorded graph inputs: encoded features to matrices, lookups, executor.

    Rows that agree in all that the user side has are one request.

    Args:
        bundle: What runs.
        executor: Of this bundle; closed with the runner.
    """

    def __init__(self, bundle: Bundle, executor: DenseExecutor) -> None:
        self._bundle = bundle
        self._inputs = RecordedInputs(bundle)
        manifest = bundle.manifest
        tables = {table.name: bundle.open_table(table.name) for table in manifest.tables}
        self._lookups = {
            side: PooledLookup(tables, shard_layout(manifest.side(side), tables)) for side in SIDES
        }
        self._executor = executor

    def scores(self, case: str, feeds: Mapping[str, Array]) -> F32:
        """Return float32 ``[n, n_outputs]``."""
        rows = self._inputs.rows(case, feeds)
        n_rows, n_requests = len(rows.request_of_row), rows.n_requests
        staging = self._executor.staging(0)
        staging.user[:n_requests] = self._block("user", rows.user)
        staging.candidate[:n_rows] = self._block("candidate", rows.candidate)
        staging.request_of_row[:n_rows] = rows.request_of_row
        return self._executor.run(0, n_requests, n_rows)

    def close(self) -> None:
        """Close the executor."""
        self._executor.close()

    def _block(self, side: SideName, matrices: SideMatrices) -> F32:
        layout = self._bundle.manifest.side(side)
        block = np.empty((len(matrices.values), layout.width), np.float32)
        width = layout.width - len(layout.values)
        if width:
            self._lookups[side].run(matrices.ids, matrices.weights, block[:, :width])
        block[:, width:] = matrices.values
        return block

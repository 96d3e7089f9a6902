"""The reference executor: a bundle's dense graph on the compiler's oracle, in numpy and float64.

Slow and exact: what the graph means to the compiler, behind the interface of ``executor.py``. A
model that agrees with its recorded outputs here was imported right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.load import Bundle
from kernels.errors import LaunchFailed
from kernels.executor import Staging
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import evaluate
from kernels.program import Bucket


class ReferenceExecutor:
    """Implements ``DenseExecutor``. A bucket is what was staged; a lane is a staging alone.

    Args:
        bundle: Its dense graph is imported; nothing of it is kept.
        n_lanes: Launches at once, each in the thread that calls ``run``.
        max_rows: Rows of a lane's staging.
        max_requests: Requests of a lane's staging.

    Raises:
        GraphError: The graph has an operator, or a use of one, that the compiler does not know.
    """

    def __init__(
        self, bundle: Bundle, n_lanes: int = 1, *, max_rows: int = 1024, max_requests: int = 256
    ) -> None:
        if min(n_lanes, max_rows, max_requests) < 1:
            raise ValueError(
                f"want at least 1 of each, got n_lanes={n_lanes}, max_rows={max_rows}, "
                f"max_requests={max_requests}"
            )
        manifest = bundle.manifest
        self.graph = import_dense(bundle.dense_model(), manifest.model)
        self._closed = False
        self._max_rows, self._max_requests = max_rows, max_requests
        self._n_outputs = sum(output.width for output in manifest.outputs)
        self._stagings = [
            Staging(
                np.zeros((max_requests, manifest.user.width), np.float32),
                np.zeros((max_rows, manifest.candidate.width), np.float32),
                np.zeros(max_rows, np.int64),
            )
            for _ in range(n_lanes)
        ]

    @property
    def n_lanes(self) -> int:
        """Launches that may be under way at once."""
        return len(self._stagings)

    @property
    def max_rows(self) -> int:
        """The most rows that one launch takes."""
        return self._max_rows

    @property
    def max_requests(self) -> int:
        """The most requests that one launch takes."""
        return self._max_requests

    @property
    def n_outputs(self) -> int:
        """Columns of the scores."""
        return self._n_outputs

    @property
    def sequences(self) -> None:
        """None: a batch has all steps of each."""
        return None

    def bucket(self, n_rows: int) -> int:
        """Return ``n_rows``: nothing is padded."""
        return n_rows

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        """Return the buffers of a lane. They belong to the caller while the lane is idle.

        They are of one layout, whatever the shape.
        """
        return self._stagings[lane]

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        """Run what was staged, in this thread.

        Returns:
            float32 ``[n_rows, n_outputs]``, owned by the caller.

        Raises:
            LaunchFailed: The executor is closed.
        """
        return self.run_exact(lane, n_requests, n_rows).astype(np.float32)

    def run_exact(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float64]:
        """Run what was staged and return float64 ``[n_rows, n_outputs]``; see ``run``."""
        if self._closed:
            raise LaunchFailed(f"{self.graph.model}: the executor is closed")
        staging = self._stagings[lane]
        blocks = {"user": staging.user[:n_requests], "candidate": staging.candidate[:n_rows]}
        inputs = {name: blocks[name] for name in self.graph.inputs}
        scores: NDArray[np.float64] = evaluate(
            self.graph, inputs, staging.request_of_row[:n_rows], np.float64
        )
        return scores

    def close(self) -> None:
        """Give everything back. No launch may be under way."""
        self._closed = True

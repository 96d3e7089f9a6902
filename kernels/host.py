"""The host executor: a bundle's dense graph on the CPU, through ONNX Runtime.

What runs where there is no GPU, behind the interface of ``executor.py``, lanes included. The host
pads nothing: a launch runs exactly the rows that were staged, and a bucket is only what times are
predicted for.
"""

from __future__ import annotations

import time
from typing import Any, Final

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from kernels.bundle.load import Bundle
from kernels.errors import BundleError, LaunchFailed
from kernels.executor import Staging
from kernels.host_graph import for_host
from kernels.program import Bucket

# It has a class for each status code, with no base of their own.
_ORT_ERRORS: Final[tuple[type[Exception], ...]] = tuple(
    cls for cls in vars(_state).values() if isinstance(cls, type) and issubclass(cls, Exception)
)
_DAMAGED: Final[tuple[type[Exception], ...]] = (
    *_ORT_ERRORS,
    google.protobuf.message.DecodeError,
    onnx.shape_inference.InferenceError,
)
_TYPES: Final = {
    "user": "tensor(float)",
    "candidate": "tensor(float)",
    "request_of_row": "tensor(int64)",
}
_OUTPUT: Final = "scores"
_RECURRENT: Final = frozenset({"GRU", "LSTM", "RNN"})
# For whole cache lines and the widest vectors.
_ALIGNMENT: Final = 64
_ERRORS_ONLY: Final = 3


class HostExecutor:
    """Implements ``DenseExecutor``. Opening it compiles the graph and runs it once at full size.

    Args:
        bundle: Its dense graph is read; nothing of it is kept.
        n_lanes: Launches at once; each is run by the thread that calls ``run``.
        max_rows: Rows of a lane's staging. Time grows with the rows on a CPU and a larger launch
            gains little beyond some hundreds, so this bounds what one launch holds up.
        max_requests: Requests of a lane's staging.
        n_threads: Threads that one launch uses; more than one makes it wait for the others.

    Raises:
        BundleError: The graph does not load, does not run, or has other inputs and outputs than the
            manifest says.
    """

    def __init__(
        self,
        bundle: Bundle,
        n_lanes: int = 1,
        *,
        max_rows: int = 1024,
        max_requests: int = 256,
        n_threads: int = 1,
    ) -> None:
        if min(n_lanes, max_rows, max_requests, n_threads) < 1:
            raise ValueError(
                f"want at least 1 of each, got n_lanes={n_lanes}, max_rows={max_rows}, "
                f"max_requests={max_requests}, n_threads={n_threads}"
            )
        manifest = bundle.manifest
        self._model = manifest.model
        self._max_rows = max_rows
        self._max_requests = max_requests
        self._n_outputs = sum(output.width for output in manifest.outputs)
        widths = {"user": manifest.user.width, "candidate": manifest.candidate.width}
        # One more than a launch takes: room for the companion.
        self._stagings = [
            Staging(
                _zeros((max_requests + 1, widths["user"]), np.float32),
                _zeros((max_rows + 1, widths["candidate"]), np.float32),
                _zeros((max_rows + 1,), np.int64),
            )
            for _ in range(n_lanes)
        ]
        self._lent = [
            Staging(each.user[:-1], each.candidate[:-1], each.request_of_row[:-1])
            for each in self._stagings
        ]
        self._sample = bundle.sample()
        self._companions = 0
        self._session: Any = _open_session(bundle, n_threads)
        # A graph without user features has no such input.
        self._inputs = _checked_inputs(self._session, str(bundle.path), widths)
        try:
            for lane, staging in enumerate(self._stagings):
                staging.user[:], staging.candidate[:] = self._sample
                self.run(lane, max_requests, max_rows)
            self._companions = self._count_companions(bundle)
        except LaunchFailed as error:
            raise BundleError(f"{bundle.path}: dense.onnx: {error}") from error

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
        """Return ``n_rows`` rounded up to three binary digits: 1 to 8, 10, 12, 14, 16, 20, ..."""
        step = 1 << max((n_rows - 1).bit_length() - 3, 0)
        return min(-(-n_rows // step) * step, self._max_rows)

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        """Return the buffers of a lane. They belong to the caller while the lane is idle.

        They are of one layout, whatever the shape.
        """
        return self._lent[lane]

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        """Run what was staged, in this thread; other lanes may run at the same time.

        Returns:
            float32 ``[n_rows, n_outputs]``, owned by the caller.

        Raises:
            LaunchFailed: ONNX Runtime refused, or the executor is closed. The lane can be used on.
        """
        if self._session is None:
            raise LaunchFailed(f"{self._model}: the executor is closed")
        staging = self._stagings[lane]
        if self._companions:
            staging.user[n_requests], staging.candidate[n_rows] = self._sample
            staging.request_of_row[n_rows] = n_requests
        n_run = n_rows + self._companions
        arrays = {
            "user": staging.user[: n_requests + self._companions],
            "candidate": staging.candidate[:n_run],
            "request_of_row": staging.request_of_row[:n_run],
        }
        try:
            scores: NDArray[np.float32] = self._session.run(
                [_OUTPUT], {name: arrays[name] for name in self._inputs}
            )[0]
        except _ORT_ERRORS as error:
            raise LaunchFailed(
                f"{self._model}: {n_requests} requests, {n_rows} rows: {error}"
            ) from error
        if scores.shape != (n_run, self._n_outputs):
            raise LaunchFailed(
                f"{self._model}: scores are {scores.shape}, not {(n_run, self._n_outputs)}"
            )
        return scores[:n_rows]

    def measure(self) -> list[tuple[int, float]]:
        """Time a launch of 1, 4, 16, ... rows and of the most: ``(rows, seconds)`` of each.

        For whoever predicts launch times, before there is traffic to learn from. Overwrites the
        first lane's staging; no launch may be under way.
        """
        self._stagings[0].request_of_row[:] = 0
        sizes = [4**power for power in range(16) if 4**power < self._max_rows] + [self._max_rows]
        times = []
        for n_rows in sizes:
            self.run(0, 1, n_rows)
            start = time.perf_counter()
            self.run(0, 1, n_rows)
            times.append((n_rows, time.perf_counter() - start))
        return times

    def _count_companions(self, bundle: Bundle) -> int:
        """Return how many rows that nobody asked for each launch needs: 1 or 0.

        Some graphs squeeze a batch axis of 1 away and fail on one row alone. And ONNX Runtime 1.32
        ends the process where all sequences that a GRU runs over are empty, which a client could
        bring about. The bundle's sample row, whose sequences are not, keeps such launches company.
        """
        nodes = onnx.load_from_string(bundle.dense_model()).graph.node
        if any(node.op_type in _RECURRENT for node in nodes):
            return 1
        try:
            self.run(0, 1, 1)
        except LaunchFailed:
            return 1
        return 0

    def close(self) -> None:
        """Free the session. No launch may be under way."""
        self._session = None


def _open_session(bundle: Bundle, n_threads: int) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Idle workers sleep: a core that spins is lost to the event loop beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A memory pattern is kept for each shape that was ever run, and here every shape is: without,
    # memory stays flat (3,000 launches of random sizes) and speed is the same.
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(
            for_host(bundle.dense_model()), options, providers=["CPUExecutionProvider"]
        )
    except _DAMAGED as error:
        raise BundleError(f"{bundle.path}: dense.onnx does not load: {error}") from error


def _checked_inputs(
    session: Any,  # noqa: ANN401 - onnxruntime is untyped
    path: str,
    widths: dict[str, int],
) -> list[str]:
    """Return the names of the graph's inputs, once it is clear that it is the bundle's."""
    for tensor in session.get_inputs():
        if _TYPES.get(tensor.name) != tensor.type:
            raise BundleError(f"{path}: dense.onnx has an input {tensor.name} of {tensor.type}")
        width = tensor.shape[-1]
        if tensor.name in widths and isinstance(width, int) and width != widths[tensor.name]:
            raise BundleError(
                f"{path}: dense.onnx takes {width} columns of {tensor.name}, "
                f"the manifest says {widths[tensor.name]}"
            )
    outputs = [tensor.name for tensor in session.get_outputs()]
    if outputs != [_OUTPUT]:
        raise BundleError(f"{path}: dense.onnx gives {outputs}, not {[_OUTPUT]}")
    return [tensor.name for tensor in session.get_inputs()]


def _zeros(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return zeros that start at a multiple of ``_ALIGNMENT`` bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)

"""The executors by name, for the tools that can run a bundle on any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from kernels.bundle.load import Bundle
from kernels.errors import GraphError
from kernels.executor import DenseExecutor
from kernels.host import HostExecutor
from kernels.reference_executor import ReferenceExecutor

ExecutorName = Literal["host", "reference", "cuda"]
EXECUTORS: Final[tuple[ExecutorName, ...]] = get_args(ExecutorName)

# How far scores may be off: float32 sums in another order, and fp16 storage with fp32 sums, for
# which 2e-3 of a probability is the bar.
TOLERANCES: Final[Mapping[ExecutorName, float]] = {"host": 1e-5, "reference": 1e-5, "cuda": 2e-3}


def open_executor(
    name: ExecutorName, bundle: Bundle, *, max_rows: int, max_requests: int
) -> DenseExecutor:
    """Open an executor of one lane.

    Raises:
        GraphError: The bundle's graph is for the host executor alone, and another is asked for.
        BundleError: The bundle does not run.
    """
    if name == "host":
        return HostExecutor(bundle, max_rows=max_rows, max_requests=max_requests)
    gpu = bundle.manifest.gpu
    if not gpu.supported:
        raise GraphError(f"runs on the host executor only: {gpu.reason}")
    if name == "reference":
        return ReferenceExecutor(bundle, max_rows=max_rows, max_requests=max_requests)
    # Imported late: a machine without a driver uses all the rest.
    from kernels.gpu.executor import GpuExecutor

    executor: DenseExecutor = GpuExecutor(bundle, max_rows=max_rows, max_requests=max_requests)
    return executor

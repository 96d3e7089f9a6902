"""The executors by name, for the tools that can run a bundle on any of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

from kernels.bundle.load import Bundle
from kernels.bundle.representative import fp8_of
from kernels.compiler import Options
from kernels.errors import GraphError
from kernels.executor import DenseExecutor
from kernels.fp8 import Scales
from kernels.host import HostExecutor
from kernels.program import Precision
from kernels.reference_executor import ReferenceExecutor

ExecutorName = Literal[
    "host", "reference", "cuda", "cuda-fp32", "cuda-tf32", "cuda-bf16", "cuda-fp8"
]
EXECUTORS: Final[tuple[ExecutorName, ...]] = get_args(ExecutorName)

# How far scores may be off: float32 sums in another order, and fp16 storage with fp32 sums, for
# which 2e-3 of a probability is the bar.
TOLERANCES: Final[Mapping[ExecutorName, float]] = {
    "host": 1e-5,
    "reference": 1e-5,
    "cuda": 2e-3,
    "cuda-fp32": 1e-5,
    "cuda-tf32": 2e-3,  # factors have as many bits as fp16's
    "cuda-bf16": 1.6e-2,  # three bits less than fp16
    "cuda-fp8": 5e-2,  # seven bits less, of what large Linears read
}


def open_executor(
    name: ExecutorName,
    bundle: Bundle,
    *,
    max_rows: int,
    max_requests: int,
    buckets: Iterable[int] = (),
) -> DenseExecutor:
    """Open an executor of one lane.

    Args:
        name: Which; on a card, values are stored as ``fp16`` unless it names another precision,
            with ``fp8`` all but what large Linears leave to each other.
        bundle: What it runs.
        max_rows: Rows of its largest bucket.
        max_requests: Requests of its largest bucket.
        buckets: Rows of the others, where there are any to compile.

    Raises:
        GraphError: The bundle's graph is for the host executor alone, and another is asked for.
        BundleError: The bundle does not run.
        KernelsError: There is no card, or it cannot run the graph.
    """
    if name == "host":
        return HostExecutor(bundle, max_rows=max_rows, max_requests=max_requests)
    gpu = bundle.manifest.gpu
    if not gpu.supported:
        raise GraphError(f"runs on the host executor only: {gpu.reason}")
    if name == "reference":
        return ReferenceExecutor(bundle, max_rows=max_rows, max_requests=max_requests)
    fp8 = fp8_of(bundle, Scales.ROW) if name == "cuda-fp8" else None
    named = "-" in name and fp8 is None
    precision = Precision(name.removeprefix("cuda-")) if named else Precision.FP16
    return _on_card(bundle, Options(precision, fp8=fp8), max_rows, max_requests, buckets)


def _on_card(
    bundle: Bundle,
    options: Options,
    max_rows: int,
    max_requests: int,
    buckets: Iterable[int],
) -> DenseExecutor:
    # Imported late: a machine without a driver, or without its bindings, uses all the rest.
    from kernels.gpu.executor import GpuExecutor
    from kernels.gpu.model import model_of
    from kernels.nvrtc import Builder, Cache, default_folder

    model = model_of(bundle, max_rows=max_rows, max_requests=max_requests, options=options)
    builder = Builder(Cache(default_folder()), os.cpu_count() or 1)
    return GpuExecutor(model, builder, buckets=buckets)

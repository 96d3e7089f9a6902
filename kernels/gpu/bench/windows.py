"""Requests merged into windows or launched one by one; lanes, and how they are kept apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import numpy as np

from kernels.errors import CudaError, KernelsError
from kernels.gpu.bench.load import Request, draw_requests, run_load, stage
from kernels.gpu.bench.subject import Subject
from kernels.gpu.buckets import usual_buckets
from kernels.gpu.device import Isolation
from kernels.gpu.executor import Builder, GpuExecutor
from kernels.ir.reference import evaluate
from kernels.program import Precision

# Largest error of a score against float64; probabilities, or what is as small.
_TOLERANCES: Final = {
    Precision.FP16: 2e-3,
    Precision.BF16: 2e-2,
    Precision.TF32: 2e-3,
    Precision.FP32: 1e-5,
}
_CHECKED_ROWS: Final = 300


@attrs.frozen(kw_only=True)
class Settings:
    """How an executor is loaded.

    Attributes:
        max_rows, max_requests: Of the largest bucket.
        n_clients: Requests that wait or run at any time.
        seconds: Of each measurement, warm-up aside.
    """

    max_rows: int = 2048
    max_requests: int = 64
    n_clients: int = 64
    seconds: float = 2.0

    @property
    def buckets(self) -> tuple[int, ...]:
        """Rows of the buckets: given ones, as those that adapt would compile in between."""
        return tuple(each.rows for each in usual_buckets(self.max_rows, self.max_requests))


def open_executor(
    subject: Subject,
    settings: Settings,
    builder: Builder,
    n_lanes: int,
    mode: Isolation,
    *,
    ahead: bool = True,
) -> GpuExecutor:
    """Open a subject on so many lanes. ``builder`` becomes the executor's."""
    model = subject.model(settings.max_rows, settings.max_requests)
    return GpuExecutor(model, builder, n_lanes, mode=mode, buckets=settings.buckets, ahead=ahead)


def requests_of(subject: Subject, settings: Settings) -> list[Request]:
    """Draw a subject's requests, none larger than a launch."""
    requests = draw_requests(subject.width("user"), subject.width("candidate"))
    most = settings.max_rows
    return [attrs.evolve(each, candidate=each.candidate[:most]) for each in requests]


def measure_lanes(
    subject: Subject,
    settings: Settings,
    make_builder: Callable[[], Builder],
    lanes: Sequence[int],
    modes: Sequence[Isolation],
    windows: Sequence[bool],
) -> list[dict[str, Any]]:
    """Load an executor in each mode with each number of lanes; return a report of each.

    What a card cannot do, such as so many parts, is reported as an error, and the rest goes on.
    """
    requests = requests_of(subject, settings)
    found = []
    for mode in modes:
        for n_lanes in lanes:
            line: dict[str, Any] = {"mode": str(mode), "lanes": n_lanes}
            try:
                executor = open_executor(subject, settings, make_builder(), n_lanes, mode)
            except CudaError as error:
                found.append({**line, "error": str(error)})
                continue
            try:
                for merged in windows:
                    measured = run_load(
                        executor,
                        requests,
                        n_clients=settings.n_clients,
                        windows=merged,
                        seconds=settings.seconds,
                    )
                    found.append({**line, "windows": merged, **measured.facts()})
            finally:
                executor.close()
    return found


def check_scores(
    subject: Subject,
    settings: Settings,
    make_builder: Callable[[], Builder],
) -> float:
    """Return the largest error of a window of three requests against float64.

    Raises:
        KernelsError: It is too large for the precision.
    """
    requests = [
        attrs.evolve(each, candidate=each.candidate[:_CHECKED_ROWS])
        for each in requests_of(subject, settings)[:3]
    ]
    with_room = attrs.evolve(settings, max_rows=max(settings.max_rows, 3 * _CHECKED_ROWS))
    executor = open_executor(subject, with_room, make_builder(), 1, Isolation.STREAMS)
    try:
        scores = executor.run(0, 3, stage(executor, 0, requests))
    finally:
        executor.close()
    inputs = {
        "user": np.stack([each.user for each in requests]),
        "candidate": np.concatenate([each.candidate for each in requests]),
    }
    request_of_row = np.repeat(np.arange(3), [each.n_rows for each in requests])
    given = {name: inputs[name] for name in subject.graph.inputs}
    error = float(np.abs(scores - evaluate(subject.graph, given, request_of_row)).max())
    if not error <= _TOLERANCES[subject.options.precision]:
        raise KernelsError(f"{subject.name}: scores are off by {error:.2g} from float64")
    return error

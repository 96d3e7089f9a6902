"""What is compared, and on what: a case, and the interface of who runs it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Final, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels import _cuda
from kernels.bench.models import Inputs, Model, Parameters
from kernels.gpu.device import Context, time_launches
from kernels.gpu.memory import DeviceMemory
from kernels.program import Precision

# As much as triton.testing.do_bench overwrites: five times the L2 of an H100.
_FLUSH_BYTES: Final = 256 << 20
_BACK_TO_BACK: Final = 20
_WARM_LAUNCHES: Final = 200


@attrs.frozen(eq=False)
class Case:
    """A model at a size.

    Attributes:
        parameters: Float32; contenders round them to ``precision``.
        draws: Inputs, each with its scores in float64.
    """

    model: Model
    rows: int
    precision: Precision
    parameters: Parameters
    draws: tuple[tuple[Inputs, NDArray[np.float64]], ...]


@attrs.frozen
class Timing:
    """Device time of one batch, in microseconds.

    Attributes:
        us: Median, after L2 was overwritten.
        back_to_back_us: Median of 20 batches in a row, divided by 20.
    """

    us: float
    back_to_back_us: float


@attrs.frozen
class Work:
    """What one batch takes at least: see ``kernels.program.Program``."""

    flops: int
    bytes_moved: int


class Running(Protocol):
    """A contender that is ready to run one case."""

    @property
    def launches(self) -> int | None:
        """Kernels of one batch; None if they cannot be counted."""

    @property
    def compile_s(self) -> float:
        """Seconds from the model to the first result."""

    @property
    def work(self) -> Work | None:
        """What the batch takes at least, if the contender knows."""

    def scores(self, inputs: Inputs) -> NDArray[Any]:
        """Score a batch once, its output poisoned before; ``[rows, n_outputs]``."""

    def timing(self) -> Timing:
        """Measure, on the inputs scored last."""

    def close(self) -> None:
        """Free what the case took."""


class Contender(Protocol):
    """Who is compared."""

    @property
    def name(self) -> str:
        """Its column in the table."""

    def open(self, case: Case) -> Running:
        """Get ready to run a case."""


class Stopwatch:
    """Times queued work, by the same loop for ours and for torch's graphs.

    Args:
        context: The primary context, which torch uses too.
        n_repeats: Measurements that a median is taken of.
    """

    def __init__(self, context: Context, n_repeats: int) -> None:
        self.context = context
        self.stream = context.stream()
        self._n_repeats = n_repeats
        with context.use():
            self._flushed = DeviceMemory.allocate(_FLUSH_BYTES)

    def time(self, queue: Callable[[], None]) -> Timing:
        """Time what ``queue`` queues on ``stream``. The processor stays ahead behind each flush."""
        for _ in range(_WARM_LAUNCHES):
            queue()
        cold = self._seconds(queue, self._flush, self._n_repeats)

        def many() -> None:
            for _ in range(_BACK_TO_BACK):
                queue()

        def flush_and_warm() -> None:
            self._flush()
            queue()

        row = self._seconds(many, flush_and_warm, max(self._n_repeats // 10, 3))
        return Timing(statistics.median(cold) * 1e6, statistics.median(row) * 1e6 / _BACK_TO_BACK)

    def close(self) -> None:
        """Free the stream and the memory."""
        with self.context.use():
            _cuda.stream_synchronize(self.stream)
            _cuda.destroy_stream(self.stream)
            self._flushed.free()

    def _flush(self) -> None:
        _cuda.fill(self._flushed.address, 0, _FLUSH_BYTES, self.stream)

    def _seconds(
        self, queue: Callable[[], None], before: Callable[[], None], n_repeats: int
    ) -> list[float]:
        return time_launches(self.context, self.stream, queue, n_repeats=n_repeats, before=before)

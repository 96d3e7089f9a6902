"""A closed loop on an executor: so many requests are always waiting or running."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.executor import DenseExecutor

MLPERF_SIZES: Final = (100,) * 2 + (200,) * 12 + (300,) * 2 + (400, 500, 600, 700)
"""Candidates a request, equally likely: MLPerf Inference, DLRM-DCNv2."""

# Distinct requests that a load repeats; their blocks stay within hundreds of MB.
_N_DISTINCT: Final = 64
_SPREAD: Final = 0.3


@attrs.frozen(eq=False)
class Request:
    """Parts that a lane stages: float32 ``[user width]`` and ``[n_rows, candidate width]``."""

    user: NDArray[np.float32]
    candidate: NDArray[np.float32]

    @property
    def n_rows(self) -> int:
        """Candidates."""
        return len(self.candidate)


def draw_requests(
    user_width: int,
    candidate_width: int,
    sizes: Sequence[int] = MLPERF_SIZES,
    n: int = _N_DISTINCT,
    seed: int = 1,
) -> list[Request]:
    """Draw requests whose sizes are equally likely ones of ``sizes``."""
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape, np.float32) * np.float32(_SPREAD)

    return [
        Request(drawn(user_width), drawn(int(n_rows), candidate_width))
        for n_rows in random.choice(sizes, n)
    ]


@attrs.frozen(kw_only=True, eq=False)
class Measured:
    """What a load took, warm-up aside.

    Attributes:
        latencies: Seconds from a request's arrival to its scores, in the order of no matter what.
        n_rows: Asked for.
        rows_run: The same with padding.
    """

    seconds: float
    latencies: NDArray[np.float64]
    n_launches: int
    n_rows: int
    rows_run: int

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it."""
        n = len(self.latencies)
        p50, p99 = np.percentile(self.latencies, (50, 99)) * 1e3 if n else (0.0, 0.0)
        return {
            "requests_per_s": n / self.seconds,
            "batches_per_s": self.n_launches / self.seconds,
            "rows_per_s": self.n_rows / self.seconds,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "launches_per_request": self.n_launches / n if n else 0.0,
            "rows_per_launch": self.n_rows / self.n_launches if self.n_launches else 0.0,
            "padding": 1 - self.n_rows / self.rows_run if self.rows_run else 0.0,
        }


@attrs.frozen
class _Done:
    """A launch that ended: when, its requests' arrivals, and its rows."""

    at: float
    arrivals: tuple[float, ...]
    n_rows: int
    rows_run: int


@attrs.define(eq=False)
class Load:
    """Requests that are served again and again by all lanes of an executor, each in a thread.

    Args:
        executor: Used by this load alone.
        requests: Distinct ones, repeated in order; each fits a launch.
        n_clients: Requests that wait or run at any time.
        windows: Whether a launch takes all that waits and fits, or one request.
    """

    executor: DenseExecutor
    requests: Sequence[Request]
    n_clients: int
    windows: bool
    _changed: threading.Condition = attrs.field(factory=threading.Condition, init=False)
    _waiting: deque[tuple[float, int]] = attrs.field(factory=deque, init=False)
    _next: int = attrs.field(default=0, init=False)
    _stopped: bool = attrs.field(default=False, init=False)
    _problem: BaseException | None = attrs.field(default=None, init=False)
    _done: list[list[_Done]] = attrs.field(factory=list, init=False)
    _threads: list[threading.Thread] = attrs.field(factory=list, init=False)

    def start(self) -> None:
        """Let all clients ask; return at once."""
        self._arrive(self.n_clients)
        n_lanes = self.executor.n_lanes
        self._done = [[] for _ in range(n_lanes)]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), daemon=True)
            for lane in range(n_lanes)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the lanes' threads once their launches have.

        Raises:
            KernelsError: What a launch met.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._problem is not None:
            raise self._problem

    def measured(self, start: float, end: float) -> Measured:
        """Return what ended between two times of ``time.perf_counter``."""
        done = [each for lane in self._done for each in list(lane) if start <= each.at < end]
        latencies = [each.at - arrival for each in done for arrival in each.arrivals]
        return Measured(
            seconds=end - start,
            latencies=np.array(latencies, np.float64),
            n_launches=len(done),
            n_rows=sum(each.n_rows for each in done),
            rows_run=sum(each.rows_run for each in done),
        )

    def _serve(self, lane: int) -> None:
        try:
            while batch := self._take():
                self._run(lane, batch)
        except BaseException as error:  # told to whoever stops the load
            with self._changed:
                self._problem = error
                self._stopped = True
                self._changed.notify_all()

    def _take(self) -> list[tuple[float, int]]:
        """Wait for requests of one launch; none once the load is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            batch: list[tuple[float, int]] = []
            rows, most = 0, self.executor.max_requests if self.windows else 1
            while self._waiting and len(batch) < most and not self._stopped:
                n_rows = self.requests[self._waiting[0][1]].n_rows
                if rows + n_rows > self.executor.max_rows and batch:
                    break
                rows += n_rows
                batch.append(self._waiting.popleft())
            return batch

    def _run(self, lane: int, batch: Sequence[tuple[float, int]]) -> None:
        n_rows = stage(self.executor, lane, [self.requests[index] for _, index in batch])
        self.executor.run(lane, len(batch), n_rows)
        done = _Done(
            at=time.perf_counter(),
            arrivals=tuple(arrival for arrival, _ in batch),
            n_rows=n_rows,
            rows_run=self.executor.bucket(n_rows),
        )
        self._done[lane].append(done)
        self._arrive(len(batch))

    def _arrive(self, n: int) -> None:
        with self._changed:
            for _ in range(n):
                self._waiting.append((time.perf_counter(), self._next))
                self._next = (self._next + 1) % len(self.requests)
            self._changed.notify(n)


def stage(executor: DenseExecutor, lane: int, requests: Sequence[Request]) -> int:
    """Copy requests into a lane's staging, side by side; return their rows."""
    staging = executor.staging(lane)
    at = 0
    for index, request in enumerate(requests):
        end = at + request.n_rows
        staging.user[index] = request.user
        staging.candidate[at:end] = request.candidate
        staging.request_of_row[at:end] = index
        at = end
    return at


def run_load(
    executor: DenseExecutor,
    requests: Sequence[Request],
    *,
    n_clients: int,
    windows: bool,
    seconds: float,
) -> Measured:
    """Serve for ``seconds`` after a fifth of that to warm up.

    Raises:
        KernelsError: What a launch met.
    """
    load = Load(executor, requests, n_clients, windows)
    load.start()
    time.sleep(seconds / 5)
    start = time.perf_counter()
    time.sleep(seconds)
    end = time.perf_counter()
    load.stop()
    return load.measured(start, end)

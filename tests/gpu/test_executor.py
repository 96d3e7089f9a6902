"""The GPU executor on a card: modes, lanes, buckets, a lost device."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kernels.gpu.device import Isolation
from kernels.gpu.executor import GpuExecutor
from kernels.nvrtc import Builder, Cache
from tests.gpu.programs import (
    ReadyBuilder,
    model,
    slow_program,
    where_program,
)

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


def stage(
    executor: GpuExecutor, lane: int, n_requests: int, n_rows: int, rng: np.random.Generator
) -> np.ndarray:
    """Stage random parts; return the scores that they should get."""
    user, candidate = rng.random((n_requests, 3)), rng.random((n_rows, 5))
    request_of_row = rng.integers(0, n_requests, n_rows)
    staging = executor.staging(lane)
    staging.user[:n_requests] = user
    staging.candidate[:n_rows] = candidate
    staging.request_of_row[:n_rows] = request_of_row
    scores: np.ndarray = candidate.sum(1) + user[request_of_row, 0]
    return scores


@pytest.mark.parametrize("mode", list(Isolation))
@pytest.mark.parametrize("mapped", [(), ("inputs",), ("inputs", "scores")])
def test_lanes_score_at_the_same_time(mode: Isolation, mapped: tuple[str, ...]) -> None:
    executor = GpuExecutor(model(), ReadyBuilder(), 4, mode=mode, mapped=mapped)
    failures: list[BaseException] = []

    def drive(lane: int) -> None:
        rng = np.random.default_rng(lane)
        try:
            for _ in range(200):
                n_rows = int(rng.integers(1, 1001))
                n_requests = int(rng.integers(1, min(n_rows, 64) + 1))
                expected = stage(executor, lane, n_requests, n_rows, rng)
                scores = executor.run(lane, n_requests, n_rows)
                np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    statistics = executor.statistics()
    assert statistics.launches == 800
    assert [bucket.rows for bucket in statistics.buckets] == [64, 128, 256, 512, 1000]
    executor.close()


@pytest.mark.parametrize("mode", [Isolation.STREAMS, Isolation.GREEN])
def test_launches_of_two_lanes_overlap(mode: Isolation) -> None:
    executor = GpuExecutor(model(slow_program), ReadyBuilder(), 2, mode=mode, buckets=[])

    def timed(n_lanes: int) -> float:
        started = time.perf_counter()
        for lane in range(n_lanes):
            executor.start(lane, 1, 10)
        for lane in range(n_lanes):
            executor.finish(lane)
        return time.perf_counter() - started

    timed(2)
    alone, together = timed(1), timed(2)
    assert alone > 0.015
    assert together < 1.5 * alone
    executor.close()


def test_starting_does_not_wait_and_waiting_does_not_spin() -> None:
    executor = GpuExecutor(model(slow_program), ReadyBuilder(), buckets=[])
    executor.run(0, 1, 10)
    started, cpu = time.perf_counter(), time.process_time()
    executor.start(0, 1, 10)
    queued = time.perf_counter() - started
    executor.finish(0)
    total = time.perf_counter() - started
    assert queued < 0.2 * total
    assert time.process_time() - cpu < 0.5 * total
    executor.close()


def test_green_lanes_have_multiprocessors_of_their_own() -> None:
    executor = GpuExecutor(
        model(where_program), ReadyBuilder(), 4, mode=Isolation.GREEN, buckets=[]
    )
    seen = []
    for lane in range(4):
        executor.start(lane, 1, 1000)
        seen.append({int(sm) for sm in executor.finish(lane)[:, 0]})
    for lane in range(4):
        assert len(seen[lane]) >= 8
        for other in range(lane):
            assert not seen[lane] & seen[other], (lane, other)
    executor.close()


def test_buckets_are_compiled_by_workers_while_larger_ones_serve(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    builder = Builder(Cache(tmp_path), 2)
    executor = GpuExecutor(model(), builder, buckets=[64, 128], ahead=False)
    expected = stage(executor, 0, 2, 10, rng)
    np.testing.assert_allclose(executor.run(0, 2, 10)[:, 0], expected, rtol=1e-5)
    executor.settle()
    assert executor.bucket(10) == 64
    expected = stage(executor, 0, 2, 10, rng)
    np.testing.assert_allclose(executor.run(0, 2, 10)[:, 0], expected, rtol=1e-5)
    assert [n_rows for n_rows, _ in executor.measure()] == [64, 128, 1000]
    executor.close()


def test_an_executor_can_be_opened_again_and_again() -> None:
    for mode in (*Isolation, *Isolation):
        executor = GpuExecutor(model(), ReadyBuilder(), 2, mode=mode)
        expected = stage(executor, 1, 3, 70, np.random.default_rng(1))
        np.testing.assert_allclose(executor.run(1, 3, 70)[:, 0], expected, rtol=1e-5)
        executor.close()


LOST = """
import sys
from kernels.errors import DeviceLost
from kernels.gpu.device import Isolation
from kernels.gpu.executor import GpuExecutor
from tests.gpu.programs import ReadyBuilder, model, trap_program

executor = GpuExecutor(model(trap_program), ReadyBuilder(), 2, mode=Isolation(sys.argv[1]))
print(executor.run(0, 1, 10)[:, 0].tolist())
for lane in (0, 1):
    try:
        executor.run(lane, 1, 11)
    except DeviceLost as error:
        print("lost", error)
executor.close()
print("closed")
"""


@pytest.mark.parametrize("mode", list(Isolation))
def test_a_kernel_that_breaks_loses_the_device(mode: Isolation) -> None:
    ran = python(LOST, mode)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert lines[0] == str([1.0] * 10)
    assert lines[1].startswith("lost cu")
    assert lines[2].startswith("lost cu")
    assert lines[3] == "closed"


def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

"""Several processes on one card, each with an executor of its own; with and without MPS.

Without MPS, processes take turns on a card. A child tells when it is ready, serves when it is told,
and then prints what it measured, one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from kernels.errors import CudaError, KernelsError
from kernels.executor import DenseExecutor
from kernels.gpu.bench.load import Request, run_load
from kernels.gpu.mps import Mps

# A child imports, compiles from a warm cache and captures; one that takes longer hangs.
_LIMIT_S: Final = 120.0
_SHOWN: Final = 300


def serve_as_child(
    executor: DenseExecutor,
    requests: Sequence[Request],
    n_clients: int,
    seconds: float,
    told: TextIO,
    out: TextIO,
) -> None:
    """Serve once told to, and print what was measured."""
    out.write("ready\n")
    out.flush()
    if not told.readline():
        return
    measured = run_load(executor, requests, n_clients=n_clients, windows=True, seconds=seconds)
    line = {**measured.facts(), "latencies_ms": np.round(measured.latencies * 1e3, 4).tolist()}
    out.write(json.dumps(line) + "\n")
    out.flush()


def measure_processes(
    command: Sequence[str], n: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Let ``n`` children serve at once; return the sums of their rates, and p50 and p99 of all.

    Args:
        command: Of a child: arguments of Python.
        n: How many.
        environment: Variables of theirs, besides ours.

    Raises:
        KernelsError: A child ended early; says what it printed last.
    """
    with contextlib.ExitStack() as owned:
        children = [owned.enter_context(_child(command, environment or {})) for _ in range(n)]
        watchdog = threading.Timer(_LIMIT_S, _kill, [children])
        watchdog.daemon = True
        watchdog.start()
        owned.callback(watchdog.cancel)
        for child in children:
            if _line(child) != "ready":
                raise KernelsError("a child said something else than that it is ready")
        for process, _ in children:
            assert process.stdin is not None
            process.stdin.write("serve\n")
            process.stdin.flush()
        found = [json.loads(_line(child)) for child in children]
    latencies = np.concatenate([each.pop("latencies_ms") for each in found])
    p50, p99 = np.percentile(latencies, (50, 99)) if len(latencies) else (0.0, 0.0)
    n_requests = sum(each["requests_per_s"] for each in found)
    n_batches = sum(each["batches_per_s"] for each in found)
    rows = sum(each["rows_per_s"] for each in found)
    run = sum(each["rows_per_s"] / (1 - each["padding"]) for each in found)
    return {
        "requests_per_s": n_requests,
        "batches_per_s": n_batches,
        "rows_per_s": rows,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "launches_per_request": n_batches / n_requests if n_requests else 0.0,
        "rows_per_launch": rows / n_batches if n_batches else 0.0,
        "padding": 1 - rows / run if run else 0.0,
    }


def measure_shares(
    command: Sequence[str], counts: Sequence[int], make_mps: Callable[[Path], Mps] = Mps
) -> list[dict[str, Any]]:
    """Measure so many processes without MPS, with it, and with it and a share of the card each.

    A machine without MPS is reported as an error of these lines, and the rest goes on.
    """
    found: list[dict[str, Any]] = []

    def note(n: int, mps: str, environment: Mapping[str, str] | None) -> None:
        line: dict[str, Any] = {"processes": n, "mps": mps}
        try:
            found.append({**line, **measure_processes(command, n, environment)})
        except KernelsError as error:
            found.append({**line, "error": str(error)})

    for n in counts:
        note(n, "off", None)
    # Sockets have 107 bytes: the folder is at the top.
    with tempfile.TemporaryDirectory(prefix="tb-mps-", dir="/tmp") as folder:
        try:
            mps = make_mps(Path(folder))
            mps.start()
        except CudaError as error:
            return [*found, {"processes": max(counts), "mps": "on", "error": str(error)}]
        try:
            for n in counts:
                note(n, "on", mps.environment())
                note(n, f"{100 // n} %", mps.environment(100 // n))
        finally:
            try:
                mps.stop()
            except CudaError as error:
                found.append({"processes": max(counts), "mps": "on", "error": str(error)})
    return found


_Child = tuple["subprocess.Popen[str]", TextIO]


@contextlib.contextmanager
def _child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[_Child]:
    """Start a child; kill it in the end, if it still runs. Its errors go to a file of its own."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield process, errors
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _kill(children: Sequence[_Child]) -> None:
    for process, _ in children:
        process.kill()


def _line(child: _Child) -> str:
    process, errors = child
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        status = process.wait()
        errors.seek(0)
        said = " ".join(errors.read().split())[-_SHOWN:]
        raise KernelsError(f"a child ended early with status {status}: {said or 'without a word'}")
    return line

"""Seconds to compile all buckets, cold and warm; and how compiling disturbs whoever serves."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import attrs
import numpy as np

from kernels.gpu.bench.load import Load
from kernels.gpu.bench.subject import Subject
from kernels.gpu.bench.windows import Settings, open_executor, requests_of
from kernels.gpu.buckets import bucket_of
from kernels.gpu.device import Isolation
from kernels.gpu.executor import Builder as ExecutorBuilder
from kernels.nvrtc import Builder, Cache
from kernels.program import Target

_BEAT_S: Final = 0.001


def compile_seconds(
    subject: Subject, settings: Settings, target: Target, n_workers: int
) -> dict[str, Any]:
    """Compile all buckets with an empty cache, then with that cache.

    Returns:
        Seconds to plan (from the graph to the sources), then to build cold and warm.
    """
    start = time.perf_counter()
    programs = [
        subject.compile(bucket_of(rows, settings.max_requests), target) for rows in settings.buckets
    ]
    planned = time.perf_counter() - start
    sources = [source for program in programs for source in program.sources]
    seconds = []
    with tempfile.TemporaryDirectory(prefix="tb-cubins-") as folder:
        for _ in range(2):
            start = time.perf_counter()
            with Builder(Cache(Path(folder)), n_workers, niceness=0) as builder:
                cubins = builder.build_all(sources)
            seconds.append(time.perf_counter() - start)
    return {
        "model": subject.name,
        "buckets": len(programs),
        "kernels": len({source.text for source in sources}),
        "workers": n_workers,
        "plan_s": planned,
        "cold_s": seconds[0],
        "warm_s": seconds[1],
        "slowest_s": max(cubin.seconds for cubin in cubins),
    }


@attrs.define(eq=False)
class Heartbeat:
    """A thread that asks to run every millisecond, as an event loop does; notes how late it is."""

    _late: list[float] = attrs.field(factory=list, init=False)
    _stopped: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread = attrs.field(init=False)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def facts(self) -> dict[str, Any]:
        """Return how late it was, in milliseconds; to be asked once it has ended."""
        late = np.array(self._late) * 1e3 if self._late else np.zeros(1)
        return {
            "beats": len(self._late),
            "stall_p99_ms": float(np.percentile(late, 99)),
            "stall_worst_ms": float(late.max()),
        }

    def _beat(self) -> None:
        while not self._stopped.is_set():
            before = time.perf_counter()
            time.sleep(_BEAT_S)
            self._late.append(max(time.perf_counter() - before - _BEAT_S, 0.0))


def measure_stall(
    subject: Subject,
    settings: Settings,
    make_cold_builder: Callable[[], ExecutorBuilder],
    n_lanes: int,
) -> list[dict[str, Any]]:
    """Load an executor while it compiles all its buckets but the largest, and again after.

    Args:
        subject: What is served; plans of buckets that it has made before are made again.
        settings: How it is loaded.
        make_cold_builder: Its cache has nothing.
        n_lanes: Of the executor.
    """
    builder = make_cold_builder()
    executor = open_executor(subject, settings, builder, n_lanes, Isolation.STREAMS, ahead=False)
    found = []
    try:
        load = Load(executor, requests_of(subject, settings), settings.n_clients, windows=True)
        load.start()
        try:
            for compiling in (True, False):
                start = time.perf_counter()
                with Heartbeat() as heartbeat:
                    if compiling:
                        executor.settle()
                    else:
                        time.sleep(settings.seconds)
                end = time.perf_counter()
                measured = load.measured(start, end)
                line = {"compiling": compiling, "seconds": end - start, "lanes": n_lanes}
                found.append({**line, **heartbeat.facts(), **measured.facts()})
        finally:
            load.stop()
    finally:
        executor.close()
    return found

"""How much memory and time does a table of billions of parameters take, to build and to open?

::

    python -m kernels.store.scale build TABLE/ --rows 62500000 --dim 64
    python -m kernels.store.scale open TABLE/ [--warm]

``build`` streams rows with 64-bit keys into a table; ``open`` opens it, looks up batches of keys,
and checks every row that it got. Each prints one JSON line: seconds, and the memory that the
process had at most (``anonymous``: its own; ``resident``: with the pages of files that it has
mapped, which the system takes back at need). Keys and rows are made of row numbers, so that any of
them can be checked without a copy: ``made_keys`` and ``made_rows``.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.store.build import build_keyed
from kernels.store.partition import mix64
from kernels.store.rows import ROW_TYPES, encode_rows
from kernels.store.table import StoredTable

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

# Odd, so that the hash of a key times it is spread over all numbers.
_FACTOR: Final = 0x9E3779B1
_BATCH_ROWS: Final = 100_000
_SAMPLE_S: Final = 0.05


def made_keys(numbers: I64) -> I64:
    """Return the key of each row number: distinct, and spread over all 64-bit numbers."""
    return mix64(numbers).view(np.int64)


def made_rows(keys: I64, dim: int) -> F32:
    """Return keys' rows: float32 ``[n, dim]``, of -1 to 1 and with 11 digits, so exact in fp16."""
    seeds = (mix64(keys) >> np.uint64(32)).astype(np.uint32)
    factors = np.arange(1, dim + 1, dtype=np.uint32) * np.uint32(_FACTOR) | np.uint32(1)
    bits = (seeds[:, np.newaxis] * factors) >> np.uint32(21)
    return (bits.astype(np.float32) - np.float32(1024)) * np.float32(2.0**-10)


class PeakMemory:
    """Samples how much memory of its own the process has: a context manager."""

    def __init__(self) -> None:
        self.anonymous_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.anonymous_mb = max(self.anonymous_mb, memory_mb()["anonymous"])
            if self._stop.wait(_SAMPLE_S):
                return


def memory_mb(pid: int | None = None) -> dict[str, float]:
    """Return what a process, by default this one, has now, in MiB; Linux only.

    ``anonymous`` is its own; ``files`` are the pages of files that it has mapped; ``resident`` is
    both.

    Raises:
        OSError: There is no such process.
    """
    text = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    names = {"anonymous": "RssAnon", "files": "RssFile", "resident": "VmRSS"}
    return {
        name: round(int(fields.get(field, "0").split()[0]) / 1024, 1)
        for name, field in names.items()
    }


def main() -> None:
    """Build or open, and print a line."""
    parser = argparse.ArgumentParser(prog="python -m kernels.store.scale")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build")
    build.add_argument("table", type=Path)
    build.add_argument("--rows", type=int, default=62_500_000)
    build.add_argument("--dim", type=int, default=64)
    build.add_argument("--dtype", choices=ROW_TYPES, default="fp16")
    build.add_argument("--segments", type=int, default=64)
    opened = commands.add_parser("open")
    opened.add_argument("table", type=Path)
    opened.add_argument("--warm", action="store_true")
    opened.add_argument("--batches", type=int, default=200)
    options = parser.parse_args()
    print(json.dumps(_build(options) if options.command == "build" else _open(options)))  # noqa: T201


def _build(options: argparse.Namespace) -> dict[str, object]:
    def batches() -> Iterator[tuple[I64, F32]]:
        for start in range(0, options.rows, _BATCH_ROWS):
            keys = made_keys(np.arange(start, min(start + _BATCH_ROWS, options.rows)))
            yield keys, made_rows(keys, options.dim)

    began = time.perf_counter()
    last = [began]

    def progress(step: str, done: int, total: int) -> None:
        if time.perf_counter() - last[0] > 5:
            last[0] = time.perf_counter()
            sys.stderr.write(
                f"{last[0] - began:.0f} s: {step}, {done} of {total or options.rows}\n"
            )

    with PeakMemory() as peak:
        header = build_keyed(
            options.table,
            batches(),
            dim=options.dim,
            dtype=options.dtype,
            n_segments=options.segments,
            progress=progress,
        )
    return {
        "parameters": header.rows * header.dim,
        "size_mb": round(header.size_bytes / 2**20),
        "index_bytes_a_key": round(header.size_bytes / header.rows - header.row_bytes, 2),
        "build_s": round(time.perf_counter() - began, 1),
        "peak_anonymous_mb": peak.anonymous_mb,
        "peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def _open(options: argparse.Namespace) -> dict[str, object]:
    made_rows(made_keys(np.arange(5)), 4)
    line: dict[str, object] = {"before_mb": memory_mb()}
    began = time.perf_counter()
    table = StoredTable.open(options.table)
    line["open_s"] = round(time.perf_counter() - began, 4)
    line["opened_mb"] = memory_mb()
    if options.warm:
        began = time.perf_counter()
        table.warm()
        line["warm_s"] = round(time.perf_counter() - began, 1)
        line["warmed_mb"] = memory_mb()
    rng = np.random.default_rng(0)
    times = []
    for _ in range(options.batches):
        keys = made_keys(rng.integers(0, table.header.rows, 5000))
        began = time.perf_counter()
        encoded = table.fetch_encoded(keys)
        times.append(1e6 * (time.perf_counter() - began))
        want = encode_rows(made_rows(keys, table.header.dim), table.header.dtype)
        if not np.array_equal(encoded, want):
            raise SystemExit("a row is not what was stored")
    line["fetch_5000_us"] = {
        "median": round(float(np.median(times)), 1),
        "p99": round(float(np.quantile(times, 0.99)), 1),
        "ns_a_row_median": round(float(np.median(times)) / 5, 1),
    }
    line["unseen"] = table.unseen
    line["after_mb"] = memory_mb()
    return line


if __name__ == "__main__":
    main()

"""How fast are pooled lookups in stored tables, beside a plain copy of memory and beside torch?

``python -m kernels.store.bench`` pools 512 bags in each of 26 tables of 100,000 rows, in one
thread: for each dim and type of row, dense rows and 64-bit keys, and dense fp32 rows in plain
memory. The bags of a table are of one size, from 1 id in the first table to 20 in the last;
``ragged`` is fp32 rows in plain memory again, with bags of 1 to 20 ids filled up to 20 with weight
0, as they reach a shard, while torch gets them as they are.

Prints a table, and one JSON line with all of it. GB/s are of the bytes of rows that are pooled;
``copy`` is numpy copying a large array, which reads as much as it says and writes as much again.
Where torch is installed its ``embedding_bag`` pools the same rows in the same memory, wherever it
knows their type, in the same run: one repetition of each follows the other, since a machine's speed
changes with what else it does. Best and median are over repetitions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup
from kernels.lookup import PooledLookup, ShardLayout, implementation
from kernels.shards import Run
from kernels.store.build import build_dense, build_keyed
from kernels.store.partition import mix64
from kernels.store.rows import ROW_TYPES, RowType, encode_rows
from kernels.store.table import StoredTable

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

N_TABLES: Final = 26
N_BAGS: Final = 512
MOST_IDS: Final = 20
_COPY_BYTES: Final = 256 << 20
_TORCH_TYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@attrs.frozen(kw_only=True)
class Case:
    """What is measured.

    Attributes:
        kind: ``memory``, ``ragged`` (both dense, plain memory), ``dense`` or ``keyed`` (files).
    """

    kind: str
    dim: int
    dtype: RowType


@attrs.frozen(kw_only=True)
class Speed:
    """Of one way to do a case: microseconds a batch, and GB/s of the best."""

    best_us: float
    median_us: float
    gb_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and a JSON line."""
    parser = argparse.ArgumentParser(prog="python -m kernels.store.bench")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="for the tables; default: a temporary one")
    options = parser.parse_args(arguments)
    copy = _copy_gb_s()
    results = []
    _write(f"copy of memory: {copy:.1f} GB/s\n{'case':<22}{'us':>9}{'GB/s':>7}{'torch us':>10}")
    for dim in options.dims:
        cases = [Case(kind=kind, dim=dim, dtype="fp32") for kind in ("memory", "ragged")]
        cases += [
            Case(kind=kind, dim=dim, dtype=dtype)
            for kind in ("dense", "keyed")
            for dtype in ROW_TYPES
        ]
        for case in cases:
            with _folder(options.folder) as folder:
                speeds = _measure(case, options.rows, options.repeats, folder)
            results.append(
                attrs.asdict(case) | {name: attrs.asdict(speed) for name, speed in speeds.items()}
            )
            c, torch = speeds["c"], speeds.get("torch")
            _write(
                f"{case.kind:<8}{case.dtype:<6}{f'dim {dim}':<8}{c.best_us:>9.0f}{c.gb_s:>7.1f}"
                + (f"{torch.best_us:>10.0f}" if torch else "")
            )
    about = {
        "question": "pooled lookups: GB/s of row bytes",
        "implementation": implementation(),
        "machine": platform.processor() or platform.machine(),
        "tables": N_TABLES,
        "rows": options.rows,
        "bags": N_BAGS,
        "copy_gb_s": round(copy, 2),
        "cases": results,
    }
    _write(json.dumps(about))


def _measure(case: Case, n_rows: int, repeats: int, folder: Path) -> dict[str, Speed]:
    """Time a case's ways in turn."""
    rng = np.random.default_rng(0)
    sizes = [round(1 + i * (MOST_IDS - 1) / (N_TABLES - 1)) for i in range(N_TABLES)]
    padded = [MOST_IDS] * N_TABLES if case.kind == "ragged" else sizes
    layout = _layout(case.dim, padded, weighted=case.kind == "ragged")
    ids = rng.integers(0, n_rows, (sum(padded), N_BAGS))
    weights: F32 = np.ones((0, N_BAGS), np.float32)
    present = np.ones(ids.shape, bool)
    if case.kind == "ragged":
        lengths = rng.integers(1, MOST_IDS + 1, (N_TABLES, 1, N_BAGS))
        present = (np.arange(MOST_IDS)[:, np.newaxis] < lengths).reshape(ids.shape)
        ids[~present] = 0
        weights = present.astype(np.float32)
    tables: dict[str, Any] = {
        f"t{i}": _table(case, folder / f"t{i}", n_rows, rng) for i in range(N_TABLES)
    }
    given = mix64(ids).view(np.int64) if case.kind == "keyed" else ids
    lookup = PooledLookup(tables, layout)
    out = np.empty((N_BAGS, layout.width), np.float32)
    ways: dict[str, Callable[[], object]] = {"c": lambda: lookup.run(given, weights, out)}
    if torch := _torch(case, tables, ids, present, padded, out.copy()):
        ways["torch"] = torch
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 2):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if repeat >= 2:
                times[name].append(1e6 * (time.perf_counter() - began))
    row_bytes = encode_rows(np.zeros((1, case.dim), np.float32), case.dtype).nbytes
    n_bytes = int(present.sum()) * row_bytes
    return {
        name: Speed(
            best_us=round(min(each), 1),
            median_us=round(float(np.median(each)), 1),
            gb_s=round(n_bytes / min(each) / 1e3, 2),
        )
        for name, each in times.items()
    }


def _table(case: Case, path: Path, n_rows: int, rng: np.random.Generator) -> StoredTable | F32:
    rows: F32 = rng.standard_normal((n_rows, case.dim), np.float32)
    if case.kind in ("memory", "ragged"):
        return rows
    if case.kind == "keyed":
        keys = mix64(np.arange(n_rows)).view(np.int64)
        build_keyed(path, [(keys, rows)], dim=case.dim, dtype=case.dtype)
    else:
        build_dense(path, [rows], rows=n_rows, dim=case.dim, dtype=case.dtype)
    table = StoredTable.open(path)
    table.warm()
    return table


def _torch(
    case: Case,
    tables: dict[str, Any],
    ids: I64,
    present: NDArray[np.bool_],
    sizes: Sequence[int],
    out: F32,
) -> Callable[[], object] | None:
    """Return a call of torch that does what the case does; None if there is no such thing."""
    if case.kind == "keyed" or case.dtype not in _TORCH_TYPES:
        return None
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    torch.set_num_threads(1)
    dtype = getattr(torch, _TORCH_TYPES[case.dtype])
    to = torch.from_numpy(out)
    bags, first = [], 0
    for table, size in zip(tables.values(), sizes, strict=True):
        rows = table if isinstance(table, np.ndarray) else table.rows_of(0)
        with _quiet_about_read_only():
            weight = torch.from_numpy(rows.view(np.uint8)).view(dtype).reshape(-1, case.dim)
        mine = present[first : first + size].T
        flat = torch.from_numpy(np.ascontiguousarray(ids[first : first + size].T[mine]))
        lengths = mine.sum(axis=1)
        offsets = torch.from_numpy(np.cumsum(lengths) - lengths)
        bags.append((flat, weight, offsets))
        first += size

    def run() -> None:
        with torch.inference_mode():
            for i, (flat, weight, offsets) in enumerate(bags):
                to[:, i * case.dim : (i + 1) * case.dim] = torch.nn.functional.embedding_bag(
                    flat, weight, offsets, mode="sum"
                )

    return run


@contextmanager
def _quiet_about_read_only() -> Iterator[None]:
    """Let torch share memory that it may not write, which it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _layout(dim: int, sizes: Sequence[int], *, weighted: bool) -> ShardLayout:
    firsts = np.cumsum([0, *sizes]).tolist()
    lookups = tuple(
        Lookup(
            side="candidate",
            table=f"t{i}",
            tensor=f"t{i}",
            pooling="sum",
            first_id=firsts[i],
            n_ids=size,
            first_weight=firsts[i] if weighted else None,
            offset=i * dim,
            width=dim,
        )
        for i, size in enumerate(sizes)
    )
    rows = np.arange(firsts[-1])
    width = len(sizes) * dim
    return ShardLayout(
        tables=tuple(lookup.table for lookup in lookups),
        lookups=lookups,
        id_rows=rows,
        weight_rows=rows if weighted else rows[:0],
        width=width,
        runs=(Run(0, 0, width),),
    )


def _copy_gb_s() -> float:
    source, to = (np.ones(_COPY_BYTES, np.uint8) for _ in range(2))
    times = []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(to, source)
        times.append(time.perf_counter() - began)
    return _COPY_BYTES / min(times) / 1e9


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=given) as name:
        yield Path(name)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""How fast are pooled lookups, against numpy and torch (if installed)?

``python -m tests.bench.bench_lookup`` prints one JSON line a shape: microseconds a batch, best and
median, one thread. Shapes: the 52 small lookups of a DeepFM at few and many rows, and 26 tables of
100,000 rows with 512 bags of 1 to 20 ids (padded to 20 with weight 0, which is how bags reach a
shard; torch gets them ragged).
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup
from kernels.lookup import PooledLookup, ShardLayout, implementation
from kernels.shards import Run

N_TABLES = 26


def main() -> None:
    """Print a line for each shape."""
    rng = np.random.default_rng(0)
    for n_rows, n in ((1000, 10), (1000, 500), (100_000, 500)):
        dims = [4] * N_TABLES + [1] * N_TABLES
        _report(f"deepfm, {n} rows, tables of {n_rows}", dims, 1, n_rows, n, rng)
    for dim in (16, 64, 128):
        _report(f"bags of 1 to 20, dim {dim}", [dim] * N_TABLES, 20, 100_000, 512, rng)


def _report(
    name: str, dims: list[int], n_ids: int, n_rows: int, n: int, rng: np.random.Generator
) -> None:
    tables = {f"t{i}": rng.standard_normal((n_rows, dim), np.float32) for i, dim in enumerate(dims)}
    layout = _layout(dims, n_ids)
    ids = rng.integers(0, n_rows, (len(dims) * n_ids, n))
    lengths = rng.integers(1, n_ids + 1, (len(dims), 1, n))
    present = (np.arange(n_ids)[:, np.newaxis] < lengths).reshape(ids.shape)
    ids[~present] = 0
    weights = present.astype(np.float32)[: len(layout.weight_rows)]
    line: dict[str, Any] = {"shape": name, "implementation": implementation()}
    for key, native in (("c", True), ("numpy", False)):
        lookup = PooledLookup(tables, layout, native=native)
        out = np.empty((n, layout.width), np.float32)
        line[f"{key}_us"] = _time(lambda f=lookup, out=out: f.run(ids, weights, out))  # type: ignore[misc]
    if importlib.util.find_spec("torch"):
        line["torch_us"] = _time(_torch(tables, ids, present, n_ids, layout.width))
    print(json.dumps(line))  # noqa: T201 - a program


def _layout(dims: list[int], n_ids: int) -> ShardLayout:
    lookups = tuple(
        Lookup(
            side="candidate",
            table=f"t{i}",
            tensor=f"x{i}",
            pooling="sum",
            first_id=i * n_ids,
            n_ids=n_ids,
            first_weight=i * n_ids if n_ids > 1 else None,
            offset=sum(dims[:i]),
            width=dim,
        )
        for i, dim in enumerate(dims)
    )
    n_ids_in_all = len(dims) * n_ids
    return ShardLayout(
        tables=tuple(lookup.table for lookup in lookups),
        lookups=lookups,
        id_rows=np.arange(n_ids_in_all),
        weight_rows=np.arange(n_ids_in_all if n_ids > 1 else 0),
        width=sum(dims),
        runs=(Run(0, 0, sum(dims)),),
    )


def _torch(
    tables: dict[str, NDArray[np.float32]],
    ids: NDArray[np.int64],
    present: NDArray[np.bool_],
    n_ids: int,
    width: int,
) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    n = ids.shape[1]
    bags = []
    for i, table in enumerate(tables.values()):
        rows = slice(i * n_ids, (i + 1) * n_ids)
        kept = present[rows].T
        offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))[:-1]])
        bags.append(
            (
                torch.from_numpy(ids[rows].T[kept]),
                torch.from_numpy(table),
                torch.from_numpy(offsets),
            )
        )
    out = torch.empty((n, width))

    def run() -> object:
        parts = [
            torch.nn.functional.embedding_bag(index, table, offsets, mode="sum")
            for index, table, offsets in bags
        ]
        return torch.cat(parts, dim=1, out=out)

    return run


def _time(call: Callable[[], object]) -> dict[str, float]:
    call()
    times: list[float] = []
    until = time.perf_counter() + 1.0
    while time.perf_counter() < until or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return {"best": round(min(times), 1), "median": round(float(np.median(times)), 1)}


if __name__ == "__main__":
    main()

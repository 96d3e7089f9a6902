"""Are requests on a table of billions of parameters answered in milliseconds, in how much memory?

::

    python -m kernels.store.scale build TABLE/
    python -m runtime.bench.scale TABLE/ --rate 200 --duration 30 --shards 2

The table is one that ``kernels.store.scale`` made, whose keys and rows are made of numbers, so that
every score can be checked without a copy of it. A small model over it, of a user's history, a
candidate and a price, becomes a bundle beside the table (its files are linked), its segments are
divided over the shards, and it is served by processes: gateway, shards and executor. Requests come
in an open loop, with keys that follow a power law. Prints one JSON line: latencies, whether scores
are right, seconds until the cluster was ready (which reads the table), and each process's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import PLACEMENT_FILE, load_bundle
from kernels.errors import KernelsError
from kernels.features.spec import load_spec
from kernels.placement.file import write_placement
from kernels.placement.planner import Budget, plan
from kernels.placement.report import summary
from kernels.placement.traffic import assume_traffic
from kernels.store.header import TableHeader, read_header
from kernels.store.scale import made_keys, made_rows
from runtime.bench import contenders, report
from runtime.bench.contenders import Contender
from runtime.bench.measure import Load, measure
from runtime.bench.pool import Pool
from runtime.bench.procs import memory_by_stage
from runtime.bench.traffic import Sizes, parse_sizes, skewed_ids
from transport.errors import TransportError, Unavailable
from transport.messages import CANDIDATE, USER, Block, ScoreRequest

HISTORY: Final = 20
_HIDDEN: Final = 64
# A history's mean of rows of -1 to 1: scores spread, and stay clear of 0 and 1.
_SPREAD: Final = 0.2
_MODEL: Final = "scale"


def model_weights(dim: int) -> dict[str, NDArray[np.float32]]:
    """Return the weights of the dense part, the same at each call."""
    rng = np.random.default_rng(7)
    shapes = {"w1": (2 * dim + 1, _HIDDEN), "b1": (_HIDDEN,), "w2": (_HIDDEN, 1)}
    return {
        name: (_SPREAD * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_bundle(table: Path, header: TableHeader, folder: Path) -> Path:
    """Write the model and its features into ``folder``, and build its bundle there.

    Args:
        table: The table's folder; on the file system of ``folder``, or its files are copied.
        header: What the table says of itself.
        folder: Is there, and empty.

    Raises:
        KernelsError: The table is not what its header says.
    """
    dim = header.dim
    floats = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(name, floats, ["batch", width])
        for name, width in (("history", dim), ("item", dim), ("price", 1))
    ]
    nodes = [
        helper.make_node("Concat", ["history", "item", "price"], ["x"], axis=1),
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["click"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in model_weights(dim).items()]
    outputs = [helper.make_tensor_value_info("click", floats, ["batch", 1])]
    graph = helper.make_graph(nodes, _MODEL, inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / f"{_MODEL}.onnx"
    )
    (folder / "items").symlink_to(table.resolve(), target_is_directory=True)
    (folder / "features.toml").write_text(
        f"""\
version = 1

[features.history]
side = "user"
kind = "multi"
encode = "key"
max_length = {HISTORY}
table = "items"
pooling = "mean"

[features.item]
side = "candidate"
kind = "categorical"
encode = "key"
table = "items"

[features.price]
side = "candidate"
kind = "numeric"
""",
        encoding="utf-8",
    )
    bundle = folder / _MODEL
    build_bundle(folder / f"{_MODEL}.onnx", folder / "features.toml", bundle, BuildOptions())
    return bundle


def place(bundle: Path, n_shards: int, *, rows_per_request: float, skew: float) -> None:
    """Plan where the bundle's table lies, as ``kernels.bundle plan`` does, and write the plan."""
    spec = load_spec(bundle / "features.toml", tables=False)
    manifest = load_bundle(bundle).manifest
    traffic = assume_traffic(manifest, spec, rows_per_request=rows_per_request, skew=skew)
    found = plan(manifest, traffic, Budget(n_groups=n_shards))
    write_placement(found.placement, bundle / PLACEMENT_FILE, summary(found))


def made_requests(
    header: TableHeader, n: int, *, sizes: Sizes, skew: float, budget_us: int, seed: int
) -> tuple[Pool, list[NDArray[np.float32]]]:
    """Make requests on a made table, and the scores that they are to get.

    Args:
        header: Of the table.
        n: How many.
        sizes: Candidates of each.
        skew: Exponent of the power law that keys follow.
        budget_us: Of each request.
        seed: Makes them repeatable.
    """
    rng = np.random.default_rng(seed)
    rows = sizes.draw(n, rng)
    requests, expected = [], []
    for request_id, n_candidates in enumerate(rows.tolist()):
        history = made_keys(
            skewed_ids(header.rows, (int(rng.integers(1, HISTORY + 1)),), skew, rng)
        )
        items = made_keys(skewed_ids(header.rows, (n_candidates,), skew, rng))
        prices = rng.random(n_candidates, np.float32)
        splits = np.array([0, len(history)], np.int32)
        requests.append(
            ScoreRequest(
                request_id=request_id,
                model=_MODEL,
                budget_us=budget_us,
                n_candidates=n_candidates,
                blocks=(
                    Block(side=USER, names=("history",), values=history, row_splits=splits),
                    Block(side=CANDIDATE, names=("item",), values=items[np.newaxis]),
                    Block(side=CANDIDATE, names=("price",), values=prices[np.newaxis]),
                ),
            )
        )
        expected.append(expected_scores(history, items, prices, header.dim))
    return Pool(requests=tuple(requests), rows=rows), expected


def expected_scores(
    history: NDArray[np.int64], items: NDArray[np.int64], prices: NDArray[np.float32], dim: int
) -> NDArray[np.float32]:
    """Return the model's scores in numpy, float32 ``[n, 1]``."""
    weights = model_weights(dim)
    liked = made_rows(history, dim).mean(axis=0)
    x = np.concatenate(
        [np.tile(liked, (len(items), 1)), made_rows(items, dim), prices[:, np.newaxis]], axis=1
    )
    hidden = np.maximum(x.astype(np.float64) @ weights["w1"] + weights["b1"], 0)
    scores: NDArray[np.float32] = (1 / (1 + np.exp(-(hidden @ weights["w2"])))).astype(np.float32)
    return scores


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build the bundle, serve it, load it; return the figures.

    Raises:
        KernelsError: The table is not there, or damaged.
        TransportError: The cluster was not ready in time.
    """
    table: Path = options.table.resolve()
    header = read_header(table)
    sizes = parse_sizes(options.sizes)
    _say(f"making {options.distinct} requests")
    pool, expected = made_requests(
        header,
        options.distinct,
        sizes=sizes,
        skew=options.skew,
        budget_us=int(options.budget_ms * 1e3),
        seed=options.seed,
    )
    load = Load(
        rate=options.rate,
        n_clients=1,
        duration_s=options.duration,
        warmup_s=options.warmup,
        budget_ms=options.budget_ms,
        tick_us=250,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(dir=table.parent, prefix=".scale-") as folder:
        began = time.perf_counter()
        bundle = write_bundle(table, header, Path(folder))
        place(bundle, options.shards, rows_per_request=float(pool.rows.mean()), skew=options.skew)
        built_s = time.perf_counter() - began
        _say(f"bundle built in {built_s:.1f} s; starting the cluster")
        began = time.perf_counter()
        with contenders.own_cluster(
            bundle, "spread", options.shards, lambda _: pool, patience_s=options.patience
        ) as (contender, _):
            assert contender.pid is not None
            _wait_warm(contender, began + options.patience)
            ready_s = time.perf_counter() - began
            ready_mb = memory_by_stage(contender.pid)
            _say(f"ready after {ready_s:.1f} s; {options.rate:g} requests/s")
            figures = measure(contender, pool, load, expected).figures
            loaded_mb = memory_by_stage(contender.pid)
    return {
        "parameters": header.rows * header.dim,
        "table_mb": round(header.size_bytes / 2**20),
        "dtype": header.dtype,
        "shards": options.shards,
        "rate": options.rate,
        "skew": options.skew,
        "sizes": options.sizes,
        "mean_rows": round(float(pool.rows.mean()), 1),
        "distinct_keys": _n_distinct(pool),
        "bundle_built_s": round(built_s, 1),
        "ready_s": round(ready_s, 1),
        **figures,
        "ready_mb": ready_mb,
        "loaded_mb": loaded_mb,
        "machine": report.machine(),
    }


def _wait_warm(contender: Contender, end: float) -> None:
    """Return when every actor answers: the gateway does at once, shards when their tables are read.

    Raises:
        Unavailable: They did not by ``end``, of ``time.perf_counter``.
    """
    while silent := [name for name, stats in contender.stats().items() if "error" in stats]:
        if time.perf_counter() > end:
            raise Unavailable(f"not ready in time: {', '.join(sorted(silent))}")


def _n_distinct(pool: Pool) -> int:
    keys = [
        block.values.reshape(-1)
        for request in pool.requests
        for block in request.blocks
        if block.names != ("price",)
    ]
    return len(np.unique(np.concatenate(keys)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return 0, 1 (answers that were wrong, failed or lost) or 2 (an error)."""
    options = _parser().parse_args(arguments)
    try:
        line = run(options)
    except (KernelsError, TransportError, OSError, ValueError) as error:
        _say(f"runtime.bench.scale: {' '.join(str(error).split())}")
        return 2
    sys.stdout.write(json.dumps(line) + os.linesep)
    return 1 if line["checked"]["wrong"] or line["failed"] or line["lost"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.scale")
    parser.add_argument("table", type=Path, metavar="TABLE/")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (200)")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds (30)")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds, not counted (3)")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--sizes", default="lognormal:32,1,512", help="candidates a request")
    parser.add_argument("--skew", type=float, default=1.05, help="of keys, a power law (1.05)")
    parser.add_argument("--budget-ms", type=float, default=100.0)
    parser.add_argument("--distinct", type=int, default=4000, help="distinct requests (4000)")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to be ready in")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

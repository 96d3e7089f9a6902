"""Simulates serving at a size that no test machine has, with the code that places and routes.

    python -m kernels.placement.simulate --parameters 1e12 --shards 1000

A made-up model (``synthetic.py``) is planned as a bundle would be; keys are drawn by a power law,
hashed to segments and these to groups by the functions that serve. What it tells:

* bytes: of each shard, the fullest over the mean;
* traffic: bytes that each shard reads for the rows asked of it, the busiest over the mean: with
  each lookup counted, and with each distinct key of a batch counted once, which is what is sent;
* fan-out: shards that a batch of requests asks;
* tail: the time until the last part of a batch is there. A part's time is lognormal, given by its
  median and its 99th percentile; parts are independent. Hedged, a part that is late at the 95th
  percentile is asked of a second replica, and the first answer counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.placement.costs import read_bytes
from kernels.placement.planner import Budget, Plan, plan
from kernels.placement.report import size_text
from kernels.placement.skew import F64
from kernels.placement.synthetic import synthetic_manifest
from kernels.placement.traffic import ROWS_PER_REQUEST, assume_traffic
from kernels.store.partition import mix64, segment_of

I64 = NDArray[np.int64]

_BATCHES: Final = (1, 16, 64)
_QUANTILES: Final = (0.5, 0.99, 0.999)
_HEDGE_AT: Final = 0.95
# Quantile 99 % of the standard normal distribution, and 95 %.
_Z99: Final = 2.3263478740408408
_Z95: Final = 1.6448536269514722


@attrs.frozen(kw_only=True)
class Latency:
    """The time of one part, from when it is asked to when it is at the join.

    Attributes:
        median_ms: Its median.
        p99_ms: Its 99th percentile.
    """

    median_ms: float
    p99_ms: float

    @property
    def sigma(self) -> float:
        """Standard deviation of its logarithm."""
        return float(np.log(self.p99_ms / self.median_ms)) / _Z99

    @property
    def p95_ms(self) -> float:
        """When a part counts as late."""
        return float(self.median_ms * np.exp(_Z95 * self.sigma))

    def draw(self, shape: tuple[int, ...], random: np.random.Generator) -> F64:
        """Draw times in milliseconds."""
        return random.lognormal(np.log(self.median_ms), self.sigma, shape)


def join_times(
    latency: Latency, fan_out: int, n: int, random: np.random.Generator, *, hedged: bool
) -> F64:
    """Draw how long ``n`` batches wait for the last of their parts, in milliseconds."""
    parts = latency.draw((n, fan_out), random)
    if hedged:
        late = np.nonzero(parts > latency.p95_ms)
        second = latency.p95_ms + latency.draw(late[0].shape, random)
        parts[late] = np.minimum(parts[late], second)
    return np.asarray(parts.max(axis=1), np.float64)


@attrs.frozen(eq=False)
class Asked:
    """What a batch asks of the groups.

    Attributes:
        rows: float64 ``[2]``: in all, each lookup counted and each distinct key counted once.
        reads: float64 ``[2, n_groups]``: the bytes that each group reads for these.
    """

    rows: F64
    reads: F64


class Requests:
    """Draws the keys of a model's requests and says which groups hold them.

    Args:
        placed: The plan.
        seed: Another gives other requests.
    """

    def __init__(self, placed: Plan, seed: int) -> None:
        self._plan = placed
        self._random = np.random.default_rng([seed, 2])

    def batch(self, n_requests: int) -> Asked:
        """Draw a batch of requests."""
        placed = self._plan
        n_groups = placed.placement.n_groups
        rows, reads = np.zeros(2), np.zeros((2, n_groups))
        for number, table in enumerate(placed.manifest.tables):
            traffic = placed.traffic.tables[table.name]
            if table.name in placed.placement.device or not traffic.lookups:
                continue
            ranks = traffic.keys.draw(round(traffic.lookups * n_requests), self._random)
            cache = placed.caches.get(table.name)
            if cache is not None:
                ranks = ranks[ranks >= cache.rows]
            # Ids in no order of hotness; rows of dense tables are sorted by it.
            keys = mix64(ranks + (np.int64(number) << 40)).view(np.int64) if table.keyed else ranks
            groups = placed.placement.group_of(table.name)
            for i, each in enumerate((keys, np.unique(keys))):
                segments = segment_of(
                    each, n_segments=table.segments, rows=table.rows, keyed=table.keyed
                )
                counts = np.bincount(groups[segments], minlength=n_groups)
                rows[i] += len(each)
                reads[i] += counts * read_bytes(table)
        return Asked(rows, reads)


def simulate(options: argparse.Namespace) -> dict[str, Any]:
    """Plan and simulate; return all figures."""
    manifest = synthetic_manifest(options.parameters, n_tables=options.tables, seed=options.seed)
    traffic = assume_traffic(manifest, rows_per_request=options.rows, skew=options.skew)
    budget = Budget(
        n_groups=options.shards,
        replicas=options.replicas,
        gpu_bytes=options.gpu_gb * 1e9,
        cache_bytes=options.cache_gb * 1e9,
    )
    start = time.perf_counter()
    placed = plan(manifest, traffic, budget)
    seconds = time.perf_counter() - start
    latency = Latency(median_ms=options.median_ms, p99_ms=options.p99_ms)
    random = np.random.default_rng([options.seed, 3])
    requests = Requests(placed, options.seed)
    batches = {}
    for n in options.batch:
        asked = [requests.batch(n) for _ in range(options.trials)]
        rows = np.mean([each.rows for each in asked], axis=0) / n
        reads = np.sum([each.reads for each in asked], axis=0)
        fan_outs = [int((each.reads[1] > 0).sum()) for each in asked]
        fan_out = round(float(np.mean(fan_outs)))
        batches[n] = {
            "fan_out": float(np.mean(fan_outs)),
            "rows": float(rows[0]),
            "distinct": float(rows[1]),
            "reads_max_over_mean": _over(reads[0]),
            "distinct_reads_max_over_mean": _over(reads[1]),
            "join_ms": _quantiles(
                join_times(latency, fan_out, options.joins, random, hedged=False)
            ),
            "hedged_ms": _quantiles(
                join_times(latency, fan_out, options.joins, random, hedged=True)
            ),
        }
    tables = manifest.tables
    pieces = [len(group) for group in placed.placement.groups]
    return {
        "parameters": float(sum(table.rows * table.dim for table in tables)),
        "tables": len(tables),
        "largest_table_rows": max(table.rows for table in tables),
        "bytes": float(placed.size.sum()),
        "shards": options.shards,
        "replicas": options.replicas,
        "skew": options.skew,
        "rows_per_request": options.rows,
        "plan_s": round(seconds, 3),
        "pieces": sum(pieces),
        "divided": len(placed.placement.fetched),
        "on_device": len(placed.placement.device),
        "cached": {name: round(cache.hit_rate, 4) for name, cache in placed.caches.items()},
        "shard_bytes_mean": float(placed.size.mean()),
        "shard_bytes_max_over_mean": _over(placed.size),
        "planned_reads_max_over_mean": _over(placed.work),
        "latency": {"lognormal_median_ms": options.median_ms, "p99_ms": options.p99_ms},
        "hedge_at_ms": round(latency.p95_ms, 3),
        "batches": batches,
    }


def _over(loads: NDArray[Any]) -> float:
    mean = float(loads.mean())
    return round(float(loads.max()) / mean, 4) if mean else 1.0


def _quantiles(times: F64) -> dict[str, float]:
    return {f"p{q * 100:g}": round(float(np.quantile(times, q)), 3) for q in _QUANTILES}


def table_of(figures: Mapping[str, Any]) -> str:
    """Lay the figures out for people."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures['parameters']:.3g} parameters in {figures['tables']} tables, the largest of "
        f"{figures['largest_table_rows']:,} rows; {size_text(figures['bytes'])} over "
        f"{figures['shards']} groups of {figures['replicas']} replicas"
    )
    yield (
        f"planned in {figures['plan_s']} s: {figures['on_device']} tables on the device, "
        f"{figures['pieces']} pieces, {figures['divided']} tables divided or cached, "
        f"{len(figures['cached'])} cached"
    )
    yield (
        f"bytes a shard {size_text(figures['shard_bytes_mean'])}, the fullest "
        f"{figures['shard_bytes_max_over_mean']:.3f} of that; bytes read, the busiest "
        f"{figures['planned_reads_max_over_mean']:.3f} of the mean as planned"
    )
    latency = figures["latency"]
    yield (
        f"keys by a power law of {figures['skew']}, {figures['rows_per_request']:g} rows a request;"
        f" a part takes {latency['lognormal_median_ms']:g} ms, p99 {latency['p99_ms']:g} ms "
        f"(lognormal), hedged at {figures['hedge_at_ms']:g} ms"
    )
    yield (
        f"{'requests':>8} {'fan-out':>8} {'rows':>8} {'distinct':>9} {'max/mean':>9} "
        f"{'distinct':>9}  {'join p50':>9} {'p99':>7} {'p99.9':>7}  "
        f"{'hedged p50':>10} {'p99':>7} {'p99.9':>7}"
    )
    for n, batch in figures["batches"].items():
        plain, hedged = batch["join_ms"], batch["hedged_ms"]
        yield (
            f"{n:>8} {batch['fan_out']:>8.1f} {batch['rows']:>8.0f} {batch['distinct']:>9.0f} "
            f"{batch['reads_max_over_mean']:>9.3f} "
            f"{batch['distinct_reads_max_over_mean']:>9.3f}  "
            f"{plain['p50']:>9.2f} {plain['p99']:>7.2f} {plain['p99.9']:>7.2f}  "
            f"{hedged['p50']:>10.2f} {hedged['p99']:>7.2f} {hedged['p99.9']:>7.2f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print a table and a JSON line."""
    parser = argparse.ArgumentParser(prog="kernels.placement.simulate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parameters", type=float, default=1e12)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--shards", type=int, default=1000, help="groups (default: 1000)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--skew", type=float, default=1.1, help="exponent of the power law")
    parser.add_argument("--rows", type=float, default=ROWS_PER_REQUEST, help="of a request")
    parser.add_argument("--gpu-gb", type=float, default=40.0, help="of a card, for tables")
    parser.add_argument("--cache-gb", type=float, default=0.0, help="for hot rows")
    parser.add_argument("--batch", type=int, nargs="+", default=_BATCHES, metavar="REQUESTS")
    parser.add_argument("--median-ms", type=float, default=0.5, help="of a part's time")
    parser.add_argument("--p99-ms", type=float, default=3.0)
    parser.add_argument("--trials", type=int, default=20, help="batches of each size")
    parser.add_argument("--joins", type=int, default=20_000, help="joins of each size")
    parser.add_argument("--seed", type=int, default=1)
    figures = simulate(parser.parse_args(arguments))
    sys.stdout.write(table_of(figures) + json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

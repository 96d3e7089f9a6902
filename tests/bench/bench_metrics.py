"""What does it cost to observe a value? ``python -m tests.bench.bench_metrics``: one JSON line."""

from __future__ import annotations

import json
import platform
import timeit

import numpy as np

from runtime.metrics import Histogram, Metrics


def main() -> None:
    metrics, histogram = Metrics(), Histogram()
    array = np.random.default_rng(0).lognormal(6, 1, 500)
    cases = {
        "observe": (lambda: histogram.observe(1234.5), 1),
        "metrics_observe": (lambda: metrics.observe("total_us", 1234.5), 1),
        "count": (lambda: metrics.count("answered"), 1),
        "observe_many_500": (lambda: histogram.observe_many(array), len(array)),
        "snapshot": (metrics.snapshot, 1),
    }
    result: dict[str, object] = {"python": platform.python_version()}
    for name, (call, n_values) in cases.items():
        n = 20_000 // n_values
        times = [t / n / n_values * 1e6 for t in timeit.repeat(call, number=n, repeat=9)]
        result[f"{name}_us"] = round(min(times), 3)
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()

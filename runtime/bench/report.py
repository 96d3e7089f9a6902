"""A run in figures: one flat mapping a run, one JSON line a benchmark."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bench.load import LOST, Record
from transport.values import ERROR_CODES

_OK = ERROR_CODES.index("ok")
_SHED = ERROR_CODES.index("overloaded")
_EXPIRED = ERROR_CODES.index("deadline")
# For float32 sums in another order; DeepFM's scores differ by up to 2e-7.
_RTOL, _ATOL = 1e-3, 1e-5


def percentile(values: NDArray[np.float64], p: float) -> float:
    """Return the smallest value that at least ``p`` percent of the values do not exceed.

    The nearest-rank definition: always a value that was measured; NaN if there are none.
    """
    if not len(values):
        return float("nan")
    rank = max(1, int(np.ceil(p / 100 * len(values) - 1e-9)))
    return float(np.partition(values, rank - 1)[rank - 1])


def latencies_ms(record: Record) -> NDArray[np.float64]:
    """Return latencies from the due time, of the requests that were answered ok, in order."""
    ok = record.codes == _OK
    latencies: NDArray[np.float64] = (record.done_s[ok] - record.due_s[ok]) * 1e3
    return latencies


def summarise(record: Record, rows: NDArray[np.int64], budget_ms: float) -> dict[str, Any]:
    """Return the figures of a run.

    ``requests_per_s`` and ``rows_per_s`` count answers with scores that came before the end of the
    schedule; ``goodput_per_s`` those of them within the budget. ``failed`` are answers with any
    other error, ``lost`` requests without an answer.

    Args:
        record: The run.
        rows: int64 ``[n]``, candidates of each request.
        budget_ms: From the due time.
    """
    ok = record.codes == _OK
    in_time = ok & (record.done_s <= record.duration_s)
    latency = latencies_ms(record)
    good = ok & ((record.done_s - record.due_s) * 1e3 <= budget_ms)
    n = len(record.codes)
    shed = int((record.codes == _SHED).sum())
    expired = int((record.codes == _EXPIRED).sum())
    lost = int((record.codes == LOST).sum())
    late_ms = (record.sent_s - record.due_s)[~np.isnan(record.sent_s)] * 1e3
    return {
        "seconds": round(record.duration_s, 3),
        "sent": n,
        "ok": int(ok.sum()),
        "shed": shed,
        "expired": expired,
        "failed": n - int(ok.sum()) - shed - expired - lost,
        "lost": lost,
        "requests_per_s": round(int(in_time.sum()) / record.duration_s, 1),
        "rows_per_s": round(float(rows[in_time].sum()) / record.duration_s, 1),
        "goodput_per_s": round(int(good.sum()) / record.duration_s, 1),
        "p50_ms": _ms(percentile(latency, 50)),
        "p95_ms": _ms(percentile(latency, 95)),
        "p99_ms": _ms(percentile(latency, 99)),
        "max_ms": _ms(percentile(latency, 100)),
        "generator_late_p99_ms": _ms(percentile(late_ms, 99)),
    }


def _ms(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 3)


def failed_share(figures: Mapping[str, Any]) -> float:
    """Return the share of requests that got no scores."""
    return 1 - float(figures["ok"]) / max(1, int(figures["sent"]))


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cpu": _cpu_model(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("numpy", "onnxruntime", "pyzmq", "trio")},
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def stages(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return where the time went, from the statistics of a gateway and of the actors behind it.

    ``stages_us`` has mean and p99 of each time that an actor observed; ``requests_per_window`` and
    ``rows_per_window`` are means over an executor's windows.
    """
    if not stats:
        return {}
    found: dict[str, Any] = {"stages_us": {}}
    for actor, snapshot in stats.items():
        for name, summary in snapshot.items():
            if not isinstance(summary, Mapping) or not summary.get("n"):
                continue
            if name.endswith("_us"):
                stage = f"{actor}.{name.removesuffix('_us')}"
                found["stages_us"][stage] = {"mean": summary["mean"], "p99": summary["p99"]}
            elif name.startswith("window_"):
                found[f"{name.removeprefix('window_')}_per_window"] = summary["mean"]
    return found


def launches(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what executors made of the requests, all of them together.

    ``launches_per_request`` counts windows; ``padding`` is the share of the rows that were run on a
    card and that nobody asked for, ``padding_requests`` that of the requests, ``padding_steps``
    that of the steps of sequences, of which a window's longest counts. They are left out where
    executors do not tell.

    Args:
        before: Statistics when the run began: counters count from there.
        after: Statistics since then.
    """
    n_launches = n_requests = n_rows = n_steps = 0.0
    padding: dict[str, float] = {}
    for actor, snapshot in after.items():
        requests, rows = snapshot.get("window_requests"), snapshot.get("window_rows")
        if not requests or not rows or not requests["n"]:
            continue
        n_launches += requests["n"]
        n_requests += requests["n"] * requests["mean"]
        n_rows += rows["n"] * rows["mean"]
        steps = snapshot.get("window_steps")
        if steps:
            n_steps += steps["n"] * steps["mean"]
        for name in ("padding_rows", "padding_requests", "padding_steps"):
            if name in snapshot:
                n_padding = snapshot[name] - before.get(actor, {}).get(name, 0)
                padding[name] = padding.get(name, 0.0) + n_padding
    if not n_requests:
        return {}
    found = {
        "launches_per_request": round(n_launches / n_requests, 4),
        "rows_per_launch": round(n_rows / n_launches, 1),
    }
    for key, name, n in (
        ("padding", "padding_rows", n_rows),
        ("padding_requests", "padding_requests", n_requests),
        ("padding_steps", "padding_steps", n_steps),
    ):
        if name in padding:
            found[key] = round(padding[name] / (n + padding[name]), 4)
    return found


def compare(
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], atol: float = _ATOL
) -> dict[str, Any]:
    """Return how far scores are from what they should be; ``wrong`` are answers beyond tolerance.

    Raises:
        ValueError: A pair differs in shape.
    """
    worst, n_wrong = 0.0, 0
    for scores, expected in pairs:
        if scores.shape != expected.shape:
            raise ValueError(f"want scores {expected.shape}, got {scores.shape}")
        if scores.size:
            worst = max(worst, float(np.abs(scores - expected).max()))
        n_wrong += not np.allclose(scores, expected, rtol=_RTOL, atol=atol)
    return {"answers": len(pairs), "wrong": n_wrong, "max_abs_error": worst}

"""One measurement: warm up, run, count; and the search for the highest rate that a server holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from runtime.bench import load, report
from runtime.bench.contenders import Contender
from runtime.bench.load import Record
from runtime.bench.pool import Pool
from runtime.bench.procs import cpu_seconds, own_cpu_seconds
from runtime.bench.traffic import poisson_arrivals

# Answers are waited for so long after the last request was due, beside the budget.
_DRAIN_S: Final = 2.0
# One answer in so many is decoded after the run and compared.
_KEEP_EVERY: Final = 127
# A closed loop's record is made for at most so many requests a second.
_MOST_PER_S: Final = 30_000
_PROBE_S: Final = 4.0
_N_PROBES: Final = 6
_N_CONFIRMATIONS: Final = 4


@attrs.frozen(kw_only=True)
class Load:
    """What is asked of a server.

    Attributes:
        rate: Requests a second in an open loop, or None for a closed loop.
        n_clients: Of the closed loop.
        tick_us: The generator looks for answers and due requests no more often than this.
    """

    rate: float | None
    n_clients: int
    duration_s: float
    warmup_s: float
    budget_ms: float
    tick_us: int
    seed: int


@attrs.frozen(kw_only=True, eq=False)
class Measurement:
    """A run, and its figures as they are printed."""

    figures: dict[str, Any]
    record: Record


def measure(
    contender: Contender, pool: Pool, wanted: Load, expected: Sequence[NDArray[np.float32]] | None
) -> Measurement:
    """Warm a server up, run the load, and return the figures.

    Args:
        contender: The server.
        pool: The requests; each sending draws one of them.
        wanted: The load.
        expected: Scores of each request of the pool, to compare some answers with.
    """
    rng = np.random.default_rng(wanted.seed)
    if wanted.warmup_s:
        _run(contender, pool, attrs.evolve(wanted, duration_s=wanted.warmup_s), rng, 0)
    stats_before = contender.stats()
    cpu_before = {} if contender.pid is None else cpu_seconds(contender.pid)
    own_before = own_cpu_seconds()
    record, order, kept = _run(contender, pool, wanted, rng, _KEEP_EVERY)
    own_s = own_cpu_seconds() - own_before
    cpu_after = {} if contender.pid is None else cpu_seconds(contender.pid)
    figures = report.summarise(record, pool.rows[order], wanted.budget_ms)
    n = max(1, figures["ok"])
    figures["cpu_s_per_1000"] = {
        stage: round((cpu_s - cpu_before.get(stage, 0.0)) / n * 1e3, 4)
        for stage, cpu_s in cpu_after.items()
    }
    figures["generator_cpu_s_per_1000"] = round(own_s / n * 1e3, 4)
    stats = contender.stats()
    figures.update(report.stages(stats))
    figures.update(report.launches(stats_before, stats))
    if expected is not None:
        pairs = [(contender.scores(answer), expected[order[k]]) for k, answer in kept.items()]
        figures["checked"] = report.compare(pairs, contender.largest_error)
    return Measurement(figures=figures, record=record)


def _run(
    contender: Contender, pool: Pool, wanted: Load, rng: np.random.Generator, keep_every: int
) -> tuple[Record, NDArray[np.int64], Mapping[int, Any]]:
    due: list[float] = []
    most = int(_MOST_PER_S * wanted.duration_s)
    if wanted.rate is not None:
        due = poisson_arrivals(wanted.rate, wanted.duration_s, rng).tolist()
        most = len(due)
    order = rng.integers(len(pool.requests), size=most)
    link = contender.connect(order.tolist(), keep_every)
    paced = load.Paced(link, wanted.tick_us * 1e-6)
    drain_s = wanted.budget_ms * 1e-3 + _DRAIN_S
    try:
        if wanted.rate is not None:
            record = load.open_loop(paced, due, duration_s=wanted.duration_s, drain_s=drain_s)
        else:
            record = load.closed_loop(
                paced, wanted.n_clients, most=most, duration_s=wanted.duration_s, drain_s=drain_s
            )
    finally:
        link.close()
    scored = {k: answer for k, answer in link.kept.items() if record.codes[k] == 0}
    return record, order[: len(record.codes)], scored


def find_rate(
    run: Callable[[float, float], Measurement],
    capacity: float,
    holds: Callable[[Mapping[str, Any]], bool],
    *,
    duration_s: float,
    say: Callable[[str], None],
) -> Measurement:
    """Search for the highest rate at which a server holds its promise.

    Bisection up to 110 % of the capacity, with short runs; then runs of full length, from the rate
    found down by 3 % each, until one holds. A run that does not hold is done once more: a machine
    is seldom alone with its benchmark, and a burst of other work is not the server's limit.

    Args:
        run: Takes rate and seconds, and measures an open loop.
        capacity: Requests a second of a closed loop.
        holds: Takes the figures of a run, says whether they are good enough.
        duration_s: Of the confirming runs.
        say: Shows progress.

    Returns:
        The confirming run; the last one, if none held. Its figures say ``rate`` and ``held``.
    """

    def attempt(rate: float, seconds: float) -> tuple[bool, Measurement]:
        for _ in range(2):
            measurement = run(rate, seconds)
            held = holds(measurement.figures)
            p99_ms = measurement.figures["p99_ms"]
            say(f"  {rate:8.0f}/s  p99 {p99_ms} ms  {'held' if held else 'not held'}")
            if held:
                break
        return held, measurement

    low, high = 0.0, 1.1 * capacity
    for _ in range(_N_PROBES):
        rate = (low + high) / 2
        low, high = (rate, high) if attempt(rate, _PROBE_S)[0] else (low, rate)
    rate = low or high
    for _ in range(_N_CONFIRMATIONS):
        held, measurement = attempt(rate, duration_s)
        measurement.figures.update(rate=round(rate, 1), held=held)
        if held:
            break
        rate *= 0.97
    return measurement

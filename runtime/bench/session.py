"""A whole benchmark: the model and its requests, our cluster, the peers, the line and the plot."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.features.feature import FeatureSpec
from kernels.features.spec import load_spec
from runtime.bench import contenders, plot, report, wires
from runtime.bench.bundles import build_inferred, vocabularies
from runtime.bench.contenders import Contender
from runtime.bench.measure import Load, Measurement, find_rate, measure
from runtime.bench.pool import Pool, make_pool, read_wanted
from runtime.bench.topologies import Deployment
from runtime.bench.traffic import Sizes
from runtime.bench.whole import WholeModel

PEERS: Final = ("whole", "loop", "mosec")
# A rate is held with fewer failures than this share.
_MOST_FAILED: Final = 0.001
_CAPACITY_S: Final = 3.0
_WHOLE_S: Final = 3.0
_BATCHES: Final = (1, 4, 16)


@attrs.frozen(kw_only=True)
class Settings:
    """The command line, checked.

    Raises:
        ValueError: Options that do not go together, or a value that makes no sense.
    """

    bundle: Path | None
    onnx: Path | None
    user_columns: int | None
    connect: str | None
    model: str | None
    topology: str
    n_shards: int
    rate: float | None
    n_clients: int
    find_rate: bool
    p99_ms: float
    budget_ms: float
    duration_s: float
    warmup_s: float
    sizes: Sizes
    skew: float
    n_distinct: int
    tick_us: int
    seed: int
    peers: tuple[str, ...]
    deployment: Deployment = attrs.field(factory=Deployment)

    def __attrs_post_init__(self) -> None:
        if self.connect is None and self.bundle is None and self.user_columns is None:
            raise ValueError("want --connect, or --bundle, or --onnx with --user-columns")
        if self.user_columns is not None and (self.onnx is None or self.bundle is not None):
            raise ValueError("--user-columns builds a bundle: want --onnx with it, and no --bundle")
        if self.connect is not None and self.deployment != Deployment():
            raise ValueError("--connect: how a running cluster's executors run is its own affair")
        if self.peers and self.onnx is None:
            raise ValueError("--peers run the whole model: want --onnx")
        for name in self.peers:
            if name not in PEERS:
                raise ValueError(f"--peers: no peer {name!r}; there are {', '.join(PEERS)}")
        for option, value in (
            ("--rate", self.rate),
            ("--clients", self.n_clients),
            ("--duration", self.duration_s),
            ("--budget-ms", self.budget_ms),
            ("--shards", self.n_shards),
            ("--distinct", self.n_distinct),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"{option}: want more than 0, got {value:g}")


@attrs.frozen(kw_only=True)
class Result:
    """What a benchmark prints, draws, and whether every answer came and was right."""

    line: dict[str, Any]
    plot: str
    in_order: bool


class Session:
    """Runs one benchmark."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._series: list[plot.Series] = []

    def run(self) -> Result:
        """Measure ours, then the peers, one after another.

        Raises:
            TransportError: A server is not there, or not ready in time.
            KernelsError: The bundle cannot be built or read.
            ValueError: The model cannot be measured like this; says why.
        """
        settings = self._settings
        machine = report.machine()
        with tempfile.TemporaryDirectory(prefix="tb-bench-") as folder:
            bundle = settings.bundle
            if settings.user_columns is not None and settings.onnx is not None:
                bundle = build_inferred(settings.onnx, settings.user_columns, Path(folder))
            spec = None if bundle is None else load_spec(bundle / "features.toml", tables=False)
            whole = None
            if settings.onnx is not None and spec is not None:
                whole = WholeModel.open(settings.onnx, spec)
            with self._ours(bundle, spec) as (contender, pool):
                expected = None
                if whole is not None:
                    expected = [whole.run(whole.inputs(request)) for request in pool.requests]
                figures = self._measure(contender, pool, expected)
            line = {"model": pool.requests[0].model, **self._load_figures(pool), **figures}
            if settings.peers and whole is not None and settings.onnx is not None:
                line["peers"] = self._peers(settings.onnx, whole, pool, expected)
                line["ratios"] = ratios(figures, line["peers"])
        line["machine"] = machine
        return Result(line=line, plot=self._draw(line), in_order=_in_order(line))

    @contextmanager
    def _ours(
        self, bundle: Path | None, spec: FeatureSpec | None
    ) -> Iterator[tuple[Contender, Pool]]:
        settings = self._settings

        def pool_of(address: str) -> Pool:
            return self._make_pool(json.loads(wires.ask_models(address)), spec)

        if settings.connect is not None:
            pool = pool_of(settings.connect)
            with contenders.running_cluster(settings.connect, pool) as contender:
                yield contender, pool
        elif bundle is not None:
            _say(f"starting {settings.topology}")
            with contenders.own_cluster(
                bundle, settings.topology, settings.n_shards, pool_of, settings.deployment
            ) as (contender, pool):
                yield contender, pool

    def _make_pool(self, models: Mapping[str, Any], spec: FeatureSpec | None) -> Pool:
        settings = self._settings
        model = settings.model or (next(iter(models)) if len(models) == 1 else "")
        if model not in models:
            known = ", ".join(sorted(models))
            raise ValueError(f"--model: want one of those that the cluster serves: {known}")
        return make_pool(
            read_wanted(models[model]["features"], {} if spec is None else vocabularies(spec)),
            model=model,
            n=settings.n_distinct,
            sizes=settings.sizes,
            skew=settings.skew,
            budget_us=int(settings.budget_ms * 1e3),
            rng=np.random.default_rng(settings.seed),
        )

    def _measure(
        self, contender: Contender, pool: Pool, expected: list[NDArray[np.float32]] | None
    ) -> dict[str, Any]:
        settings = self._settings
        _say(f"measuring {contender.name}")

        def run(rate: float | None, duration_s: float) -> Measurement:
            load = Load(
                rate=rate,
                n_clients=settings.n_clients,
                duration_s=duration_s,
                warmup_s=min(settings.warmup_s, duration_s / 4),
                budget_ms=settings.budget_ms,
                tick_us=settings.tick_us,
                seed=settings.seed,
            )
            return measure(contender, pool, load, expected)

        if settings.find_rate:
            capacity = run(None, _CAPACITY_S).figures["requests_per_s"]
            _say(f"  {capacity:8.0f}/s  closed loop of {settings.n_clients} clients")
            found = find_rate(run, capacity, self._holds, duration_s=settings.duration_s, say=_say)
            found.figures["closed_loop_requests_per_s"] = capacity
        else:
            found = run(settings.rate, settings.duration_s)
        self._series.append(_series(contender.name, found))
        return found.figures

    def _holds(self, figures: Mapping[str, Any]) -> bool:
        p99_ms = figures["p99_ms"]
        held = p99_ms is not None and p99_ms <= self._settings.p99_ms
        return bool(held) and report.failed_share(figures) < _MOST_FAILED

    def _peers(
        self,
        onnx: Path,
        whole: WholeModel,
        pool: Pool,
        expected: list[NDArray[np.float32]] | None,
    ) -> dict[str, Any]:
        names = self._settings.peers
        peers: dict[str, Any] = {}
        if "whole" in names:
            _say("measuring ONNX Runtime in process")
            for batch in _BATCHES:
                rate = whole.requests_per_s(pool.requests, batch, seconds=_WHOLE_S)
                peers[f"ONNX Runtime in process, batches of {batch}"] = {
                    "requests_per_s": round(rate, 1)
                }
        n_user = whole.leading_user_columns()
        if n_user is None:
            _say("no loop, no MOSEC: they want one float32 matrix, the user's columns first")
            return peers
        served = []
        if "loop" in names:
            served += [
                contenders.zeromq_loop(onnx, whole, n_user, pool, most=most) for most in (1, 16)
            ]
        if "mosec" in names and contenders.mosec_installed():
            served += [
                contenders.mosec(onnx, whole, n_user, pool, most=16, n_workers=n) for n in (1, 2)
            ]
        elif "mosec" in names:
            _say("no MOSEC: it is not installed")
        for peer in served:
            with peer as contender:
                peers[contender.name] = self._measure(contender, pool, expected)
        return peers

    def _load_figures(self, pool: Pool) -> dict[str, Any]:
        settings = self._settings
        loop = "open" if settings.find_rate or settings.rate is not None else "closed"
        return {
            "topology": "running" if settings.connect is not None else settings.topology,
            "deployment": None if settings.connect else settings.deployment.figures(),
            "load": loop,
            "rate": settings.rate,
            "clients": settings.n_clients if loop == "closed" else None,
            "sizes": settings.sizes.text,
            "mean_rows": round(float(pool.rows.mean()), 2),
            "skew": settings.skew,
            "budget_ms": settings.budget_ms,
        }

    def _draw(self, line: Mapping[str, Any]) -> str:
        cores = line["machine"]["cores"]
        subtitle = (
            f"{line['load']} loop, candidates {line['sizes']} (mean {line['mean_rows']:.0f}), "
            f"{line['seconds']:g} s, {cores} cores shared with the load generator"
        )
        title = f"{line['model']}, {line['topology']}: {line['requests_per_s']:,.0f} requests/s"
        return plot.draw(title, subtitle, self._series, self._settings.budget_ms)


def _series(name: str, measurement: Measurement) -> plot.Series:
    record, figures = measurement.record, measurement.figures
    p99_ms = figures["p99_ms"]
    note = f"{figures['requests_per_s']:,.0f}/s, " + (
        "no answers" if p99_ms is None else f"p99 {p99_ms:.3g} ms"
    )
    ok = record.codes == 0
    return plot.Series(name, note, record.due_s[ok], report.latencies_ms(record))


def ratios(ours: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return our requests a second over each peer's; none where a peer did nothing."""
    return {
        name: round(ours["requests_per_s"] / peer["requests_per_s"], 3)
        for name, peer in peers.items()
        if peer["requests_per_s"]
    }


def _in_order(line: Mapping[str, Any]) -> bool:
    n_wrong = line["checked"]["wrong"] if "checked" in line else 0
    return not (line["lost"] or line["failed"] or n_wrong)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()

"""The benchmark's arithmetic: sizes, schedules, loops against a clock of their own, figures."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import attrs
import numpy as np
import pytest

from runtime.bench import load, plot, report, traffic
from runtime.bench.load import LOST, Record
from runtime.bench.measure import Measurement, find_rate

OK, OVERLOADED, DEADLINE = 0, 2, 3


def test_mlperf_sizes_have_the_lists_own_frequencies() -> None:
    sizes = traffic.parse_sizes("mlperf").draw(200, np.random.default_rng(0))
    values, counts = np.unique(sizes, return_counts=True)
    assert values.tolist() == [100, 200, 300, 400, 500, 600, 700]
    assert counts.tolist() == [20, 120, 20, 10, 10, 10, 10]
    assert sizes.mean() == 270


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lognormal_sizes_have_median_and_mean_whatever_the_seed(seed: int) -> None:
    sizes = traffic.parse_sizes("lognormal:32,1,512").draw(512, np.random.default_rng(seed))
    assert 31 <= np.median(sizes) <= 33
    assert 50 <= sizes.mean() <= 54  # exp(log 32 + 1/2) = 52.8, less what the maximum cuts
    assert sizes.min() >= 1
    assert sizes.max() <= 512


def test_sizes_are_not_in_order() -> None:
    sizes = traffic.parse_sizes("lognormal:32,1,512").draw(512, np.random.default_rng(0))
    assert abs(np.corrcoef(sizes, np.arange(512))[0, 1]) < 0.2


def test_a_number_is_a_fixed_size() -> None:
    assert traffic.parse_sizes("7").draw(3, np.random.default_rng(0)).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    "text", ["", "0", "-3", "mlperf2", "lognormal:3", "lognormal:32,1,8", "lognormal:0,1,8"]
)
def test_sizes_that_mean_nothing_are_refused_with_their_text(text: str) -> None:
    with pytest.raises(ValueError, match="sizes: want") as refused:
        traffic.parse_sizes(text)
    assert repr(text) in str(refused.value)


def test_arrivals_are_poisson() -> None:
    times = traffic.poisson_arrivals(2000, 20, np.random.default_rng(3))
    assert abs(len(times) - 40_000) < 5 * math.sqrt(40_000)
    assert times[0] >= 0
    assert times[-1] < 20
    gaps = np.diff(times)
    assert gaps.min() >= 0
    # Exponential gaps: their standard deviation is their mean, and 1/e of them exceed it.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), abs=0.01)


def test_skewed_ids_follow_the_power_law_and_uniform_ones_do_not() -> None:
    rng = np.random.default_rng(4)
    skewed = np.bincount(traffic.skewed_ids(1000, (200_000,), 1.1, rng), minlength=1000)
    uniform = np.bincount(traffic.skewed_ids(1000, (200_000,), 0, rng), minlength=1000)
    assert len(skewed) == len(uniform) == 1000
    # From 100 to 400 the density falls by 4 ** 1.1.
    fall = skewed[95:106].sum() / skewed[395:406].sum()
    assert fall == pytest.approx(4**1.1, rel=0.25)
    assert uniform.max() < 1.5 * uniform.mean()


@attrs.define
class FakeTime:
    """A clock that only waiting moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@attrs.define
class FakeServer:
    """A link to a server that takes ``service_s`` for each request, one after another."""

    clock: FakeTime
    service_s: float
    outcome: Callable[[int], int] = lambda index: OK
    stalled_until: float = 0.0
    free_at: float = 0.0
    waiting: list[tuple[float, int]] = attrs.field(factory=list)
    sent_at: list[float] = attrs.field(factory=list)
    most_open: int = 0

    def send(self, index: int) -> bool:
        assert index == len(self.sent_at), "requests go out in order, each once"
        self.sent_at.append(self.clock.now)
        self.free_at = max(self.free_at, self.clock.now, self.stalled_until) + self.service_s
        self.waiting.append((self.free_at, index))
        self.most_open = max(self.most_open, len(self.waiting))
        return True

    def receive(self, outcomes: list[tuple[int, int]]) -> None:
        while self.waiting and self.waiting[0][0] <= self.clock.now:
            _, index = self.waiting.pop(0)
            if self.outcome(index) != LOST:
                outcomes.append((index, self.outcome(index)))

    def wait(self, seconds: float) -> None:
        answer = self.waiting[0][0] if self.waiting else math.inf
        self.clock.now = max(self.clock.now, min(self.clock.now + seconds, answer)) + 1e-9


def test_an_open_loop_sends_when_requests_are_due_and_not_when_answers_come() -> None:
    clock = FakeTime()
    server = FakeServer(clock, service_s=0.001, stalled_until=0.5)
    due = [0.1, 0.2, 0.3, 0.6]
    record = load.open_loop(server, due, duration_s=1, drain_s=1, clock=clock)
    assert server.sent_at == pytest.approx(due, abs=1e-6)
    assert record.done_s == pytest.approx([0.501, 0.502, 0.503, 0.601], abs=1e-6)
    latencies = report.latencies_ms(record)
    assert latencies == pytest.approx([401, 302, 203, 1], abs=1e-3)


def test_latency_counts_from_the_due_time_even_if_the_generator_was_held_up() -> None:
    clock = FakeTime()

    @attrs.define
    class Blocked(FakeServer):
        def send(self, index: int) -> bool:
            return clock.now >= 0.25 and FakeServer.send(self, index)

    record = load.open_loop(
        Blocked(clock, service_s=0.001), [0.1, 0.2], duration_s=1, drain_s=1, clock=clock
    )
    assert record.sent_s.min() >= 0.25
    assert report.latencies_ms(record)[0] > 150


def test_an_open_loop_gives_up_on_answers_after_the_drain() -> None:
    clock = FakeTime()
    server = FakeServer(clock, 0.001, outcome=lambda index: LOST if index == 1 else OK)
    record = load.open_loop(server, [0.1, 0.2, 0.3], duration_s=0.5, drain_s=2, clock=clock)
    assert record.codes.tolist() == [OK, LOST, OK]
    assert math.isnan(record.done_s[1])
    assert 2.5 <= clock.now < 2.6


def test_a_closed_loop_keeps_its_clients_busy_and_no_more() -> None:
    clock = FakeTime()
    server = FakeServer(clock, service_s=0.01)
    record = load.closed_loop(server, 4, most=10_000, duration_s=2, drain_s=1, clock=clock)
    assert server.most_open == 4
    figures = report.summarise(record, np.full(len(record.codes), 5), budget_ms=100)
    assert figures["requests_per_s"] == pytest.approx(100, rel=0.02)
    assert figures["p50_ms"] == pytest.approx(40, rel=0.01)
    assert figures["lost"] == 0


def test_a_closed_loop_ends_with_its_last_request() -> None:
    clock = FakeTime()
    record = load.closed_loop(
        FakeServer(clock, 0.01), 4, most=8, duration_s=1e6, drain_s=1, clock=clock
    )
    assert len(record.codes) == 8
    assert record.duration_s < 1


def test_percentiles_are_nearest_rank() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    for p in (1, 50, 95, 99, 100):
        assert report.percentile(values, p) == p
    assert report.percentile(np.array([7.0]), 99) == 7
    assert report.percentile(np.array([1.0, 2.0]), 50) == 1
    assert math.isnan(report.percentile(np.array([]), 99))


def record_of(codes: list[int], latencies_ms: list[float]) -> Record:
    due = np.arange(len(codes), dtype=np.float64) / 10
    return Record(
        due_s=due,
        sent_s=due + 0.001,
        done_s=due + np.array(latencies_ms, np.float64) / 1e3,
        codes=np.array(codes, np.uint8),
        duration_s=len(codes) * 0.1,
    )


def test_a_summary_counts_each_request_once_and_only_scores_in_budget_as_goodput() -> None:
    nan = math.nan
    codes = [OK, OK, OK, OVERLOADED, DEADLINE, 1, 5, LOST, OK, OK]
    latencies = [10.0, 20.0, 60.0, 1.0, 50.0, 1.0, 1.0, nan, 30.0, 500.0]
    figures = report.summarise(record_of(codes, latencies), np.arange(10), budget_ms=50)
    counts = {name: figures[name] for name in ("sent", "ok", "shed", "expired", "failed", "lost")}
    assert counts == {"sent": 10, "ok": 5, "shed": 1, "expired": 1, "failed": 2, "lost": 1}
    assert figures["goodput_per_s"] == 3
    assert figures["requests_per_s"] == 4  # the last came after the end
    assert figures["rows_per_s"] == 0 + 1 + 2 + 8
    assert figures["p50_ms"] == 30
    assert figures["p99_ms"] == 500
    assert figures["generator_late_p99_ms"] == 1
    assert report.failed_share(figures) == 0.5


def test_a_run_without_answers_is_still_a_line_of_json() -> None:
    figures = report.summarise(record_of([LOST], [math.nan]), np.array([3]), budget_ms=50)
    assert figures["p99_ms"] is None
    assert json.loads(json.dumps(figures))["lost"] == 1


def test_stages_are_the_actors_histograms() -> None:
    summary = {"n": 4, "mean": 120.0, "p99": 300.0}
    found = report.stages(
        {
            "gateway": {"answered": 9, "parse_us": summary, "join_us": {"n": 0}},
            "executor-0": {"window_requests": {"n": 2, "mean": 2.5, "p99": 4}},
        }
    )
    assert found["stages_us"] == {"gateway.parse": {"mean": 120.0, "p99": 300.0}}
    assert found["requests_per_window"] == 2.5


def test_scores_of_another_shape_are_no_small_error() -> None:
    same = np.ones((3, 1), np.float32)
    found = report.compare([(same, same + 0.25), (same, same), (same, same * 1.0001)])
    assert (found["answers"], found["wrong"], found["max_abs_error"]) == (3, 1, 0.25)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        report.compare([(same[:2], same)])


def series(n: int, name: str = "ours & <theirs>") -> plot.Series:
    rng = np.random.default_rng(n)
    return plot.Series(name, "note", np.sort(rng.random(n)), np.exp(rng.standard_normal(n)))


@pytest.mark.parametrize("sizes", [[3000, 500], [1], [0], [], [2, 0, 5]])
def test_the_plot_is_well_formed_svg_within_its_borders(sizes: list[int]) -> None:
    text = plot.draw('a "title"', "<subtitle>", [series(n) for n in sizes], budget_ms=50)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "nan" not in text
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    # A line for each contender with answers; for the first a halo and a line twice more.
    drawn = sum(n > 0 for n in sizes)
    assert len(lines) == drawn + (4 if sizes and sizes[0] else 0)
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = (float(part) for part in point.split(","))
            assert 64 <= x <= 976
            assert 144 <= y <= 464


def test_a_slower_contenders_line_lies_higher() -> None:
    fast = plot.Series("fast", "", np.arange(100.0), np.full(100, 2.0))
    slow = plot.Series("slow", "", np.arange(100.0), np.full(100, 20.0))
    root = ElementTree.fromstring(plot.draw("", "", [fast, slow], budget_ms=50))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    heights = [float(line.attrib["points"].split()[0].split(",")[1]) for line in lines[:2]]
    assert heights[1] < heights[0] - 50


def test_the_search_ends_at_the_highest_rate_that_is_held() -> None:
    runs: list[tuple[float, float]] = []

    def run(rate: float, seconds: float) -> Measurement:
        runs.append((rate, seconds))
        p99_ms = 5.0 if rate <= 730 else 500.0
        return Measurement(figures={"p99_ms": p99_ms}, record=record_of([OK], [p99_ms]))

    said: list[str] = []
    found = find_rate(
        run, 1000, lambda figures: figures["p99_ms"] < 50, duration_s=60, say=said.append
    )
    assert found.figures["held"]
    assert 715 <= found.figures["rate"] <= 730
    assert runs[-1][1] == 60
    assert len(said) == len(runs)


def test_a_rate_that_a_full_run_does_not_hold_is_lowered_until_one_does() -> None:
    def run(rate: float, seconds: float) -> Measurement:
        p99_ms = 5.0 if rate <= (700 if seconds > 10 else 730) else 500.0
        return Measurement(figures={"p99_ms": p99_ms}, record=record_of([OK], [p99_ms]))

    found = find_rate(
        run, 1000, lambda figures: figures["p99_ms"] < 50, duration_s=60, say=lambda text: None
    )
    assert found.figures["held"]
    assert 670 <= found.figures["rate"] <= 700


def test_a_server_that_holds_no_rate_is_said_to_hold_none() -> None:
    def run(rate: float, seconds: float) -> Measurement:
        assert rate > 0
        return Measurement(figures={"p99_ms": None}, record=record_of([LOST], [math.nan]))

    found = find_rate(run, 1000, lambda figures: False, duration_s=60, say=lambda text: None)
    assert not found.figures["held"]

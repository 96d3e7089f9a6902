"""The benchmark of the GPU executor, over a fake driver where it needs one."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from pathlib import Path

import attrs
import numpy as np
import pytest

from kernels.compiler import Options
from kernels.errors import KernelsError, LaunchFailed
from kernels.gpu.bench import __main__ as module
from kernels.gpu.bench import lengths
from kernels.gpu.bench.__main__ import main
from kernels.gpu.bench.compiling import Heartbeat, compile_seconds, measure_stall
from kernels.gpu.bench.load import MLPERF_SIZES, Load, draw_requests, run_load
from kernels.gpu.bench.processes import measure_processes, measure_shares, serve_as_child
from kernels.gpu.bench.report import summary, table
from kernels.gpu.bench.subject import Subject, open_subject, subject_of
from kernels.gpu.bench.user_side import CANDIDATES, user_side_graph, user_side_program
from kernels.gpu.bench.windows import Settings, check_scores, measure_lanes
from kernels.gpu.device import Isolation
from kernels.gpu.executor import GpuExecutor
from kernels.gpu.mps import Mps
from kernels.ir.build import add, slice_, sum_, to_rows
from kernels.ir.node import Graph, Lead, input_node
from kernels.program import H100, Bucket, Precision
from tests.kernels import shim
from tests.kernels.gpu_help import (
    CANDIDATE_WIDTH,
    USER_WIDTH,
    FakeBuilder,
    FakeCuda,
    ShimBuilder,
    fake_cuda,
    score_model,
    score_program,
)
from tests.kernels.lengths_help import graph_of, softmax_of_where

__all__ = ["fake_cuda"]
SHORT = Settings(max_rows=300, max_requests=20, n_clients=8, seconds=0.05)
CHILD = """
import sys
print("ready", flush=True)
sys.stdin.readline()
print('{"requests_per_s": 10, "batches_per_s": 5, "rows_per_s": 900, "padding": 0.1, '
      '"latencies_ms": [1, 2, 3]}')
"""


def score_graph() -> Graph:
    """Return what the fake's kernel computes: the sum of the candidate, and the user's first."""
    user = input_node("user", Lead.REQUESTS, USER_WIDTH)
    candidate = input_node("candidate", Lead.ROWS, CANDIDATE_WIDTH)
    first = slice_(to_rows(user), 1, 0, 1)
    output = add(sum_(candidate, 1), first)
    return Graph("tiny", {"user": user, "candidate": candidate}, output)


@pytest.fixture
def subject() -> Subject:
    made = subject_of(score_graph(), Options(precision=Precision.FP32))
    return attrs.evolve(made, compile=lambda bucket, target: score_program(bucket, target))


def fake_mps_control() -> Path:
    return Path(__file__).with_name("fake_mps.py")


def test_requests_have_the_sizes_of_mlperf() -> None:
    requests = draw_requests(3, 5, n=400)
    sizes = [each.n_rows for each in requests]
    assert set(sizes) == set(MLPERF_SIZES)
    assert np.mean(sizes) == pytest.approx(np.mean(MLPERF_SIZES), rel=0.1)
    assert requests[0].user.shape == (3,)
    assert requests[0].candidate.shape == (sizes[0], 5)


@pytest.mark.parametrize("windows", [False, True])
def test_windows_merge_what_waits_and_fits(fake_cuda: FakeCuda, windows: bool) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, 2, buckets=[100])
    requests = draw_requests(USER_WIDTH, CANDIDATE_WIDTH, (30, 60))
    measured = run_load(executor, requests, n_clients=16, windows=windows, seconds=0.05)
    executor.close()
    facts = measured.facts()
    assert facts["requests_per_s"] > 0
    assert facts["p99_ms"] >= facts["p50_ms"] > 0
    if windows:
        # 16 requests of 45 rows on average wait for two lanes of 300 rows.
        assert facts["launches_per_request"] < 0.5
        assert 100 < facts["rows_per_launch"] <= 300
    else:
        assert facts["launches_per_request"] == 1
        assert 30 <= facts["rows_per_launch"] <= 60
        assert facts["padding"] == pytest.approx(1 - facts["rows_per_launch"] / 100)


def test_what_a_launch_meets_ends_the_load(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, 2, buckets=[100])
    fake_cuda.fail("cuGraphLaunch", 1)
    load = Load(executor, draw_requests(USER_WIDTH, CANDIDATE_WIDTH, (30,)), 4, windows=True)
    load.start()
    with pytest.raises(LaunchFailed):
        load.stop()
    fake_cuda.fail("", 0)
    executor.close()


def test_every_mode_and_number_of_lanes_is_measured(fake_cuda: FakeCuda, subject: Subject) -> None:
    lines = measure_lanes(
        subject, SHORT, lambda: fake_cuda.builder, [1, 2], list(Isolation), [False, True]
    )
    assert len(lines) == 2 * 3 * 2
    assert all(line["requests_per_s"] > 0 for line in lines)
    lines = measure_lanes(
        subject, SHORT, lambda: fake_cuda.builder, [200], [Isolation.GREEN], [True]
    )
    assert [line["lanes"] for line in lines] == [200]
    assert "too few" in lines[0]["error"]


def test_scores_are_checked_against_float64(fake_cuda: FakeCuda, subject: Subject) -> None:
    assert check_scores(subject, SHORT, lambda: fake_cuda.builder) < 1e-5
    other = score_graph()
    wrong = Graph("tiny", other.inputs, add(other.output, other.output))
    with pytest.raises(KernelsError, match="tiny: scores are off by"):
        check_scores(attrs.evolve(subject, graph=wrong), SHORT, lambda: fake_cuda.builder)


def test_compiling_is_timed_cold_and_warm() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    found = compile_seconds(subject_of(score_graph()), SHORT, H100, 2)
    assert found["buckets"] == len(SHORT.buckets) == 4
    assert found["cold_s"] > found["warm_s"] > 0
    assert found["plan_s"] > 0


def test_stalls_are_measured_while_buckets_are_compiled_and_after(
    fake_cuda: FakeCuda, subject: Subject
) -> None:
    def builder() -> FakeBuilder:
        return FakeBuilder(fake_cuda.cubin)

    lines = measure_stall(subject, SHORT, builder, 2)
    assert [line["compiling"] for line in lines] == [True, False]
    assert lines[1]["beats"] > 0
    assert lines[1]["requests_per_s"] > 0
    assert all(line["stall_worst_ms"] >= line["stall_p99_ms"] for line in lines)


def test_a_heartbeat_notes_who_keeps_the_interpreter() -> None:
    end = time.perf_counter() + 0.05
    with Heartbeat() as heartbeat:
        while time.perf_counter() < end:
            sum(range(1000))
    assert heartbeat.facts()["beats"] > 0


def test_the_users_half_is_computed_once_a_request() -> None:
    graph = user_side_graph(64, (32, 1))
    once, again = (user_side_program(graph, 8, H100, once=once) for once in (True, False))
    assert once.bucket == Bucket(8 * CANDIDATES, 8)
    rows = 8 * CANDIDATES
    assert again.flops == 2 * rows * (64 * 32 + 32)
    assert once.flops == 2 * (rows * (32 * 32 + 32) + 8 * 32 * 32)


def test_a_child_serves_when_it_is_told(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, buckets=[100])
    requests = draw_requests(USER_WIDTH, CANDIDATE_WIDTH, (30,))
    out = io.StringIO()
    serve_as_child(executor, requests, 4, 0.02, io.StringIO("serve\n"), out)
    ready, line = out.getvalue().splitlines()
    assert ready == "ready"
    facts = json.loads(line)
    assert len(facts["latencies_ms"]) == pytest.approx(facts["requests_per_s"] * 0.02, rel=0.5)
    out = io.StringIO()
    serve_as_child(executor, requests, 4, 0.02, io.StringIO(""), out)
    assert out.getvalue() == "ready\n", "nobody told it to"
    executor.close()


def test_processes_are_added_up() -> None:
    found = measure_processes(["-c", CHILD], 3)
    assert found["requests_per_s"] == 30
    assert found["launches_per_request"] == 0.5
    assert found["rows_per_launch"] == 180
    assert found["padding"] == pytest.approx(0.1)
    assert (found["p50_ms"], found["p99_ms"]) == (2, 3)


def test_a_child_that_ends_is_told_with_its_last_words() -> None:
    with pytest.raises(KernelsError, match="status 3: no card"):
        measure_processes(["-c", "import sys; sys.stderr.write('no card'); sys.exit(3)"], 2)


def test_processes_run_with_mps_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path) -> Mps:
        return Mps(folder, fake_mps_control())

    lines = measure_shares(["-c", CHILD], (2,), make)
    assert [line["mps"] for line in lines] == ["off", "on", "50 %"]
    assert all(line["requests_per_s"] == 20 for line in lines)
    monkeypatch.setenv("PATH", "/nonexistent")
    if shutil.which("nvidia-cuda-mps-control", path="/usr/bin:/usr/local/bin") is None:
        lines = measure_shares(["-c", CHILD], (2,))
        assert [line["mps"] for line in lines] == ["off", "on"]
        assert "MPS" in lines[1]["error"]


@pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
def test_shorter_sequences_are_timed_and_score_alike(
    fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "_N_REPEATS", 2)
    sequences = subject_of(graph_of(softmax_of_where, user=True), Options(Precision.FP32))
    found = lengths.measure_lengths(sequences, ShimBuilder(), rows=(16,))
    assert [line["steps"] for line in found] == [20, 10, 5, 2]
    assert [line["staged_kb"] for line in found] == [
        4 * (n * 9 + 16 * 16) / 1e3 for n in (20, 10, 5, 2)
    ]
    assert all(line["run_us"] > 0 for line in found)
    assert lengths.measure_lengths(open_subject(None, "DeepFM"), fake_cuda.builder) == []


def test_tables_and_ratios() -> None:
    windows = [
        {"mode": "streams", "lanes": 4, "windows": on, "requests_per_s": rate, "padding": 0.25}
        for on, rate in ((False, 100.0), (True, 250.0))
    ]
    text = table("windows", [*windows, {"mode": "green", "lanes": 99, "error": "too few"}])
    assert text.splitlines()[0] == "windows"
    assert "25%" in text
    assert text.splitlines()[-1].endswith("too few")
    once = [
        {"requests": 8, "user_once": on, "mflops": flops, "device_us": us}
        for on, flops, us in ((True, 50.0, 6.0), (False, 100.0, 10.0))
    ]
    said = list(summary({"windows": windows, "user_side": once}))
    assert said == [
        "windows, 4 lanes: 2.50 times the requests/s",
        "user side once, 8 requests: 0.50 of the FLOPs, 0.60 of the time",
    ]


def test_models_are_found_by_name() -> None:
    subject = open_subject(None, "DeepFM")
    assert (subject.width("user"), subject.width("candidate")) == (0, 455)
    program = subject.compile(Bucket(64, 8), H100)
    assert subject.compile(Bucket(64, 8), H100) is program
    with pytest.raises(KernelsError, match="no model 'x'"):
        open_subject(None, "x")


def test_sections_are_printed_and_written(
    fake_cuda: FakeCuda,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def builder(*_: object, **__: object) -> FakeBuilder:
        return fake_cuda.builder

    monkeypatch.setattr(module, "open_subject", lambda *_: subject)
    monkeypatch.setattr(module, "subject_of", lambda *_: subject)
    monkeypatch.setattr(module, "Builder", builder)
    file = tmp_path / "found.json"
    sections = ["--only", "windows,lanes,stall", "--lanes", "1,2", "--modes", "streams,green"]
    small = ["--seconds", "0.02", "--max-rows", "800", "--json", str(file)]
    assert main(["--model", "DeepFM", *sections, *small]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"windows, 1 lanes: [\d.]+ times the requests/s\n$", printed)
    found = json.loads(file.read_text())
    assert list(found["sections"]) == ["windows", "lanes", "stall"]
    assert len(found["sections"]["lanes"]) == 4
    assert main(["--model", "DeepFM", *sections, *small, "--limit-s", "1e-9"]) == 0
    assert "windows: not measured" in capsys.readouterr().out


def test_without_a_driver_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "DeepFM", "--quick"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kernels.gpu.bench: ")
    assert error.count("\n") == 1
    for wrong in (["--lanes", "0"], ["--modes", "x"], ["--only", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["--model", "DeepFM", *wrong])

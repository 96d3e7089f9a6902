"""Deployments that are compared: their cluster files, the sweep over them, what launches took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from actors.dense import ExecutorOptions, GpuOptions
from actors.options import read_options
from runtime import cluster_file
from runtime.bench import report
from runtime.bench.__main__ import main
from runtime.bench.session import Result, Settings
from runtime.bench.sweep import run_sweep, table
from runtime.bench.topologies import TOPOLOGIES, Deployment, cluster_text, deployments
from runtime.bench.traffic import parse_sizes
from runtime.topology import Topology
from transport.errors import Unavailable

CARD = Deployment(
    device="cuda", lanes=4, mode="green", windows=False, precision="fp16", max_rows=512
)


def cluster(folder: Path, deployment: Deployment | None, topology: str = "all-in-one") -> Topology:
    text = cluster_text(
        folder / "DeepFM", topology, 2, "tcp://127.0.0.1:7400", folder / "run", deployment
    )
    return cluster_file.loads(text, folder / "cluster.toml")


def settings(bundle: Path) -> Settings:
    return Settings(
        bundle=bundle,
        onnx=None,
        user_columns=None,
        connect=None,
        model=None,
        topology="all-in-one",
        n_shards=1,
        rate=None,
        n_clients=4,
        find_rate=False,
        p99_ms=50,
        budget_ms=100,
        duration_s=0.1,
        warmup_s=0,
        sizes=parse_sizes("8"),
        skew=1,
        n_distinct=4,
        tick_us=250,
        seed=1,
        peers=(),
    )


def test_an_executor_gets_its_options(tmp_path: Path) -> None:
    with_cache = attrs.evolve(CARD, cache=tmp_path / "cubins")
    made = cluster(tmp_path, with_cache)
    assert len(made.nodes) == 1
    (executor,) = (
        actor for node in made.nodes for actor in node.actors if actor.name == "executor-0"
    )
    options = read_options(ExecutorOptions, "executor-0", executor.options)
    assert (options.device, options.lanes, options.max_requests) == ("cuda", 4, 1)
    assert options.max_rows == 512
    gpu = read_options(GpuOptions, "executor-0", options.gpu)
    assert (gpu.mode, gpu.precision) == ("green", "fp16")
    assert gpu.cache == str(tmp_path / "cubins")


def test_a_host_executor_is_as_it_was(tmp_path: Path) -> None:
    made = cluster(tmp_path, None)
    assert made.node_of("executor-0").actors[-1].options == {}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_executors_that_share_a_card_have_nodes_of_their_own(tmp_path: Path, topology: str) -> None:
    made = cluster(tmp_path, attrs.evolve(CARD, n_executors=2, mps=50), topology)
    assert list(made.models["DeepFM"].executors) == ["executor-0", "executor-1"]
    shares = {node.name: node.mps for node in made.nodes}
    assert shares["executor-0"] == shares["executor-1"] == 50
    assert {share for name, share in shares.items() if "executor" not in name} == {None}
    assert made.node_of("gateway").name not in ("executor-0", "executor-1")


def test_what_is_for_a_card_is_refused_on_the_host() -> None:
    with pytest.raises(ValueError, match="--mode: is for a card: want --device cuda"):
        Deployment(mode="green")
    with pytest.raises(ValueError, match="mps"):
        Deployment(device="cuda", mps=101)


def test_scores_of_a_card_may_be_off_by_its_precision() -> None:
    assert Deployment().largest_error == 1e-5
    assert Deployment(device="cuda").largest_error == 2e-3
    assert Deployment(device="cuda", precision="fp32").largest_error == 1e-5


def test_every_combination_is_compared() -> None:
    found = deployments(
        Deployment(device="cuda"),
        lanes=[1, 2],
        modes=["streams", "green"],
        windows=[True, False],
        executors=[1, 2],
        mps=[None, 50],
    )
    assert len(found) == len(set(found)) == 32
    assert (found[0].lanes, found[0].windows, found[1].windows) == (1, True, False)


def test_a_deployment_that_fails_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    compared = [attrs.evolve(CARD, lanes=n) for n in (1, 99, 2)]

    def run(each: Settings) -> Result:
        if each.deployment.lanes == 99:
            raise Unavailable("the cluster ended at start")
        line: dict[str, Any] = {
            "deployment": each.deployment.figures(),
            "requests_per_s": 1234.5,
            "p50_ms": 1.25,
            "p99_ms": None,
            "launches_per_request": 0.125,
            "rows_per_launch": 400.2,
            "padding": 0.25,
            "shed": 0,
            "lost": 0,
        }
        return Result(line=line, plot="", in_order=True)

    sweep = run_sweep(settings(tmp_path), compared, run)
    assert not sweep.in_order
    assert [line["deployment"]["lanes"] for line in sweep.lines] == [1, 99, 2]
    json.dumps(sweep.lines)
    lines = table(sweep.lines).splitlines()
    assert lines[0].split()[:5] == ["executors", "mps", "mode", "lanes", "windows"]
    assert " ".join(lines[1].split()) == "1 - green 1 off 1,234.5 1.25 - 0.125 400 25.0% 0 0"
    assert lines[2].endswith("the cluster ended at start")


def test_launches_of_all_executors_are_counted_together() -> None:
    def snapshot(n: int, requests: float, rows: float, padding: int) -> dict[str, Any]:
        return {
            "window_requests": {"n": n, "mean": requests, "p99": requests},
            "window_rows": {"n": n, "mean": rows, "p99": rows},
            "padding_rows": padding,
            "padding_requests": 6 * n,
        }

    before = {"executor-0": {"padding_rows": 100}}
    after = {
        "gateway": {"served": 3},
        "executor-0": snapshot(10, 4, 200, 600),
        "executor-1": snapshot(30, 2, 100, 500),
    }
    assert report.launches(before, after) == {
        "launches_per_request": 0.4,
        "rows_per_launch": 125.0,
        "padding": round(1000 / 6000, 4),
        "padding_requests": round(240 / 340, 4),
    }
    assert report.launches({}, {"gateway": {"served": 3}}) == {}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--windows", "on,maybe"], "want on, off or both"),
        (["--lanes", "0"], "want numbers"),
        (["--modes", "blocks"], "want some of streams,contexts,green"),
        (["--mps", "0"], "want off or 1 to 100 percent"),
    ],
)
def test_lists_that_mean_nothing_are_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--bundle", "b", *arguments])
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--bundle", "b", "--modes", "green"], "want --device cuda"),
        (["--bundle", "b", "--windows", "on,off", "--plot", "p.svg"], "several deployments"),
        (["--connect", "tcp://127.0.0.1:1", "--lanes", "2"], "--connect"),
    ],
)
def test_what_does_not_go_together_is_told(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err

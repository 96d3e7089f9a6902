from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kernels.gpu import mps as module
from runtime.errors import StartError
from runtime.mps import client_environment, shared_card
from runtime.topology import ActorSpec, NodeSpec

FAKE = Path(__file__).parents[1] / "kernels" / "fake_mps.py"


def node(name: str, mps: int | None = None) -> NodeSpec:
    actor = ActorSpec(name=f"actor-{name}", class_name="x.Y")
    return NodeSpec(name=name, actors=(actor,), mps=mps)


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, with a daemon's program that can be found."""
    shutil.copy(FAKE, tmp_path / "nvidia-cuda-mps-control")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "run"


def test_the_daemon_runs_while_nodes_share_a_card(run_folder: Path) -> None:
    nodes = [node("gateway"), node("a", 30), node("b", 70)]
    with shared_card(run_folder, nodes) as mps:
        assert mps is not None
        assert mps.is_running()
        assert client_environment(mps, nodes[0]) == {}
        assert client_environment(mps, nodes[1]) == {
            "CUDA_MPS_PIPE_DIRECTORY": f"{run_folder}/mps/pipe",
            "CUDA_MPS_LOG_DIRECTORY": f"{run_folder}/mps/log",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "30",
        }
        assert run_folder.stat().st_mode & 0o777 == 0o700
    assert not mps.is_running()


def test_the_daemon_stops_when_the_nodes_fail(run_folder: Path) -> None:
    def fail() -> None:
        with shared_card(run_folder, [node("a", 30)]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    log = (run_folder / "mps" / "log" / "asked").read_text()
    assert "quit -t 5" in log


def test_nodes_with_cards_of_their_own_need_no_daemon(tmp_path: Path) -> None:
    with shared_card(tmp_path / "run", [node("a"), node("b")]) as mps:
        assert mps is None
    assert not (tmp_path / "run").exists()
    assert client_environment(None, node("a", 50)) == {}


def test_without_the_program_the_cluster_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.find_control, "__defaults__", ((str(tmp_path),),))
    with (
        pytest.raises(StartError, match="MPS: there is no nvidia-cuda-mps-control"),
        shared_card(tmp_path / "run", [node("a", 50)]),
    ):
        pass


def test_a_daemon_that_does_not_stop_is_logged(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with shared_card(run_folder, [node("a", 50)]) as mps:
        assert mps is not None
        mps.patience_s = 0
        (run_folder / "mps" / "refuses").touch()
    assert "the daemon does not stop" in caplog.text

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kernels.errors import CudaError
from kernels.gpu.mps import Mps, find_control

FAKE = Path(__file__).with_name("fake_mps.py")


def asked(folder: Path) -> list[str]:
    return (folder / "log" / "asked").read_text().splitlines()


def test_the_daemon_starts_answers_and_stops(tmp_path: Path) -> None:
    mps = Mps(tmp_path / "mps", FAKE)
    mps.start()
    assert mps.is_running()
    mps.start()
    assert asked(mps.folder).count("-d") == 1, "one that runs is not started again"
    assert ((tmp_path / "mps" / "pipe").stat().st_mode & 0o777) == 0o700
    mps.stop()
    assert not mps.is_running()
    mps.stop()
    assert asked(mps.folder).count("quit -t 5") == 1


def test_clients_are_told_by_their_environment(tmp_path: Path) -> None:
    mps = Mps(tmp_path, FAKE)
    assert mps.environment() == {
        "CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/pipe",
        "CUDA_MPS_LOG_DIRECTORY": f"{tmp_path}/log",
    }
    assert mps.environment(25)["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"


def test_a_daemon_that_does_not_start_or_stop_says_why(tmp_path: Path) -> None:
    mps = Mps(tmp_path, FAKE, patience_s=0)
    (tmp_path / "refuses").touch()
    with pytest.raises(CudaError, match=r"does not start .An instance of this daemon is already"):
        mps.start()
    (tmp_path / "refuses").unlink()
    mps.start()
    (tmp_path / "refuses").touch()
    with pytest.raises(CudaError, match="the daemon does not stop"):
        mps.stop()


def test_the_program_is_found_on_the_path_or_where_drivers_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(CudaError, match=f"no nvidia-cuda-mps-control on the PATH or in {tmp_path}"):
        find_control([str(tmp_path)])
    shutil.copy(FAKE, tmp_path / "nvidia-cuda-mps-control")
    assert find_control([str(tmp_path)]) == tmp_path / "nvidia-cuda-mps-control"


def test_a_program_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    mps = Mps(tmp_path, tmp_path / "missing")
    with pytest.raises(CudaError, match="cannot be run"):
        mps.start()

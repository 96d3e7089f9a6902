"""Processes that share a card through a daemon of our own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernels.errors import CudaError
from kernels.gpu.mps import Mps, find_control

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]

CLIENT = """
import numpy as np
from kernels.gpu.device import Device
from kernels.gpu.executor import GpuExecutor
from tests.gpu.programs import ReadyBuilder, model

executor = GpuExecutor(model(), ReadyBuilder(), 2)
staging = executor.staging(0)
staging.user[:1], staging.candidate[:100] = 1, 0.5
assert np.allclose(executor.run(0, 1, 100), 3.5)
print(Device.open().n_sms, flush=True)
input()
executor.run(0, 1, 100)
executor.close()
"""


def client(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_run_side_by_side_on_their_shares() -> None:
    try:
        control = find_control()
    except CudaError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="mps") as folder:
        mps = Mps(Path(folder), control)
        mps.start()
        try:
            whole, half, quarter = (
                client(dict(mps.environment(percentage))) for percentage in (None, 50, 25)
            )
            counts = []
            for each in (whole, half, quarter):
                assert each.stdout is not None
                counts.append(int(each.stdout.readline()))
            assert mps.is_running()
            for each in (whole, half, quarter):
                each.communicate("\n", timeout=60)
                assert each.returncode == 0
        finally:
            mps.stop()
        assert not mps.is_running()
    assert 0.4 * counts[0] <= counts[1] <= 0.6 * counts[0]
    assert 0.2 * counts[0] <= counts[2] <= 0.35 * counts[0]

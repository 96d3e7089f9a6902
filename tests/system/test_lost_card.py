"""A card that is lost: its process ends and is started again; what was in flight is answered.

The node processes find a fake driver where they look for the real one. It loses its card after some
launches, again in each process; its kernels do nothing.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from kernels import _cuda
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import load_bundle
from kernels.gpu.buckets import bucket_of
from kernels.gpu.model import model_of
from kernels.nvrtc import Builder, Cache
from kernels.program import H100
from tests import tiny
from tests.kernels.gpu_help import fake_library
from tests.system.cluster_help import serving
from transport.blocking import BlockingClient
from transport.errors import DeadlineExceeded, Unavailable

# Opening an executor takes two for each bucket.
N_LAUNCHES = 12
PATIENCE_S = 60.0


@pytest.fixture
def on_fake_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that are started from here find the fake driver; there is a bundle for them."""
    pytest.importorskip("cuda.bindings.driver")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    if _cuda.available() is None:
        pytest.skip("there is a real driver")
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "libcuda.so.1").symlink_to(fake_library())
    bundle, cache = tmp_path / "bundle", tmp_path / "cubins"
    build_bundle(*tiny.write_model(tmp_path), bundle, BuildOptions())
    model = model_of(load_bundle(bundle), max_rows=64, max_requests=256)
    with Builder(Cache(cache), 1) as builder:  # ahead: NVRTC does not work beside the fake
        builder.build_all(model.compile(bucket_of(64, 256), H100).sources)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    monkeypatch.setenv("FAKE_CUDA_LAUNCHES", str(N_LAUNCHES))


@pytest.mark.usefixtures("on_fake_cards")
def test_a_lost_card_costs_its_process_and_what_was_in_flight(tmp_path: Path) -> None:
    gpu = {"gpu.buckets": [64], "gpu.workers": 1, "gpu.cache": str(tmp_path / "cubins")}
    user = {"user_id": 1, "history": [1], "age": 20.0}
    rows = {"item_id": [1, 2], "genre": ["drama", "crime"], "price": [0.0, 1.0]}
    options = {"device": "cuda", "max_rows": 64, **gpu}
    with (
        serving(
            {"m": tmp_path / "bundle"}, tmp_path, n_shards=1, executor=options, apart=True
        ) as node,
        BlockingClient(node.address) as client,
    ):
        before = node.pids()

        def answered() -> bool:
            try:
                client.score(model="m", user=user, candidates=rows, budget=5.0)
            except (Unavailable, DeadlineExceeded):  # the latter if it went to nobody
                return False
            return True

        n_answered = 0
        while answered():
            n_answered += 1
        assert 0 < n_answered <= N_LAUNCHES
        deadline = time.monotonic() + PATIENCE_S
        while not answered():  # refused at once, until the next process is ready
            assert time.monotonic() < deadline, node.out.read_text()
            time.sleep(0.05)
        after = node.pids()
        assert {name for name in before if before[name] != after[name]} == {"executor-m"}
        said = node.out.read_text()
    assert "executor-m: its card is lost: cuEventSynchronize: CUDA_ERROR_LAUNCH_FAILED" in said

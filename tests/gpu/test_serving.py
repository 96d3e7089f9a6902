"""A bundle served on a card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from actors.dense import ExecutorOptions, open_dense
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import load_bundle
from kernels.gpu.executor import GpuExecutor
from runtime.service import Service
from runtime.topology import all_in_one
from tests import tiny

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_bundle(*tiny.write_model(folder), folder / "bundle", BuildOptions())
    return folder / "bundle"


@pytest.mark.parametrize(
    ("precision", "mode", "error"),
    [
        ("fp16", "streams", 2e-3),
        ("fp32", "contexts", 1e-5),
        ("tf32", "streams", 2e-3),
        ("fp16", "green", 2e-3),
        ("bf16", "streams", 2e-2),
    ],
)
async def test_a_served_model_scores_on_the_card(
    bundle: Path, tmp_path: Path, precision: str, mode: str, error: float
) -> None:
    gpu = {"precision": precision, "mode": mode, "cache": str(tmp_path)}
    options = {"device": "cuda", "lanes": 2, "max_rows": 256, "gpu": gpu}
    worst = [0.0] * 40

    async def ask(service: Service, number: int) -> None:
        n_rows = 1 + 13 * number % 100
        user = {"user_id": number % tiny.N_USERS, "history": [1, 2, number % 17], "age": 30.0}
        ids, prices = [(number + k) % tiny.N_ITEMS for k in range(n_rows)], [0.3] * n_rows
        genres = [k % tiny.N_GENRES for k in range(n_rows)]
        columns = {"item_id": ids, "genre": [tiny.GENRES[k] for k in genres], "price": prices}
        answer = await service.score(user=user, candidates=columns, budget=30)
        want = tiny.click(user, {"item_id": ids, "genre": genres, "price": prices})
        worst[number] = float(np.abs(answer.scores - want).max())

    async with (
        Service.open(all_in_one(bundle, executor=options)) as service,
        trio.open_nursery() as nursery,
    ):
        for number in range(len(worst)):
            nursery.start_soon(ask, service, number)
    assert max(worst) < error


def test_the_model_opens_and_reports(bundle: Path, tmp_path: Path) -> None:
    options = ExecutorOptions(
        device="auto", max_rows=512, gpu={"cache": str(tmp_path), "buckets": [64]}
    )
    dense = open_dense(load_bundle(bundle), options, "executor-0")
    assert isinstance(dense, GpuExecutor)
    assert [n_rows for n_rows, _ in dense.measure()] == [64, 512]
    assert dense.statistics().padding == 0
    dense.close()

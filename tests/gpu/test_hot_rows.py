"""Hot rows of cached tables on a card: served scores are the whole model's while rows change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from actors.layouts import Layouts
from kernels.bundle.build import BuildOptions, build_bundle
from runtime.actor import Envelope
from tests import tiny
from tests.actors.test_cached_served import cache, changed, hot, shards_that_change
from tests.actors.test_gateway import ask, expected, request
from tests.actors.test_replicas_served import WatchedExecutor, serving
from transport.messages import ScoreReply
from transport.updates import RowsChanged

__all__ = ["shards_that_change"]
pytestmark = pytest.mark.gpu
N_ROUNDS, N_ASKED = 12, 40


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_bundle(*tiny.write_model(folder), folder / "bundle", BuildOptions())
    return folder / "bundle"


def tell_changed() -> None:
    """Tell the executor that all rows of items and users changed."""
    [(model, version)] = WatchedExecutor.last._versions.ready
    for table, n in (("items", tiny.N_ITEMS), ("users", tiny.N_USERS)):
        message = RowsChanged(model=model, version=version, table=table, keys=np.arange(n))
        WatchedExecutor.last._serve(Envelope(message, trio.current_time()))


@pytest.mark.parametrize(
    ("mode", "precision", "error"),
    [
        ("streams", "fp32", 1e-5),
        ("streams", "fp16", 2e-3),
        ("contexts", "fp32", 1e-5),
        ("green", "bf16", 2e-2),
    ],
)
@pytest.mark.parametrize("n_slots", [16, 64])
async def test_scores_follow_rows_that_change(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    precision: str,
    error: float,
    n_slots: int,
) -> None:
    """Requests at once on four lanes; with few slots, rows push each other out meanwhile."""
    item = 4 if precision == "fp32" else 2
    few = {"items": n_slots * 6 * item, "users": n_slots * 4 * item}
    monkeypatch.setattr(Layouts, "hot_tables", property(lambda _: few))
    gpu = {"precision": precision, "mode": mode, "buckets": [64], "cache": str(tmp_path / "cache")}
    options = {"device": "cuda", "lanes": 4, "max_rows": 64, "max_requests": 16, "gpu": gpu}
    worst = 0.0
    async with serving(cache(bundle, tmp_path, "items", "users"), executor=options) as host:

        async def ask_one(number: int) -> None:
            nonlocal worst
            asked = request(number, 1 + number % 23)
            answer = await ask(host, asked)
            assert isinstance(answer, ScoreReply), answer
            worst = max(worst, float(np.abs(answer.scores[:, 0] - expected(asked)).max()))

        for number in range(N_ROUNDS):
            with changed(0.05 * number):
                tell_changed()
                for _ in range(3):
                    async with trio.open_nursery() as nursery:
                        for i in range(1, N_ASKED + 1):
                            nursery.start_soon(ask_one, i)
        figures = await hot(host)
    assert worst < error
    for name in few:
        assert figures[f"hot.{name}"]["hits"] > figures[f"hot.{name}"]["invalidated"] > 0
    assert figures["rows_filled"] > 0

"""Ragged histories served on a fake card, in buckets of fewer steps where they are short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from actors import engine
from kernels.bundle.load import load_bundle
from kernels.gpu import model as gpu_model
from kernels.gpu.executor import GpuExecutor
from kernels.program import Bucket
from runtime.service import Service
from runtime.topology import all_in_one
from tests import attending
from tests.kernels import shim
from tests.kernels.gpu_help import FakeCuda, ShimBuilder, fake_cuda

__all__ = ["fake_cuda"]
pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))

ROWS, REQUESTS = 32, 16
BUCKETS = [ROWS, *({"rows": ROWS, "requests": REQUESTS, "length": n} for n in (4, 8, 16))]


@pytest.fixture(autouse=True)
def emitted(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Kernels are compiled for the CPU, and the fake card runs them."""
    monkeypatch.setattr(gpu_model, "Builder", ShimBuilder)
    return fake_cuda


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> list[GpuExecutor]:
    """The executors that are opened."""
    found: list[GpuExecutor] = []
    init = engine.Engine.__init__

    def noted(self: engine.Engine, **arguments: Any) -> None:  # noqa: ANN401
        init(self, **arguments)
        assert isinstance(self.dense, GpuExecutor)
        found.append(self.dense)

    monkeypatch.setattr(engine.Engine, "__init__", noted)
    return found


async def largest_error(
    bundle: Path,
    lengths: list[int],
    *,
    softmax: bool,
    together: bool,
    placement: Path | None = None,
    **options: object,
) -> float:
    """Ask for scores of users whose histories are so long; return how far the worst is off."""
    gpu = {"buckets": BUCKETS, "precision": "fp32", **options}
    executor = {"device": "cuda", "max_rows": ROWS, "max_requests": REQUESTS, "gpu": gpu}
    topology = all_in_one(bundle, executor=executor, placement=placement)
    errors = [np.inf] * len(lengths)

    async def ask(service: Service, number: int) -> None:
        history = [(7 * number + 3 * k) % attending.N_ITEMS for k in range(lengths[number])]
        user_id = number % attending.N_USERS
        items = [(number + k) % attending.N_ITEMS for k in range(1 + 5 * number % 9)]
        answer = await service.score(
            user={"user_id": user_id, "history": history}, candidates={"item_id": items}, budget=30
        )
        want = attending.score(user_id, history, items, softmax=softmax)
        errors[number] = float(np.abs(answer.scores - want).max())

    async with Service.open(topology) as service:
        if together:
            async with trio.open_nursery() as nursery:
                for number in range(len(lengths)):
                    nursery.start_soon(ask, service, number)
        else:
            for number in range(len(lengths)):
                await ask(service, number)
        counted = (await service.stats())["executor-0"]
    assert counted["window_steps"]["max"] >= max(lengths)
    assert counted["padding_steps"] >= 0
    assert sum(counted["buckets"].values()) == counted["window_rows"]["n"]
    assert counted["padding"].keys() == {"rows", "requests", "steps"}
    return max(errors)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("tables", ["shards", "card", "hot rows"])
async def test_each_request_runs_in_the_bucket_of_its_history(
    tmp_path: Path, executors: list[GpuExecutor], softmax: bool, tables: str
) -> None:
    bundle = attending.build(tmp_path, softmax=softmax)
    placement = None
    if tables != "shards":
        names = [table.name for table in load_bundle(bundle).manifest.tables]
        lines = ["version = 1", *(["device = 'all'"] if tables == "card" else [])]
        if tables == "hot rows":
            lines += [f"[cached.{json.dumps(name)}]\nmax_bytes = 10_000" for name in names]
        placement = tmp_path / "placement.toml"
        placement.write_text("\n".join(lines) + "\n")
    # From long to short and back: what lay in the staging before is of another layout.
    lengths = [24, 3, 20, 4, 5, 16, 1, 0]
    error = await largest_error(
        bundle, lengths, softmax=softmax, together=False, placement=placement
    )
    assert error < 1e-5
    launched = executors[0].statistics().launches_by_bucket
    by_length = {bucket.length: n for bucket, n in launched.items()}
    # An empty history is padding alone, which is alike at each step: it needs none of them. Of
    # rows that the card alone knows that cannot be seen, and a softmax may need all.
    unseen = softmax and tables == "hot rows"
    assert by_length == {24: 2 + unseen, 16: 1, 8: 1, 4: 4 - unseen}


@pytest.mark.parametrize("device", [False, True], ids=["shards", "card"])
async def test_lists_that_are_padded_on_the_left_are_short_too(
    tmp_path: Path, executors: list[GpuExecutor], device: bool
) -> None:
    bundle = attending.build(tmp_path, pad_side="left")
    placement = None
    if device:
        placement = tmp_path / "placement.toml"
        placement.write_text('version = 1\ndevice = "all"\n')
    lengths = [24, 3, 20, 5, 0]
    error = await largest_error(bundle, lengths, softmax=True, together=False, placement=placement)
    assert error < 1e-5
    launched = executors[0].statistics().launches_by_bucket
    assert {bucket.length: n for bucket, n in launched.items()} == {24: 2, 8: 1, 4: 2}


@pytest.mark.parametrize("input_dtype", ["float32", "float16"])
@pytest.mark.parametrize("mapped", [[], ["inputs", "scores"]])
async def test_requests_that_share_a_launch_have_its_longest_history(
    tmp_path: Path, executors: list[GpuExecutor], input_dtype: str, mapped: list[str]
) -> None:
    bundle = attending.build(tmp_path, softmax=False)
    random = np.random.default_rng(1)
    lengths = random.integers(0, 9, 40).tolist()
    error = await largest_error(
        bundle, lengths, softmax=False, together=True, input_dtype=input_dtype, mapped=mapped
    )
    assert error < (1e-5 if input_dtype == "float32" else 2e-3)
    statistics = executors[0].statistics()
    assert max(bucket.length for bucket in statistics.launches_by_bucket) == 8
    assert 0 < statistics.padding_steps < 0.5


async def test_without_given_buckets_all_have_every_step_at_first(
    tmp_path: Path, executors: list[GpuExecutor]
) -> None:
    bundle = attending.build(tmp_path)
    error = await largest_error(bundle, [2, 9], softmax=True, together=False, buckets=None)
    assert error < 1e-5
    assert executors[0].statistics().buckets == (Bucket(ROWS, REQUESTS, attending.STEPS),)

"""Buckets of fewer steps on a card: programs, and histories served end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from kernels.bench.graphs import graph_of
from kernels.bench.models import MODELS
from kernels.compiler import Options
from kernels.gpu.bench.lengths import measure_lengths
from kernels.gpu.bench.subject import subject_of
from kernels.ir.node import Graph
from kernels.nvrtc import Builder, Cache
from kernels.program import Precision
from runtime.service import Service
from runtime.topology import all_in_one
from tests import attending
from tests.kernels import lengths_help

pytestmark = pytest.mark.gpu
ERRORS = {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-5}


def din() -> Graph:
    model = MODELS["DIN"]
    return graph_of(model, model.draw_parameters(1))


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_din_scores_alike_at_every_length(precision: Precision, tmp_path: Path) -> None:
    subject = subject_of(din(), Options(precision))
    lines = measure_lengths(subject, Builder(Cache(tmp_path), 4), rows=(512,))
    assert [line["steps"] for line in lines] == [100, 50, 25, 12]


@pytest.mark.parametrize(
    ("block", "user"),
    [("softmax_of_where", True), ("transformer", False), ("maximum", True), ("flattened", False)],
)
def test_each_kind_of_sequence_scores_alike_at_every_length(
    block: str, user: bool, tmp_path: Path
) -> None:
    graph = lengths_help.graph_of(lengths_help.SHORT[block], user=user)
    lines = measure_lengths(subject_of(graph), Builder(Cache(tmp_path), 4), rows=(100,))
    assert [line["steps"] for line in lines] == [20, 10, 5, 2]


@pytest.mark.parametrize(
    ("device", "precision", "pad_side"),
    [(False, "fp32", "right"), (True, "fp16", "left")],
    ids=["shards", "card"],
)
async def test_ragged_histories_are_served(
    tmp_path: Path, device: bool, precision: str, pad_side: str
) -> None:
    bundle = attending.build(tmp_path, pad_side=pad_side)
    placement = None
    if device:
        placement = tmp_path / "placement.toml"
        placement.write_text('version = 1\ndevice = "all"\n')
    buckets = [64, *({"rows": 64, "requests": 16, "length": n} for n in (4, 8, 16))]
    gpu = {"cache": str(tmp_path / "cubins"), "buckets": buckets, "precision": precision}
    executor = {"device": "cuda", "max_rows": 64, "max_requests": 16, "lanes": 2, "gpu": gpu}
    topology = all_in_one(bundle, executor=executor, placement=placement)
    random = np.random.default_rng(1)
    lengths = random.integers(0, attending.STEPS + 1, 200).tolist()
    errors = [np.inf] * len(lengths)

    async def ask(service: Service, number: int) -> None:
        history = random.integers(0, attending.N_ITEMS, lengths[number]).tolist()
        items = random.integers(0, attending.N_ITEMS, 1 + number % 40).tolist()
        user_id = number % attending.N_USERS
        answer = await service.score(
            user={"user_id": user_id, "history": history}, candidates={"item_id": items}, budget=60
        )
        want = attending.score(user_id, history, items)
        errors[number] = float(np.abs(answer.scores - want).max())

    async with Service.open(topology) as service:
        for number in range(0, len(lengths), 2):  # alone, then together
            if number < 40:
                await ask(service, number)
                await ask(service, number + 1)
        async with trio.open_nursery() as nursery:
            for number in range(40, len(lengths)):
                nursery.start_soon(ask, service, number)
    assert max(errors) < ERRORS[precision]

"""Bundles served on a fake card that runs their emitted kernels on the CPU: the whole of the path.

From raw features to scores: gateway, shards, staging in pinned memory, lanes, captured graphs, the
kernels themselves, tables on the card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import trio

from kernels.bundle.load import load_bundle
from kernels.errors import DeviceLost
from kernels.gpu import model as gpu_model
from kernels.plan import phases
from runtime.errors import ActorDied, StartError
from runtime.service import Service
from runtime.topology import Topology, all_in_one
from tests import tiny
from tests.kernels import shim
from tests.kernels.gpu_help import FakeCuda, ShimBuilder, fake_cuda
from transport.errors import Unavailable

__all__ = ["fake_cuda"]
pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
N_ASKED = 12
LAUNCH_FAILED = 719


@pytest.fixture(autouse=True)
def emitted(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Kernels are compiled for the CPU, and the fake card runs them."""
    monkeypatch.setattr(gpu_model, "Builder", ShimBuilder)
    return fake_cuda


def options_of(gpu: dict[str, Any]) -> dict[str, Any]:
    """Return an executor's options with those of its card."""
    return {"device": "cuda", "lanes": 2, "max_rows": 32, "gpu": gpu | {"buckets": [32]}}


async def largest_error(bundle: Path, gpu: dict[str, Any], placement: Path | None = None) -> float:
    """As ``largest_error_on``, of a bundle on one card."""
    topology = all_in_one(bundle, executor=options_of(gpu), placement=placement)
    return await largest_error_on(topology)


async def largest_error_on(topology: Topology) -> float:
    """Ask for many requests' scores at once; return how far the worst is from the whole model."""
    errors = [np.inf] * N_ASKED

    async def ask(service: Service, number: int) -> None:
        user = {"user_id": number % tiny.N_USERS, "history": [1, 2, number % 17], "age": 30.0}
        n_rows = 1 + 7 * number % 40
        ids, prices = [(number + k) % tiny.N_ITEMS for k in range(n_rows)], [0.3] * n_rows
        genres = [k % tiny.N_GENRES for k in range(n_rows)]
        columns = {"item_id": ids, "genre": [tiny.GENRES[k] for k in genres], "price": prices}
        answer = await service.score(user=user, candidates=columns, budget=30)
        want = tiny.click(user, {"item_id": ids, "genre": genres, "price": prices})
        errors[number] = float(np.abs(answer.scores - want).max())

    async with Service.open(topology) as service, trio.open_nursery() as nursery:
        for number in range(N_ASKED):
            nursery.start_soon(ask, service, number)
    return max(errors)


@pytest.mark.parametrize(
    ("gpu", "error"),
    [
        ({"mode": "streams"}, 2e-3),
        ({"mode": "contexts", "precision": "fp32"}, 1e-5),
        ({"mode": "green", "input_dtype": "float16", "mapped": ["inputs", "scores"]}, 2e-3),
        ({"precision": "bf16"}, 2e-2),
    ],
    ids=["fp16", "fp32", "halves", "bf16"],
)
async def test_a_served_models_scores_are_those_of_the_whole(
    tiny_bundle: Path, emitted: FakeCuda, gpu: dict[str, Any], error: float
) -> None:
    assert await largest_error(tiny_bundle, gpu) < error
    assert emitted.launched > 0


@pytest.mark.parametrize(("which", "precision"), [("all", "fp16"), ("one", "fp32")])
async def test_tables_on_the_card_give_the_same_scores(
    tiny_bundle: Path, tmp_path: Path, which: str, precision: str
) -> None:
    first = load_bundle(tiny_bundle).manifest.tables[0].name
    placement = tmp_path / "placement.toml"
    placement.write_text(
        f"version = 1\ndevice = {json.dumps([first] if which == 'one' else 'all')}\n"
    )
    error = await largest_error(tiny_bundle, {"precision": precision}, placement)
    assert error < (2e-3 if precision == "fp16" else 1e-5)


@pytest.mark.parametrize(
    ("mode", "hot_rows"), [("streams", "card"), ("contexts", "card"), ("streams", "host")]
)
async def test_hot_rows_of_cached_tables_lie_on_the_card_or_beside_it(
    tiny_bundle: Path, tmp_path: Path, emitted: FakeCuda, mode: str, hot_rows: str
) -> None:
    """One table's hot rows; another table lies on the card whole."""
    first, second, *_ = (table.name for table in load_bundle(tiny_bundle).manifest.tables)
    placement = tmp_path / "placement.toml"
    placement.write_text(
        f"version = 1\ndevice = [{json.dumps(first)}]\n"
        f"[cached.{json.dumps(second)}]\nmax_bytes = 10_000\n"
    )
    gpu = {"precision": "fp32", "mode": mode, "hot_rows": hot_rows}
    assert await largest_error(tiny_bundle, gpu, placement) < 1e-5
    assert emitted.launched > 0


@pytest.mark.parametrize("function", ["cuEventQuery", "cuLaunchKernelEx", "cuGraphLaunch"])
async def test_a_card_that_is_lost_while_rows_are_sent_there_ends_the_process(
    tiny_bundle: Path, tmp_path: Path, emitted: FakeCuda, function: str
) -> None:
    """Whoever notices: a look at what was sent to slots, the sending, or a launch."""
    placement = tmp_path / "placement.toml"
    placement.write_text("version = 1\n[cached.items]\nmax_bytes = 10_000\n")
    topology = all_in_one(tiny_bundle, executor=options_of({}), placement=placement)
    answers: list[str] = []

    async def ask(service: Service, number: int) -> None:
        user = {"user_id": 1, "history": [1], "age": 30.0}
        columns = {"item_id": [number], "genre": [tiny.GENRES[0]], "price": [0.3]}
        try:
            await service.score(user=user, candidates=columns, budget=30)
        except Unavailable as error:
            answers.append(str(error))

    async def lose() -> None:
        async with Service.open(topology) as service:
            await ask(service, 0)  # which has rows sent
            emitted.fail(function, LAUNCH_FAILED)
            async with trio.open_nursery() as nursery:
                for number in range(1, 9):
                    nursery.start_soon(ask, service, number)
            await trio.sleep_forever()

    live = emitted.live
    with pytest.raises(ActorDied) as caught, trio.fail_after(20):
        await lose()
    assert isinstance(caught.value.__cause__, DeviceLost)
    assert answers == ["the executor lost its card and is being restarted"] * 8
    emitted.library.fake_forgive(emitted.live - live)


async def test_launches_of_wide_linears_are_served(
    tiny_bundle: Path, emitted: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "WIDE_BYTES", 100)
    launched = emitted.launched
    assert await largest_error(tiny_bundle, {}) < 2e-3
    assert emitted.launched > launched


async def test_executors_of_a_model_may_have_cards_of_their_own(
    tiny_bundle: Path, emitted: FakeCuda
) -> None:
    emitted.show(2)
    before = [emitted.contexts(card) for card in range(2)]
    whole = all_in_one(tiny_bundle, executor=options_of({}))
    [node] = whole.nodes
    [*others, first] = node.actors
    second = attrs.evolve(first, name="executor-1", options=options_of({"index": 1}))
    node = attrs.evolve(node, actors=(*others, first, second))
    [model] = whole.models.values()
    model = attrs.evolve(model, executors=("executor-0", "executor-1"))
    topology = attrs.evolve(whole, nodes=(node,), models={model.name: model})
    assert await largest_error_on(topology) < 2e-3
    assert [emitted.contexts(card) - n for card, n in enumerate(before)] == [1, 1]


async def test_a_card_that_is_not_there_is_named(tiny_bundle: Path) -> None:
    topology = all_in_one(tiny_bundle, executor=options_of({"index": 1}))
    with pytest.raises(StartError, match="executor-0: there is no card 1: this machine shows 1"):
        await largest_error_on(topology)

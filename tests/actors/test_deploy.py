"""Deployments in one process: the real actors, two bundles whose scores differ."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import trio
import trio.testing

from actors.gateway import Gateway
from actors.scatter import ModelFront
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import load_bundle
from runtime.errors import DeploymentFailed
from runtime.service import BlockingService, Service
from runtime.topology import UPDATER, ActorSpec, NodeSpec, all_in_one
from tests import tiny
from tests.swaps import SEEDS, asked, build, seed_of, version
from transport.exchange import Scores
from transport.updates import UpdateReply, UpdateRequest

MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("versions"))


async def score(service: Service, number: int) -> Scores:
    user, rows = asked(number)
    return await service.score(user=user, candidates=rows, budget=20)


async def test_a_bundle_takes_over_while_requests_are_served(bundles: list[Path]) -> None:
    answers: list[int] = []
    over = trio.Event()

    async def ask_on(service: Service) -> None:
        number = 0
        while not over.is_set():
            answers.append(seed_of(number, await score(service, number)))
            number += 1

    async with Service.open(all_in_one(bundles[0], model="m")) as service:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask_on, service)
            outcome = await service.deploy(bundles[1])
            over.set()
        assert outcome.version == version(bundles[1])
        assert outcome.previous == (version(bundles[0]),)
        assert seed_of(3, await score(service, 3)) == SEEDS[1]
        again = await service.deploy(bundles[1])
        assert again.previous == ()
    assert answers[0] == SEEDS[0]
    assert answers == sorted(answers)


async def test_what_is_given_back_is_gone(
    bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[object]] = []
    open_front: Callable[..., ModelFront] = Gateway._open

    def watched(self: Gateway, *arguments: object) -> ModelFront:
        front = open_front(self, *arguments)
        held.append(weakref.ref(front.bundle))
        held.append(weakref.ref(front.parser))
        return front

    monkeypatch.setattr(Gateway, "_open", watched)
    async with Service.open(all_in_one(bundles[0], model="m")) as service:
        await score(service, 1)
        assert all(each() is not None for each in held)
        gc.disable()
        try:
            await service.deploy(bundles[1])
            await trio.testing.wait_all_tasks_blocked()
            assert [each() for each in held[:2]] == [None, None]
        finally:
            gc.enable()
        assert all(each() is not None for each in held[2:])


@pytest.mark.skipif(not MAPS.exists(), reason="reads /proc")
async def test_ten_swaps_leave_no_file_and_no_thread_behind(bundles: list[Path]) -> None:
    def mapped() -> set[Path]:
        maps = MAPS.read_text()
        return {bundle for bundle in bundles if f"{bundle}/" in maps}

    def n_lanes() -> int:
        return sum(" lane " in each.name for each in threading.enumerate())

    gc.collect()  # of tests before
    async with Service.open(all_in_one(bundles[0], model="m")) as service:
        gc.disable()  # nothing may need it: what a node holds at its start is out of its reach
        try:
            for at in (1, 0) * 5:
                await service.deploy(bundles[at])
                assert seed_of(4, await score(service, 4)) == SEEDS[at]
                assert mapped() == {bundles[at]}
                with trio.fail_after(10):
                    while n_lanes() > 1:  # noqa: ASYNC110 - it was told to end, and will
                        await trio.sleep(0.001)
        finally:
            gc.enable()


def damage_graph(bundle: Path) -> None:
    (bundle / "dense.onnx").write_bytes(b"\x08\x07nonsense")


def damage_table(bundle: Path) -> None:
    table = next((bundle / "tables").iterdir())
    table.write_bytes(table.read_bytes()[:100])


def damage_features(bundle: Path) -> None:
    (bundle / "features.toml").write_text("version = 1\n[features")


def damage_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (damage_graph, "executor-0: .*dense.onnx"),
        (damage_table, "is damaged"),
        (damage_features, "gateway: .*features.toml"),
        (damage_manifest, "manifest.json"),
    ],
)
async def test_a_bad_bundle_leaves_the_old_one_serving(
    damage: Callable[[Path], None], problem: str, bundles: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bundle"
    shutil.copytree(bundles[1], bad)
    damage(bad)
    async with Service.open(all_in_one(bundles[0], model="m")) as service:
        with pytest.raises(DeploymentFailed, match=f"{problem}.*; nothing has changed"):
            await service.deploy(bad)
        assert seed_of(5, await score(service, 5)) == SEEDS[0]
        outcome = await service.deploy(bundles[1])
        assert outcome.previous == (version(bundles[0]),)
        assert seed_of(5, await score(service, 5)) == SEEDS[1]


async def test_of_two_deployments_the_second_is_refused(bundles: list[Path]) -> None:
    async with Service.open(all_in_one(bundles[0], model="m")) as service:
        outcomes: list[str] = []

        async def deploy() -> None:
            try:
                outcomes.append((await service.deploy(bundles[1])).version)
            except DeploymentFailed as failure:
                outcomes.append(str(failure))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deploy)
            nursery.start_soon(deploy)
        refused, done = sorted(outcomes, key=len, reverse=True)
        assert "another deployment of m is under way" in refused
        assert done == version(bundles[1])


async def test_a_bundle_of_another_model_is_deployed_only_if_that_is_meant(
    bundles: list[Path], tmp_path: Path
) -> None:
    model, features = tiny.write_model(tmp_path, SEEDS[1])
    build_bundle(model.rename(tmp_path / "other.onnx"), features, tmp_path / "b", BuildOptions())
    async with Service.open(all_in_one(bundles[0], model="m")) as service:
        with pytest.raises(DeploymentFailed, match=r"built from 'other', and .* 'tiny'"):
            await service.deploy(tmp_path / "b")
        await service.deploy(tmp_path / "b", any_origin=True)
        assert seed_of(5, await score(service, 5)) == SEEDS[1]
        with pytest.raises(DeploymentFailed, match="there is no model 'n'; there are m"):
            await service.deploy(bundles[1], model="n")


def test_a_blocking_service_deploys_too(bundles: list[Path]) -> None:
    user, rows = asked(2)
    lines: list[str] = []
    with BlockingService(all_in_one(bundles[0], model="m")) as service:
        service.deploy(bundles[1], say=lines.append)
        assert seed_of(2, service.score(user=user, candidates=rows)) == SEEDS[1]
        with pytest.raises(DeploymentFailed, match="not a bundle"):
            service.deploy(bundles[1].parent)
    assert "executor-0: loaded" in lines


async def test_updates_go_on_with_the_version_that_is_deployed(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = all_in_one(bundles[0], model="m")
    updater = ActorSpec(name="updater", class_name=UPDATER, options={"fsync": "never"})
    node = NodeSpec(name="node", actors=(*one.nodes[0].actors, updater))
    topology = attrs.evolve(one, nodes=(node,), run_folder=tmp_path)
    [table] = [each for each in load_bundle(bundles[1]).manifest.tables if each.dim == 6]
    rows = np.full((tiny.N_ITEMS, 6), 0.5, np.float32)

    async with Service.open(topology) as service:

        async def update(keys: int) -> UpdateReply:
            question = UpdateRequest(
                request_id=1,
                model="m",
                table=table.name,
                keys=np.arange(keys),
                rows=rows[:keys],
            )
            reply = await service._host.ref("updater").ask(question, budget=5)
            assert isinstance(reply, UpdateReply)
            return reply

        await service.deploy(bundles[1])
        assert seed_of(2, await score(service, 2)) == SEEDS[1]
        reply = await update(tiny.N_ITEMS)
        with trio.fail_after(5):
            while (await update(0)).applied < reply.number:  # noqa: ASYNC110
                await trio.sleep(0.01)
        of_seed = tiny.weights
        monkeypatch.setattr(tiny, "weights", lambda seed=20: of_seed(seed) | {"items": rows})
        assert seed_of(2, await score(service, 2)) == SEEDS[1]

"""Rows of a table of keys are changed and added while it is served, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import trio

from actors.update_routes import updater_of
from kernels.bundle.__main__ import main
from kernels.gpu import model as gpu_model
from kernels.store.build import build_keyed
from runtime.service import Service
from runtime.topology import ActorSpec, NodeSpec, Topology
from tests.actors.test_planned_served import KEYS, bundle, topology_of
from tests.kernels import shim
from tests.kernels.bundle_help import table
from tests.kernels.gpu_help import FakeCuda, ShimBuilder, fake_cuda
from tests.kernels.test_bundle_stores import scores
from transport.publisher import Publisher
from transport.updates import UpdateRequest

__all__ = ["bundle", "fake_cuda"]

ADS = [17, -1, 78, 1007, 2**62 + 1]
PAST = [5, 78, 1001]
# One that is there, one that is not, and one that no request asks for.
CHANGED = np.array([17, 78, 99], np.int64)


def with_updater(what: Topology, folder: Path) -> Topology:
    options = {"listen": f"ipc://{folder}/updates", "state": str(folder / "updater")}
    updater = ActorSpec(name="updater", class_name="actors.updater.Updater", options=options)
    nodes = (NodeSpec(name="node", actors=(*what.nodes[0].actors, updater)),)
    return attrs.evolve(what, nodes=nodes, run_folder=folder)


@pytest.mark.parametrize(
    ("n_shards", "options"), [(1, []), (2, []), (2, ["--cache-memory", "3kB"])]
)
async def test_new_rows_and_new_keys_are_served_and_found_again(
    bundle: Path,
    tmp_path: Path,
    n_shards: int,
    options: list[str],
) -> None:
    assert main(["plan", str(bundle), "--shards", str(n_shards), *options]) == 0
    await changes_are_served(bundle, tmp_path, topology_of(bundle, n_shards))


@pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
async def test_changes_are_served_from_hot_rows_on_a_card(
    bundle: Path, tmp_path: Path, fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_model, "Builder", ShimBuilder)
    assert main(["plan", str(bundle), "--shards", "2", "--cache-memory", "3kB"]) == 0
    gpu = {"precision": "fp32", "buckets": [16]}
    options = {"device": "cuda", "max_rows": 16, "max_requests": 4, "lanes": 2, "gpu": gpu}
    what = topology_of(bundle, 2)
    [node] = what.nodes
    [*others, executor] = node.actors
    node = attrs.evolve(node, actors=(*others, attrs.evolve(executor, options=options)))
    launched = fake_cuda.launched
    await changes_are_served(bundle, tmp_path, attrs.evolve(what, nodes=(node,)))
    assert fake_cuda.launched > launched


async def changes_are_served(bundle: Path, tmp_path: Path, without: Topology) -> None:
    what = with_updater(without, tmp_path)
    assert updater_of(what, "m") == "updater"
    rows = table(len(CHANGED), 4, seed=9)
    before = bundle.parent / "ads"
    # Keys that come twice in a store count as the last time.
    kept = ~np.isin(KEYS, CHANGED)
    all_keys = np.concatenate([KEYS[kept], CHANGED])
    all_rows = np.concatenate([table(len(KEYS), 4, seed=1)[kept], rows])
    after = tmp_path / "after"
    build_keyed(after, [(all_keys, all_rows)], dim=4, dtype="fp16", n_segments=16)

    async def check(service: Service, store: Path) -> None:
        reply = await service.score(
            user={"past": PAST}, candidates=[{"ad": ad} for ad in ADS], budget=20
        )
        want = scores(ADS, [PAST] * len(ADS), store).ravel()
        np.testing.assert_allclose(reply.scores, want, rtol=1e-4, atol=1e-5)

    update = UpdateRequest(request_id=0, model="m", table="ads", keys=CHANGED, rows=rows)
    async with Service.open(what) as service:
        for _ in range(2):
            await check(service, before)
        async with Publisher.connect(f"ipc://{tmp_path}/updates") as publisher:
            await publisher.publish(update)
            await publisher.drain()
            while True:
                if (await publisher.ask("m")).applied == 1:
                    break
                await trio.sleep(0.01)
        for _ in range(2):
            await check(service, after)
    async with Service.open(what) as service:
        await check(service, after)

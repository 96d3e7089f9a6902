"""A model with a table of keys, from the store to scores: built, planned and served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.bundle.__main__ import main
from kernels.bundle.load import load_bundle
from kernels.features.hashing import hash_texts
from kernels.placement import placement_for
from kernels.store.build import build_keyed
from kernels.store.table import StoredTable
from runtime.service import Service
from runtime.topology import EXECUTOR, GATEWAY, SHARD, ActorSpec, ModelSpec, NodeSpec, Topology
from tests.kernels.bundle_help import table
from tests.kernels.test_bundle_stores import FEATURES, model_of, scores

TEXT = "campaign-7"


def key_of(text: str) -> int:
    data = np.frombuffer(text.encode(), np.uint8)
    zero, length = np.zeros(1, np.int64), np.array([len(data)], np.int64)
    return int(hash_texts(data, zero, length).view(np.int64)[0])


KEYS = np.array([5, -1, 2**62, -(2**63), 17, key_of(TEXT), *range(1000, 1100)], np.int64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keyed")
    batch = KEYS, table(len(KEYS), 4, seed=1)
    build_keyed(folder / "ads", [batch], dim=4, dtype="fp16", n_segments=16)
    (folder / "features.toml").write_text(FEATURES)
    features = ["--features", str(folder / "features.toml"), "-o", str(folder / "bundle")]
    model = str(model_of(folder))
    assert main(["build", model, *features, "--table", f"ads={folder / 'ads'}"]) == 0
    return folder / "bundle"


def topology_of(bundle: Path, n_shards: int) -> Topology:
    shards = tuple(f"shard-{i}" for i in range(n_shards))
    actors = [
        ActorSpec(name="gateway", class_name=GATEWAY),
        *(ActorSpec(name=name, class_name=SHARD) for name in shards),
        ActorSpec(name="executor-0", class_name=EXECUTOR),
    ]
    model = ModelSpec(name="m", bundle=bundle, shards=shards, executors=("executor-0",))
    nodes = (NodeSpec(name="node", actors=tuple(actors)),)
    return Topology(name="t", nodes=nodes, models={"m": model})


@pytest.mark.parametrize(
    ("n_shards", "options"), [(1, []), (2, []), (3, []), (2, ["--cache-memory", "3kB"])]
)
async def test_a_planned_model_scores_as_numpy_does(
    bundle: Path, n_shards: int, options: list[str]
) -> None:
    assert main(["plan", str(bundle), "--shards", str(n_shards), *options]) == 0
    placement = placement_for(load_bundle(bundle), n_shards)
    assert placement.fetched == (("ads",) if n_shards > 1 else ())
    assert bool(placement.cached) == bool(options)
    store = bundle.parent / "ads"
    async with Service.open(topology_of(bundle, n_shards)) as service:
        for past in ([5, 2**62, 1001], [], [-(2**63), 77]):
            ads = [17, -1, 78, 1007, 2**62 + 1]
            reply = await service.score(
                user={"past": past}, candidates=[{"ad": ad} for ad in ads], budget=20
            )
            padded = past + [0] * (3 - len(past))
            want = scores(ads, [padded] * len(ads), store)
            np.testing.assert_allclose(reply.scores, want.ravel(), rtol=1e-4, atol=1e-5)
        texts = [{"ad": TEXT}, {"ad": "campaign-8"}]
        reply = await service.score(user={"past": [17]}, candidates=texts, budget=20)
        ads = [key_of(TEXT), key_of("campaign-8")]
        assert StoredTable.open(store).find(np.array(ads)).tolist()[1] == -1
        want = scores(ads, [[17, 0, 0]] * 2, store)
        np.testing.assert_allclose(reply.scores, want.ravel(), rtol=1e-4, atol=1e-5)

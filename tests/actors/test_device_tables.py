"""Tables on the executor's card: ids go there from the gateway, and scores stay the same."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from actors import executor as module
from actors.block_layout import BlockLayout
from actors.dense import ExecutorOptions, open_dense
from actors.joins import Joins
from actors.layouts import placement_of
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.reference import pool
from kernels.device_tables import ALL, DeviceTables, GatheredSide
from kernels.executor import Bags, Staging
from kernels.gpu.executor import GpuExecutor
from kernels.host import HostExecutor
from kernels.program import Bucket, Precision, Role
from runtime.errors import StartError
from runtime.service import Service
from runtime.topology import ModelSpec, all_in_one
from tests import tiny
from tests.kernels.gpu_help import FakeCuda, fake_cuda
from transport.messages import Batch, LookupBatch

__all__ = ["fake_cuda"]


class Gathering:
    """Gathers as a card would, in numpy, and runs the dense graph on the host."""

    n_lanes = 1
    sequences = None

    def __init__(
        self, bundle: Bundle, options: ExecutorOptions, device_tables: Collection[str]
    ) -> None:
        self.bundle = bundle
        self.sides = DeviceTables.of(bundle.manifest, device_tables)
        self.host = HostExecutor(bundle, max_rows=options.max_rows, max_requests=8)
        self.max_rows, self.max_requests = options.max_rows, 8
        self.n_outputs = self.host.n_outputs
        self.ids_seen = 0
        user, candidate = (
            self._staged(self.sides.user, 8),
            self._staged(self.sides.candidate, options.max_rows),
        )
        rows = np.zeros(options.max_rows, np.int32)
        self._staging = Staging(user[0], candidate[0], rows, user[1], candidate[1])

    def _staged(self, side: GatheredSide, n: int) -> tuple[NDArray[np.float32], Bags | None]:
        block = np.full((n, side.staged_width), np.nan, np.float32)
        if not side.lookups:
            return block, None
        ids = np.full((n, side.n_ids), -1, np.int32)
        return block, Bags(ids, np.full((n, side.n_weights), np.nan, np.float32))

    def bucket(self, n_rows: int) -> int:
        return n_rows

    def measure(self) -> list[tuple[int, float]]:
        return []

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        return self._staging

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        own, staging = self._staging, self.host.staging(0)
        self._fill(self.sides.user, own.user, own.user_bags, staging.user[:n_requests])
        rows = staging.candidate[:n_rows]
        self._fill(self.sides.candidate, own.candidate, own.candidate_bags, rows)
        staging.request_of_row[:n_rows] = own.request_of_row[:n_rows]
        return self.host.run(0, n_requests, n_rows)

    def _fill(
        self,
        side: GatheredSide,
        staged: NDArray[np.floating],
        bags: Bags | None,
        out: NDArray[np.floating],
    ) -> None:
        n = len(out)
        for run in side.staged:
            out[:, run.block : run.block + run.width] = staged[:n, run.part : run.part + run.width]
        for lookup in side.lookups:
            assert bags is not None
            ids = bags.ids[:n, lookup.first_id : lookup.first_id + lookup.n_ids]
            self.ids_seen += ids.size
            rows = pool(self.bundle.table(lookup.table), ids, None, lookup.pooling)
            out[:, lookup.offset : lookup.offset + lookup.width] = rows

    def close(self) -> None:
        self.host.close()


@pytest.mark.parametrize("names", ["all", ["items"], ["users"], ["genres", "users"]])
async def test_scores_are_those_of_the_whole_model(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | str
) -> None:
    opened: list[Gathering] = []

    def open_gathering(
        bundle: Bundle,
        options: ExecutorOptions,
        name: str,
        device_tables: Collection[str],
        progress: Callable[[float], None],
        **_: object,
    ) -> Gathering:
        opened.append(Gathering(bundle, options, device_tables))
        return opened[0]

    monkeypatch.setattr(module, "open_dense", open_gathering)
    placement = on_card(tmp_path, tiny_bundle, names)
    topology = all_in_one(tiny_bundle, executor={"device": "cuda"}, placement=placement)
    async with Service.open(topology) as service:
        for number in range(5):
            user = {"user_id": number, "history": [number, 3], "age": 20.0 + number}
            numbers = [(number + k) % 17 for k in range(1 + 6 * number)]
            genres = [k % 5 for k in numbers]
            rows = [
                {"item_id": k, "genre": tiny.GENRES[genre], "price": 0.1 * k}
                for k, genre in zip(numbers, genres, strict=True)
            ]
            reply = await service.score(user=user, candidates=rows, budget=20)
            candidates = {"item_id": numbers, "genre": genres, "price": 0.1 * np.array(numbers)}
            expected = tiny.click(user, candidates)
            np.testing.assert_allclose(reply.scores.ravel(), expected, atol=1e-5)
    assert opened[0].ids_seen > 0


def on_card(folder: Path, bundle: Path, names: list[str] | str) -> Path:
    """Write a placement with the bundle's tables whose names begin so on the card."""
    tables: list[str] | str = names
    if not isinstance(names, str):
        known = [table.name for table in load_bundle(bundle).manifest.tables]
        tables = [table for table in known for name in names if table.startswith(name)]
        assert len(tables) == len(names), known
    path = folder / "placement.toml"
    path.write_text(f"version = 1\ndevice = {json.dumps(tables)}\n")
    return path


def model_of(bundle: Path, placement: Path, n_shards: int = 3) -> ModelSpec:
    shards = tuple(f"shard-{i}" for i in range(n_shards))
    return ModelSpec(
        name="m", bundle=bundle, shards=shards, executors=("executor-0",), placement=placement
    )


@pytest.mark.parametrize("names", ["all", ["items"], ["users"], []])
def test_each_table_lies_in_one_place(
    tiny_bundle: Path, tmp_path: Path, names: list[str] | str
) -> None:
    bundle = load_bundle(tiny_bundle)
    manifest = bundle.manifest
    placement = placement_of(model_of(tiny_bundle, on_card(tmp_path, tiny_bundle, names)), bundle)
    assert len(placement.shards) == 3
    assert (placement.device is None) == (not names) == (not placement.device_tables)
    for index, side in enumerate((manifest.user, manifest.candidate)):
        columns = np.zeros(side.width, int)
        for pair in placement.shards:
            for run in pair[index].runs:
                columns[run.block : run.block + run.width] += 1
        if placement.device is not None:
            for lookup in placement.device[index].lookups:
                columns[lookup.offset : lookup.offset + lookup.width] += 1
        assert (columns[: side.width - len(side.values)] == 1).all()


def test_a_placement_that_does_not_fit_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.toml"
    path.write_text('version = 1\ndevice = ["x"]\n')
    with pytest.raises(StartError, match=r"model m: .*placement.toml: device: .* no table 'x'"):
        placement_of(model_of(tiny_bundle, path), load_bundle(tiny_bundle))


def test_ids_that_do_not_fit_are_answered(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    manifest = bundle.manifest
    placement = placement_of(model_of(tiny_bundle, on_card(tmp_path, tiny_bundle, "all")), bundle)
    layout = BlockLayout.of(manifest, placement)
    assert layout.device is not None
    assert not layout.parts
    shapes = [(len(rows), 1) for each in layout.device for rows in (each.id_rows, each.weight_rows)]
    for damaged in (False, True):
        joins = Joins()
        ids = LookupBatch(
            gateway="g",
            seq=1,
            model="m",
            version="v",
            executor="e",
            part=0,
            budget_us=1,
            user_ids=np.zeros((shapes[0][0] + damaged, 1), np.int64),
            user_weights=np.zeros(shapes[1], np.float32),
            candidate_ids=np.zeros(shapes[2], np.int64),
            candidate_weights=np.zeros(shapes[3], np.float32),
        )
        assert joins.add(ids, 0.0, 5.0) is None
        head = Batch(
            gateway="g",
            seq=1,
            model="m",
            version="v",
            n_parts=1,
            n_rows=np.array([1], np.int32),
            budgets_us=np.array([1000], np.int64),
            user_values=np.zeros((1, len(manifest.user.values)), np.float32),
            candidate_values=np.zeros((1, len(manifest.candidate.values)), np.float32),
        )
        join = joins.begin(head, 0.0)
        assert join is not None
        problem = join.problem(layout)
        assert (problem is not None) == damaged
        if problem is not None:
            assert problem[1].startswith("ids for the card have shapes")


@pytest.mark.parametrize("mode", ["streams", "contexts"])
@pytest.mark.parametrize("input_dtype", ["float32", "float16"])
def test_a_card_gets_the_tables_and_stages_ids(
    fake_cuda: FakeCuda, tiny_bundle: Path, tmp_path: Path, mode: str, input_dtype: str
) -> None:
    gpu = {"cache": str(tmp_path), "buckets": [64], "workers": 1, "mode": mode}
    options = ExecutorOptions(
        device="cuda",
        max_rows=64,
        lanes=2,
        gpu=gpu | {"input_dtype": input_dtype},
    )
    bundle = load_bundle(tiny_bundle)
    dense = open_dense(bundle, options, "ex", [table.name for table in bundle.manifest.tables])
    assert isinstance(dense, GpuExecutor)
    tables = dense.tables
    assert tables == DeviceTables.of(bundle.manifest, ALL, Precision.FP16)
    for lane in range(2):
        staging = dense.staging(lane)
        user, candidate = staging.user_bags, staging.candidate_bags
        assert user is not None
        assert candidate is not None
        assert user.ids.shape == (256, len(bundle.manifest.user.ids))
        assert candidate.ids.shape == (64, len(bundle.manifest.candidate.ids))
        assert staging.user.shape == (256, len(bundle.manifest.user.values))
        candidate.ids[:] = 5
        staging.candidate[:] = 1
        assert (candidate.ids == 5).all()
        assert dense.run(lane, 3, 40).shape == (40, 1)
        at = dense._lanes[lane]._buffers[Role.TABLES]
        for placed in tables.tables:
            size = placed.rows * placed.dim * 2
            held = np.frombuffer(ctypes.string_at(at + placed.offset, size), np.float16)
            want = bundle.table(placed.name).astype(np.float16).ravel()
            np.testing.assert_array_equal(held, want)
    dense.close()


def test_without_a_card_tables_cannot_lie_on_it(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    for device in ("host", "auto"):
        with pytest.raises(StartError, match=r'actor ex: the placement .* needs device = "cuda"'):
            open_dense(bundle, ExecutorOptions(device=device), "ex", ["items"])

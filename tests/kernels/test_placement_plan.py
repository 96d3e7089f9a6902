from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.bundle.__main__ import main
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import load_bundle
from kernels.bundle.manifest import GpuSupport, Manifest
from kernels.bundle.recorded import Case
from kernels.errors import PlacementError
from kernels.features.spec import load_spec
from kernels.hot.sizes import Sizes
from kernels.placement import check_placement, read_placement
from kernels.placement.divide import Item, divide
from kernels.placement.planner import Budget, Plan, device_bytes, plan
from kernels.placement.report import describe, fan_out, summary
from kernels.placement.simulate import Latency, join_times
from kernels.placement.simulate import main as simulate
from kernels.placement.synthetic import synthetic_manifest
from kernels.placement.trace import count_cases, read_traffic
from kernels.placement.traffic import (
    Counts,
    assume_traffic,
    counted_traffic,
    read_counts,
    write_counts,
)
from kernels.store.partition import segment_of
from tests import tiny
from tests.kernels.placement_help import manifest_of, table_of

GPU = GpuSupport(supported=True, reason="")
SMALL = synthetic_manifest(1e9, n_tables=40)


def planned(manifest: Manifest, n_groups: int = 4, **budget: float) -> Plan:
    return plan(
        attrs.evolve(manifest, gpu=GPU),
        assume_traffic(manifest),
        Budget(n_groups=n_groups, **budget),  # type: ignore[arg-type]
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    tables = [
        attrs.evolve(
            table_of(
                f"t{i}",
                rows=draw(st.integers(0, 10**9)),
                segments=draw(st.integers(1, 64)),
                keyed=draw(st.booleans()),
            ),
            dtype=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        )
        for i in range(draw(st.integers(0, 6)))
    ]
    return manifest_of(*tables)


@settings(deadline=None)
@given(manifests(), st.integers(1, 9), st.floats(0, 1e10), st.floats(0, 1e9))
def test_any_plan_fits_its_manifest_and_its_budget(
    manifest: Manifest, n_groups: int, gpu_bytes: float, cache_bytes: float
) -> None:
    found = planned(manifest, n_groups, gpu_bytes=gpu_bytes, cache_bytes=cache_bytes)
    check_placement(found.placement, manifest, n_groups)
    tables = {table.name: table for table in manifest.tables}
    on_card = [tables[name] for name in found.placement.device]
    assert sum(map(device_bytes, on_card)) <= gpu_bytes
    assert not any(table.keyed for table in on_card)
    assert sum(each.max_bytes for each in found.placement.cached) <= cache_bytes
    assert all(0 <= each.hit_rate <= 1 for each in found.caches.values())
    left = sum(t.size_bytes for t in manifest.tables if t not in on_card)
    assert found.size.sum() >= left * (1 - 1e-9)
    assert 0 <= fan_out(found, 1) <= fan_out(found, 64) <= n_groups + 1e-9
    assert describe(found).startswith(summary(found))


def test_the_same_arguments_give_the_same_plan() -> None:
    first = planned(SMALL, 8, gpu_bytes=1e7, cache_bytes=1e6)
    second = planned(SMALL, 8, gpu_bytes=1e7, cache_bytes=1e6)
    assert first.placement == second.placement
    assert describe(first) == describe(second)


def test_a_table_of_keys_is_divided_where_it_is_too_large_for_a_group() -> None:
    manifest = manifest_of(
        table_of("large", rows=80_000_000, segments=64, keyed=True),
        *(table_of(f"small-{i}", rows=1000, segments=4, keyed=True) for i in range(8)),
    )
    found = planned(manifest, 4)
    assert np.bincount(found.placement.group_of("large")).tolist() == [16] * 4
    assert found.size.max() < 1.05 * found.size.mean()
    assert found.work.max() < 1.25 * found.work.mean()


def test_small_tables_stay_whole() -> None:
    names = [f"t{i}" for i in range(12)]
    tables = [table_of(name, rows=100_000, segments=8, keyed=True) for name in names]
    found = planned(manifest_of(*tables), 3)
    assert found.placement.fetched == ()
    assert [len(group) for group in found.placement.groups] == [4, 4, 4]


def test_the_card_takes_what_costs_most_for_its_bytes() -> None:
    manifest = manifest_of(
        table_of("large", rows=1_000_000),
        table_of("busy", rows=1000),
        table_of("keys", rows=10, keyed=True),
        table_of("huge", rows=2**31),
    )
    assert planned(manifest).placement.device == ()
    assert planned(manifest, gpu_bytes=8192).placement.device == ("busy",)
    assert planned(manifest, gpu_bytes=1e8).placement.device == ("large", "busy")
    assert planned(manifest, gpu_bytes=9e6, device_item_bytes=4).placement.device == ("busy",)
    host_only = plan(manifest, assume_traffic(manifest), Budget(n_groups=1, gpu_bytes=1e9))
    assert host_only.placement.device == ()


def test_caches_take_the_rows_that_save_the_most() -> None:
    manifest = manifest_of(
        table_of("large", rows=10**8, segments=16, keyed=True),
        table_of("other", rows=10**8, segments=16, keyed=True),
    )
    found = planned(manifest, 2, cache_bytes=1e6, stale_s=2.5)
    assert [each.table for each in found.placement.cached] == ["large", "other"]
    assert {each.stale_s for each in found.placement.cached} == {2.5}
    filled = sum(each.max_bytes for each in found.placement.cached)
    assert 0.9e6 < filled <= 1e6
    for each in found.placement.cached:
        assert Sizes.fitting(16, each.max_bytes).capacity == found.caches[each.table].rows
    more = planned(manifest, 2, cache_bytes=1e7)
    assert more.caches["large"].hit_rate > found.caches["large"].hit_rate > 0.3
    assert more.rows.sum() < found.rows.sum() < planned(manifest, 2).rows.sum()


def test_a_dense_table_sorted_by_frequency_is_cut_where_its_traffic_is() -> None:
    manifest = manifest_of(
        table_of("sorted", rows=1_000_000, segments=256),
        table_of("keys", rows=1_000_000, segments=256, keyed=True),
    )
    traffic = assume_traffic(manifest, skew=1.1)
    shares = traffic.tables["sorted"].shares
    assert shares[0] > 0.5 > shares[1] > shares[-1]
    assert shares.sum() == pytest.approx(1)
    assert traffic.tables["keys"].shares.tolist() == [1 / 256] * 256
    found = plan(manifest, traffic, Budget(n_groups=4))
    groups = found.placement.group_of("sorted")
    # Who has the first segment has few others.
    assert (groups == groups[0]).sum() < 40
    assert "cache it, or build it by keys" in describe(found)


def test_hashed_ids_are_not_taken_to_be_sorted(tmp_path: Path) -> None:
    model, features = tiny.write_model(tmp_path)
    text = features.read_text()
    size = f'encode = "identity"\nsize = {tiny.N_USERS}'
    assert size in text
    features.write_text(text.replace(size, f'encode = "hash"\nbuckets = {tiny.N_USERS}'))
    build_bundle(model, features, tmp_path / "b", BuildOptions())
    bundle = load_bundle(tmp_path / "b")
    tables = tuple(attrs.evolve(table, segments=4) for table in bundle.manifest.tables)
    manifest = attrs.evolve(bundle.manifest, tables=tables)
    traffic = assume_traffic(manifest, load_spec(bundle.spec_path, tables=False)).tables
    assert traffic["users"].shares.tolist() == [0.25] * 4
    assert traffic["items"].shares[0] > 0.4


LOADS = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=20), min_size=0, max_size=6)


@settings(deadline=None)
@given(LOADS, st.integers(1, 7))
def test_pieces_are_stretches_that_cover_each_table_once(
    loads: Sequence[Sequence[float]], n_groups: int
) -> None:
    items = [
        Item(table=str(i), size=np.array(each), work=np.array(each)[::-1])
        for i, each in enumerate(loads)
    ]
    division = divide(items, n_groups)
    assert len(division.groups) == n_groups
    for item in items:
        pieces = sorted(p for g in division.groups for p in map(attrs.astuple, g)
                        if p[0] == item.table)  # fmt: skip
        assert [first for _, first, _ in pieces] == [0, *(last for *_, last in pieces)][:-1]
        assert pieces[-1][2] == len(item.size)
        assert all(first < last for _, first, last in pieces)
    for group in division.groups:
        assert len({piece.table for piece in group}) == len(group)


def test_traffic_is_counted_in_a_trace() -> None:
    table = table_of("t", rows=1000, segments=8, keyed=True)
    manifest = manifest_of(table, table_of("unused"))
    keys = np.array([7, -3, 2**60], np.int64)
    counts = Counts(n_requests=10, n_rows=50, tables={"t": (keys, np.array([900, 60, 40]))})
    traffic = counted_traffic(manifest, counts, source="here")
    assert traffic.rows_per_request == 5
    found = traffic.tables["t"]
    assert found.lookups == 100
    assert found.bag_bytes == 100 * 16
    segments = segment_of(keys, n_segments=8, rows=1000, keyed=True)
    want = np.bincount(segments, weights=[0.9, 0.06, 0.04], minlength=8)
    np.testing.assert_allclose(found.shares, want)
    assert traffic.tables["unused"].lookups == 0
    whole = attrs.evolve(manifest, tables=(attrs.evolve(table, segments=1), manifest.tables[1]))
    traffic = counted_traffic(whole, counts, source="here")
    assert plan(whole, traffic, Budget(n_groups=2)).rows.tolist() == [100, 0]


def test_keys_that_were_seen_once_stand_for_those_that_were_not_seen() -> None:
    manifest = manifest_of(table_of("t", rows=1000, segments=4))
    once = np.arange(10, dtype=np.int64), np.ones(10, np.int64)
    traffic = counted_traffic(
        manifest, Counts(n_requests=1, n_rows=None, tables={"t": once}), source="here"
    )
    np.testing.assert_allclose(traffic.tables["t"].shares, [0.25] * 4)


def test_counts_survive_the_round_trip(tmp_path: Path) -> None:
    tables = {
        "a/b": (np.array([2**62, -1], np.int64), np.array([3, 1], np.int64)),
        "c": (np.array([0], np.int64), np.array([9], np.int64)),
    }
    write_counts(Counts(n_requests=4, n_rows=8, tables=tables), tmp_path / "counts.npz")
    read = read_counts(tmp_path / "counts.npz")
    assert read.n_requests == 4
    assert read.tables.keys() == tables.keys()
    for name, pair in tables.items():
        assert [each.tolist() for each in read.tables[name]] == [each.tolist() for each in pair]


ONE = np.ones(1, np.int64)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "requests: want how many were counted, got None"),
        ({"requests": np.array(0)}, "requests: want how many were counted"),
        ({"requests": ONE[0], "t": ONE}, "key 't' is neither TABLE/keys nor TABLE/counts"),
        ({"requests": ONE[0], "t/keys": ONE}, r"t: want keys and counts, int64 \[n\]"),
        ({"requests": ONE[0], "t/keys": ONE, "t/counts": 1.0 * ONE}, "t: want keys and counts"),
        ({"requests": ONE[0], "t/keys": ONE, "t/counts": 0 * ONE}, "t: want each key once"),
        (
            {"requests": ONE[0], "t/keys": np.ones(2, np.int64), "t/counts": np.ones(2, np.int64)},
            "t: want each key once",
        ),
    ],
)
def test_a_wrong_trace_is_told(tmp_path: Path, arrays: dict[str, np.ndarray], problem: str) -> None:
    with (tmp_path / "t.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # its stub takes keywords for options
    with pytest.raises(PlacementError, match=problem):
        read_counts(tmp_path / "t.npz")


def test_a_trace_of_another_model_is_told() -> None:
    manifest = manifest_of(table_of("t", rows=5))
    for name, key, problem in (
        ("x", 1, "here: the model has no table 'x'"),
        ("t", 5, "here: table 't': row 5 is outside"),
    ):
        counts = Counts(n_requests=1, n_rows=None, tables={name: (np.array([key]), ONE)})
        with pytest.raises(PlacementError, match=problem):
            counted_traffic(manifest, counts, source="here")


def recorded(n: int) -> dict[str, np.ndarray]:
    """Return the inputs of one call of ``tests.tiny``'s model, of two users."""
    who = np.arange(n) % 2
    past = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])[who]
    return {
        "user_id": who,
        "history": past,
        "age": np.float32(20) + who.astype(np.float32),
        "item_id": np.arange(n) % tiny.N_ITEMS,
        "genre": np.zeros(n, np.int64),
        "price": np.zeros(n, np.float32),
    }


def test_recorded_inputs_are_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, features = tiny.write_model(tmp_path)
    path = tmp_path / "b"
    build_bundle(model, features, path, BuildOptions())
    bundle = load_bundle(path)
    counts = count_cases(bundle, {"c": Case(recorded(10), {})})
    assert (counts.n_requests, counts.n_rows) == (2, 10)
    keys, found = counts.tables["genres"]
    assert (keys.tolist(), found.tolist()) == ([0], [10])
    keys, found = counts.tables["items"]
    assert dict(zip(keys.tolist(), found.tolist(), strict=True))[3] == 2  # a row, a user's past
    trace = tmp_path / "pairs.npz"
    arrays = {f"c/in/{name}": array for name, array in recorded(10).items()}
    np.savez(trace, **arrays)  # type: ignore[arg-type] # its stub takes keywords for options
    traffic = read_traffic(bundle, trace)
    assert traffic.rows_per_request == 5
    assert traffic.tables["genres"].lookups == 5
    output = tmp_path / "counts.npz"
    assert main(["count", str(path), "--io", str(trace), "-o", str(output)]) == 0
    assert "in 2 requests" in capsys.readouterr().out
    again = read_traffic(bundle, output)
    assert again.tables["items"].lookups == traffic.tables["items"].lookups
    assert main(["plan", str(path), "--shards", "2", "--traffic", str(output)]) == 0
    assert f"traffic {output}: 2 requests" in capsys.readouterr().out
    (tmp_path / "not.npz").write_text("no")
    assert main(["plan", str(path), "--shards", "2", "--traffic", str(tmp_path / "not.npz")]) == 2


def test_a_plan_is_written_where_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, features = tiny.write_model(tmp_path)
    path = tmp_path / "b"
    build_bundle(model, features, path, BuildOptions())
    arguments = ["plan", str(path), "--shards", "2", "--replicas", "2", "--gpu-memory", "300B"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (path / "placement.toml").exists()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "over 2 groups of 2 replicas, 4 shards" in out
    placement = read_placement(path / "placement.toml", load_bundle(path).manifest, 2)
    assert placement.device == ("items",)
    assert placement.n_groups == 2
    text = (path / "placement.toml").read_text()
    assert text.startswith("# tiny: ")
    assert main(arguments) == 0  # once more, beside what is there
    assert (path / "placement.toml").read_text() == text
    assert main([*arguments, "-o", str(tmp_path / "other.toml")]) == 0
    assert (tmp_path / "other.toml").read_text() == text
    for wrong in (["--shards", "0"], ["--shards", "2", "--gpu-memory", "4x"]):
        with pytest.raises(SystemExit):
            main(["plan", str(path), *wrong])


def test_a_made_up_model_has_as_many_parameters_as_asked() -> None:
    for size in (1e9, 1e12):
        manifest = synthetic_manifest(size)
        held = sum(table.rows * table.dim for table in manifest.tables)
        assert held == pytest.approx(size, rel=0.05)
    assert synthetic_manifest(1e9) == synthetic_manifest(1e9)
    assert synthetic_manifest(1e9, seed=2) != synthetic_manifest(1e9)


def test_a_model_of_a_trillion_parameters_is_divided_evenly() -> None:
    found = planned(synthetic_manifest(1e12), 1000, gpu_bytes=40e9)
    assert found.size.max() < 1.15 * found.size.mean()
    assert found.work.max() < 1.15 * found.work.mean()


def test_hedging_cuts_the_tail_of_joins() -> None:
    latency = Latency(median_ms=1.0, p99_ms=5.0)
    drawn = latency.draw((100_000,), np.random.default_rng(0))
    assert np.quantile(drawn, 0.5) == pytest.approx(1.0, rel=0.02)
    assert np.quantile(drawn, 0.95) == pytest.approx(latency.p95_ms, rel=0.03)
    assert np.quantile(drawn, 0.99) == pytest.approx(5.0, rel=0.05)
    plain, hedged = (
        join_times(latency, 100, 2000, np.random.default_rng(1), hedged=hedged)
        for hedged in (False, True)
    )
    assert np.quantile(hedged, 0.99) < 0.7 * np.quantile(plain, 0.99)
    assert hedged.min() >= 1.0


def test_a_simulation_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--parameters", "1e9", "--shards", "20", "--tables", "40", "--trials", "2"]
    assert simulate([*arguments, "--joins", "100", "--batch", "1", "4"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert "over 20 groups of 2 replicas" in first[0]
    assert first[-1].startswith('{"parameters": ')

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from actors.update_routes import Routes
from actors.update_stream import UpdateStream
from kernels.bundle.manifest import Table
from kernels.errors import StateError
from kernels.placement import Piece, Placement
from kernels.store.changes import Change
from kernels.store.partition import segment_of
from tests.kernels.crash_disk import CrashDisk, Crashed

TABLES = {
    "dense": Table(name="dense", rows=40, dim=2, dtype="fp32", file="dense.npy", segments=4),
    "keyed": Table(name="keyed", rows=9, dim=3, dtype="fp16", file="k", keyed=True, segments=8),
}
PLACEMENT = Placement(
    groups=(
        (Piece("dense", 0, 2), Piece("keyed", 0, 4)),
        (Piece("dense", 2, 4), Piece("keyed", 4, 8)),
    )
)
ROUTES = Routes("m", "v" * 64, TABLES, PLACEMENT, (("a", "c"), ("b", "d")))


def change(keys: list[int], value: float = 1.0, table: str = "dense", position: int = 0) -> Change:
    rows = np.full((len(keys), TABLES[table].dim), value, np.float32)
    return Change(
        stream=0,
        number=0,
        at_us=0,
        table=table,
        dtype=ROUTES.row_type(table),
        keys=np.array(keys, np.int64),
        rows=ROUTES.encode(table, rows),
        source="s" if position else "",
        position=position,
    )


def open_stream(folder: Path, **options: object) -> UpdateStream:
    return UpdateStream(folder, ROUTES, **options)  # type: ignore[arg-type]


def test_a_change_is_divided_by_group() -> None:
    parts = ROUTES.split(change([0, 39, 19, 20, 0]))
    assert {group: part.keys.tolist() for group, part in parts.items()} == {
        0: [0, 19, 0],
        1: [39, 20],
    }
    assert all(part.rows.shape == (len(part.keys), 8) for part in parts.values())
    keys = list(range(-30, 30))
    halves = ROUTES.split(change(keys, table="keyed"))
    segments = segment_of(np.array(keys), n_segments=8, rows=9, keyed=True)
    for group, part in halves.items():
        assert part.keys.tolist() == [
            k for k, s in zip(keys, segments, strict=True) if s // 4 == group
        ]
    assert list(ROUTES.split(change([3]))) == [0]


def test_what_does_not_fit_is_told() -> None:
    ok = np.zeros((1, 2), np.float32)
    assert ROUTES.problem_of("dense", np.array([39]), ok) is None
    assert ROUTES.problem_of("keyed", np.array([-(2**63)]), np.zeros((1, 3), np.float32)) is None
    for table, key, rows, field in (
        ("none", 0, ok, "table"),
        ("dense", 40, ok, "keys"),
        ("dense", 0, np.zeros((1, 3), np.float32), "rows"),
    ):
        problem = ROUTES.problem_of(table, np.array([key]), rows)
        assert problem is not None
        assert problem[0] == field
    assert not ROUTES.fits(attrs.evolve(change([1]), dtype="fp16"))
    assert not ROUTES.fits(attrs.evolve(change([1]), table="other"))
    fewer = {**TABLES, "dense": attrs.evolve(TABLES["dense"], rows=20)}
    shrunk = attrs.evolve(ROUTES, tables=fewer)
    assert shrunk.fits(change([19]))
    assert not shrunk.fits(change([20]))
    n = (32 << 20) // 16 + 1
    problem = ROUTES.problem_of("dense", np.zeros(n, np.int64), np.zeros((n, 2), np.float32))
    assert problem is not None
    assert "publish it in parts" in problem[1]


def test_int8_has_no_nan() -> None:
    tables = {"t": Table(name="t", rows=4, dim=2, dtype="int8", file="t.npy")}
    routes = Routes("m", "v", tables, Placement(groups=((Piece("t", 0, 1),),)), (("a",),))
    rows = np.array([[np.nan, 1]], np.float32)
    problem = routes.problem_of("t", np.array([1]), rows)
    assert problem is not None
    assert "no NaN" in problem[1]


def test_a_stream_is_found_again(tmp_path: Path) -> None:
    stream = open_stream(tmp_path)
    first = [change([1], position=1), change([30], position=2)]
    assert stream.append(first, 0.0) == 2
    assert stream.append([change([2, 31])], 0.0) == 1
    assert (stream.newest, stream.last_of, stream.positions) == (3, {0: 3, 1: 3}, {"s": 2})
    stream.close()
    again = open_stream(tmp_path)
    assert again.id == stream.id
    assert (again.newest, again.last_of, again.positions) == (3, {0: 3, 1: 3}, {"s": 2})
    assert again.next_recent(0) is None
    assert [(entry.number, sorted(entry.parts)) for entry in again.read(0)] == [
        (1, [0]),
        (2, [1]),
        (3, [0, 1]),
    ]
    other = open_stream(tmp_path / "other")
    assert other.id != stream.id


def test_recent_updates_are_in_memory(tmp_path: Path) -> None:
    stream = open_stream(tmp_path)
    assert stream.next_recent(0) is None
    stream.append([change([1]), change([2])], 5.0)
    entry = stream.next_recent(1)
    assert entry is not None
    assert (entry.number, entry.at) == (2, 5.0)
    assert entry.end_bytes == stream.total_bytes
    assert stream.next_recent(2) is None


def test_what_was_dropped_is_needed_by_those_alone_whose_rows_it_had(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, keep_bytes=1200)
    stream.append([change([30])], 0.0)
    for _ in range(30):
        stream.append([change([1])], 0.0)
    stream.trim(0)
    assert stream.log_bytes <= 1200
    assert stream.oldest > 10
    for _ in range(2):
        # Group 1 has had all that there was for it.
        assert stream.begin_after(1, 1) == stream.oldest - 1
        assert stream.begin_after(0, 29) == 29
        for group, applied in ((1, 0), (0, 5)):
            with pytest.raises(StateError, match="not kept any more"):
                stream.begin_after(group, applied)
        stream.close()
        stream = open_stream(tmp_path, keep_bytes=1200)
    assert [entry.number for entry in stream.read(29)] == [30, 31]
    with pytest.raises(StateError, match="was dropped"):
        list(stream.read(1))


def test_what_all_have_is_dropped(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, keep_bytes=2000)
    for position in range(1, 31):
        stream.append([change([1], position=position)], 0.0)
    stream.trim(30)
    assert stream.oldest > 20
    stream.close()
    again = open_stream(tmp_path, keep_bytes=2000)
    assert (again.newest, again.positions) == (30, {"s": 30})
    assert again.id == stream.id


def test_the_stream_of_another_version_goes_on_where_sources_stand(tmp_path: Path) -> None:
    stream = open_stream(tmp_path)
    stream.append([change([1], position=3)], 0.0)
    stream.inherit({"s": 2, "t": 9})
    stream.close()
    again = open_stream(tmp_path)
    assert again.positions == {"s": 3, "t": 9}
    assert again.last_of == {0: 1}
    assert [entry.number for entry in again.read(0)] == [1]
    again.append([change([30], position=4)], 0.0)
    assert again.begin_after(0, 0) == 0


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_wherever_it_is_ended_what_was_acknowledged_is_found(tmp_path: Path, power: bool) -> None:
    for crash_at in range(1, 1000):
        folder = tmp_path / str(crash_at)
        disk = CrashDisk(crash_at, seed=crash_at)
        kept, stream_id = 0, 0
        done = False
        try:
            stream = open_stream(folder, keep_bytes=1600, disk=disk)
            for position in range(1, 25):
                stream.append([change([position], position=position)], 0.0)
                kept, stream_id = position, stream.id
                if position % 8 == 0:
                    stream.trim(position - 3)
            done = True
        except Crashed:
            pass
        disk.end()
        if power:
            disk.lose_power()
        again = open_stream(folder, keep_bytes=1600)
        assert again.newest >= kept
        assert again.positions.get("s", 0) == again.newest
        if kept:
            assert again.id == stream_id
        oldest = again.oldest
        assert [entry.number for entry in again.read(oldest - 1)] == list(
            range(oldest, again.newest + 1)
        )
        again.close()
        if done:
            assert crash_at > 30
            return
    pytest.fail("it never came to an end")

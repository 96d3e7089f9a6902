from __future__ import annotations

import random
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.errors import StateError
from kernels.store.changes import Change
from kernels.store.snapshot import SnapshotWriter
from kernels.store.state import UpdateState
from tests.kernels.crash_disk import CrashDisk, Crashed
from tests.kernels.store_help import N_ROWS, STREAM, change, contents, open_state, rows_of, table


def update(state: UpdateState, *changes: Change) -> None:
    for place, each in zip(state.persist(changes), changes, strict=True):
        state.apply(place, each)


def contents_of(folder: Path) -> dict[tuple[str, int], bytes]:
    """Return all changed rows that a folder holds, which nobody has open."""
    state = open_state(folder)
    state.close()
    return contents(state)


def check_folder(script: Script, folder: Path) -> None:
    state = open_state(folder)
    state.close()
    script.check(state)


def compact(state: UpdateState) -> None:
    compaction = state.compaction()
    while (copied := compaction.copy()) is not None:
        compaction.write(copied)
    compaction.finish()


class Script:
    """A life's work: updates, some together, and compactions that updates happen during."""

    def __init__(self, seed: int, n_updates: int) -> None:
        rng = random.Random(seed)
        self.changes = [
            change(
                number,
                [rng.randrange(N_ROWS) for _ in range(rng.randrange(1, 5))],
                table=rng.choice(["items", "users"]),
            )
            for number in range(1, n_updates + 1)
        ]
        self.rng = rng
        self.acknowledged = 0

    def expected(self, number: int) -> dict[tuple[str, int], bytes]:
        """Return what is there after update ``number``."""
        rows: dict[tuple[str, int], bytes] = {}
        for each in self.changes[:number]:
            for key in each.keys.tolist():
                rows[each.table, key] = rows_of(each.number, 1).tobytes()
        return rows

    def some(self, state: UpdateState) -> None:
        """Do the next one to three updates."""
        done = state.number
        changes = self.changes[done : done + self.rng.randrange(1, 4)]
        update(state, *changes)
        self.acknowledged = max(self.acknowledged, state.number)

    def live(self, state: UpdateState) -> None:
        """Work until all is done."""
        while state.number < len(self.changes):
            self.some(state)
            if self.rng.random() < 0.3:
                compaction = state.compaction()
                while (copied := compaction.copy()) is not None:
                    compaction.write(copied)
                    self.some(state)
                self.some(state)
                compaction.finish()

    def check(self, state: UpdateState) -> None:
        assert state.number >= self.acknowledged
        assert contents(state) == self.expected(state.number)


def test_a_state_is_found_again(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    update(state, change(1, [3, 4]), change(2, [4, 2**60], table="users"))
    update(state, change(5, [4]))
    state.close()
    again = open_state(tmp_path)
    assert (again.stream, again.number) == (STREAM, 5)
    assert contents(again) == contents(state)
    assert again.n_rows == 4
    assert again.size_bytes == 4 * 16


def test_the_last_of_two_rows_with_one_key_counts(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    twice = change(1, [3, 3])
    rows = twice.rows.copy()
    rows[1] = rows_of(9.0, 1)
    update(state, change(1, [3, 3]))
    both = Change(
        stream=STREAM, number=2, at_us=0, table="items", dtype="fp32", keys=twice.keys, rows=rows
    )
    update(state, both)
    assert contents(state)["items", 3] == rows_of(9.0, 1).tobytes()


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (change(1, [1], table="genres"), "table genres: not here"),
        (change(1, [N_ROWS]), f"table items: row {N_ROWS} is outside a table of {N_ROWS} rows"),
        (change(1, [3, -1]), "table items: row -1 is outside"),
    ],
)
def test_what_fits_no_table_is_told(tmp_path: Path, bad: Change, problem: str) -> None:
    assert problem in open_state(tmp_path).problem_of(bad)


def test_keys_of_segments_that_are_elsewhere_are_told() -> None:
    half = attrs.evolve(table(N_ROWS), n_segments=2, segments=range(1))
    assert not half.problem_of(change(1, [0, N_ROWS // 2 - 1]))
    problem = half.problem_of(change(1, [0, N_ROWS // 2]))
    assert problem == f"key {N_ROWS // 2} is of segment 1, which is not here"


def test_rows_of_another_form_are_told(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    wide = np.zeros((1, 20), np.uint8)
    key = np.zeros(1, np.int64)
    each = Change(stream=1, number=1, at_us=0, table="items", dtype="fp16", keys=key, rows=wide)
    assert "rows of fp16 in 20 bytes; it has fp32 in 16" in state.problem_of(each)


def test_a_compaction_drops_the_log_and_loses_nothing(tmp_path: Path) -> None:
    state = open_state(tmp_path, rotate_bytes=300)
    script = Script(1, 60)
    for each in script.changes[:50]:
        update(state, each)
    before = state.log_bytes
    compact(state)
    assert state.log_bytes < before / 5
    assert len(list(tmp_path.glob("snapshot-*"))) == 1
    for each in script.changes[50:]:
        update(state, each)
    script.acknowledged = 60
    state.close()
    state = open_state(tmp_path)
    script.check(state)
    compact(state)
    assert len(list(tmp_path.glob("snapshot-*"))) == 1
    state.close()
    check_folder(script, tmp_path)


def test_a_snapshot_is_of_one_time_though_it_is_copied_over_time(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    update(state, change(1, [1, 2]), change(2, [1, 2], table="users"))
    compaction = state.compaction()
    first = compaction.copy()
    assert first is not None
    compaction.write(first)
    update(state, change(3, [1, 2]), change(4, [1, 3], table="users"))
    while (copied := compaction.copy()) is not None:
        compaction.write(copied)
    update(state, change(5, [1]))
    compaction.finish()
    other = open_state(tmp_path / "other")
    shutil.copy(state.snapshot_of(0), other.seed_part())
    installed = other.install_seed(other.seed_part())
    for each in other.read_seed(installed):
        other.put(each)
    assert other.number == 4
    assert contents(other)["items", 1] == rows_of(3, 1).tobytes()


def test_a_snapshot_that_is_not_there_any_more_is_told(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    assert (state.snapshot_number, state.snapshot_bytes) == (0, 0)
    with pytest.raises(StateError, match="not there"):
        state.snapshot_of(0)
    update(state, change(1, [1]))
    compact(state)
    before = state.snapshot_number
    assert state.snapshot_of(before).stat().st_size == state.snapshot_bytes
    update(state, change(2, [1]))
    compact(state)
    with pytest.raises(StateError, match=f"snapshot {before} is not there"):
        state.snapshot_of(before)


def test_an_abandoned_compaction_changes_nothing(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    update(state, change(1, [1, 2]))
    compaction = state.compaction()
    compaction.abandon()
    compact(state)
    state.close()
    assert contents_of(tmp_path) == contents(state)


def test_a_seed_replaces_what_was(tmp_path: Path) -> None:
    script = Script(2, 40)
    peer = open_state(tmp_path / "peer")
    for each in script.changes:
        update(peer, each)
    compact(peer)
    behind = open_state(tmp_path / "behind", rotate_bytes=300)
    for each in script.changes[:20]:
        update(behind, each)
    shutil.copy(peer.snapshot_of(peer.snapshot_number), behind.seed_part())
    path = behind.install_seed(behind.seed_part())
    script.acknowledged = 40
    behind.close()
    check_folder(script, tmp_path / "behind")  # also if it ends here
    for each in behind.read_seed(path):
        behind.put(each)
    script.check(behind)
    again = open_state(tmp_path / "behind")
    update(again, change(41, [7]))
    again.close()
    assert open_state(tmp_path / "behind").number == 41


def test_a_damaged_seed_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    update(state, change(1, [1]))
    writer = SnapshotWriter(tmp_path / "..")
    writer.add(change(0, [1]))
    path = writer.finish(9, {"stream": 1, "number": 9})
    whole = path.read_bytes()
    path.unlink()
    for data in (whole[:-1], whole[:40], b"", whole + b"x"):
        state.seed_part().write_bytes(data)
        with pytest.raises(StateError, match="damaged"):
            state.install_seed(state.seed_part())
    state.close()
    assert contents_of(tmp_path) == contents(state)


def test_a_damaged_snapshot_is_told(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    update(state, change(1, [1, 2, 3]))
    compact(state)
    snapshot = state.snapshot_of(0)
    data = bytearray(snapshot.read_bytes())
    data[60] ^= 1
    snapshot.write_bytes(data)
    state.close()
    with pytest.raises(StateError, match="damaged at byte 0"):
        open_state(tmp_path)


def test_a_log_of_other_tables_is_told(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    update(state, change(1, [1]))
    state.close()
    with pytest.raises(StateError, match="update 1: table items: not here"):
        UpdateState(tmp_path, {})


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_wherever_it_is_ended_all_that_was_acknowledged_is_found(
    tmp_path: Path, power: bool
) -> None:
    for crash_at in range(1, 1000):
        script = Script(5, 40)
        folder = tmp_path / str(crash_at)
        disk = CrashDisk(crash_at, seed=crash_at)
        done = False
        try:
            script.live(open_state(folder, disk))
            done = True
        except Crashed:
            pass
        disk.end()
        if power:
            disk.lose_power()
        again = open_state(folder)
        script.check(again)
        script.live(again)
        again.close()
        check_folder(script, folder)
        shutil.rmtree(folder)
        if done:
            assert crash_at > 50
            return
    pytest.fail("it never came to an end")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_over_many_lives_all_that_was_acknowledged_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("state")
    script = Script(data.draw(st.integers(0, 10**6)), 30)
    for _ in range(data.draw(st.integers(1, 4))):
        disk = CrashDisk(data.draw(st.integers(1, 90)), data.draw(st.integers(0, 10**6)))
        try:
            state = open_state(folder, disk, rotate_bytes=data.draw(st.integers(100, 2000)))
            script.check(state)
            script.live(state)
        except Crashed:
            pass
        disk.end()
        if data.draw(st.booleans()):
            disk.lose_power()
    check_folder(script, folder)

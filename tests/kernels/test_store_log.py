from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import StateError
from kernels.store.changes import Change, pack_note, unpack_note
from kernels.store.disk import Buffer, Disk
from kernels.store.log import Log
from kernels.store.records import HEADER_BYTES, pack_record, read_records
from tests.kernels.crash_disk import CrashDisk, Crashed
from tests.kernels.store_help import change


def fill(log: Log, upto: int, size: int = 40) -> None:
    while log.newest < upto:
        if log.is_full:
            log.rotate()
        number = log.newest + 1
        log.append(1, number, [bytes([number % 256]) * size])
        log.sync()


def numbers(log: Log, after: int = 0) -> list[int]:
    return [record.number for record in log.replay(after)]


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_a_record_is_read_as_it_was_written(payload: bytes, number: int, kind: int) -> None:
    buffers, size = pack_record(kind, number, [payload[:7], payload[7:]], synced=5)
    with NamedTemporaryFile() as file:
        file.write(b"".join(buffers))
        file.flush()
        (record,) = read_records(Path(file.name))
    assert (record.kind, record.number, record.synced) == (kind, number, 5)
    assert record.payload == payload + bytes(-len(payload) % 8)
    assert record.end == size == HEADER_BYTES + len(record.payload)


def test_a_change_is_read_as_it_was_written() -> None:
    before = change(3, [5, -1, 2**62], table="été")
    after = Change.unpack(b"".join(before.pack()))
    assert (after.stream, after.number, after.at_us) == (7, 3, 3_000_000)
    assert (after.table, after.dtype, after.source, after.position) == ("été", "fp32", "trainer", 3)
    np.testing.assert_array_equal(after.keys, before.keys)
    np.testing.assert_array_equal(after.rows, before.rows)
    assert not after.keys.flags.writeable


@pytest.mark.parametrize("payload", [b"", b"x" * 47, b"\xff" * 64])
def test_what_holds_no_change_is_refused(payload: bytes) -> None:
    with pytest.raises(StateError, match="no change"):
        Change.unpack(payload)


def test_a_note_is_read_with_its_padding() -> None:
    payload = b"".join(map(bytes, pack_note({"a": 1})))
    assert unpack_note(payload + bytes(3)) == {"a": 1}
    with pytest.raises(StateError, match="no note"):
        unpack_note(b"{")


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    log = Log(tmp_path, rotate_bytes=300)
    fill(log, 10)
    log.close()
    log = Log(tmp_path, rotate_bytes=300)
    assert log.newest == 10
    fill(log, 20)
    assert numbers(log) == list(range(1, 21))
    assert numbers(log, 13) == list(range(14, 21))
    assert numbers(log, 20) == []
    with pytest.raises(ValueError, match="number 22 after 20"):
        log.append(1, 22, [b""])


def test_what_is_dropped_is_whole_files_and_is_missed_when_asked_for(tmp_path: Path) -> None:
    log = Log(tmp_path, rotate_bytes=300)
    fill(log, 20)
    log.drop(10)
    assert 1 < log.oldest <= 11
    assert numbers(log, 10) == list(range(11, 21))
    with pytest.raises(StateError, match="update 1 was dropped"):
        numbers(log, 0)
    log.drop(10**9)
    assert numbers(log, log.oldest - 1)[-1] == 20
    assert len(list(tmp_path.glob("log-*"))) == 1
    assert not log.drop_oldest()


def test_a_note_may_share_its_number_and_begin_a_file(tmp_path: Path) -> None:
    log = Log(tmp_path)
    fill(log, 3)
    log.rotate()
    log.append(2, 3, [b"note"])
    log.rotate()  # which would be the file that there is
    fill(log, 5)
    log.close()
    log = Log(tmp_path)
    assert [(record.kind, record.number) for record in log.replay(2)] == [
        (1, 3),
        (2, 3),
        (1, 4),
        (1, 5),
    ]
    assert log.oldest == 1
    log.drop(3)
    assert log.oldest == 4


def test_a_log_that_is_behind_skips(tmp_path: Path) -> None:
    log = Log(tmp_path)
    fill(log, 3)
    log.skip(7)
    fill(log, 9)
    log.skip(8)
    assert numbers(log, 7) == [8, 9]
    assert log.oldest == 8


def test_whatever_byte_a_log_ends_at_whole_records_are_found_and_it_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path / "whole")
    fill(log, 4, size=21)
    log.close()
    (file,) = (tmp_path / "whole").glob("log-*")
    data = file.read_bytes()
    size = len(data) // 4
    folder = tmp_path / "cut"
    for end in range(len(data) + 1):
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_bytes(data[:end])
        log = Log(folder)
        assert log.newest == end // size
        fill(log, 5)
        assert numbers(log) == [1, 2, 3, 4, 5]
        log.close()
        (folder / file.name).unlink()


def test_damage_of_what_was_synced_is_no_tear(tmp_path: Path) -> None:
    log = Log(tmp_path)
    fill(log, 4, size=20)
    log.close()
    (file,) = tmp_path.glob("log-*")
    data = bytearray(file.read_bytes())
    size = len(data) // 4
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        file.write_bytes(damaged)
        if at < 3 * size:
            with pytest.raises(StateError, match="damaged at byte"):
                Log(tmp_path)
        else:  # nothing tells it from a record that was torn
            log = Log(tmp_path)
            assert log.newest == 3
            log.close()


def test_what_was_never_synced_may_be_lost_in_any_order(tmp_path: Path) -> None:
    log = Log(tmp_path)
    fill(log, 1, size=20)
    for number in (2, 3):
        log.append(1, number, [bytes(20)])
    log.close()
    (file,) = tmp_path.glob("log-*")
    data = bytearray(file.read_bytes())
    data[len(data) // 3 + 5] ^= 1
    file.write_bytes(data)
    assert Log(tmp_path).newest == 1


def test_a_missing_or_damaged_file_in_the_middle_is_told(tmp_path: Path) -> None:
    log = Log(tmp_path, rotate_bytes=100)
    fill(log, 8)
    first, second, *_ = sorted(tmp_path.glob("log-*"))
    data = second.read_bytes()
    second.write_bytes(data[:-1])
    with pytest.raises(StateError, match="damaged"):
        numbers(log)
    second.unlink()
    with pytest.raises(StateError, match="dropped"):
        numbers(log)
    log.close()
    with pytest.raises(StateError, match="is missing"):
        numbers(Log(tmp_path))
    assert first.exists()


class FullDisk(Disk):
    """A disk with so much room."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        whole = b"".join(bytes(buffer) for buffer in buffers)
        super().write(fd, [whole[: self.room]])
        self.room -= len(whole)
        if self.room < 0:
            raise OSError(28, "No space left on device")


class DumbDisk(Disk):
    """A disk that no longer syncs."""

    def sync(self, fd: int) -> None:
        raise OSError(5, "Input/output error")


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    disk = FullDisk(200)
    log = Log(tmp_path, disk=disk)
    fill(log, 2)
    with pytest.raises(StateError, match="No space left"):
        fill(log, 3)
    assert log.newest == 2
    disk.room = 10_000
    fill(log, 4)
    log.close()
    assert numbers(Log(tmp_path)) == [1, 2, 3, 4]


def test_two_cannot_have_one_folder(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with pytest.raises(StateError, match="another actor or process has it open"):
        Log(tmp_path)
    log.close()
    Log(tmp_path).close()


def test_after_a_failed_sync_nothing_is_taken(tmp_path: Path) -> None:
    log = Log(tmp_path, disk=DumbDisk())
    log.append(1, 1, [b""])
    for _ in range(2):
        with pytest.raises(OSError, match=r"Input/output|may not be on the device"):
            log.sync()
    with pytest.raises(OSError, match="may not be on the device"):
        log.append(1, 2, [b""])


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_wherever_a_log_is_ended_what_was_synced_is_found(tmp_path: Path, power: bool) -> None:
    for crash_at in range(1, 1000):
        folder = tmp_path / str(crash_at)
        disk = CrashDisk(crash_at, seed=crash_at)
        synced = dropped = 0
        try:
            log = Log(folder, rotate_bytes=150, disk=disk)
            for number in range(1, 9):
                if log.is_full:
                    log.rotate()
                log.append(1, number, [bytes(30)])
                log.sync()
                synced = number
                if number == 6:
                    dropped = 4
                    log.drop(dropped)
        except Crashed:
            pass
        disk.end()
        if power:
            disk.lose_power()
        again = Log(folder, rotate_bytes=150)
        assert again.newest >= synced
        assert numbers(again, dropped)[-1:] in ([again.newest], [])
        fill(again, 12)
        assert numbers(again, dropped) == list(range(dropped + 1, 13))
        again.close()
        if disk.n_operations < crash_at:
            assert synced == 8
            return
    pytest.fail("it never came to an end")

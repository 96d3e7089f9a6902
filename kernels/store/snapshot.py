"""Snapshots: all rows that updates have changed, in a file that takes the place of a log's past.

A snapshot is a file of records: changes, to be applied in order, and a note at the end, without
which it is not whole. It is written beside and renamed, so there is the old one or the new one. Its
name tells the number in the log up to which it holds everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kernels.errors import StateError
from kernels.store.changes import CHANGE, NOTE, Change, pack_note, unpack_note
from kernels.store.disk import DISK, Buffer, Disk
from kernels.store.records import pack_record, read_records

_PREFIX: Final = "snapshot-"
_SUFFIX: Final = ".tbr"
_PART: Final = ".part"
# Written at a time: a sync of gigabytes at the end would hold up those of the log for seconds.
_SYNC_BYTES: Final = 16 << 20


class SnapshotWriter:
    """Writes one snapshot. Until ``finish`` has returned, what was there before is in force."""

    def __init__(self, folder: Path, *, disk: Disk = DISK) -> None:
        """Begin a file.

        Raises:
            OSError: It cannot be created.
        """
        self._folder = folder
        self._disk = disk
        self._path = folder / f"{_PREFIX}new{_PART}"
        self._fd: int | None = disk.create(self._path)
        self.size_bytes = 0
        """Written so far."""
        self._synced = 0

    def add(self, change: Change) -> None:
        """Append a change.

        Raises:
            OSError: It cannot be written.
        """
        self._write(CHANGE, change.pack())

    def finish(self, number: int, note: Mapping[str, Any]) -> Path:
        """Put the snapshot in force, and remove those before; return its path.

        Args:
            number: That of the log's last record that it holds.
            note: What else there is to say, for JSON.

        Raises:
            OSError: It cannot be done; then the snapshot before may still be the one in force.
        """
        fd = self._write(NOTE, pack_note(note))
        self._disk.sync(fd)
        self.abandon()
        return put_in_force(self._path, number, disk=self._disk)

    def abandon(self) -> None:
        """Give up; what was written is left for the next writer to replace."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._disk.close(fd)

    def _write(self, kind: int, payload: list[Buffer]) -> int:
        if self._fd is None:
            raise OSError(f"{self._path}: is closed")
        buffers, n_bytes = pack_record(kind, 0, payload)
        self._disk.write(self._fd, buffers)
        self.size_bytes += n_bytes
        if self.size_bytes - self._synced >= _SYNC_BYTES:
            self._disk.sync(self._fd)
            self._synced = self.size_bytes
        return self._fd


def put_in_force(part: Path, number: int, *, disk: Disk = DISK) -> Path:
    """Give a whole, synced file the name of the snapshot that holds everything up to ``number``.

    Raises:
        OSError: It cannot be done.
    """
    folder = part.parent
    path = folder / f"{_PREFIX}{number:020}{_SUFFIX}"
    disk.rename(part, path)
    disk.sync_folder(folder)
    for old in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if old != path:
            disk.remove(old)
    return path


def find_snapshot(folder: Path, *, disk: Disk = DISK) -> tuple[Path, int] | None:
    """Return the snapshot in force and its number, if there is one; remove what is left of others.

    Raises:
        OSError: The folder cannot be read or written.
    """
    for part in folder.glob(f"{_PREFIX}*{_PART}"):
        disk.remove(part)
    paths = sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    if not paths:
        return None
    # A rename that the machine forgot must not bring back one whose log is gone.
    disk.sync_folder(folder)
    for old in paths[:-1]:
        disk.remove(old)
    return paths[-1], int(paths[-1].name[len(_PREFIX) : -len(_SUFFIX)])


def read_snapshot(path: Path) -> Iterator[Change | dict[str, Any]]:
    """Yield a snapshot's changes, one in memory at a time, and then its note.

    Raises:
        StateError: It is damaged; what was yielded before is not all.
        OSError: It cannot be read.
    """
    read = 0
    is_whole = False
    for record in read_records(path):
        read = record.end
        if record.kind == NOTE:
            is_whole = True
            yield unpack_note(record.payload)
        else:
            yield Change.unpack(record.payload)
    if not is_whole or read != path.stat().st_size:
        raise StateError(f"{path}: damaged at byte {read}")

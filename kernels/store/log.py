"""A durable log: numbered records in files that are only appended to, the oldest dropped whole.

Files are named by the first number that they may hold, and follow each other without a gap. The
last one is appended to; the others are whole and on the device. What ``sync`` has returned for
survives the machine; what was only appended survives the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import attrs

from kernels.errors import StateError
from kernels.store.disk import DISK, Buffer, Disk
from kernels.store.records import Record, pack_record, read_records, torn_or_damaged

Fsync: TypeAlias = Literal["batch", "never"]
"""When a log is brought to the device: before anything in it is acknowledged, or when the system
likes to: then what was acknowledged survives the process, but not the machine."""

ROTATE_BYTES: Final = 64 << 20
"""Of a file: scanning one at start takes about 0.1 s, and the past is dropped by whole files."""

_PREFIX: Final = "log-"
_SUFFIX: Final = ".tbr"


@attrs.define(eq=False)
class _File:
    """One file of a log: ``size`` bytes of whole records, numbers from ``first`` on."""

    path: Path
    first: int
    size: int


class Log:
    """A log in a folder of its own, for any number of threads.

    Attributes:
        newest: The number of the last record; 0 if there never was one.
    """

    def __init__(
        self, folder: Path, *, rotate_bytes: int = ROTATE_BYTES, disk: Disk = DISK
    ) -> None:
        """Open the log in a folder, or begin one; a torn record at its end is cut off.

        Args:
            folder: Made if need be.
            rotate_bytes: A file is closed at this size, and another begun.
            disk: Does the file operations.

        Raises:
            StateError: What was acknowledged is damaged, or somebody else has the folder.
            OSError: The folder cannot be read or written.
        """
        self._folder = folder
        self._disk = disk
        self._rotate_bytes = rotate_bytes
        self._broken = ""
        self._lock = threading.Lock()
        disk.make_folder(folder)
        try:
            self._lock_fd = disk.lock(folder / "lock")
        except BlockingIOError as error:
            raise StateError(f"{folder}: another actor or process has it open") from error
        try:
            self._open()
        except (StateError, OSError):
            disk.close(self._lock_fd)
            raise

    def _open(self) -> None:
        folder, disk = self._folder, self._disk
        self._files = [
            _File(path, int(path.name[len(_PREFIX) : -len(_SUFFIX)]), path.stat().st_size)
            for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
        ]
        if not self._files:
            self.newest = 0
            self._fd = self._begin(1)
            return
        last = self._files[-1]
        whole, self.newest = 0, last.first - 1
        for record in read_records(last.path):
            whole, self.newest = record.end, max(record.number, self.newest)
        if whole < last.size:
            torn_or_damaged(last.path, whole)
        self._fd = disk.reopen(last.path, whole)
        last.size = whole
        # What an earlier process wrote may not be on the device yet, and is about to be built upon.
        disk.sync(self._fd)
        disk.sync_folder(folder)
        self._synced = whole

    @property
    def oldest(self) -> int:
        """The least number that the log may still hold; all after it are there."""
        return self._files[0].first

    @property
    def last_first(self) -> int:
        """The least number that the last file may hold."""
        return self._files[-1].first

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self._files)

    @property
    def is_empty(self) -> bool:
        """Whether the last file has no number of its own yet."""
        return self.newest < self._files[-1].first

    def append(self, kind: int, number: int, payload: Sequence[Buffer]) -> None:
        """Append a record, which is not acknowledged before ``sync`` has returned.

        Args:
            kind: Of the payload.
            number: That of the last record, or the next.
            payload: Its bytes, in pieces.

        Raises:
            StateError: It could not be written; the log is as it was before.
            OSError: Nor could that be undone: open the log anew.
        """
        if not 0 <= number - self.newest <= 1:
            raise ValueError(f"number {number} after {self.newest}")
        with self._lock:
            self._check()
            last = self._files[-1]
            buffers, n_bytes = pack_record(kind, number, payload, self._synced)
            try:
                self._disk.write(self._fd, buffers)
            except OSError as error:
                self._broken = f"{last.path}: a failed write could not be undone"
                self._disk.cut(self._fd, last.size)
                self._broken = ""
                raise StateError(f"{last.path}: {error}") from error
            last.size += n_bytes
            self.newest = number

    def sync(self) -> None:
        """Return once all records are on the device.

        Raises:
            OSError: They may never get there: open the log anew, which finds what did.
        """
        with self._lock:
            self._sync()

    @property
    def is_full(self) -> bool:
        """Whether it is time to ``rotate``."""
        return self._files[-1].size >= self._rotate_bytes

    def rotate(self) -> None:
        """Begin a new file, unless the last one is empty.

        Raises:
            OSError: It cannot be done.
        """
        with self._lock:
            if not self.is_empty:
                self._sync()
                self._go_on(self.newest + 1)

    def skip(self, upto: int) -> None:
        """Drop all records, and go on with the number after ``upto``, where that is not behind.

        Raises:
            OSError: It cannot be done.
        """
        with self._lock:
            if upto > self.newest:
                self._go_on(upto + 1)
                self.newest = upto
        self.drop(upto)

    def replay(self, after: int) -> Iterator[Record]:
        """Yield the records with numbers above ``after`` that are there now, in order.

        Raises:
            StateError: Some of them were dropped, or are damaged.
        """
        oldest = self.oldest
        if after + 1 < oldest:
            raise StateError(
                f"{self._folder}: update {after + 1} was dropped; the log starts at {oldest}"
            )
        return (record for record in self.records(after) if record.number > after)

    def records(self, after: int = -1) -> Iterator[Record]:
        """Yield all records that are there now, in order, from the file with ``after`` + 1 on.

        Raises:
            StateError: Some of them are damaged or missing, or are dropped meanwhile.
        """
        files = [(file.path, file.first, file.size) for file in self._files]
        for index, (path, first, size) in enumerate(files):
            if index + 1 < len(files) and files[index + 1][1] <= after + 1:
                continue
            number, read = first - 1, 0
            try:
                for record in read_records(path, end=size):
                    if not 0 <= record.number - number <= 1:
                        raise StateError(f"{path}: {record.number} follows {number}")
                    number, read = record.number, record.end
                    yield record
            except FileNotFoundError as error:
                raise StateError(f"{path}: was dropped while it was read") from error
            if read < size:
                raise StateError(f"{path}: damaged at byte {read}")
            if index + 1 < len(files) and number + 1 != files[index + 1][1]:
                raise StateError(f"{self._folder}: {number + 1} is missing after {path.name}")

    def drop(self, upto: int) -> None:
        """Remove the files that hold no number above ``upto``; never the last one.

        Raises:
            OSError: A file cannot be removed.
        """
        with self._lock:
            n_dropped = 0
            # In order, so that what is left is without a gap whenever this ends.
            while len(self._files) > 1 and self._files[1].first <= upto + 1:
                self._disk.remove(self._files.pop(0).path)
                n_dropped += 1
            if n_dropped:
                self._disk.sync_folder(self._folder)

    def drop_oldest(self) -> bool:
        """Remove the first file, whatever it holds; return whether there was more than one."""
        if len(self._files) == 1:
            return False
        self.drop(self._files[1].first - 1)
        return True

    def close(self) -> None:
        """Close; syncs nothing."""
        self._disk.close(self._fd)
        self._disk.close(self._lock_fd)

    def _check(self) -> None:
        if self._broken:
            raise OSError(self._broken)

    def _sync(self) -> None:
        self._check()
        last = self._files[-1]
        # After a failed fsync the system may have forgotten what it could not write (fsync(2)).
        self._broken = f"{last.path}: what was written may not be on the device"
        self._disk.sync(self._fd)
        self._synced = last.size
        self._broken = ""

    def _go_on(self, first: int) -> None:
        before = self._fd
        self._fd = self._begin(first)
        self._disk.close(before)

    def _begin(self, first: int) -> int:
        path = self._folder / f"{_PREFIX}{first:020}{_SUFFIX}"
        fd = self._disk.create(path)
        self._disk.sync_folder(self._folder)
        self._files.append(_File(path, first, 0))
        self._synced = 0
        return fd

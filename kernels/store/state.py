"""What updates have made of one shard's tables, of one version of a model: in memory and on disk.

Memory has the changed rows, table by table, where lookups find them (``delta.py``). Disk has a
snapshot of them and a log of the changes since. A change is first persisted, then applied, then
acknowledged; so memory never holds what the disk may lose, and what was acknowledged is found
again.

A *compaction* writes a new snapshot and drops the log that it covers. Changes go on meanwhile, so
the rows that it copies, some at a time, are of different times; at its end it therefore repeats the
changes since its beginning, which are in the log, and so comes to one time for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import LookupFailed, StateError
from kernels.store.changes import CHANGE, Change
from kernels.store.disk import DISK, Disk
from kernels.store.log import ROTATE_BYTES, Fsync, Log
from kernels.store.partition import segment_of
from kernels.store.rows import RowType
from kernels.store.snapshot import SnapshotWriter, find_snapshot, put_in_force, read_snapshot

# Copied at a time: updates wait meanwhile, for about a millisecond.
_COPY_BYTES: Final = 4 << 20


class ChangedRows(Protocol):
    """The rows of a table that were changed, in places that stay as they are numbered: a delta."""

    def __len__(self) -> int:
        """Return how many there are."""

    @property
    def size_bytes(self) -> int:
        """The memory that they take."""

    def put(self, keys: NDArray[np.int64], encoded: NDArray[np.uint8]) -> None:
        """Set rows by their keys; of a key that is there twice the last one counts."""

    def copy(self, first: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return copies of the keys and rows of places ``first`` to ``first + n``."""


@attrs.frozen(kw_only=True, eq=False)
class ChangingTable:
    """A table, or some segments of it, that takes changes.

    Attributes:
        dtype: Of its rows.
        row_bytes: Of a row as it is stored.
        rows: Of the whole table, which matters where it has no keys.
        keyed: Whether it has keys of its own, any number being one.
        n_segments: Of the whole table; ``segments`` are those that are here.
        changed: Where its changes go.
    """

    dtype: RowType
    row_bytes: int
    rows: int
    keyed: bool
    n_segments: int
    segments: range
    changed: ChangedRows

    def problem_of(self, change: Change) -> str:
        """Say why a change cannot be applied here; nothing if it can."""
        if change.dtype != self.dtype or change.rows.shape[1] != self.row_bytes:
            return (
                f"rows of {change.dtype} in {change.rows.shape[1]} bytes; "
                f"it has {self.dtype} in {self.row_bytes}"
            )
        if len(change.keys) != len(change.rows):
            return f"{len(change.keys)} keys of {len(change.rows)} rows"
        try:
            segments = segment_of(
                change.keys, n_segments=self.n_segments, rows=self.rows, keyed=self.keyed
            )
        except LookupFailed as error:
            return str(error)
        outside = (segments < self.segments.start) | (segments >= self.segments.stop)
        if outside.any():
            key = int(change.keys[outside][0])
            return f"key {key} is of segment {int(segments[outside][0])}, which is not here"
        return ""


class UpdateState:
    """The updates of one shard and version. Loading is for a thread, as it reads all there is.

    Attributes:
        tables: By name.
        stream: That of the last change applied, 0 if there was none; ``number`` is its number.
    """

    def __init__(
        self,
        folder: Path,
        tables: Mapping[str, ChangingTable],
        *,
        fsync: Fsync = "batch",
        rotate_bytes: int = ROTATE_BYTES,
        disk: Disk = DISK,
    ) -> None:
        """Load what a folder has, or begin with nothing.

        Raises:
            StateError: What was acknowledged is damaged.
            OSError: The folder cannot be read or written.
        """
        self.tables = tables
        self.stream = 0
        self.number = 0
        self._folder = folder
        self._fsync = fsync
        self._disk = disk
        self._log = Log(folder, rotate_bytes=rotate_bytes, disk=disk)
        self._snapshot: tuple[Path, int] | None = None
        self._snapshot_bytes = 0
        self._applied = 0
        try:
            self._load()
        except (StateError, OSError):
            self._log.close()
            raise

    def _load(self) -> None:
        folder = self._folder
        found = find_snapshot(folder, disk=self._disk)
        if found is not None:
            path, self._applied = found
            self._take_snapshot(path, self._applied)
            for change in self.read_seed(path):
                self.put(change)
            # Where nothing was synced, a machine may come back with the snapshot but not the log.
            self._log.skip(self._applied)
        for record in self._log.replay(self._applied):
            if record.kind == CHANGE:
                change = Change.unpack(record.payload)
                problem = self.problem_of(change)
                if problem:
                    raise StateError(f"{folder}: update {change.number}: {problem}")
                self.apply(record.number, change)
        self._applied = self._log.newest

    @property
    def n_rows(self) -> int:
        """How many rows were changed."""
        return sum(len(table.changed) for table in self.tables.values())

    @property
    def size_bytes(self) -> int:
        """The memory that the changed rows take."""
        return sum(table.changed.size_bytes for table in self.tables.values())

    @property
    def log_bytes(self) -> int:
        """The size of the log: what a compaction would drop."""
        return self._log.size_bytes

    @property
    def snapshot_bytes(self) -> int:
        """The size of the snapshot in force."""
        return self._snapshot_bytes

    @property
    def snapshot_number(self) -> int:
        """The number of the snapshot in force; 0 if there is none."""
        return 0 if self._snapshot is None else self._snapshot[1]

    def snapshot_of(self, number: int) -> Path:
        """Return the path of the snapshot in force.

        Args:
            number: Which one is meant; 0 for any.

        Raises:
            StateError: There is none, or another one.
        """
        if self._snapshot is None or number not in (0, self._snapshot[1]):
            raise StateError(f"snapshot {number} is not there any more")
        return self._snapshot[0]

    def problem_of(self, change: Change) -> str:
        """Say why a change cannot be applied; nothing if it can."""
        table = self.tables.get(change.table)
        problem = "not here" if table is None else table.problem_of(change)
        return f"table {change.table}: {problem}" if problem else ""

    def persist(self, changes: Sequence[Change]) -> list[int]:
        """Write changes to the log; they survive from when this returns. For a thread.

        Args:
            changes: Without problems.

        Returns:
            Their places in the log, for ``apply``; fewer if there was no room for all.

        Raises:
            StateError: There was room for none.
            OSError: The log cannot be relied on any more: load the state anew.
        """
        places: list[int] = []
        for change in changes:
            if self._log.is_full:
                self._log.rotate()
            place = self._log.newest + 1
            try:
                self._log.append(CHANGE, place, change.pack())
            except StateError:
                if not places:
                    raise
                break
            places.append(place)
        if self._fsync == "batch":
            self._log.sync()
        return places

    def apply(self, place: int, change: Change) -> None:
        """Set a persisted change's rows. No lookup may be under way."""
        self.tables[change.table].changed.put(change.keys, change.rows)
        self.stream, self.number = change.stream, change.number
        self._applied = place

    def put(self, change: Change) -> None:
        """Set rows that a snapshot holds. No lookup may be under way."""
        self.tables[change.table].changed.put(change.keys, change.rows)

    def compaction(self) -> Compaction:
        """Begin a compaction; there may be one at a time."""
        return Compaction(self, self._applied, SnapshotWriter(self._folder, disk=self._disk))

    def seed_part(self) -> Path:
        """Return where to write a snapshot that comes from elsewhere."""
        return self._folder / "snapshot-seed.part"

    def read_seed(self, path: Path) -> Iterator[Change]:
        """Yield the changes of a snapshot; at their end, take over where it stands.

        Raises:
            StateError: It is damaged, or not of these tables.
        """
        for item in read_snapshot(path):
            if not isinstance(item, Change):
                self.stream, self.number = item["stream"], item["number"]
                continue
            problem = self.problem_of(item)
            if problem:
                raise StateError(f"{path}: {problem}")
            yield item

    def install_seed(self, part: Path) -> Path:
        """Put a snapshot in force, in place of all that was; for a thread.

        Args:
            part: The file ``seed_part``, written.

        Returns:
            Its path: what is in it is yet to be ``put``, in the order of ``read_seed``.

        Raises:
            StateError: It is damaged, or not of these tables; nothing has changed.
            OSError: It cannot be done.
        """
        for item in read_snapshot(part):
            problem = self.problem_of(item) if isinstance(item, Change) else ""
            if problem:
                raise StateError(f"{part}: {problem}")
        fd = self._disk.reopen(part, part.stat().st_size)
        self._disk.sync(fd)
        self._disk.close(fd)
        self._log.rotate()
        self._applied = self._log.newest
        path = put_in_force(part, self._applied, disk=self._disk)
        self._take_snapshot(path, self._applied)
        self._log.drop(self._applied)
        return path

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def finish_compaction(
        self, writer: SnapshotWriter, since: int, upto: int, note: Mapping[str, Any]
    ) -> None:
        """Repeat the changes from ``since`` to ``upto`` in a snapshot, and put it in force."""
        # The log must not be behind the snapshot, not even where nothing else syncs it.
        self._log.sync()
        if since < upto:
            for record in self._log.replay(since):
                if record.number > upto:
                    break
                if record.kind == CHANGE:
                    writer.add(Change.unpack(record.payload))
        self._take_snapshot(writer.finish(upto, note), upto)
        self._log.drop(upto)

    def _take_snapshot(self, path: Path, number: int) -> None:
        self._snapshot = path, number
        self._snapshot_bytes = path.stat().st_size


class Compaction:
    """One compaction under way: ``copy`` and ``write`` in turn until there is no more; ``finish``.

    ``copy`` may not run while a change is applied; lookups may go on. All are for a thread.
    """

    def __init__(self, state: UpdateState, since: int, writer: SnapshotWriter) -> None:
        self._state = state
        self._since = since
        self._writer = writer
        self._left = list(state.tables.items())
        self._slot = 0
        self._upto = (0, 0, 0)

    @property
    def size_bytes(self) -> int:
        """Of what was written so far."""
        return self._writer.size_bytes

    def copy(self) -> Change | None:
        """Return some more rows, or None if there are no more: then changes up to now are in."""
        while self._left:
            name, table = self._left[0]
            most = max(_COPY_BYTES // (table.row_bytes + 8), 1)
            n = min(most, len(table.changed) - self._slot)
            if n > 0:
                keys, rows = table.changed.copy(self._slot, n)
                self._slot += n
                return Change(
                    stream=0,
                    number=0,
                    at_us=0,
                    table=name,
                    dtype=table.dtype,
                    keys=keys,
                    rows=rows,
                )
            self._left.pop(0)
            self._slot = 0
        state = self._state
        self._upto = (state._applied, state.stream, state.number)
        return None

    def write(self, change: Change) -> None:
        """Write what was copied.

        Raises:
            OSError: It cannot be written: ``abandon``.
        """
        self._writer.add(change)

    def finish(self) -> None:
        """Put the snapshot in force and drop the log that it covers.

        Raises:
            StateError: The log is damaged.
            OSError: It cannot be written.
        """
        upto, stream, number = self._upto
        note = {"stream": stream, "number": number}
        self._state.finish_compaction(self._writer, self._since, upto, note)

    def abandon(self) -> None:
        """Give up; the state is as it was."""
        self._writer.abandon()

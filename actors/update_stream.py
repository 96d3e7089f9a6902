"""An updater's stream of one version of a model: numbered, durable, kept until all have it.

Each file of the log begins with a note of what was before it: which stream it is, how far each
source had come, and the last update that each group had rows of. So the oldest files may be
dropped, and it is still known who has all of what they held.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from actors.update_routes import Routes
from kernels.errors import StateError
from kernels.store.changes import CHANGE, NOTE, Change, pack_note, unpack_note
from kernels.store.disk import DISK, Disk
from kernels.store.log import ROTATE_BYTES, Fsync, Log

# What is kept in memory, for those who are at most that far behind: else it comes from the log.
_RECENT_BYTES: Final = 64 << 20
_RECENT_MOST: Final = 4096
# Sources whose positions are remembered; of more, those that published last.
_SOURCES_MOST: Final = 4096


@attrs.frozen(eq=False)
class Entry:
    """An update, divided by group.

    Attributes:
        at: ``trio.current_time()`` when it was taken; minus infinity if by an earlier process.
        end_bytes: Of all updates of this process up to it; 0 likewise.
    """

    number: int
    parts: Mapping[int, Change]
    at: float
    end_bytes: int


class UpdateStream:
    """Numbers updates and keeps them. One task appends; any may read.

    Attributes:
        id: Tells this stream from others.
        newest: The number of the last update.
        positions: Each source's last position.
        last_of: The number of the last update with rows of a group, by group.
        total_bytes: Of all updates that this process took.
    """

    def __init__(
        self,
        folder: Path,
        routes: Routes,
        *,
        fsync: Fsync = "batch",
        keep_bytes: int = 1 << 30,
        disk: Disk = DISK,
    ) -> None:
        """Open the stream in a folder, or begin one; reads all of it, so for a thread.

        Args:
            folder: Made if need be.
            routes: Of the version.
            fsync: As for ``UpdateState``.
            keep_bytes: More of the log is not kept, whoever may still need it.
            disk: Does the file operations.

        Raises:
            StateError: What was acknowledged is damaged.
            OSError: The folder cannot be read or written.
        """
        self.routes = routes
        self.id = 0
        self.positions: dict[str, int] = {}
        self.last_of: dict[int, int] = {}
        self.total_bytes = 0
        self._fsync = fsync
        self._keep_bytes = keep_bytes
        self._recent: deque[Entry] = deque()
        # What each file's note says of groups, after the number that is the file's least.
        self._notes: deque[tuple[int, Mapping[int, int]]] = deque()
        # What is too much is dropped by whole files.
        rotate_bytes = min(ROTATE_BYTES, keep_bytes // 4)
        self._log = Log(folder, rotate_bytes=rotate_bytes, disk=disk)
        try:
            self._load()
        except (StateError, OSError):
            self._log.close()
            raise
        self.newest = self._log.newest

    def _load(self) -> None:
        since: list[Change] = []
        for record in self._log.records():
            if record.kind == NOTE:
                note = unpack_note(record.payload)
                self.id = note["stream"]
                self.positions = dict(note["positions"])
                self.last_of = {int(group): number for group, number in note["groups"].items()}
                self._notes.append((record.number + 1, dict(self.last_of)))
                since = []
            else:
                since.append(Change.unpack(record.payload))
                self._see(since[-1])
        for change in since:
            self._divide(change)
        if self.id == 0:
            self.id = secrets.randbits(62) + 1
        if not self._notes or self._notes[-1][0] != self._log.last_first:
            self._note()

    @property
    def oldest(self) -> int:
        """The first number that is kept."""
        return self._log.oldest

    @property
    def log_bytes(self) -> int:
        """The size of the log."""
        return self._log.size_bytes

    def append(self, changes: Sequence[Change], at: float) -> int:
        """Number changes and keep them; for a thread. They are durable when this returns.

        Args:
            changes: Whose stream and number are of no matter.
            at: When they were taken, ``trio.current_time()``.

        Returns:
            How many were kept, with numbers up to ``newest``: fewer if there was no room for all.

        Raises:
            StateError: There was room for none.
            OSError: The log cannot be relied on any more: open it anew.
        """
        kept: list[Entry] = []
        try:
            for change in changes:
                if self._log.is_full:
                    self._log.rotate()
                    self._note()
                numbered = attrs.evolve(change, stream=self.id, number=self._log.newest + 1)
                self._log.append(CHANGE, numbered.number, numbered.pack())
                self._see(numbered)
                self.total_bytes += numbered.size_bytes
                parts = self._divide(numbered)
                kept.append(Entry(numbered.number, parts, at, self.total_bytes))
        except StateError:
            if not kept:
                raise
        if self._fsync == "batch":
            self._log.sync()
        self._recent.extend(kept)
        while self._recent and (
            len(self._recent) > _RECENT_MOST
            or self.total_bytes - self._recent[0].end_bytes > _RECENT_BYTES
        ):
            self._recent.popleft()
        self.newest = self._log.newest
        return len(kept)

    def inherit(self, positions: Mapping[str, int]) -> None:
        """Go on where another version's stream stands: its sources do not begin anew.

        Raises:
            StateError, OSError: It cannot be written down.
        """
        news = {
            source: position
            for source, position in positions.items()
            if position > self.positions.get(source, 0)
        }
        if news:
            self.positions.update(news)
            self._note()

    def begin_after(self, group: int, applied: int) -> int:
        """Return the number after which to go on with a replica that stands at ``applied``.

        Raises:
            StateError: What it needs was not kept.
        """
        first, last_of = self._notes[0]
        if applied >= first - 1:
            return applied
        if applied < last_of.get(group, 0):
            raise StateError(
                f"it stands at update {applied}, and of those up to {first - 1} the last "
                f"for its group, {last_of[group]}, is not kept any more"
            )
        return first - 1

    def next_recent(self, after: int) -> Entry | None:
        """Return the update after number ``after``, if it is still in memory."""
        if not self._recent or after + 1 < self._recent[0].number:
            return None
        at = after + 1 - self._recent[0].number
        return self._recent[at] if at < len(self._recent) else None

    def read(self, after: int) -> Iterator[Entry]:
        """Yield updates after number ``after`` from the log, as many as there are now.

        Raises:
            StateError: Some of them were not kept, or are damaged.
        """
        for record in self._log.replay(after):
            if record.kind == CHANGE:
                change = Change.unpack(record.payload)
                yield Entry(change.number, self._parts(change), float("-inf"), 0)

    def trim(self, upto: int) -> None:
        """Drop what is not needed: whole files up to number ``upto``, and what is too much.

        Raises:
            OSError: A file cannot be removed.
        """
        self._log.drop(upto)
        while self._log.size_bytes > self._keep_bytes and self._log.drop_oldest():
            pass
        while len(self._notes) > 1 and self._notes[0][0] < self._log.oldest:
            self._notes.popleft()

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _see(self, change: Change) -> None:
        if change.position:
            last = self.positions.pop(change.source, 0)
            self.positions[change.source] = max(last, change.position)  # the youngest comes last
            if len(self.positions) > _SOURCES_MOST:
                del self.positions[next(iter(self.positions))]

    def _parts(self, change: Change) -> dict[int, Change]:
        return self.routes.split(change) if self.routes.fits(change) else {}

    def _divide(self, change: Change) -> dict[int, Change]:
        parts = self._parts(change)
        self.last_of.update(dict.fromkeys(parts, change.number))
        return parts

    def _note(self) -> None:
        note = {"stream": self.id, "positions": self.positions, "groups": self.last_of}
        self._log.append(NOTE, self._log.newest, pack_note(note))
        self._log.sync()
        self._notes.append((self._log.newest + 1, dict(self.last_of)))

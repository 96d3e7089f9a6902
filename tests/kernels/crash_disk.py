"""A disk whose process, or whose machine, ends in the middle of an operation."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels.store.disk import Buffer, Disk


class Crashed(BaseException):
    """The process has ended: nothing of it goes on."""


class CrashDisk(Disk):
    """Does what it is told up to operation ``crash_at``, which raises ``Crashed`` half done.

    After that ``lose_power`` makes of the files what a machine may find that has lost its power:
    of what was not synced, any part.
    """

    def __init__(self, crash_at: int, seed: int = 0) -> None:
        self.n_operations = 0
        self._crash_at = crash_at
        self._random = random.Random(seed)
        self._paths: dict[int, Path] = {}
        self._synced: dict[Path, int] = {}
        self._undo: list[Callable[[], None]] = []
        self._grave = 0

    def lock(self, path: Path) -> int:
        fd = super().lock(path)
        self._paths[fd] = path
        return fd

    def create(self, path: Path) -> int:
        self._step()
        buried = self._bury(path)
        fd = super().create(path)
        self._paths[fd] = path
        self._synced[path] = 0
        self._undo.append(lambda: self._dig_up(buried, path))
        return fd

    def reopen(self, path: Path, size: int) -> int:
        # What was there when the process began is on the device, as far as this process can tell.
        self._synced.setdefault(path, size)
        if path.stat().st_size > size:
            self._step()
            os.truncate(path, size)
        fd = super().reopen(path, size)
        self._paths[fd] = path
        return fd

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        whole = b"".join(bytes(buffer) for buffer in buffers)
        if self.n_operations + 1 == self._crash_at:
            super().write(fd, [whole[: self._random.randrange(len(whole) + 1)]])
        self._step()
        super().write(fd, buffers)

    def cut(self, fd: int, size: int) -> None:
        self._step()
        super().cut(fd, size)

    def sync(self, fd: int) -> None:
        self._step()
        path = self._paths[fd]
        self._synced[path] = path.stat().st_size

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        buried = self._bury(new)
        super().rename(old, new)
        self._synced[new] = self._synced.pop(old, new.stat().st_size)

        def undo() -> None:
            os.rename(new, old)
            self._synced[old] = self._synced.pop(new)
            self._dig_up(buried, new)

        self._undo.append(undo)

    def remove(self, path: Path) -> None:
        self._step()
        buried = self._bury(path)
        self._undo.append(lambda: self._dig_up(buried, path))

    def sync_folder(self, folder: Path) -> None:
        self._step()
        self._undo.clear()

    def close(self, fd: int) -> None:
        super().close(fd)
        self._paths.pop(fd, None)

    def end(self) -> None:
        """Close what the process had open."""
        for fd in list(self._paths):
            self.close(fd)

    def lose_power(self) -> None:
        """Leave of names and bytes that were not synced any part."""
        self.end()
        for undo in reversed(self._undo[self._random.randrange(len(self._undo) + 1) :]):
            undo()
        for path, synced in self._synced.items():
            if not path.exists():
                continue
            size = path.stat().st_size
            if size > synced:
                with path.open("r+b") as file:
                    if self._random.random() < 0.5:  # blocks reach the device in any order
                        at = self._random.randrange(synced, size)
                        file.seek(at)
                        file.write(bytes(min(self._random.randrange(1, 200), size - at)))
                    file.truncate(self._random.randrange(synced, size + 1))

    def _step(self) -> None:
        self.n_operations += 1
        if self.n_operations == self._crash_at:
            raise Crashed

    def _bury(self, path: Path) -> Path | None:
        if not path.exists():
            return None
        self._grave += 1
        buried = path.with_name(f".grave-{id(self)}-{self._grave}")
        os.rename(path, buried)
        return buried

    def _dig_up(self, buried: Path | None, path: Path) -> None:
        path.unlink(missing_ok=True)
        if buried is not None:
            os.rename(buried, path)

"""The file operations that durable state rests on, behind one seam.

All that must survive goes through here, so that one place knows what each operation promises, and
tests can end a process, or a machine, between any two of them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

Buffer: TypeAlias = bytes | memoryview

# Data, and the size of the file; macOS has no call of its own for that.
_sync_data: Final[Any] = getattr(os, "fdatasync", os.fsync)
# writev(2) takes at most IOV_MAX buffers: 1024 on Linux and macOS.
_BUFFERS_MOST: Final = 1024


class Disk:
    """Files that are appended to. Errors are those of the operating system, as ``OSError``.

    What was written is safe from the end of this process at once; from the end of the machine once
    ``sync`` has returned, and the names of files once ``sync_folder`` has.
    """

    def make_folder(self, folder: Path) -> None:
        """Make a folder, and those above it, whose names are on the device when this returns."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)

    def lock(self, path: Path) -> int:
        """Take a file's lock, which ends with its descriptor, and with the process.

        Raises:
            BlockingIOError: Somebody else has it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def create(self, path: Path) -> int:
        """Create an empty file, replacing what has its name; return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    def reopen(self, path: Path, size: int) -> int:
        """Open a file to append to it after its first ``size`` bytes; the rest is cut off."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.fstat(fd).st_size != size:
                self.cut(fd, size)
                self.sync(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def write(self, fd: int, buffers: Sequence[Buffer]) -> None:
        """Append all of ``buffers``, or raise: then some of their bytes may be there."""
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while left:
            n = os.writev(fd, left[:_BUFFERS_MOST])
            while left and n >= len(left[0]):
                n -= len(left.pop(0))
            if n:
                left[0] = left[0][n:]

    def cut(self, fd: int, size: int) -> None:
        """Cut a file to its first ``size`` bytes."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Return once what was written to a file is on the device."""
        _sync_data(fd)

    def close(self, fd: int) -> None:
        """Close a descriptor; syncs nothing."""
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in its folder, in one step; what had that name is gone."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        """Return once the names of a folder's files are on the device."""
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


DISK: Final = Disk()

"""Compiled kernels on disk: a folder an entry, named by its key, made whole by one rename.

    <folder>/<key[:2]>/<key>/   kernel.cubin  source.cu  log.txt  manifest.json
    <folder>/partial/<random>/  an entry in the making
    <folder>/locks/<key[:2]>    held while a key of that beginning is built

An entry is written under ``partial``, synced, and renamed: readers see all of it or nothing. Of two
processes that build one key, the second waits for the first, for a while, and finds its entry; if
both build it, the first to rename wins. A killed process leaves a folder under ``partial`` and
nothing else (the lock goes with it); such folders are removed an hour later. The manifest has the
SHA-256 of each other file: an entry that is damaged all the same is thrown away and built again.
The entries not read for the longest time are removed once all of them exceed the limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from kernels.errors import CacheError
from kernels.nvrtc.compile import Cubin, Unit, compile_unit

_CUBIN: Final = "kernel.cubin"
_SOURCE: Final = "source.cu"
_LOG: Final = "log.txt"
_MANIFEST: Final = "manifest.json"
_PARTIAL: Final = "partial"
_LOCKS: Final = "locks"
# Far above any compilation (the slowest of ours takes seconds).
_ABANDONED_S: Final = 3600.0
# How long to wait for another process that builds the same key: it may be stopped, not slow.
_PATIENCE_S: Final = 30.0
_POLL_S: Final = 0.02


def default_folder() -> Path:
    """Return where applications keep compiled kernels unless told otherwise.

    ``$XDG_CACHE_HOME/tensorbatch/kernels``, or in ``~/.cache``. Only programs call this.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "tensorbatch" / "kernels"


@attrs.frozen
class Cache:
    """A folder of compiled kernels, for any number of processes and threads at once.

    Attributes:
        folder: Made when something is written.
        limit_bytes: Size above which the least recently read entries are removed.
    """

    folder: Path
    limit_bytes: int = 1 << 30

    def get(self, key: str) -> Cubin | None:
        """Return an entry and count that as use; None if there is none, or it is damaged.

        Raises:
            CacheError: The folder cannot be used.
        """
        entry = self._entry(key)
        try:
            manifest = json.loads((entry / _MANIFEST).read_bytes())
            image, log = (_checked(entry, name, manifest) for name in (_CUBIN, _LOG))
            cubin = Cubin(
                manifest["name"], manifest["arch"], image, log.decode(), manifest["seconds"]
            )
        except FileNotFoundError:
            if entry.exists():  # else there is no entry, or it was removed while we read
                self._remove(entry)
            return None
        except (ValueError, KeyError, TypeError):
            self._remove(entry)
            return None
        except OSError as error:
            raise self._unusable(error) from error
        with contextlib.suppress(OSError):  # read-only, or removed just now: still a good answer
            os.utime(entry)
        return cubin

    def put(self, unit: Unit, cubin: Cubin) -> None:
        """Keep a cubin under its unit's key; then remove what is over the limit.

        Raises:
            CacheError: The folder cannot be used.
        """
        partial = self.folder / _PARTIAL / secrets.token_hex(8)
        files = {
            _CUBIN: cubin.image,
            _SOURCE: unit.source.text.encode(),
            _LOG: cubin.log.encode(),
        }
        manifest = {
            "name": cubin.name,
            "arch": cubin.arch,
            "seconds": cubin.seconds,
            "options": list(unit.options),
            "nvrtc": unit.version,
            "sha256": {
                name: hashlib.sha256(content).hexdigest() for name, content in files.items()
            },
        }
        files[_MANIFEST] = json.dumps(manifest, indent=1).encode()
        entry = self._entry(unit.key)
        try:
            partial.mkdir(parents=True)
            entry.parent.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                _write(partial / name, content)
            _sync(partial)
            try:
                partial.rename(entry)
            except OSError:
                if not entry.exists():
                    raise
                shutil.rmtree(partial, ignore_errors=True)  # another process was first
            _sync(entry.parent)
            self._trim(keep=entry)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._unusable(error) from error

    def get_or_compile(
        self, unit: Unit, compile_it: Callable[[Unit], Cubin] = compile_unit
    ) -> Cubin:
        """Return a unit's entry; if there is none, compile it and keep it.

        Raises:
            CompileError: It does not compile. Nothing is kept.
            CacheError: The folder cannot be used.
        """
        cubin = self.get(unit.key)
        if cubin is None:
            with self._building(unit.key):
                cubin = self.get(unit.key)
                if cubin is None:
                    cubin = compile_it(unit)
                    self.put(unit, cubin)
        return cubin

    def _unusable(self, error: OSError) -> CacheError:
        return CacheError(f"the folder of compiled kernels {self.folder} cannot be used: {error}")

    def _entry(self, key: str) -> Path:
        return self.folder / key[:2] / key

    @contextlib.contextmanager
    def _building(self, key: str) -> Iterator[None]:
        """Hold the lock of a key, or go on without it after a while: it only saves work."""
        path = self.folder / _LOCKS / key[:2]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("wb")
        except OSError as error:
            raise self._unusable(error) from error
        with lock:
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    time.sleep(_POLL_S)
            yield

    def _trim(self, keep: Path) -> None:
        """Remove the oldest entries over the limit, and what killed processes left behind."""
        held = []
        for entry in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(FileNotFoundError):  # another process removes entries, too
                size = sum(file.stat().st_size for file in entry.iterdir())
                held.append((entry.stat().st_mtime_ns, entry, size))
        total = sum(size for _, _, size in held)
        for _, entry, size in sorted(held):
            if total <= self.limit_bytes:
                break
            if entry != keep:
                self._remove(entry)
                total -= size
        for partial in (self.folder / _PARTIAL).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(partial, ignore_errors=True)

    def _remove(self, entry: Path) -> None:
        """Take an entry away by one rename, then delete it. Another process may be faster."""
        away = self.folder / _PARTIAL / secrets.token_hex(8)
        try:
            away.parent.mkdir(exist_ok=True)
            entry.rename(away)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error
        shutil.rmtree(away, ignore_errors=True)


def _checked(entry: Path, name: str, manifest: dict[str, dict[str, str]]) -> bytes:
    content = (entry / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
        raise ValueError(f"{entry / name} is damaged")
    return content


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Let renames in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

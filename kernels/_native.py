"""C files of this package, compiled at first use and kept in the user's cache folder.

Compiled where they run, since code for the machine's own vectors is 2 to 4 times faster than what a
wheel could carry. The name of a library is the hash of all that it depends on, and it is moved
into place whole: any number of processes may start at once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import cffi

COMPILERS: Final = ("cc", "gcc", "clang")
# Without contraction into fused multiply-adds, results are bit for bit those of numpy.
FLAGS: Final = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared")
# The baseline of x86 has half or a quarter of its machines' vector width; elsewhere it is fine.
_X86: Final = ("x86_64", "amd64", "i686")
# The compilation takes about a second.
_COMPILE_TIMEOUT_S: Final = 120


class NativeUnavailable(Exception):
    """There is no compiled code on this machine: use the slower way. Says why."""


@attrs.frozen(eq=False)
class Native:
    """A loaded library; its functions release the interpreter lock while they run."""

    ffi: Any
    lib: Any
    description: str


def load(source: Path, cdef: str, *, cache: Path | None = None) -> Native:
    """Compile ``source``, unless the cache has it, and load it.

    Args:
        source: A C file that includes only the compiler's own headers, and, in quotes, files
            that lie beside it or below.
        cdef: Its functions and structures, as cffi reads them.
        cache: A folder for libraries, by default the user's own.

    Raises:
        NativeUnavailable: No compiler, or it failed, or the library does not load.
    """
    flags = [*FLAGS, "-march=native"] if platform.machine().lower() in _X86 else list(FLAGS)
    command = [find_compiler(), *flags]
    version = _run([command[0], "--version"]).splitlines()[0]
    facts = [*command, version, _cpu(), *_texts(source)]
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()
    ffi = cffi.FFI()
    ffi.cdef(cdef)
    with _cache_folder(cache) as folder:
        library = folder / f"{source.stem}-{key[:32]}.so"
        if not library.exists():
            _compile(command, source, library)
        try:
            lib = ffi.dlopen(str(library))
        except OSError:  # damaged in the cache; a fresh one that does not load is an error
            _compile(command, source, library)
            lib = _open(ffi, library)
    return Native(ffi, lib, version)


def find_compiler() -> str:
    """Return the path of a C compiler.

    Raises:
        NativeUnavailable: There is none.
    """
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise NativeUnavailable(f"no C compiler ({', '.join(COMPILERS)}) found")


def _texts(source: Path) -> Iterator[str]:
    """Give the text of a file and of all that it includes in quotes, some perhaps twice."""
    text = source.read_text(encoding="utf-8")
    yield text
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
        yield from _texts(source.parent / name)


def _compile(command: Sequence[str], source: Path, library: Path) -> None:
    handle, name = tempfile.mkstemp(prefix="building-", suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        _run([*command, "-o", name, str(source)])
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)


def _open(ffi: Any, library: Path) -> Any:  # noqa: ANN401 - cffi is untyped
    try:
        return ffi.dlopen(str(library))
    except OSError as error:
        raise NativeUnavailable(f"{library.name} does not load: {error}") from error


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise NativeUnavailable(f"{command[0]} failed: {said}")
    return done.stdout


@contextmanager
def _cache_folder(cache: Path | None) -> Iterator[Path]:
    """Give a folder that only this user writes: the cache, or one that lasts as long as the load.

    A folder that somebody else could write is not used, as a library there would run as this user.
    """
    folder = cache or Path.home() / ".cache" / "tensorbatch" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        private = status.st_uid == os.getuid() and not status.st_mode & 0o022
    except OSError:
        private = False
    if private and os.access(folder, os.W_OK):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="tensorbatch-") as name:
            yield Path(name)


def _cpu() -> str:
    """Name the machine's processor and what it can do: home folders travel between machines."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            facts += [
                line
                for line in lines
                if line.startswith(("model name", "flags", "Features", "CPU part"))
            ][:3]
    except OSError:
        pass  # not Linux: the machine's name has to do
    return "\n".join(facts)

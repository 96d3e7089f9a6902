"""Runs the kernels' CUDA text on the CPU: g++, ``kernels/cuda/shim.h``, the engine in ``cpu_shim``.

    module = build('#include "ptx.cuh"\\nKERNEL void twice(float* x) { x[threadIdx.x] *= 2; }')
    module.launch("twice", grid=1, block=32, args=[x])

What goes wrong in a kernel (an access out of bounds, a deadlock, lanes that diverge, an mbarrier
misused) raises ``ShimError``, which says which thread it was and where. A missing barrier or wait
shows as a wrong result or NaN, with some seeds: launch with several.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

ENGINE: Final = Path(__file__).with_name("cpu_shim")
CUDA: Final = Path(__file__).parents[2] / "kernels" / "cuda"
# Signed overflow wraps and types are punned as on the card; NaN and rounding are IEEE's in both.
FLAGS: Final = (
    *("-std=c++17", "-DTB_CPU", "-fPIC", "-fvisibility=hidden", "-g1"),
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti"),
    *(
        "-fcf-protection=none",
        "-mtls-dialect=gnu",
    ),  # the engine's assembly is so
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused", "-Wno-parentheses", "-Wno-sign-compare"),
)
SANITIZE: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
_COMPILE_TIMEOUT_S: Final = 300
TIMEOUT_S = 60  # of a launch
# A launch is the process's only one: it takes SIGSEGV and SIGALRM.
_launching = threading.Lock()

Dim: TypeAlias = int | tuple[int, ...]
Array: TypeAlias = NDArray[Any]
Arg: TypeAlias = Array | int | float | np.generic | bytes | None


class ShimError(Exception):
    """A kernel does not compile here, or broke a rule while it ran; the message says where."""


def available() -> str | None:
    """Return why kernels cannot run here, or None when they can."""
    if shutil.which("g++") is None:
        return "no g++"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the shim's fibers are for Linux on x86-64"
    return None


def build(
    text: str,
    *,
    entries: Sequence[str] = (),
    optimize: int = 2,
    sanitize: bool = False,
    defines: Mapping[str, object] | None = None,
    include: Sequence[Path] = (),
) -> Module:
    """Compile a translation unit, unless the cache has it, and load it.

    Args:
        text: CUDA source that includes "ptx.cuh". Dynamic shared memory is DYNAMIC_SHARED(name).
        entries: Kernels to launch; by default those that ``text`` itself defines by KERNEL.
        optimize: The level of -O.
        sanitize: With address and undefined behaviour checks; the process must have been started
            with libasan preloaded (``sanitizer_environment``).
        defines: Macros.
        include: Folders to search after kernels/cuda.

    Raises:
        ShimError: It does not compile; the message is the compiler's.
    """
    library, names = compiled(
        text,
        entries=entries,
        optimize=optimize,
        sanitize=sanitize,
        defines=defines,
        include=include,
    )
    return Module(_load(str(library)), names)


def compiled(
    text: str,
    *,
    entries: Sequence[str] = (),
    optimize: int = 2,
    sanitize: bool = False,
    defines: Mapping[str, object] | None = None,
    include: Sequence[Path] = (),
) -> tuple[Path, tuple[str, ...]]:
    """Return the library that ``build`` loads, and the names of its kernels."""
    if re.search(r"extern\s+__shared__", text):
        raise ShimError("dynamic shared memory is declared by DYNAMIC_SHARED(name)")
    names = list(entries) or _entries(text)
    macros = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    folders = [f"-I{folder}" for folder in (CUDA, *include)]
    flags = [*FLAGS, f"-O{optimize}", *(SANITIZE if sanitize else ()), *folders]
    whole = "\n".join(['#line 1 "kernel.cu"', text, *(f"TB_ENTRY({name})" for name in names), ""])
    headers = [path for folder in (CUDA, *include) for path in sorted(folder.glob("*.*h"))]
    key = _hash([whole, *flags, *macros, *(_read(path) for path in headers), _engine_key()])
    library = _folder() / f"kernel-{key}.so"
    if not library.exists():
        _compile([*flags, *macros, "-x", "c++", "-"], library, whole, link=_engine(sanitize))
    return library, tuple(names)


def sanitizer_environment() -> dict[str, str]:
    """Return what a process that loads sanitized modules needs in its environment."""
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "LD_PRELOAD": str(Path(found).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:allow_user_segv_handler=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@attrs.frozen(eq=False)
class Module:
    """Compiled kernels."""

    library: ctypes.CDLL
    entries: tuple[str, ...]

    def launch(
        self,
        entry: str,
        grid: Dim = 1,
        block: Dim = 1,
        cluster: Dim = 1,
        shared_bytes: int = 0,
        args: Sequence[Arg] = (),
        *,
        seed: int = 0,
        resident: int = 1,
        races: bool = False,
        timeout_s: int | None = None,
    ) -> int:
        """Run a grid to its end; arrays are read and written in place.

        Arrays travel through memory whose pages before and after are closed, so that most accesses
        out of bounds are caught; views of one array stay views of one buffer.

        Args:
            entry: The kernel.
            grid: Blocks; x or up to three numbers.
            block: Threads of a block.
            cluster: Blocks of a cluster; they run at the same time.
            shared_bytes: Dynamic shared memory of a block.
            args: An array for a pointer, None for a null one, int for a 32-bit integer, float for
                a float, a numpy scalar or bytes for just that.
            seed: Of the order in which threads run and copies complete; 0 runs them in turn.
            resident: Clusters that run at the same time.
            races: Whether to look for accesses to shared memory, through ptx.cuh's functions, that
                no barrier orders, and for copies without a proxy fence. Some ten times slower.
            timeout_s: A kernel that takes longer fails; by default after TIMEOUT_S.

        Returns:
            Steps of the scheduler.

        Raises:
            ShimError: The kernel broke a rule. Arrays are as it left them.
            ValueError: The arguments do not fit the kernel, or clusters do not divide the grid.
        """
        if entry not in self.entries:
            raise ValueError(f"no kernel {entry}: there are {', '.join(self.entries)}")
        sizes = [*_dims(grid), *_dims(block), *_dims(cluster)]
        if any(size < 1 for size in sizes):
            raise ValueError(f"grid, block and cluster must be positive: {sizes}")
        if any(n % c for n, c in zip(sizes[:3], sizes[6:], strict=True)):
            raise ValueError(f"clusters of {sizes[6:]} do not divide a grid of {sizes[:3]}")
        memory = _Memory(self.library, [arg for arg in args if isinstance(arg, np.ndarray)])
        try:
            held = [_held(arg, memory) for arg in args]
            self._check(entry, held)
            pointers = (ctypes.c_void_p * max(1, len(held)))(*(ctypes.addressof(x) for x in held))
            with _launching:
                failed = self.library.tb_launch(
                    getattr(self.library, f"tb_call_{entry}"),
                    pointers,
                    (ctypes.c_uint32 * 9)(*sizes),
                    ctypes.c_uint32(shared_bytes),
                    ctypes.c_uint64(seed),
                    ctypes.c_uint32(resident),
                    ctypes.c_uint32(timeout_s or TIMEOUT_S),
                    ctypes.c_uint32(races),
                )
                message = ctypes.string_at(self.library.tb_message()).decode(errors="replace")
            memory.bring_back()
        finally:
            memory.close()
        if failed:
            raise ShimError(f"{entry}: {message}")
        return int(self.library.tb_steps())

    def _check(self, entry: str, held: Sequence[Any]) -> None:
        wanted = (ctypes.c_uint32 * 256)()
        n = getattr(self.library, f"tb_sizes_{entry}")(wanted)
        sizes = [ctypes.sizeof(x) for x in held]
        if sizes != list(wanted[:n]):
            raise ValueError(f"{entry} takes arguments of {list(wanted[:n])} bytes, got {sizes}")


class _Memory:
    """Copies of a launch's arrays: one guarded region for all that overlap."""

    def __init__(self, library: ctypes.CDLL, arrays: Sequence[Array]) -> None:
        self._library = library
        self._arrays = arrays
        self._regions: list[tuple[int, int, int]] = []  # start, end, address of the copy
        for array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError("arrays must be C-ordered")
        for start, end in _merge([(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays]):
            copy = library.tb_map(ctypes.c_uint64(_round16(end - start)))
            if not copy:
                raise MemoryError
            ctypes.memset(copy, 0xFF, _round16(end - start))
            self._regions.append((start, end, copy))
        for array in arrays:
            ctypes.memmove(self.address(array), array.ctypes.data, array.nbytes)

    def address(self, array: Array) -> int:
        """Return where the kernel finds an array."""
        at: int = array.ctypes.data
        start, _, copy = next(r for r in self._regions if r[0] <= at and at + array.nbytes <= r[1])
        return copy + at - start

    def bring_back(self) -> None:
        """Copy what the kernel left into the arrays.

        Raises:
            ShimError: It wrote into an array that is read-only, or just past one.
        """
        for array in self._arrays:
            if array.flags.writeable:
                ctypes.memmove(array.ctypes.data, self.address(array), array.nbytes)
        for array in self._arrays:
            if ctypes.string_at(self.address(array), array.nbytes) != array.tobytes():
                raise ShimError(f"the kernel wrote into a read-only array {array.shape}")
        for start, end, copy in self._regions:
            slack = ctypes.string_at(copy + end - start, _round16(end - start) - (end - start))
            if slack.strip(b"\xff"):
                raise ShimError("the kernel wrote past the end of an array")

    def close(self) -> None:
        """Give the regions back."""
        for start, end, copy in self._regions:
            self._library.tb_unmap(ctypes.c_void_p(copy), ctypes.c_uint64(_round16(end - start)))
        self._regions = []


def _merge(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif not merged or (start, end) != merged[-1]:
            merged.append((start, end))
    return merged


def _round16(size: int) -> int:
    return max(16, -(-size // 16) * 16)


def _held(arg: Arg, memory: _Memory) -> Any:  # noqa: ANN401 - a ctypes object
    """Return an argument's bytes as the kernel gets them."""
    if arg is None:
        return ctypes.c_uint64(0)
    if isinstance(arg, np.ndarray):
        return ctypes.c_uint64(memory.address(arg))
    if isinstance(arg, np.generic):
        arg = arg.tobytes()
    if isinstance(arg, bytes):
        return (ctypes.c_char * len(arg)).from_buffer_copy(arg)
    return ctypes.c_float(arg) if isinstance(arg, float) else ctypes.c_int32(arg)


def _dims(dim: Dim) -> tuple[int, ...]:
    given = (dim,) if isinstance(dim, int) else dim
    return (*given, 1, 1)[:3]


def _entries(text: str) -> list[str]:
    """Find the names of kernels: ``KERNEL void __launch_bounds__(288) name(``."""
    found = re.findall(r"\bKERNEL\b([^;{()]*(?:\([^()]*\)[^;{()]*)*?)\b(\w+)\s*\(", text)
    names = re.findall(
        r"\bKERNEL\s+void\s+(?:__\w+__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*)*(\w+)\s*\(", text
    )
    if len(found) > len(names):
        raise ShimError(f"cannot find the names of all kernels, only {names}: pass entries")
    return names


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _engine_key() -> str:
    files = [*sorted(ENGINE.glob("*.cpp")), ENGINE / "engine.h", CUDA / "shim.h"]
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return _hash([version.stdout, *(_read(path) for path in files)])


def _engine(sanitize: bool) -> Path:
    """Compile the engine, unless the cache has it: one unit, the same for all kernels.

    It is not itself sanitized, but must tell the sanitizer of its stacks.
    """
    flags = [*FLAGS, "-O3", *(["-DTB_SANITIZE"] if sanitize else []), f"-I{CUDA}", f"-I{ENGINE}"]
    target = _folder() / f"engine-{_hash([*flags, _engine_key()])}.o"
    if not target.exists():
        text = "".join(f'#include "{path.name}"\n' for path in sorted(ENGINE.glob("*.cpp")))
        _compile([*flags, "-c", "-x", "c++", "-"], target, text)
    return target


def _compile(arguments: Sequence[str], target: Path, text: str, link: Path | None = None) -> None:
    handle, name = tempfile.mkstemp(prefix="building-", dir=target.parent)
    os.close(handle)
    linking = ["-shared", "-x", "none", str(link)] if link else []
    try:
        done = subprocess.run(
            ["g++", *arguments, *linking, "-o", name],
            input=text,
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ShimError(done.stderr)
        os.replace(name, target)  # whole or not at all: other processes may look for it
    finally:
        Path(name).unlink(missing_ok=True)


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.tb_message.restype = ctypes.c_void_p
    library.tb_map.restype = ctypes.c_void_p
    library.tb_steps.restype = ctypes.c_uint64
    return library


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"tensorbatch-shim-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise ShimError(f"{folder} is not only ours")
    return folder

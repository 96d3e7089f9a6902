"""A source becomes a cubin. Headers go in by their text, so that what was hashed is what is built.

cubin = compile_source(source)
assert not cubin.problems
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from kernels import _nvrtc
from kernels.errors import CompileError
from kernels.nvrtc.report import Resources, parse_log, problems
from kernels.program import Source

CUDA_FOLDER: Final = Path(__file__).parents[1] / "cuda"
"""Where the headers lie that emitted text includes."""

_INCLUDE: Final = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_ERROR: Final = re.compile(r"^.*\berror\b.*$", re.MULTILINE)


@attrs.frozen(eq=False)
class Cubin:
    """What NVRTC made of one source.

    Attributes:
        name: The source's.
        arch: What it runs on.
        image: The cubin, as the driver loads it.
        log: What the compiler and ptxas said.
        seconds: Wall time of the compilation, also if it was another process's.
    """

    name: str
    arch: str
    image: bytes
    log: str
    seconds: float

    @functools.cached_property
    def resources(self) -> tuple[Resources, ...]:
        """What each kernel in it takes."""
        return parse_log(self.log)[0]

    @functools.cached_property
    def problems(self) -> tuple[str, ...]:
        """Spills, stacks and serialised wgmma, one sentence each; empty if all is well."""
        return tuple(problems(self.log))


@attrs.frozen(eq=False)
class Unit:
    """All that a cubin follows from.

    Attributes:
        headers: Texts of the headers of ours that the source includes, also through others. One
            that is included only if some macro is set counts as well.
    """

    source: Source
    headers: Mapping[str, str]
    options: tuple[str, ...]
    version: str

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 over everything but the source's name, in hex."""
        digest = hashlib.sha256()
        parts = [self.source.text, *self.options, self.version]
        for name, text in sorted(self.headers.items()):
            parts += [name, text]
        for part in parts:
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


def unit_of(source: Source, folder: Path = CUDA_FOLDER) -> Unit:
    """Gather what a source is compiled from; ``folder`` has the headers.

    Raises:
        CompilerMissing: There is no NVRTC.
    """
    options = (f"--gpu-architecture={source.arch}", "--std=c++17", "--ptxas-options=-v")
    return Unit(source, _headers(source.text, folder), options, _nvrtc.version())


def compile_source(source: Source) -> Cubin:
    """Compile a source, past any cache.

    Raises:
        CompileError: It does not compile.
        CompilerMissing: There is no NVRTC.
    """
    return compile_unit(unit_of(source))


def compile_unit(unit: Unit) -> Cubin:
    """Compile a source with the headers and options that were gathered.

    Raises:
        CompileError: It does not compile.
    """
    source = unit.source
    start = time.perf_counter()
    image, log = _nvrtc.compile_cubin(f"{source.name}.cu", source.text, unit.headers, unit.options)
    if image is None:
        first = _ERROR.search(log)
        raise CompileError(
            f"{source.name} for {source.arch}",
            first[0].strip() if first else "does not compile",
            source.text,
            log,
        )
    return Cubin(source.name, source.arch, image, log, time.perf_counter() - start)


def _headers(text: str, folder: Path) -> dict[str, str]:
    """Return all headers in ``folder`` that a text includes; NVRTC complains of others."""
    found: dict[str, str] = {}
    waiting = [text]
    while waiting:
        for name in _INCLUDE.findall(waiting.pop()):
            path = folder / name
            if name not in found and path.is_file():
                found[name] = path.read_text()
                waiting.append(found[name])
    return found

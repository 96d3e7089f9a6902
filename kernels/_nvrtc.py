"""The one seam to NVRTC: typed functions over ``cuda.bindings.nvrtc``, errors translated.

Needs neither a driver nor a card. Nothing is imported before a function is called. A compilation
releases the interpreter lock, but NVRTC runs one at a time in a process.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kernels.errors import CompilerMissing, KernelsError

_WHEEL: Final = "nvidia-cuda-nvrtc"
_OK: Final = 0  # NVRTC_SUCCESS
_COMPILATION: Final = 6  # NVRTC_ERROR_COMPILATION: the text's fault, and the log says why


@functools.cache
def _nvrtc() -> Any:  # noqa: ANN401 - cuda.bindings is untyped
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CompilerMissing(f"the package cuda-python is not installed ({error})") from error
    return nvrtc


def _call(function: str, *arguments: object) -> Any:  # noqa: ANN401 - what the function gives
    code, *values = _try(function, *arguments)
    if code != _OK:
        raise KernelsError(f"{function}: {code.name}")
    return values[0] if len(values) == 1 else values


def _try(function: str, *arguments: object) -> Any:  # noqa: ANN401 - a code and values
    try:
        return getattr(_nvrtc(), function)(*arguments)
    except RuntimeError as error:  # the library is loaded by the first call
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompilerMissing(
            f"NVRTC cannot be loaded: is the package {_WHEEL} installed? ({lines[0]})"
        ) from error


@functools.cache
def version() -> str:
    """Return NVRTC's version, with its package's where that is known: ``13.0 (13.0.88)``.

    Raises:
        CompilerMissing: There is no NVRTC.
    """
    major, minor = _call("nvrtcVersion")
    try:
        return f"{major}.{minor} ({importlib.metadata.version(_WHEEL)})"
    except importlib.metadata.PackageNotFoundError:
        return f"{major}.{minor}"


def compile_cubin(
    name: str, text: str, headers: Mapping[str, str], options: Sequence[str]
) -> tuple[bytes | None, str]:
    """Compile a text for the one architecture that ``options`` name.

    Args:
        name: Stands in messages for a file name.
        text: CUDA C++.
        headers: Texts of what it may include, by the name in the directive.
        options: As on the command line.

    Returns:
        The cubin, or None if the text does not compile, and the log.

    Raises:
        CompilerMissing: There is no NVRTC.
        KernelsError: NVRTC refused for another reason than the text, such as an unknown option.
    """
    program = _call(
        "nvrtcCreateProgram",
        text.encode(),
        name.encode(),
        len(headers),
        [header.encode() for header in headers.values()],
        [header.encode() for header in headers],
    )
    try:
        (code,) = _try("nvrtcCompileProgram", program, len(options), [o.encode() for o in options])
        log = _bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
        if code == _COMPILATION:
            return None, log
        if code != _OK:
            raise KernelsError(f"nvrtcCompileProgram: {code.name}: {log}")
        return _bytes("nvrtcGetCUBIN", program), log
    finally:
        _call("nvrtcDestroyProgram", program)


def _bytes(function: str, program: object) -> bytes:
    size = int(_call(f"{function}Size", program))
    # The binding writes into it. Python keeps one object for each bytes of length 1: writing into
    # that would change every b" ", the space that print() puts between words included.
    held = b" " * (size + 2)
    _call(function, program, held)
    return held[:size]

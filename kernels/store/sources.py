"""Where rows and keys of a new table come from: arrays in .npy, safetensors and ONNX files.

Files are memory-mapped and read piece by piece, so that their size does not matter; only ONNX
initialisers inside the model's own file are in memory. safetensors files are read here and not by
their package, since that gives numpy no bfloat16: eight bytes of a header's size, a header in JSON
that says where each array lies, and the arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import GraphError, StoreError
from kernels.graph.model import load_graph
from kernels.halves import from_bf16
from kernels.npy import map_npy

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

# Of the format's specification: what a reader has to accept at most.
_MOST_HEADER_BYTES: Final = 100_000_000
_SAFE_TYPES: Final[Mapping[str, str]] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "U64": "<u8",
    "I32": "<i4",
    "U32": "<u4",
    "I16": "<i2",
    "U16": "<u2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_BLOCK_BYTES: Final = 16 << 20


@attrs.frozen(kw_only=True, eq=False)
class Source:
    """An array in a file.

    Attributes:
        name: Of file and array, for errors.
        array: Mapped from the file, where that is possible.
        bf16: Whether the array's uint16 numbers are the bits of bfloat16.
    """

    name: str
    array: NDArray[Any]
    bf16: bool = False

    def rows(self) -> Iterator[F32]:
        """Give the rows of a matrix of floats in pieces, float32 ``[n, dim]``.

        Raises:
            StoreError: It is something else.
        """
        if self.array.ndim != 2 or not self.array.shape[1] or not self._is_float:
            raise StoreError(
                f"{self.name}: want floats [rows, dim], got {self.array.dtype} {self.array.shape}"
            )
        size = block_rows(self.array.shape[1])
        for start in range(0, len(self.array), size):
            block = self.array[start : start + size]
            if self.bf16:
                yield from_bf16(np.ascontiguousarray(block))
            else:
                with np.errstate(over="ignore"):  # of float64: infinite, and refused if need be
                    yield np.ascontiguousarray(block, np.float32)

    def keys(self, n: int) -> Iterator[I64]:
        """Give the keys of ``n`` rows in pieces of any size; unsigned ones keep their bits.

        Raises:
            StoreError: It is no array of so many 64- or 32-bit integers.
        """
        kinds = (np.int64, np.uint64, np.int32, np.uint32)
        if self.array.shape != (n,) or self.array.dtype not in kinds or self.bf16:
            raise StoreError(
                f"{self.name}: want integers [{n}], a key for each row, "
                f"got {self.array.dtype} {self.array.shape}"
            )
        for start in range(0, n, _BLOCK_BYTES // 8):
            block = self.array[start : start + _BLOCK_BYTES // 8]
            if block.dtype.kind == "u":
                yield block.astype(np.uint64).view(np.int64)
            else:
                yield block.astype(np.int64)

    @property
    def _is_float(self) -> bool:
        dtype = self.array.dtype
        return self.bf16 or dtype.kind == "f" or dtype.name == "bfloat16"


def block_rows(dim: int) -> int:
    """Return how many rows come in a piece."""
    return max(1, _BLOCK_BYTES // (4 * dim))


def open_source(text: str, *, matrix: bool) -> Source:
    """Find an array by ``FILE`` or ``FILE:NAME``; without a name it is the only one of its kind.

    Args:
        text: The path of a file that ends in .npy, .safetensors or .onnx, and the array's name.
        matrix: Whether a matrix of floats is meant where there is no name, or a list of integers.

    Raises:
        StoreError: There is no such file or array, or the file is damaged.
    """
    path, name = Path(text), ""
    if not path.exists() and ":" in text:
        before, _, name = text.rpartition(":")
        path = Path(before)
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".onnx": _read_onnx}
    reader = readers.get(path.suffix)
    if reader is None:
        raise StoreError(f"{path}: want a file that ends in {', '.join(readers)}")
    found = reader(path)
    if not name:
        ndim = 2 if matrix else 1
        likely = [each for each, source in found.items() if source.array.ndim == ndim]
        if len(found) == 1:
            likely = list(found)
        if len(likely) != 1:
            raise StoreError(
                f"{path}: name one of its arrays, as {path}:NAME: "
                f"{', '.join(sorted(likely or found)) or 'it has none'}"
            )
        name = likely[0]
    if name not in found:
        raise StoreError(f"{path}: no array named {name!r}, but {', '.join(sorted(found))}")
    return found[name]


def _read_npy(path: Path) -> dict[str, Source]:
    try:
        array = map_npy(path)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    return {path.stem: Source(name=str(path), array=array)}


def _read_onnx(path: Path) -> dict[str, Source]:
    try:
        constants = load_graph(path).constants
    except GraphError as error:
        raise StoreError(str(error)) from error
    return {name: Source(name=f"{path}:{name}", array=array) for name, array in constants.items()}


def _read_safetensors(path: Path) -> dict[str, Source]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise StoreError(f"{path} is damaged: its header does not fit into it")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise StoreError(f"{path} is damaged: its header is no object")
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else None
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}:{name}"
        kind, shape, start, end = _safe_entry(where, entry)
        if kind not in _SAFE_TYPES:  # 8-bit floats, say: nothing that a table is made of
            continue
        dtype = np.dtype(_SAFE_TYPES[kind])
        n = int(np.prod(shape, dtype=object))
        if end - start != n * dtype.itemsize or end > size - 8 - length:
            raise StoreError(f"{where} is damaged: {shape} of {kind} are not at {start} to {end}")
        part = np.empty(0, dtype) if data is None or not n else data[start:end].view(dtype)
        found[name] = Source(name=where, array=part.reshape(shape), bf16=kind == "BF16")
    return found


def _safe_entry(where: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Take a header's entry apart: type, shape, first byte, and the one after the last."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            if all(type(each) is int and each >= 0 for each in [*shape, start, end - start]):
                return kind, tuple(shape), start, end
    raise StoreError(f"{where} is damaged: its header has no type, shape and place of it")

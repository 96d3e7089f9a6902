"""Updates from files: ``.npz``, and JSON lines, in batches."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

Format: TypeAlias = Literal["npz", "jsonl"]

_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 63) - 1


class FileError(Exception):
    """What is to be published is not what it should be: names the file and the place in it."""


@attrs.frozen(eq=False)
class Rows:
    """A batch: keys int64 ``[n]`` and rows float32 ``[n, dim]``."""

    keys: NDArray[np.int64]
    rows: NDArray[np.float32]


def read_batches(file: BinaryIO, name: str, kind: Format, size: int) -> Iterator[Rows]:
    """Yield a file's rows in batches of ``size``, the last one perhaps smaller.

    Args:
        file: Open for reading.
        name: For messages.
        kind: ``npz``: arrays ``keys`` (integers) and ``rows`` (floats, ``[n, dim]``), which are
            read at once. ``jsonl``: a line a row, ``{"key": 5, "row": [0.5, 1]}``, read as they
            come; empty lines are passed over.
        size: Rows of a batch.

    Raises:
        FileError: It is something else; batches before that were yielded.
    """
    return _npz_batches(file, name, size) if kind == "npz" else _json_batches(file, name, size)


def kind_of(path: Path) -> Format:
    """Return the format that a file's name stands for: ``.npz``, or else JSON lines."""
    return "npz" if path.suffix == ".npz" else "jsonl"


def _npz_batches(file: BinaryIO, name: str, size: int) -> Iterator[Rows]:
    try:
        # A pipe cannot be read from its end, where a zip file has its table.
        seekable = file if file.seekable() else io.BytesIO(file.read())
        with np.load(seekable, allow_pickle=False) as arrays:
            keys, rows = (np.asarray(arrays[key]) for key in ("keys", "rows"))
    except KeyError as error:
        raise FileError(f"{name}: wants arrays keys and rows: {error.args[0]}") from error
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise FileError(f"{name}: is no npz file: {error}") from error
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise FileError(f"{name}: keys: want integers [n], got {keys.dtype} {keys.shape}")
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or len(rows) != len(keys):
        raise FileError(
            f"{name}: rows: want numbers [{len(keys)}, dim], got {rows.dtype} {rows.shape}"
        )
    if keys.dtype.kind == "u" and len(keys) and int(keys.max()) > _MOST:
        raise FileError(f"{name}: keys: {int(keys.max())} is over 2**63 - 1")
    for first in range(0, len(keys), size):
        part = slice(first, first + size)
        yield Rows(
            np.ascontiguousarray(keys[part], np.int64), np.ascontiguousarray(rows[part], np.float32)
        )


def _json_batches(file: Iterable[bytes], name: str, size: int) -> Iterator[Rows]:
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    while some := list(itertools.islice(lines, size)):
        pairs = [_json_row(f"{name}, line {number}", line) for number, line in some]
        dim = len(pairs[0][1])
        for (number, _), (_, row) in zip(some, pairs, strict=True):
            if len(row) != dim:
                raise FileError(f"{name}, line {number}: a row of {len(row)} numbers after {dim}")
        yield Rows(
            np.array([key for key, _ in pairs], np.int64),
            np.array([row for _, row in pairs], np.float32).reshape(len(pairs), dim),
        )


def _json_row(where: str, line: bytes) -> tuple[int, list[float]]:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise FileError(f"{where}: is no JSON: {error}") from error
    if not isinstance(value, dict) or value.keys() != {"key", "row"}:
        raise FileError(f'{where}: want {{"key": ..., "row": [...]}}')
    key, row = value["key"], value["row"]
    if type(key) is not int or not _LEAST <= key <= _MOST:
        raise FileError(f"{where}: key: want an integer of 64 bits, got {key!r:.40}")
    if not isinstance(row, list) or not all(type(each) in (int, float) for each in row):
        raise FileError(f"{where}: row: want an array of numbers, got {row!r:.40}")
    return key, row

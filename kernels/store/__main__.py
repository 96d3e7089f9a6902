"""``python -m kernels.store build|show``: see ``--help`` of each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.errors import KernelsError, StoreError
from kernels.store.build import build_dense, build_keyed
from kernels.store.files import check_table
from kernels.store.header import TableHeader, read_header
from kernels.store.rows import ROW_TYPES
from kernels.store.sources import Source, open_source
from kernels.store.table import StoredTable

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_REPORT_S: Final = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 (an error)."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (KernelsError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        sys.stderr.write(f"kernels.store {options.command}: {text}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kernels.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser(
        "build",
        help="make a table of arrays in .npy, .safetensors or .onnx files",
        description="A source is FILE or FILE:ARRAY; the name can be left out where there is one "
        "array that it can be. Of several sources, rows follow each other; where a key "
        "comes twice, its last row counts.",
    )
    build.add_argument("sources", nargs="+", metavar="SOURCE", help="floats [rows, dim]")
    build.add_argument("-o", "--output", type=Path, required=True, metavar="TABLE/")
    build.add_argument("--dtype", choices=ROW_TYPES, default="fp16", help="default: fp16")
    build.add_argument(
        "--segments", type=int, default=1, metavar="N", help="to divide the table into; default: 1"
    )
    build.add_argument(
        "--keys",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="integers [rows], for each source of rows; default: none, rows go by number",
    )
    build.add_argument(
        "--default",
        metavar="NUMBER|SOURCE",
        help="the row of unseen keys: one number for all of it, or an array [dim]; default: 0",
    )
    build.add_argument("--name", default="", help="default: the folder's name")
    build.set_defaults(run=_build)

    show = commands.add_parser("show", help="print what a table holds")
    show.add_argument("table", type=Path, metavar="TABLE/")
    show.add_argument("--check", action="store_true", help="read all files and check their sums")
    show.add_argument(
        "--key", type=int, action="append", default=[], help="print its row; may be repeated"
    )
    show.set_defaults(run=_show)
    return parser


def _build(options: argparse.Namespace) -> None:
    sources = [open_source(text, matrix=True) for text in options.sources]
    keys = [open_source(text, matrix=False) for text in options.keys]
    if keys and len(keys) != len(sources):
        raise StoreError(f"{len(sources)} sources of rows, but {len(keys)} of keys")
    dims = {source.array.shape[-1] if source.array.ndim else 0 for source in sources}
    if len(dims) != 1:
        raise StoreError(f"rows of {' and '.join(map(str, sorted(dims)))} numbers in one table")
    (dim,) = dims
    common = {
        "dim": dim,
        "dtype": options.dtype,
        "name": options.name,
        "n_segments": options.segments,
        "progress": _reporter(),
    }
    if keys:
        default = None if options.default is None else _default(options.default, dim)
        header = build_keyed(options.output, _pairs(sources, keys), default=default, **common)
    elif options.default is not None:
        raise StoreError("a default row is for unseen keys, but there are no keys")
    else:
        blocks = (block for source in sources for block in source.rows())
        rows = sum(len(source.array) for source in sources)
        header = build_dense(options.output, blocks, rows=rows, **common)
    sys.stdout.write(f"{options.output}: {_summary(header)}\n")


def _pairs(sources: Sequence[Source], keys: Sequence[Source]) -> Iterator[tuple[I64, F32]]:
    """Give keys and rows in pieces of one size, which those of the two files need not be."""
    for source, numbers in zip(sources, keys, strict=True):
        pieces = numbers.keys(len(source.array))
        left = np.empty(0, np.int64)
        for block in source.rows():
            while len(left) < len(block):
                left = np.concatenate([left, next(pieces)])
            yield left[: len(block)], block
            left = left[len(block) :]


def _default(text: str, dim: int) -> F32:
    try:
        return np.full(dim, float(text), np.float32)
    except ValueError:
        return np.asarray(open_source(text, matrix=False).array, np.float32)


def _reporter() -> Callable[[str, int, int], object]:
    """Return what writes a line on standard error every two seconds."""
    last = [time.monotonic()]

    def report(step: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] >= _REPORT_S:
            last[0] = time.monotonic()
            of = f" of {total}" if total else ""
            sys.stderr.write(f"{step}: {done}{of}\n")

    return report


def _show(options: argparse.Namespace) -> None:
    header = (check_table if options.check else read_header)(options.table)
    sizes = [segment.rows for segment in header.segments]
    lines = [
        f"table     {header.name}",
        f"version   {header.version[:16]}{', all sums are right' if options.check else ''}",
        f"rows      {_summary(header)}",
        f"segments  {header.n_segments}, of {min(sizes)} to {max(sizes)} rows",
    ]
    if header.keyed:
        lines.append(f"unseen    {_numbers(header.default_row)}")
    if options.key:
        rows = StoredTable.open(options.table).fetch(np.array(options.key, np.int64))
        lines += [f"{key}  {_numbers(row)}" for key, row in zip(options.key, rows, strict=True)]
    sys.stdout.write("\n".join(lines) + "\n")


def _summary(header: TableHeader) -> str:
    kind = "with keys" if header.keyed else "by number"
    size = header.size_bytes / 2**20
    return f"{header.rows} {kind}, {header.dim} numbers each in {header.dtype}, {size:.1f} MiB"


def _numbers(row: F32) -> str:
    return "zeros" if not row.any() else " ".join(f"{number:.6g}" for number in row)


if __name__ == "__main__":
    sys.exit(main())

"""What a table's folder holds, and the file that says so.

A table is a folder::

    table.json               this module's TableHeader; replaced in one step when all else is there
    <version>/000000.rows    the rows of a segment as bytes (``rows.py``), one after the other
    <version>/000000.index   its keys (``index.py``); dense tables have none

The subfolder is named by the first 16 digits of the version, so that a new version is written
beside the one in use, and either is whole whenever its writer stops.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle import codec
from kernels.errors import BundleError, StoreError
from kernels.store.partition import MAX_SEGMENTS, dense_segment
from kernels.store.rows import RowType, row_bytes

FORMAT: Final = 1
HEADER_NAME: Final = "table.json"
# Row numbers within a segment are 32 bits wide.
MAX_SEGMENT_ROWS: Final = 2**32 - 1
BUCKET_BYTES: Final = 64


@attrs.frozen(kw_only=True)
class Segment:
    """One segment's files.

    Attributes:
        rows: In its ``.rows`` file.
        home_buckets: Of its index: those that keys hash to; 0 in a dense table.
        buckets: In its ``.index`` file: the home buckets and those that the last overflow into.
        rows_sha256: Of the ``.rows`` file, in hexadecimal.
        index_sha256: Of the ``.index`` file; empty in a dense table.
    """

    rows: int
    home_buckets: int
    buckets: int
    rows_sha256: str
    index_sha256: str


@attrs.frozen(kw_only=True)
class TableHeader:
    """All that can be known of a table without reading it.

    Attributes:
        format: Of the folder; a reader refuses one that it does not know.
        version: SHA-256 over everything else in the header, the segments' sums included.
        rows: Of all segments.
        dim: Numbers a row.
        dtype: How a row is stored.
        keyed: Whether rows are found by 64-bit keys, and not by their numbers.
        default: What an unseen key's row is: ``dim`` numbers, or none for zeros.
        segments: Every one, in order.
    """

    format: int = FORMAT
    name: str
    version: str
    rows: int
    dim: int
    dtype: RowType
    keyed: bool
    default: tuple[float, ...] = ()
    segments: tuple[Segment, ...]

    @property
    def n_segments(self) -> int:
        """How many segments the table is divided into."""
        return len(self.segments)

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return row_bytes(self.dtype, self.dim)

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments' files."""
        return self.rows * self.row_bytes + BUCKET_BYTES * sum(
            each.buckets for each in self.segments
        )

    @property
    def default_row(self) -> NDArray[np.float32]:
        """The row of unseen keys: float32 ``[dim]``."""
        return np.array(self.default or (0.0,) * self.dim, np.float32)

    def rows_file(self, segment: int) -> str:
        """Return the path of a segment's rows, relative to the table's folder."""
        return f"{self.version[:16]}/{segment:06}.rows"

    def index_file(self, segment: int) -> str:
        """Return the path of a segment's index, relative to the table's folder."""
        return f"{self.version[:16]}/{segment:06}.index"


def is_table(path: Path) -> bool:
    """Say whether a folder holds a table."""
    return (path / HEADER_NAME).is_file()


def read_header(path: Path) -> TableHeader:
    """Read the header of the table in a folder.

    Raises:
        StoreError: There is none, or it is damaged, or contradicts itself.
    """
    file = path / HEADER_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{path}: not a table, it has no {HEADER_NAME}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} is damaged: {error}") from error
    if not isinstance(raw, dict):
        raise StoreError(f"{file} does not hold an object")
    if raw.get("format") != FORMAT:
        raise StoreError(f"{file} has format {raw.get('format')!r}; this reads {FORMAT}")
    try:
        header = codec.structure(raw, TableHeader, str(file))
    except BundleError as error:
        raise StoreError(str(error)) from error
    assert isinstance(header, TableHeader)
    if problem := _problem(header):
        raise StoreError(f"{file}: {problem}")
    return header


def header_text(header: TableHeader) -> str:
    """Return the text of a header's file: the same header gives the same bytes."""
    return json.dumps(attrs.asdict(header), indent=1, sort_keys=True) + "\n"


def _problem(header: TableHeader) -> str:
    """Say what is wrong with a header's numbers, if anything."""
    if len(header.version) != 64 or not set(header.version) <= set("0123456789abcdef"):
        return f"version {header.version!r} is no SHA-256"
    if header.dim < 1:
        return f"dim is {header.dim}"
    if not 1 <= header.n_segments <= MAX_SEGMENTS:
        return f"{header.n_segments} segments"
    if header.rows != sum(segment.rows for segment in header.segments):
        return f"{header.rows} rows, its segments have others"
    if header.default and len(header.default) != header.dim:
        return f"the default row has {len(header.default)} numbers, not {header.dim}"
    if not all(map(math.isfinite, header.default)):
        return "the default row is not finite"
    if header.default and not header.keyed:
        return "a default row, but no keys"
    for i, segment in enumerate(header.segments):
        if not 0 <= segment.rows <= MAX_SEGMENT_ROWS:
            return f"segment {i} has {segment.rows} rows"
        if header.keyed:
            if not 1 <= segment.home_buckets <= segment.buckets < 2**32:
                return f"segment {i} has {segment.home_buckets} of {segment.buckets} buckets"
        elif segment.buckets or segment.home_buckets:
            return f"segment {i} has buckets, but the table no keys"
        elif segment.rows != len(dense_segment(i, rows=header.rows, n_segments=header.n_segments)):
            return f"segment {i} has {segment.rows} rows, which is not its share"
    return ""

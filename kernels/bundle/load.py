"""Loading a bundle: its files, checked against its manifest before anything uses them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle import codec
from kernels.bundle.manifest import Lookup, Manifest, SideLayout, SideName, Table
from kernels.errors import BundleError
from kernels.npy import map_npy
from kernels.store.header import TableHeader, is_table, read_header
from kernels.store.partition import MAX_SEGMENTS
from kernels.store.rows import ROW_TYPES
from kernels.store.table import StoredTable

SIDES: tuple[SideName, SideName] = ("user", "candidate")

PLACEMENT_FILE: Final = "placement.toml"


@attrs.frozen(kw_only=True, eq=False)
class Bundle:
    """A checked bundle. Holds no table in memory: each call that opens one maps its file anew.

    Attributes:
        path: The bundle's folder.
    """

    path: Path
    manifest: Manifest

    @property
    def spec_path(self) -> Path:
        """``features.toml``; vocabulary files lie beside it."""
        return self.path / "features.toml"

    @property
    def spec_text(self) -> str:
        """The text of ``features.toml``."""
        return self.spec_path.read_text(encoding="utf-8")

    def table(self, name: str) -> NDArray[np.float32]:
        """Map one table of a ``.npy`` file: float32 ``[rows, dim]``, read-only, backed by its file.

        Raises:
            BundleError: There is no such table, its file is not what the manifest says, or it is a
                folder of the store, for ``open_table``.
        """
        table = self._table(name)
        if is_table(table_path(self.path, table)):
            raise BundleError(f"{self.path}: table {name!r} is a folder of the store: open it")
        return _map_table(self.path, table)

    def open_table(self, name: str, segments: range | None = None) -> StoredTable:
        """Open one table, of whatever kind; reads no rows.

        Args:
            name: The table's.
            segments: Those to open; all by default. Other segments' files may be missing.

        Raises:
            BundleError: There is no such table, or its files are not what the manifest says.
        """
        table = self._table(name)
        path = table_path(self.path, table)
        if is_table(path):
            stored = StoredTable.open(path, segments)
            _check_header(path, stored.header, table)
            return stored
        rows = _map_table(self.path, table)
        return StoredTable.of_array(rows, name=name, n_segments=table.segments, segments=segments)

    def _table(self, name: str) -> Table:
        for table in self.manifest.tables:
            if table.name == name:
                return table
        raise BundleError(f"{self.path}: no table named {name!r}")

    def sample(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return blocks of one row that the dense graph is known to run on.

        Rows of zeros may not do: ONNX Runtime 1.32's GRU, for one, ends its process by a signal
        where all sequences are empty.

        Returns:
            float32 ``[1, user width]`` and ``[1, candidate width]``.
        """
        manifest = self.manifest
        row = _map(self.path / "sample.npy", (1, manifest.user.width + manifest.candidate.width))
        return row[:, : manifest.user.width], row[:, manifest.user.width :]

    def dense_model(self) -> bytes:
        """Return the serialised dense graph."""
        return (self.path / "dense.onnx").read_bytes()

    def program(self, side: SideName) -> bytes | None:
        """Return the serialised program of one side, or None where it needs none."""
        file = self.manifest.side(side).program
        return None if file is None else (self.path / file).read_bytes()


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and check that it is whole.

    A bundle with a placement in its folder has a version of its own: who looks its tables up by
    another placement asks for another version, and is told so.

    Raises:
        BundleError: The folder or one of its files is missing or damaged, or the manifest
            contradicts itself or the files; the message says which.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise BundleError(f"{path}: not a bundle, it has no manifest.json")
    try:
        manifest = codec.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not UTF-8 text: {error}") from error
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    _check_files(path, manifest)
    tables = {table.name: table for table in manifest.tables}
    if len(tables) != len(manifest.tables):
        raise BundleError(f"{path}: manifest.json names a table twice")
    for side in SIDES:
        _check_side(f"{path}: manifest.json: {side}", manifest.side(side), side, tables)
    return Bundle(path=path, manifest=_with_placement(path, manifest))


def _with_placement(path: Path, manifest: Manifest) -> Manifest:
    file = path / PLACEMENT_FILE
    try:
        placement = hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return manifest
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    version = hashlib.sha256(f"{manifest.version} {placement}".encode()).hexdigest()
    return attrs.evolve(manifest, version=version)


def _check_files(path: Path, manifest: Manifest) -> None:
    files = ["features.toml", "dense.onnx"]
    files += [program for side in SIDES if (program := manifest.side(side).program) is not None]
    for file in files:
        if Path(file).name != file or not (path / file).is_file():
            raise BundleError(f"{path}: {file} is missing")
    for table in manifest.tables:
        if not 1 <= table.segments <= MAX_SEGMENTS:
            raise BundleError(f"{path}: table {table.name!r} has {table.segments} segments")
        if table.dtype not in ROW_TYPES:
            raise BundleError(f"{path}: table {table.name!r} has rows of {table.dtype!r}")
        folder = table_path(path, table)
        if is_table(folder):
            _check_header(folder, read_header(folder), table)
        else:
            _map_table(path, table)
    _map(path / "sample.npy", (1, manifest.user.width + manifest.candidate.width))


def table_path(path: Path, table: Table) -> Path:
    """Return the file or folder of a bundle's table.

    Raises:
        BundleError: It would be outside the bundle.
    """
    if Path(table.file).name != table.file:
        raise BundleError(f"{path}: {table.file!r} is no name of a file")
    return path / "tables" / table.file


def _map_table(path: Path, table: Table) -> NDArray[np.float32]:
    file = table_path(path, table)
    if table.keyed or table.version:
        raise BundleError(f"{file} is not the folder of a table that the manifest says it is")
    return _map(file, (table.rows, table.dim))


def _check_header(path: Path, header: TableHeader, table: Table) -> None:
    for what, want, got in (
        ("rows", table.rows, header.rows),
        ("dim", table.dim, header.dim),
        ("dtype", table.dtype, header.dtype),
        ("keyed", table.keyed, header.keyed),
        ("segments", table.segments, header.n_segments),
        ("version", table.version, header.version),
    ):
        if want != got:
            raise BundleError(f"{path}: {what}: the manifest wants {want}, the table has {got}")


def _map(file: Path, want: tuple[int, int]) -> NDArray[np.float32]:
    if not file.is_file():
        raise BundleError(f"{file} is missing")
    try:
        rows: NDArray[np.float32] = map_npy(file)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} is damaged: {error}") from error
    if rows.dtype != np.float32 or rows.shape != want or not rows.flags.c_contiguous:
        raise BundleError(
            f"{file}: want C-ordered float32 {list(want)}, got {rows.dtype} {list(rows.shape)}"
        )
    return rows


def _check_side(where: str, layout: SideLayout, side: SideName, tables: dict[str, Table]) -> None:
    offset = 0
    for lookup in layout.lookups:
        _check_lookup(f"{where}: lookup {lookup.tensor!r}", lookup, layout, side, tables)
        if lookup.offset != offset:
            raise BundleError(
                f"{where}: lookup {lookup.tensor!r} starts at column {lookup.offset}, not {offset}"
            )
        offset += lookup.width
    if layout.width != offset + len(layout.values):
        raise BundleError(
            f"{where}: width is {layout.width}; lookups and values have "
            f"{offset + len(layout.values)} columns"
        )
    sources = (*layout.ids, *layout.weights, *layout.values)
    if layout.program is None and any(source.program for source in sources):
        raise BundleError(f"{where}: a source names a program, but there is none")


def _check_lookup(
    where: str, lookup: Lookup, layout: SideLayout, side: SideName, tables: dict[str, Table]
) -> None:
    if lookup.side != side:
        raise BundleError(f"{where} says that it is of the {lookup.side} side")
    if lookup.table not in tables:
        raise BundleError(f"{where}: no table named {lookup.table!r}")
    first, count, weight = lookup.first_id, lookup.n_ids, lookup.first_weight
    if count < 1 or first < 0 or first + count > len(layout.ids):
        raise BundleError(f"{where}: ids {first} to {first + count} of {len(layout.ids)}")
    if weight is not None and (weight < 0 or weight + count > len(layout.weights)):
        raise BundleError(f"{where}: weights {weight} to {weight + count} of {len(layout.weights)}")
    dim = tables[lookup.table].dim
    if lookup.width != (count * dim if lookup.pooling == "none" else dim):
        raise BundleError(f"{where}: width {lookup.width} does not fit dim {dim} and {count} ids")

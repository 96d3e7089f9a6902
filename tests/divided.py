"""The model of ``tests.tiny`` with its tables in segments, divided over two groups of shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs

from kernels.bundle import codec
from kernels.placement import (
    PLACEMENT_FILE,
    CachedTable,
    Piece,
    Placement,
    write_placement,
)

SEGMENTS = {"items": 5, "users": 3}
# Group 0 pools genres; of items and users either group has a piece, so they are fetched.
PLACEMENT = Placement(
    groups=(
        (Piece("items", 0, 2), Piece("genres", 0, 1), Piece("users", 2, 3)),
        (Piece("users", 0, 2), Piece("items", 2, 5)),
    )
)
# The same, with a few hot rows at a time, soon too old: most batches find some and lack others.
CACHED = attrs.evolve(
    PLACEMENT, cached=(CachedTable("items", 1100, 0.05), CachedTable("users", 4000, 0.05))
)


def divide(bundle: Path, to: Path, placement: Placement = PLACEMENT) -> Path:
    """Copy the bundle of ``tests.tiny`` and divide its tables; return the copy's folder."""
    shutil.copytree(bundle, to)
    file = to / "manifest.json"
    manifest = codec.loads(file.read_text())
    tables = tuple(
        attrs.evolve(table, segments=SEGMENTS.get(table.name, 1)) for table in manifest.tables
    )
    file.write_text(codec.dumps(attrs.evolve(manifest, tables=tables)))
    write_placement(placement, to / PLACEMENT_FILE)
    return to

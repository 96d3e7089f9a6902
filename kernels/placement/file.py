"""``placement.toml``: a placement as ``kernels.bundle plan`` writes it, or a person.

::

    version = 1
    device = ["genres"]         # optional: tables in the card's memory; "all" for every one

    [cached.items]              # optional: tables whose hot rows are kept beside the executor, too:
                                # on its card, in the card's precision, or if there is none in the
                                # host's memory
    max_bytes = 4_000_000_000   # of rows on the card (in each context), or on a host of rows and of
                                # what it takes to find them; twice that while a new version of the
                                # model takes over
    stale_s = 5                 # optional: for how long after an update an old row may be used

    [[groups]]                  # group 0: its tables, each "all" or [first, last] of its segments,
    users = "all"               # last exclusive
    items = [0, 32]

    [[groups]]                  # group 1
    items = [32, 64]

Without ``groups``, whole tables are divided over as many groups as serve the model. A model finds
its file in its bundle's folder, where it is part of the bundle's version, or where the cluster file
says, and then it is for the operator to give all nodes the same. What places nothing twice and
everything once is taken; what else there may be is refused, naming file, table and segment.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Final

from kernels.bundle.load import PLACEMENT_FILE, Bundle
from kernels.bundle.manifest import Manifest
from kernels.errors import PlacementError
from kernels.placement.check import check_placement
from kernels.placement.derive import derive
from kernels.placement.placement import DEFAULT_STALE_S, CachedTable, Piece, Placement

ALL: Final = "all"


def placement_for(bundle: Bundle, n_groups: int, path: Path | None = None) -> Placement:
    """Return where a bundle's tables lie.

    Args:
        bundle: The model's.
        n_groups: How many groups serve it.
        path: The placement's file; None for that of the bundle's folder, and without one there, for
            whole tables divided over the groups.

    Raises:
        PlacementError: The file cannot be read, or does not fit the bundle or the groups.
    """
    if path is None:
        path = bundle.path / PLACEMENT_FILE
        if not path.exists():
            return derive(bundle.manifest, n_groups)
    return read_placement(path, bundle.manifest, n_groups)


def read_placement(path: Path, manifest: Manifest, n_groups: int | None = None) -> Placement:
    """Read a placement's file and check it against a manifest.

    Args:
        path: The file.
        manifest: The model's.
        n_groups: How many groups serve the model; None for as many as the file has.

    Raises:
        PlacementError: It cannot be read, is wrong, or does not fit.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlacementError(f"{path}: cannot be read: {error}") from error
    try:
        placement = _placement(content, manifest, n_groups)
        check_placement(placement, manifest, n_groups)
    except PlacementError as error:
        raise PlacementError(f"{path}: {error}") from None
    return placement


def write_placement(placement: Placement, path: Path, comment: str = "") -> None:
    """Write a placement's file, whole or not at all.

    Args:
        placement: What to write.
        path: The file; one that is there is replaced.
        comment: Lines to put before it.
    """
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(dump_placement(placement, comment), encoding="utf-8")
    beside.replace(path)


def dump_placement(placement: Placement, comment: str = "") -> str:
    """Return the text of a placement's file: the same placement gives the same text."""
    lines = [f"# {_printable(line)}".rstrip() for line in comment.splitlines()]
    lines.append("version = 1")
    if placement.device:
        lines.append(f"device = [{', '.join(_text(name) for name in placement.device)}]")
    if not placement.groups:
        lines.append("groups = []")
    for each in placement.cached:
        lines += ["", f"[cached.{_text(each.table)}]", f"max_bytes = {each.max_bytes}"]
        lines.append(f"stale_s = {each.stale_s!r}")
    for group in placement.groups:
        lines += ["", "[[groups]]"]
        lines += [f"{_text(piece.table)} = [{piece.first}, {piece.last}]" for piece in group]
    return "\n".join(lines) + "\n"


def _printable(line: str) -> str:
    """Return what TOML takes in a comment: no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _text(value: str) -> str:
    """Return a TOML text: JSON's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _placement(content: dict[str, Any], manifest: Manifest, n_groups: int | None) -> Placement:
    version = content.pop("version", None)
    if version != 1:
        raise PlacementError(f"version: want 1, got {version!r}")
    device = _device(content.pop("device", []), manifest)
    cached = _cached(content.pop("cached", {}))
    groups = content.pop("groups", None)
    if content:
        key = next(iter(content))
        raise PlacementError(f"{key} is unknown; there are version, device, cached, groups")
    if groups is None:
        if n_groups is None:
            raise PlacementError("groups: are missing, and nothing says how many there are")
        return derive(manifest, n_groups, device=device, cached=cached)
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise PlacementError("groups: want tables, each headed [[groups]]")
    segments = {table.name: table.segments for table in manifest.tables}
    return Placement(
        groups=tuple(
            tuple(
                _piece(f"group {number}", name, value, segments.get(name, 1))
                for name, value in group.items()
            )
            for number, group in enumerate(groups)
        ),
        device=device,
        cached=cached,
    )


def _device(value: object, manifest: Manifest) -> tuple[str, ...]:
    if value == ALL:
        return tuple(table.name for table in manifest.tables)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise PlacementError(f'device: want a list of tables or "{ALL}", got {value!r}')
    return tuple(value)


def _cached(value: object) -> tuple[CachedTable, ...]:
    if not isinstance(value, dict):
        raise PlacementError(f"cached: want tables headed [cached.NAME], got {value!r}")
    found = []
    for name, fields in value.items():
        where = f"cached: table {name!r}"
        if not isinstance(fields, dict):
            raise PlacementError(f"{where}: want max_bytes and stale_s, got {fields!r}")
        if unknown := sorted(fields.keys() - {"max_bytes", "stale_s"}):
            raise PlacementError(
                f"{where}: {unknown[0]} is unknown; there are max_bytes and stale_s"
            )
        max_bytes, stale_s = fields.get("max_bytes"), fields.get("stale_s", DEFAULT_STALE_S)
        if type(max_bytes) is not int:
            raise PlacementError(f"{where}: max_bytes: want a whole number, got {max_bytes!r}")
        if type(stale_s) not in (int, float):
            raise PlacementError(f"{where}: stale_s: want a number, got {stale_s!r}")
        found.append(CachedTable(name, max_bytes, float(stale_s)))
    return tuple(found)


def _piece(where: str, name: str, value: object, n_segments: int) -> Piece:
    if value == ALL:
        return Piece(name, 0, n_segments)
    if isinstance(value, list) and len(value) == 2 and all(type(each) is int for each in value):
        return Piece(name, value[0], value[1])
    raise PlacementError(
        f'{where}: table {name!r}: want "{ALL}" or [first, last] of its segments, got {value!r}'
    )

"""Showing a bundle: its tables and its cut, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.manifest import Lookup, Manifest, SideLayout, Source


def describe(bundle: Bundle) -> str:
    """Return a bundle's description, some tens of lines."""
    return "\n".join(_lines(bundle)) + "\n"


def _lines(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield f"model     {manifest.model}"
    yield f"version   {manifest.version}"
    size = sum(table.size_bytes for table in manifest.tables)
    yield f"tables    {len(manifest.tables)} cut, {size:,} bytes"
    rows = [
        (
            table.name,
            f"[{table.rows:,}, {table.dim}]",
            table.dtype,
            "keys" if table.keyed else "rows",
            f"{table.segments:,}",
            f"{table.size_bytes:,}",
        )
        for table in manifest.tables
    ]
    yield from _columns([("table", "shape", "type", "by", "segments", "bytes"), *rows])
    left = [kept for kept in manifest.kept if not kept.positional]
    yield f"kept      {len(left)} tables looked up, {len(manifest.kept) - len(left)} positional"
    for kept in manifest.kept:
        yield f"  {kept.name} {list(kept.shape)}: {kept.reason}"
    for side in SIDES:
        yield from _side(bundle.manifest.side(side), side)
    dense = onnx.load_from_string(bundle.dense_model())
    yield f"dense     {len(dense.graph.node)} nodes"
    counts = Counter(node.op_type for node in dense.graph.node)
    yield "  " + ", ".join(f"{op} {n}" for op, n in sorted(counts.items(), key=_by_count))
    yield f"executors {executors_of(manifest)}"
    for output in manifest.outputs:
        yield f"output    {output.name} {list(output.shape)} a row"


def executors_of(manifest: Manifest) -> str:
    """Name the executors that can run a bundle, and why not all."""
    return "host, cuda" if manifest.gpu.supported else f"host only: {manifest.gpu.reason}"


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _side(layout: SideLayout, side: str) -> Iterator[str]:
    program = "" if layout.program is None else f", program {layout.program}"
    yield (
        f"{side:<10}{layout.width} columns: {len(layout.lookups)} lookups of {len(layout.ids)} "
        f"ids, {len(layout.values)} values{program}"
    )
    rows = [
        (
            sources_of(layout.ids[each.first_id : each.first_id + each.n_ids]),
            each.table,
            pooling_of(each, layout),
            each.tensor,
        )
        for each in layout.lookups
    ]
    if rows:
        yield from _columns([("features", "table", "pooling", "replaces"), *rows])
    if layout.values:
        yield f"  values: {sources_of(layout.values)}"


def sources_of(sources: tuple[Source, ...]) -> str:
    """Name sources: ``item``, ``past[0:30]``, ``item+1000``, ``<mask>[2]`` (of a program)."""
    parts: list[str] = []
    start = 0
    while start < len(sources):
        first, end = sources[start], start + 1
        while end < len(sources) and _follows(sources[end - 1], sources[end]):
            end += 1
        name = f"<{first.feature}>" if first.program else first.feature
        if end - start > 1:
            name += f"[{first.column}:{sources[end - 1].column + 1}]"
        elif first.column:
            name += f"[{first.column}]"
        parts.append(name + (f"+{first.add}" if first.add else ""))
        start = end
    return ", ".join(parts)


def _follows(left: Source, right: Source) -> bool:
    alike = (left.feature, left.program, left.add) == (right.feature, right.program, right.add)
    return alike and left.column + 1 == right.column


def pooling_of(lookup: Lookup, layout: SideLayout) -> str:
    """Name a lookup's pooling: ``none``, ``sum of 30``, ``sum of 30 by mask``."""
    if lookup.pooling == "none":
        return "none" if lookup.n_ids == 1 else f"{lookup.n_ids} side by side"
    text = f"{lookup.pooling} of {lookup.n_ids}"
    if lookup.first_weight is not None:
        first = lookup.first_weight
        text += f" by {sources_of(layout.weights[first : first + lookup.n_ids])}"
    return text


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lay rows out in columns; long cells end in dots."""
    cells = [[cell if len(cell) <= 48 else cell[:45] + "..." for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(padded)).rstrip()

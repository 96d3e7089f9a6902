"""The cut: a planned graph becomes a dense graph, two programs and the manifest's layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs
import onnx

from kernels.bundle.dense import dense_model
from kernels.bundle.layout import Blocks, lay_out, side_layout
from kernels.bundle.manifest import KeptTable, Output, SideLayout, Table
from kernels.bundle.planned import Plan, PlannedLookup
from kernels.bundle.program import program_model
from kernels.bundle.select import Selection, select
from kernels.bundle.stores import open_rows
from kernels.errors import GraphError
from kernels.features.spec import FeatureSpec
from kernels.graph.facts import Kind
from kernels.graph.model import Array
from kernels.graph.trace import Root
from kernels.store.table import StoredTable

# A table of a .npy file may be divided, down to segments of so many bytes, into so many.
_SEGMENT_BYTES: Final = 1 << 20
_SEGMENTS_MOST: Final = 1024


@attrs.frozen(eq=False)
class Cut:
    """All parts of a bundle but its spec.

    Attributes:
        arrays: Rows of each table, by the table's name, as the graph or the store has them.
        programs: By file name.
    """

    dense: onnx.ModelProto
    programs: Mapping[str, onnx.ModelProto]
    user: SideLayout
    candidate: SideLayout
    tables: tuple[Table, ...]
    arrays: Mapping[str, StoredTable | Array]
    outputs: tuple[Output, ...]
    kept: tuple[KeptTable, ...]


def make_cut(plan: Plan, spec: FeatureSpec, positional: tuple[KeptTable, ...]) -> Cut:
    """Write the parts of a bundle.

    Args:
        plan: Of the cut.
        spec: The features.
        positional: Constant tables that the graph indexes in the same way for every row.
    """
    graph, columns = plan.graph, plan.traces.columns
    selection = select(graph, plan.facts, plan.codes, columns, graph.outputs)
    views = [columns.elements(numbers) for numbers in selection.views.values()]
    blocks = lay_out(views, plan.lookups, plan.sides)
    names = _table_names([*blocks.user.lookups, *blocks.candidate.lookups])
    outputs = _OutputNames(spec)
    layouts = [
        side_layout(
            builder,
            lambda lookup: names[lookup.table],
            plan.sides,
            outputs,
            lambda root: spec.by_name[root.name].dtype == "int64",
        )
        for builder in (blocks.user, blocks.candidate)
    ]
    programs = {
        f"{builder.side}.onnx": program_model(plan, spec, tuple(builder.programmed), outputs)
        for builder in (blocks.user, blocks.candidate)
        if builder.programmed
    }
    for name in plan.stores.keys() - names.keys():
        raise GraphError(
            f"{graph.name}: table {name!r} is not cut, so that none of the store can take its place"
        )
    tables, arrays = _tables(plan, spec, blocks, names)
    dense, results = dense_model(plan, selection, blocks)
    return Cut(
        dense=dense,
        programs=programs,
        user=layouts[0],
        candidate=layouts[1],
        tables=tables,
        arrays=arrays,
        outputs=results,
        kept=(*positional, *_kept(plan, selection)),
    )


class _OutputNames:
    """Names the outputs of programs: after the tensor, and like no feature."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._taken = set(spec.by_name)
        self._names: dict[Root, str] = {}

    def __call__(self, root: Root) -> str:
        if root not in self._names:
            name = root.name if root.change is None else f"{root.name}/{root.change[0]}"
            while name in self._taken:
                name += "_"
            self._taken.add(name)
            self._names[root] = name
        return self._names[root]


def _table_names(lookups: list[PlannedLookup]) -> dict[str, str]:
    """Name tables after their constants, in letters that every file system takes."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for lookup in lookups:
        if lookup.table in names:
            continue
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", lookup.table).strip("._")[:80] or "table"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names[lookup.table] = name
    return names


def _tables(
    plan: Plan, spec: FeatureSpec, blocks: Blocks, names: Mapping[str, str]
) -> tuple[tuple[Table, ...], dict[str, StoredTable | Array]]:
    tables: dict[str, Table] = {}
    arrays: dict[str, StoredTable | Array] = {}
    for lookup in (*blocks.user.lookups, *blocks.candidate.lookups):
        name = names[lookup.table]
        if name in tables:
            continue
        array = plan.stores.get(lookup.table, plan.graph.constants.get(lookup.table))
        if array is None or lookup.root.name.startswith("feature "):
            array = open_rows(spec.folder / lookup.table)
        if isinstance(array, StoredTable):
            arrays[name], tables[name] = array, _stored_table(name, array)
        else:
            arrays[name] = array.reshape(array.shape[0], -1)
            tables[name] = _array_table(name, len(array), lookup.dim)
    return tuple(tables.values()), arrays


def _array_table(name: str, rows: int, dim: int) -> Table:
    segments = min(max(4 * rows * dim // _SEGMENT_BYTES, 1), _SEGMENTS_MOST)
    return Table(name=name, rows=rows, dim=dim, dtype="fp32", file=f"{name}.npy", segments=segments)


def _stored_table(name: str, stored: StoredTable) -> Table:
    header = stored.header
    return Table(
        name=name,
        rows=header.rows,
        dim=header.dim,
        dtype=header.dtype,
        file=name,
        keyed=header.keyed,
        segments=header.n_segments,
        version=header.version,
    )


def _kept(plan: Plan, selection: Selection) -> list[KeptTable]:
    """List the tables that the dense graph still looks up in."""
    found = []
    for node in selection.nodes:
        table = plan.graph.constants.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.dtype.kind != "f" or node.input[1] in plan.graph.constants:
            continue
        kind = plan.facts.kinds[node.input[1]]
        reason = {
            Kind.BATCH: "indexed alike for every row",
            Kind.FEATURES: f"indexed by {node.input[1]!r}, which is not a number of ids a row",
            Kind.MIXED: f"indexed by {node.input[1]!r}, which the dense graph computes",
        }[kind]
        found.append(
            KeptTable(
                name=node.input[0],
                shape=tuple(table.shape),
                reason=reason,
                positional=kind == Kind.BATCH,
            )
        )
    return found

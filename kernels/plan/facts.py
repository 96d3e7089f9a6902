"""What a launch does, for whoever shows a plan: its work items, memory and traffic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kernels.ir.node import Lead, Node
from kernels.ir.reference import multiply_adds
from kernels.plan.matrix import Matrix
from kernels.plan.phases import Kind, MatrixView, Phase, matrix_view
from kernels.plan.tile_kernel import TileKernel
from kernels.program import Bucket, Crossing, Held, LaunchFacts, WorkItem
from kernels.wide import WideConfig


def launch_facts(
    phase: Phase,
    bucket: Bucket,
    matrices: Mapping[Node, Matrix],
    targets: Mapping[Node, Matrix],
    cut: TileKernel | WideConfig | None,
    weights_bytes: int,
) -> LaunchFacts:
    """Return what is known of a phase's launch.

    Args:
        phase: What it runs.
        bucket: Whose rows and requests count.
        matrices: What lay in memory before.
        targets: What it leaves there.
        cut: A tile's kernel, or how a wide Linear is cut; None for a sequence program.
        weights_bytes: That it reads, as they are packed.
    """
    sizes = {Lead.ROWS: bucket.rows, Lead.REQUESTS: bucket.requests}
    nodes, read = computed(phase.outputs, matrices)

    def crossing(node: Node, matrix: Matrix, used: int) -> Crossing:
        return Crossing(
            name=node.name or node.op,
            pointer=matrix.pointer,
            lead=matrix.lead,
            columns=matrix.columns,
            used=used,
            element=matrix.element,
            size_bytes=used * matrix.element_bytes * sizes[matrix.lead],
        )

    per_row = dict.fromkeys(sizes, 0)
    for node in nodes:
        if node.lead is not None:
            per_row[node.lead] += 2 * multiply_adds(node)
    rows = sizes[phase.lead]
    items: tuple[WorkItem, ...] = tuple(
        WorkItem(_title(phase, node), 2 * multiply_adds(node)) for node in phase.chain
    )
    tile_rows = 1
    if isinstance(cut, TileKernel):
        items = tuple(WorkItem(step.title, step.flops) for step in cut.steps)
        tile_rows = cut.builder.shape.rows
    elif cut is not None:
        tile_rows = cut.tile_rows
    return LaunchFacts(
        kind=phase.kind,
        lead=phase.lead,
        rows=rows,
        rows_run=-(-rows // tile_rows) * tile_rows,
        items=items,
        held=_held(cut) if isinstance(cut, TileKernel) else (),
        reads=tuple(crossing(node, matrices[node], used) for node, used in read.items()),
        writes=tuple(crossing(node, matrix, matrix.columns) for node, matrix in targets.items()),
        flops=sum(per_row[lead] * size for lead, size in sizes.items()),
        weights_bytes=weights_bytes,
    )


def _title(phase: Phase, node: Node) -> str:
    if phase.kind is Kind.WIDE and node is phase.chain[0]:
        *groups, k, n = node.sources[-2].dims
        return f"wide linear {k} -> {n}" + (f" of {groups[0]} groups" if groups else "")
    return f"{node.op} {list(node.dims)}"


def computed(
    outputs: Iterable[Node], matrices: Mapping[Node, object]
) -> tuple[list[Node], dict[Node, int]]:
    """Return the nodes that lead from memory to ``outputs``, and what is read there.

    The latter has, of each value in memory, how many columns are read.
    """
    nodes: dict[Node, None] = {}
    read: dict[Node, set[int]] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        view = MatrixView(node, 0) if node in matrices else matrix_view(node)
        if view is not None and view.base in matrices:
            columns = range(view.column, view.column + node.width)
            read.setdefault(view.base, set()).update(columns)
        elif node not in nodes:
            nodes[node] = None
            stack += node.sources
    return list(nodes), {node: len(columns) for node, columns in read.items()}


def _held(kernel: TileKernel) -> tuple[Held, ...]:
    """Return the pieces of a block's shared memory, and between which steps they are in use."""
    layout, last = kernel.layout, max(len(kernel.steps) - 1, 0)
    found = [Held("barriers", 0, layout.constants, 0, last)]
    if layout.requests > layout.constants:
        size = layout.requests - layout.constants
        found.append(Held("constants", layout.constants, size, 0, last))
    if kernel.builder.reads_requests:
        found.append(Held("requests", layout.requests, layout.values - layout.requests, 0, last))
    rows = kernel.builder.shape.rows
    lives: dict[str, Held] = {}
    for index, step in enumerate(kernel.steps):
        for value in (*step.writes, *step.reads):
            first = lives[value.name].first if value.name in lives else index
            at = layout.values + value.offset
            lives[value.name] = Held(value.name, at, value.size(rows), first, index, value.width)
    found += lives.values()
    found += [
        Held(f"stage {i}", layout.ring + i * layout.stage_bytes, layout.stage_bytes, 0, last)
        for i in range(layout.n_stages)
    ]
    return tuple(found)

"""The text of a tile kernel: steps, barriers and the producer's stream, put together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.ir.node import Lead
from kernels.plan.matrix import Matrix
from kernels.plan.pack import Blob
from kernels.plan.shape import TileShape
from kernels.plan.steps import Step, allot, needs_barrier, order, side_steps
from kernels.plan.tile import TileBuilder
from kernels.program import Argument, Launch, Pointer, Precision, Role, Target

# A stage of the ring holds about so many bytes: large enough that a copy's latency is amortised,
# small enough that several are in flight; and so many stages at most.
_STAGES = (16_384, 8)
# Tiles of 64 rows have few steps a stage: theirs may be more.
_GROUP_STAGES = (16_384, 16)
_FEWEST_STAGES = 3
_CONSTANTS_OFFSET = 512

STORAGE: Final = {
    Precision.FP16: "Fp16",
    Precision.BF16: "Bf16",
    Precision.TF32: "Tf32<1>",
    Precision.FP32: "Tf32<3>",
}
"""The CUDA name of what values are stored as, and how they are multiplied."""


@attrs.frozen
class Layout:
    """Where things lie in a block's shared memory, in bytes from its start."""

    constants: int
    requests: int
    values: int
    ring: int
    stage_bytes: int
    n_stages: int

    @property
    def total(self) -> int:
        """Bytes that a launch asks for."""
        return self.ring + self.stage_bytes * self.n_stages


@attrs.frozen(eq=False)
class TileKernel:
    """A kernel's text and launch, before its weights have a place.

    Attributes:
        text: Without the includes; ``entry`` is its name.
        blob: Constants and streams of all ranks, then large tables.
        matrices: Parameters after the fixed ones, in order.
        steps: Of the warps that run the Linears.
        side: Of warps that run beside them.
    """

    entry: str
    text: str
    blob: Blob
    matrices: tuple[Matrix, ...]
    layout: Layout
    builder: TileBuilder
    steps: tuple[Step, ...]
    side: tuple[Step, ...]
    barriers: int


def assemble(
    builder: TileBuilder, entry: str, target: Target, *, dependent: bool
) -> TileKernel | None:
    """Put a phase's steps together; None if they do not fit shared memory."""
    for steps in (order(builder.steps), builder.steps):
        # Steps beside the others would have to wait for what the others gather.
        may_split = has_streams(target) and not builder.gathers
        beside = side_steps(steps) if may_split else []
        for side in [beside, []] if beside else [[]]:
            layout = _layout(builder, steps, side, target)
            if layout is not None and (not side or layout.n_stages):
                return _text(builder, entry, steps, side, layout, dependent=dependent)
    return None


def launch(
    kernel: TileKernel, source: int, n_rows: int, weights: int, *, dependent: bool
) -> Launch:
    """Return a kernel's launch over a bucket's rows; its blob lies at ``weights``."""
    shape = kernel.builder.shape
    lead = kernel.builder.phase.lead
    arguments: list[Argument] = [
        Pointer(Role.WEIGHTS, weights),
        Pointer(Role.COUNTS, 0 if lead is Lead.ROWS else 4),
        Pointer(Role.REQUEST_OF_ROW),
    ]
    arguments += [matrix.pointer for matrix in kernel.matrices]
    tiles = -(-n_rows // shape.rows)
    streams = _streams(kernel.builder, target_streams=kernel.layout.n_stages > 0)
    return Launch(
        source=source,
        entry=kernel.entry,
        grid=(tiles * shape.cluster, 1, 1),
        block=(shape.warps + streams + (shape.side_warps if kernel.side else 0)) * 32,
        arguments=tuple(arguments),
        cluster=shape.cluster,
        shared_bytes=kernel.layout.total,
        dependent=dependent,
    )


def _streams(builder: TileBuilder, *, target_streams: bool) -> bool:
    return target_streams or builder.shape.cluster > 1


def _layout(
    builder: TileBuilder, steps: Sequence[Step], side: Sequence[Step], target: Target
) -> Layout | None:
    rows, cluster = builder.shape.rows, builder.shape.cluster
    shape = builder.shape
    values_size = allot(
        steps,
        rows,
        gathers=cluster > 1,
        whole=shape.groups > 0,
        beside=side,
        joined=_early_join(steps, side, shape),
    )
    constants = _CONSTANTS_OFFSET
    requests = constants + -(-builder.constants.shared_size // 128) * 128
    values = requests + -(-rows * 4 // 128) * 128
    ring = values + values_size
    room = target.shared_bytes - ring
    strides = [shape.step_bytes(step.stream.n) for step in steps if step.stream is not None]
    if room < 0:
        return None
    if not strides or not has_streams(target):
        return Layout(constants, requests, values, ring, 0, 0)
    # A stage holds whole steps of every Linear: of the widest at least one.
    wanted, most = _GROUP_STAGES if shape.groups else _STAGES
    stage = max(stride * max(1, wanted // stride) for stride in strides)
    if room // stage < _FEWEST_STAGES:
        stage = max(strides)
    n_stages = min(most, room // stage)
    if n_stages < _FEWEST_STAGES:
        return None
    return Layout(constants, requests, values, ring, stage, n_stages)


def has_streams(target: Target) -> bool:
    """Whether the card has bulk copies and clusters."""
    return target.arch != "sm_80"


def _text(
    builder: TileBuilder,
    entry: str,
    steps: Sequence[Step],
    side: Sequence[Step],
    layout: Layout,
    *,
    dependent: bool,
) -> TileKernel:
    shape = builder.shape
    stream = layout.n_stages > 0 or shape.cluster > 1
    main = [step for step in steps if step not in side]
    if shape.groups and shape.cluster > 1:
        _await_gathers(main, shape)
    early = _early_join(steps, side, shape)
    if early is not None and (first := steps[early].stream) is not None:
        first.join = f"named_barrier(5, {_all_threads(builder)});"
    # Names parameters and fills tables: comes first.
    bodies = {step: step.text() for step in steps}
    gathers = [line for gather in builder.gathers for line in gather.text(builder)]
    blob = Blob()
    size = builder.constants.shared_size
    ranks = [
        np.concatenate(
            [
                builder.constants.bytes(rank),
                *(
                    packed
                    for step in steps
                    if step.stream is not None
                    for packed in shape.packed(step.stream, rank, builder.precision)
                ),
            ]
        )
        for rank in range(shape.cluster)
    ]
    stride = -(-max((len(rank) for rank in ranks), default=0) // 256) * 256
    for rank in ranks:
        blob.add(np.concatenate([rank, np.zeros(stride - len(rank), np.uint8)]))
    globals_at = blob.add(builder.globals.bytes())
    storage = STORAGE[builder.precision]
    matrices = tuple(builder.parameters)
    parameters = "".join(f", u8* {name}" for name in builder.parameters.values())
    n_threads = (shape.warps + stream + (shape.side_warps if side else 0)) * 32
    lines = [
        f"struct {entry}_cfg {{ typedef {storage} T; static constexpr int R = {shape.rows}, "
        f"C = {shape.cluster}, NW = {shape.warps}, BARRIER = 1, NS = {max(layout.n_stages, 1)}, "
        f"SB = {max(layout.stage_bytes, 512)}; "
        f"static constexpr bool STREAM = {'true' if stream else 'false'}; }};",
        f"struct {entry}_side : {entry}_cfg {{ "
        f"static constexpr int NW = {shape.side_warps}, BARRIER = 3; }};",
        f"KERNEL void __launch_bounds__({n_threads}, 1) {entry}(const u8* weights, "
        f"const int* counts, const int* request_of_row{parameters}) {{",
        f"typedef {entry}_cfg Cfg;",
        "DYNAMIC_SHARED(shared);",
        "dependents_may_start();",
        "Tile<Cfg> tile;",
        f"tile.open(shared_address(shared), {layout.ring}, counts[0]);",
        f"if (tile.is_idle()) {{ {'wait_for_predecessor();' if dependent else ''} return; }}",
        f"[[maybe_unused]] const u32 constants = tile.base + {layout.constants};",
        f"[[maybe_unused]] const u32 requests = tile.base + {layout.requests};",
        f"[[maybe_unused]] const u8* globals = weights + {globals_at};",
        "[[maybe_unused]] const auto request = "
        "[&](int r) { return (int)load_shared_u32(requests + r * 4); };",
        f"const u8* stream = weights + tile.rank * {stride} + {size};",
    ]
    named: set[str] = set()
    for step in steps:
        for value in step.writes:
            if value.name not in named:
                named.add(value.name)
                at = layout.values + value.offset
                lines.append(
                    f"const u32 {value.name} = tile.base + {at};  // {value.width} columns"
                )
    if stream:
        lines += _producer(builder, steps, stride, size)
        lines.append("tile.arrive();")
    if dependent:
        lines.append("wait_for_predecessor();")
    if gathers:
        lines += [*gathers, "tile.sync();"]
    if side:
        lines += _side(builder, entry, side, bodies)
    consumer, barriers = _consumer(builder, main, side, bodies, stream=stream)
    lines += [*consumer, "}"]
    return TileKernel(
        entry,
        "\n".join(lines),
        blob,
        matrices,
        layout,
        builder,
        tuple(main),
        tuple(side),
        barriers,
    )


def _early_join(steps: Sequence[Step], side: Sequence[Step], shape: TileShape) -> int | None:
    """Return the Linear of a tile of 64 rows at which side steps are waited for: the first.

    So what those read makes room for later values: a ring of few stages is slow. None where they
    are waited for when what they make is read, as early as that may be.
    """
    made = {value for step in side for value in step.writes}
    for index, step in enumerate(steps):
        if step.stream is not None:
            return index if side and shape.groups else None
        if step not in side and not made.isdisjoint(step.reads):
            return None
    return None


def _await_gathers(steps: Sequence[Step], shape: TileShape) -> None:
    """Let Linears multiply a block's own columns of what was just computed, then the peers'."""
    for before, step in itertools.pairwise(steps):
        made, stream = before.stream, step.stream
        if made is None or stream is None or made.n < before.writes[0].width:
            continue
        for source, (value, column) in enumerate(stream.inputs):
            whole = column == 0 and len(stream.blocks[source]) == value.width == made.n
            if value is before.writes[0] and whole and step.reads.count(value) == 1:
                stream.awaited = source


def _side(
    builder: TileBuilder, entry: str, side: Sequence[Step], bodies: Mapping[Step, str]
) -> list[str]:
    """Return the statements of the warps behind the producer's."""
    cfg, rows = f"{entry}_side", builder.shape.rows
    lines = [
        "if (tile.warp > Cfg::NW) {",
        f"Tile<{cfg}> beside;",
        "beside.follow(tile, Cfg::NW + 1);",
        f"{{ typedef {cfg} Cfg; auto& tile = beside;",
        "tile.meet_side();",
        f"named_barrier(4, {_all_threads(builder)});",
    ]
    if builder.constants.shared_size:
        lines.append("mbarrier_wait(tile.constants_bar(), 0);")
    since: list[Step] = []
    for step in side:
        if needs_barrier(step, since, rows):
            lines.append("tile.sync();")
            since = []
        lines += [f"// {step.title}", bodies[step]]
        since.append(step)
    return [
        *lines,
        f"named_barrier_arrive(5, {_all_threads(builder)});",
        "tile.close_consumer();",
        "return;",
        "} }",
    ]


def _all_threads(builder: TileBuilder) -> int:
    """Return the threads that consume, at the Linears and beside them."""
    return (builder.shape.warps + builder.shape.side_warps) * 32


def _producer(builder: TileBuilder, steps: Sequence[Step], stride: int, size: int) -> list[str]:
    shape = builder.shape
    lines = ["if (tile.warp == Cfg::NW) {", "tile.meet_producer();"]
    if size:
        lines += [
            "if (tile.lane == 0) {",
            f"mbarrier_arrive_expect(tile.constants_bar(), {size});",
            f"bulk_copy_to_shared(constants, weights + tile.rank * {stride}, {size}, "
            "tile.constants_bar());",
            "}",
        ]
    streams: list[str] = []
    for step in steps:
        if step.stream is not None:
            for source in step.stream.order:
                n_times = shape.cluster if source == step.stream.awaited else 1
                produce = f"{shape.linear}<Cfg, {step.stream.n}>::produce"
                streams += [
                    f"{produce}<{shape.steps(step.stream, source)}>(tile, stream);"
                ] * n_times
    # Copies queue up behind prefetches: what is waited for first comes first.
    prefetches = [
        f"prefetch_rows<{matrix.row_bytes}>(tile, {builder.parameters[matrix]});"
        for matrix in builder.fetched
    ]
    lines += [*streams[:1], *prefetches, *streams[1:]]
    return [*lines, "__syncwarp();", "tile.close_producer();", "return;", "}"]


def _consumer(
    builder: TileBuilder,
    steps: Sequence[Step],
    side: Sequence[Step],
    bodies: Mapping[Step, str],
    *,
    stream: bool,
) -> tuple[list[str], int]:
    """Return the consumers' statements, and how many barriers stand between them."""
    rows, cluster, size = builder.shape.rows, builder.shape.cluster, builder.constants.shared_size
    lines: list[str] = []
    if builder.reads_requests:
        lines += [
            "for (int i = threadIdx.x; i < Cfg::R; i += Cfg::NW * 32) "
            "store_shared_u32(requests + i * 4, (u32)request_of_row[tile.row(i)]);",
            "tile.sync();",
        ]
    meeting = _meeting(stream=stream, size=size)
    if side:
        meeting.append(f"named_barrier_arrive(4, {_all_threads(builder)});")
    joined = any(step.stream is not None and step.stream.join for step in steps)
    beside = set() if joined else {value for step in side for value in step.writes}
    met, barriers = False, 0
    since: list[Step] = []
    for step, following in itertools.pairwise([*steps, None]):
        assert step is not None
        awaited_next = following is not None and following.awaits
        if not step.loads and not met:
            met = True
            lines += meeting
            if stream or size:
                since = []
        if not beside.isdisjoint(step.reads):
            lines.append(f"named_barrier(5, {_all_threads(builder)});")
            barriers += 1
            since, beside = [], set()
        if needs_barrier(step, since, rows):
            lines.append("tile.sync();")
            barriers += 1
            since = []
        lines += [f"// {step.title}", bodies[step]]
        since.append(step)
        if step.shared and cluster > 1:
            lines += [] if awaited_next else ["tile.gathered();"]
            barriers += 1
            since = []
    if not met:
        lines += meeting
    if beside:
        lines.append(f"named_barrier(5, {_all_threads(builder)});")
    return [*lines, "tile.close_consumer();"], barriers


def _meeting(*, stream: bool, size: int) -> list[str]:
    """Let the producer's barriers be seen, and constants have arrived."""
    if stream:
        wait = ["mbarrier_wait(tile.constants_bar(), 0);"] if size else []
        return ["tile.meet_consumer();", *wait]
    if not size:
        return []
    return [
        f"for (int i = threadIdx.x; i < {size // 4}; i += Cfg::NW * 32) "
        "store_shared_u32(constants + i * 4, ((const u32*)weights)[i]);",
        "tile.sync();",
    ]


def describe(kernel: TileKernel, made: Launch) -> list[str]:
    """Return lines that say how a kernel is cut and what it does."""
    shape, layout = kernel.builder.shape, kernel.layout
    head = (
        f"{kernel.entry}: {made.grid[0]} blocks of {made.block} threads, "
        f"tiles of {shape.rows} rows, clusters of {shape.cluster}, "
        f"{layout.total} bytes of shared memory ({layout.n_stages} stages of "
        f"{layout.stage_bytes}), {kernel.barriers} barriers"
    )
    beside = [f"  beside: {step.title}" for step in kernel.side]
    titles = [gather.title() for gather in kernel.builder.gathers]
    titles += [step.title for step in kernel.steps]
    return [head, *(f"  {title}" for title in titles), *beside]

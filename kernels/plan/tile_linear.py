"""Linears in a tile: on the tensor cores, as dot products of lanes, or as sums of a thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from kernels.errors import GraphError
from kernels.ir.build import make
from kernels.ir.node import DType, Linear, Node, Op, topological
from kernels.ir.rules import RULES
from kernels.plan import tile, tile_narrow, tile_rows
from kernels.plan.expression import Expression
from kernels.plan.index import Index, Term, add, mul, unflat
from kernels.plan.matrix import Matrix, located
from kernels.plan.pack import F32, pack_fragments
from kernels.plan.phases import aligned_view, matrix_view
from kernels.plan.steps import Step, Stream, Value
from kernels.program import Role

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder

# Tiles of 8 columns and 16 rows that a warp sums: what fits registers beside the fragments.
_MOST_TILES: Final = 16
# The same of floats, whose fragments take more. More would need a ring of more bytes, too.
_MOST_TILES_OF_FLOATS: Final = 8
_CROWDED: Final = 64
_ALL: Final = slice(None)


def linear(b: TileBuilder, linear: Node, root: Node) -> None:
    """Make the steps of a Linear whose epilogue computes ``root``."""
    assert isinstance(linear.arg, Linear)
    place_epilogue(b, linear, root)
    if b.takes_fragments(linear):
        _fragment_linear(b, linear, root)
    elif len(linear.dims) == 1 and linear.width <= tile.NARROW:
        tile_narrow.narrow_linear(b, linear, root)
    else:
        contraction(b, linear, root)


def place_epilogue(b: TileBuilder, linear: Node, root: Node) -> None:
    """Place what the ops between a Linear and ``root`` read besides."""
    path = {linear}
    for node in topological([root]):
        if not path.isdisjoint(node.sources):
            path.add(node)
    for node in path - {linear}:
        for source in node.sources:
            if source not in path:
                b.place(source)


def _epilogue(
    b: TileBuilder,
    linear: Node,
    root: Node,
    at: Sequence[Index],
    bound: str,
    expression: Expression | None = None,
) -> str:
    """Return statements, the last of them ``bound = result``, for one element."""
    assert isinstance(linear.arg, Linear)
    expression = expression or b.expression()
    arg, held = linear.arg, bound
    if arg.activation is not None:
        slope = arg.slope if arg.activation in (Op.LEAKY_RELU, Op.ELU) else None
        activated = RULES[arg.activation].cuda_text(
            [bound], Node(arg.activation, (linear,), linear.shape, arg=slope)
        )
        held = expression.name(DType.FLOAT, activated)
    expression.bound = {linear: held}
    result = expression.computed(root, tuple(at))
    return " ".join([*expression.lines, f"{bound} = {result};"])


def _fragment_linear(b: TileBuilder, linear: Node, root: Node) -> None:
    assert isinstance(linear.arg, Linear)
    n = linear.dims[-1]
    views = [input_view(b, source) for source in linear.sources[: linear.arg.n_inputs]]
    # 64 rows of many floats would leave the ring no room.
    crowded = b.shape.groups > 0 and linear.width >= _CROWDED
    value = b.value(linear.width, halves=crowded or root in b.wants_halves)
    (b.halves if value.halves else b.floats)[root] = value
    columns = pass_columns(b, n)
    for group in range(linear.dims[0] if linear.arg.grouped else 1):
        for start in range(0, n, columns):
            part = weights_of(b, linear, views, group, slice(start, min(start + columns, n)))
            _fragment_step(b, linear, root, value, group * n + start, *part)


def weights_of(
    b: TileBuilder,
    linear: Node,
    views: Sequence[tuple[Value, int]],
    group: int = 0,
    columns: slice = _ALL,
) -> tuple[Stream, F32]:
    """Return the weights of some columns of a Linear, as they are streamed, and their biases.

    Args:
        b: The tile's.
        linear: Runs on the tensor cores.
        views: Of each source: the value that holds it, and its first column there.
        group: Of a grouped Linear.
        columns: Of the group.
    """
    assert isinstance(linear.arg, Linear)
    weight, bias = (each.array.astype(np.float32) for each in linear.sources[-2:])
    if linear.arg.grouped:
        weight, bias = weight[group], bias[group]
    blocks, inputs, first = [], [], 0
    for source, (held, column) in zip(linear.sources, views, strict=False):
        k, before = source.dims[-1], column % held.per_chunk
        block = np.pad(weight[first : first + k, columns], ((before, 0), (0, 0)))
        blocks.append(block)
        inputs.append((held, column - before + group * k))
        first += k
    n = blocks[0].shape[1]
    depth = b.shape.depth(views[0][0].per_chunk)
    return Stream(n, tuple(blocks), tuple(inputs), depth), bias[columns]


def input_view(b: TileBuilder, source: Node) -> tuple[Value, int]:
    """Return a value that products can read and that holds a source, and its first column.

    Where columns of a loaded block do not begin at a chunk, the Linear reads from the chunk's
    beginning, with weights of zero before its own.
    """
    view = matrix_view(source)
    if view is not None and len(source.dims) == 1 and view.base in b.halves:
        return b.halves[view.base], view.column
    return half_view(b, source)


def pass_columns(b: TileBuilder, n: int) -> int:
    """Columns that one pass of a Linear computes: its sums must fit registers."""
    most = _MOST_TILES if b.precision.has_halves else _MOST_TILES_OF_FLOATS
    tiles = most * 16 // b.shape.rows * b.shape.warps
    return min(n, tiles * 8 * b.shape.cluster)


def _fragment_step(
    b: TileBuilder,
    linear: Node,
    root: Node,
    value: Value,
    column: int,
    stream: Stream,
    bias: F32,
) -> None:
    shape = b.shape
    bias_at = b.constants.add_ranked(tuple(shape.share(bias, r) for r in range(shape.cluster)))
    reserve_inputs(b, stream)
    written = shape.columns(stream.n) * shape.cluster
    value.reserve(column + written)
    epilogue, touched = epilogue_of_pairs(b, linear, root, column)

    def text() -> str:
        lines = products(b, stream)
        end = (column + written) // value.per_chunk
        if end < value.chunks and column + stream.n >= value.width:
            # Before `finish`, where each warp arrives at the gather.
            lines.append(f"zero_chunks(tile, {value.name}, {end}, {value.chunks - end});")
        lines.append(
            f"{shape.linear}<Cfg, {stream.n}>::finish<{'true' if value.halves else 'false'}>("
            f"tile, sums, {value.name} + {column // value.per_chunk} * Cfg::R * 16, "
            f"constants + {bias_at}, {epilogue});"
        )
        return "{ " + " ".join(lines) + " }"

    title = f"linear {stream.k} -> {stream.n}" + ("" if root is linear else f", then {root.op}")
    reads = (*(held for held, _ in stream.inputs), *touched)
    b.add(Step(title, text, reads, (value,), stream=stream, flops=2 * stream.k * stream.n))


def reserve_inputs(b: TileBuilder, stream: Stream) -> None:
    """Make sure that what the last steps of a stream read is there: weights of zero follow."""
    for source, (held, first) in enumerate(stream.inputs):
        held.read_by_products(first + stream.depth * b.shape.steps(stream, source))


def products(b: TileBuilder, stream: Stream) -> list[str]:
    """Return statements that make ``sums`` of all of a stream's sources."""
    name = f"{b.shape.linear}<Cfg, {stream.n}>"
    lines = [f"{name}::Sums sums;", f"{name}::clear(sums);"]
    for source in stream.order:
        held, first = stream.inputs[source]
        accumulate = "accumulate_gathered" if source == stream.awaited else "accumulate"
        lines.append(
            f"{name}::{accumulate}<{b.shape.steps(stream, source)}>(tile, sums, "
            f"{held.name} + {first // held.per_chunk} * Cfg::R * 16, stream);"
        )
    return [*lines, stream.join]


def epilogue_of_pairs(
    b: TileBuilder, linear: Node, root: Node, column: int
) -> tuple[str, list[Value]]:
    """Return a lambda that makes two of ``root``'s elements of the Linear's, and what it reads."""
    parts, touched = [], list[Value]()
    for bound, offset in (("v0", 0), ("v1", 1)):
        at = unflat(add(Term("c"), column + offset), linear.dims)
        parts.append(f"{{ {_epilogue(b, linear, root, at, bound)} }}")
        touched += b.touched
    return f"[&](int r, int c, float& v0, float& v1) {{ {' '.join(parts)} }}", touched


def half_view(b: TileBuilder, source: Node) -> tuple[Value, int]:
    """Return a value that products can read and that holds a source, and its first column."""
    if source in b.halves:
        return b.halves[source], 0
    view = aligned_view(source)
    if view is not None and view.base in b.halves:
        return b.halves[view.base], view.column
    if view is not None and not b.lies_in_memory(view.base):
        b.wants_halves.add(view.base)
        if view.base in b.floats and view.base not in b.halves:
            tile_rows.map_value(b, view.base)
        b.store(view.base)
        return b.halves[view.base], view.column
    if source in b.pairs:
        b.wants_halves.add(source)
        b.store(source)
        return b.halves[source], 0
    found = located(source, b.matrices)
    if found is not None and not _is_loaded(b, source):
        return load(b, source, found.matrix, found.first, requests=found.requests), 0
    b.wants_halves.add(source)
    for each in source.sources:
        b.place(each)
    tile_rows.map_value(b, source)
    return b.halves[source], 0


def _is_loaded(b: TileBuilder, node: Node) -> bool:
    """Whether the matrix that a node is moved from lies in shared memory as well."""
    view = matrix_view(node)
    return view is not None and view.base in b.halves


def load(b: TileBuilder, source: Node, matrix: Matrix, column: int, *, requests: bool) -> Value:
    """Make the step that brings ``source`` into a value, from ``column`` of a matrix on.

    With ``requests``, a row finds the matrix's row through REQUEST_OF_ROW.
    """
    value = b.value(source.width, halves=True)
    b.halves[source] = value
    row = b.row_of(matrix, "request(r)" if requests else "r")
    aligned = tile.is_aligned(matrix, column)
    # Staging leaves zeros behind a block's last columns.
    staged = matrix.pointer.role in (Role.USER, Role.CANDIDATE)
    padded = staged and column + value.width == matrix.columns
    flags = ", ".join("true" if flag else "false" for flag in (aligned, padded))
    name = b.parameter(matrix)
    kind = "load_columns" if value.halves else "load_floats"

    def text() -> str:
        return (
            f"{kind}<Cfg, {matrix.element}, {value.width}, {value.chunks}, {matrix.ld}, "
            f"{flags}>(tile, {value.name}, {name}, {column}, "
            f"[&](int r) {{ return {row}; }});"
        )

    b.add(Step(f"load {value.width} columns", text, (), (value,), loads=True))
    return value


def _joined(b: TileBuilder, linear: Node) -> Node:
    """Return a Linear's sources as one value, which is never stored."""
    assert isinstance(linear.arg, Linear)
    sources = linear.sources[: linear.arg.n_inputs]
    for source in sources:
        b.place(source)
    if len(sources) == 1:
        return sources[0]
    return make(Op.CONCAT, *sources, arg=len(sources[0].shape) - 1)


def result_store(
    b: TileBuilder, linear: Node, root: Node, at: Sequence[Index], place: Index
) -> tuple[Value, str]:
    """Return where ``root`` goes, and statements that make it of a sum ``v`` and store it."""
    value = b.value(linear.width, halves=False)
    expression = b.expression()
    bias = linear.sources[-1]
    offset = expression.element(bias, tuple(at[len(at) - len(bias.dims) :]))
    expression.lines.append(f"v += {offset};")
    epilogue = _epilogue(b, linear, root, at, "v", expression)
    store = f"store_shared_f32(float_address<Cfg::R>({value.name}, r, {place}), v);"
    return value, f"{epilogue} {store}"


def contraction(b: TileBuilder, linear: Node, root: Node) -> None:
    """Make the step of a Linear whose sums suit neither fragments nor lanes."""
    assert isinstance(linear.arg, Linear)
    joined = _joined(b, linear)
    if joined.op is not Op.CONCAT:
        b.store_source(joined)
    weight = linear.sources[-2].array.astype(np.float32)
    *outer, n = linear.dims
    on_cores = not b.precision.has_halves and n > tile.NARROW
    if on_cores:
        blocks = weight if linear.arg.grouped else weight[None]
        packed = [pack_fragments(block, 0, 1, b.precision) for block in blocks]
        start = b.globals.add(np.concatenate(packed))
    else:
        start = b.globals.add(weight)
    k, groups = joined.dims[-1], math.prod(outer)
    at_outer = unflat(Term("g"), outer)
    function = b.function(joined, "int r, int g, int k", (*at_outer, Term("k")))
    reads = list(b.touched)
    place = add(mul(Term("g"), n), Term("n"))
    value, store = result_store(b, linear, root, (*at_outer, Term("n")), place)
    grouped = "true" if linear.arg.grouped else "false"
    if linear.arg.grouped and len(outer) != 1:
        raise GraphError(f"node {linear.name!r}, op linear: groups within a sequence")
    name, kind = ("contract_products", "u8") if on_cores else ("contract", "float")
    text = (
        f"{name}<Cfg, {groups}, {n}, {k}, {grouped}>(tile, (const {kind}*)(globals + {start}), "
        f"{function}, [&](int r, int g, int n, float v) {{ {store} }});"
    )
    reads += b.touched
    b.floats[root] = value
    title = f"contraction {groups} x {k} -> {n}"
    b.add(Step(title, lambda: text, tuple(reads), (value,), flops=2 * k * n * groups))

"""Linears in a tile: on the tensor cores, as dot products of lanes, or as sums of a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from kernels.errors import GraphError
from kernels.ir.build import make
from kernels.ir.node import DType, Linear, Node, Op, topological
from kernels.ir.rules import RULES
from kernels.plan import tile, tile_rows
from kernels.plan.expression import Expression
from kernels.plan.index import Index, Term, add, mul, unflat
from kernels.plan.matrix import Matrix, located
from kernels.plan.pack import F32, pack_fragments, rank_columns
from kernels.plan.phases import aligned_view, matrix_view
from kernels.plan.steps import Step, Stream, Value

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder

# Tiles of 8 columns and 16 rows that a warp sums: what fits registers beside the fragments.
_MOST_TILES: Final = 16
# The same of floats, whose fragments take more. More would need a ring of more bytes, too.
_MOST_TILES_OF_FLOATS: Final = 8


def linear(b: TileBuilder, linear: Node, root: Node) -> None:
    """Make the steps of a Linear whose epilogue computes ``root``."""
    assert isinstance(linear.arg, Linear)
    path = {linear}
    for node in topological([root]):
        if not path.isdisjoint(node.sources):
            path.add(node)
    for node in path - {linear}:
        for source in node.sources:
            if source not in path:
                b.place(source)
    if b.takes_fragments(linear):
        _fragment_linear(b, linear, root)
    elif len(linear.dims) == 1 and linear.width <= tile.NARROW:
        _narrow_linear(b, linear, root)
    else:
        _contraction(b, linear, root)


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
    arg = linear.arg
    sources = linear.sources[: arg.n_inputs]
    weight, bias = (each.array.astype(np.float32) for each in linear.sources[arg.n_inputs :])
    groups = linear.dims[0] if arg.grouped else 1
    n = linear.dims[-1]
    views = [_input(b, source) for source in sources]
    value = b.value(linear.width, halves=root in b.wants_halves)
    (b.halves if value.halves else b.floats)[root] = value
    columns = _pass_columns(b, n)
    for group in range(groups):
        matrix = weight[group] if arg.grouped else weight
        offsets = bias[group] if arg.grouped else bias
        for start in range(0, n, columns):
            stop = min(start + columns, n)
            blocks, inputs, first = [], [], 0
            for source, (held, column) in zip(sources, views, strict=True):
                k, before = source.dims[-1], column % held.per_chunk
                block = np.zeros((before + k, stop - start), np.float32)
                block[before:] = matrix[first : first + k, start:stop]
                blocks.append(block)
                inputs.append((held, column - before + group * k))
                first += k
            _fragment_step(
                b,
                linear,
                root,
                value,
                group * n + start,
                Stream(stop - start, tuple(blocks), 4 * views[0][0].per_chunk),
                inputs,
                offsets[start:stop],
            )


def _input(b: TileBuilder, source: Node) -> tuple[Value, int]:
    """Return a value that products can read and that holds a source, and its first column.

    Where columns of a loaded block do not begin at a chunk, the Linear reads from the chunk's
    beginning, with weights of zero before its own.
    """
    view = matrix_view(source)
    if view is not None and len(source.dims) == 1 and view.base in b.halves:
        return b.halves[view.base], view.column
    return half_view(b, source)


def _pass_columns(b: TileBuilder, n: int) -> int:
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
    inputs: Sequence[tuple[Value, int]],
    bias: F32,
) -> None:
    cluster = b.shape.cluster
    ranked = tuple(rank_columns(bias, rank, cluster) for rank in range(cluster))
    bias_at = b.constants.add_ranked(ranked)
    for (held, first), steps in zip(inputs, stream.steps, strict=True):
        held.read_by_products(first + stream.depth * steps)
    written = len(ranked[0]) * cluster
    value.reserve(column + written)
    epilogue, touched = [], list[Value]()
    for bound, offset in (("v0", 0), ("v1", 1)):
        at = unflat(add(Term("c"), column + offset), linear.dims)
        epilogue.append(f"{{ {_epilogue(b, linear, root, at, bound)} }}")
        touched += b.touched
    reads = (*(held for held, _ in inputs), *touched)

    def text() -> str:
        name = f"Linear<Cfg, {stream.n}>"
        rows = "Cfg::R * 16"
        lines = [f"{name}::Sums sums;", f"{name}::clear(sums);"]
        per = value.per_chunk
        end = (column + written) // per
        if end < value.chunks and column + stream.n >= value.width:
            # Before `finish`, where each warp arrives at the gather.
            lines.append(f"zero_chunks(tile, {value.name}, {end}, {value.chunks - end});")
        for (held, first), steps in zip(inputs, stream.steps, strict=True):
            lines.append(
                f"{name}::accumulate<{steps}>(tile, sums, "
                f"{held.name} + {first // held.per_chunk} * {rows}, stream);"
            )
        lines.append(
            f"{name}::finish<{'true' if value.halves else 'false'}>(tile, sums, "
            f"{value.name} + {column // per} * {rows}, constants + {bias_at}, "
            f"[&](int r, int c, float& v0, float& v1) {{ {' '.join(epilogue)} }});"
        )
        return "{ " + " ".join(lines) + " }"

    k = sum(block.shape[0] for block in stream.blocks)
    title = f"linear {k} -> {stream.n}" + ("" if root is linear else f", then {root.op}")
    b.add(Step(title, text, reads, (value,), stream=stream, flops=2 * k * stream.n))


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
    name = b.parameter(matrix)
    kind = "load_columns" if value.halves else "load_floats"

    def text() -> str:
        return (
            f"{kind}<Cfg, {matrix.element}, {value.width}, {value.chunks}, {matrix.ld}, "
            f"{'true' if aligned else 'false'}>(tile, {value.name}, {name}, {column}, "
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


def _narrow_linear(b: TileBuilder, linear: Node, root: Node) -> None:
    assert isinstance(linear.arg, Linear)
    sources = linear.sources[: linear.arg.n_inputs]
    for source in sources:
        b.place(source)
    weight = linear.sources[-2].array.astype(np.float32)
    k, n = weight.shape
    # The columns of each source start at a multiple of 16 bytes.
    starts = [0]
    for source in sources:
        starts.append(starts[-1] + -(-source.width // 4) * 4)
    columns, first = starts[-1], 0
    padded = np.zeros((n, columns), np.float32)
    for source, start in zip(sources, starts, strict=False):
        padded[:, start : start + source.width] = weight[first : first + source.width].T
        first += source.width
    offset = b.constants.add(padded)
    if offset is None:
        _contraction(b, linear, root)
        return
    parts, reads = [], list[Value]()
    for source, start in zip(sources, starts, strict=False):
        one = b.function(source, "int k", unflat(Term("k"), source.dims))
        reads += b.touched
        eight = "[](int, float*) {}"
        if source.width >= 8:
            eight = b.function_of_eight("int k", _element_of(source), "k")
            reads += b.touched
        parts.append(
            f"narrow_part<Cfg, {n}, {source.width}, {columns}>"
            f"(constants + {offset + 4 * start}, part, sum, {eight}, {one});"
        )
    value, store = _result_store(b, linear, root, unflat(Term("n"), linear.dims), Term("n"))
    reads += b.touched
    text = (
        f"narrow_linear<Cfg, {n}>(tile, [&](int r, int part, float* sum) {{ {' '.join(parts)} }}, "
        f"[&](int r, int n, float v) {{ {store} }});"
    )
    b.floats[root] = value
    title = f"narrow linear {k} -> {n}"
    b.add(Step(title, lambda: text, tuple(reads), (value,), flops=2 * k * n))


def _element_of(node: Node) -> Callable[[Expression, Index], str]:
    return lambda scope, place: scope.element(node, unflat(place, node.dims))


def _result_store(
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


def _contraction(b: TileBuilder, linear: Node, root: Node) -> None:
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
    value, store = _result_store(b, linear, root, (*at_outer, Term("n")), place)
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

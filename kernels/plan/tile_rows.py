"""Row programs of a tile: maps, reductions, softmax, products within a row, and writes to memory.

Each is computed eight neighbours at a time where the sources' neighbours lie together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from kernels.errors import GraphError
from kernels.ir.node import DType, Node, Op, TopK
from kernels.plan import tile
from kernels.plan.expression import ELEMENTWISE, MOVEMENT, Expression, literal
from kernels.plan.index import Index, Term, flat, unflat
from kernels.plan.matrix import Matrix, located
from kernels.plan.phases import aligned_view
from kernels.plan.steps import Step, Value

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder

_REDUCTIONS: Final = {
    Op.SUM: ("0.f", "a + b"),
    Op.MEAN: ("0.f", "a + b"),
    Op.PROD: ("1.f", "a * b"),
    Op.REDUCE_MAX: ("-__int_as_float(0x7f800000)", "b > a || b != b ? b : a"),
    Op.REDUCE_MIN: ("__int_as_float(0x7f800000)", "b < a || b != b ? b : a"),
}


def store(b: TileBuilder, node: Node) -> None:
    """Make the step that computes a node into a value.

    Raises:
        GraphError: No tile runs its op.
    """
    if node.op in ELEMENTWISE or node.op in MOVEMENT:
        map_value(b, node)
    elif node.op in _REDUCTIONS:
        _reduce(b, node)
    elif node.op is Op.MATMUL:
        _matmul(b, node)
    elif node.op is Op.SOFTMAX:
        _softmax(b, node)
    elif node.op is Op.TOP_K:
        _top_k(b, node)
    else:
        raise GraphError(f"node {node.name!r}, op {node.op}: no tile runs it")


def map_value(b: TileBuilder, node: Node) -> None:
    """Make the step of an elementwise node, or of a copy in halves of what is stored in floats."""
    halves = node in b.wants_halves and b.has_fragments()
    stored = node in b.floats or node in b.halves
    if not stored:
        for source in node.sources:
            b.place(source)
    is_eight = node.width % 8 == 0 and (
        stored or (node.op not in (Op.CONCAT, Op.TAKE) and all(map(b.is_smooth, node.sources)))
    )
    if is_eight:
        function = b.function_of_eight("int r, int c", _at_place(node), "c")
    else:
        function = b.function(node, "int r, int c", unflat(Term("c"), node.dims))
    reads = tuple(b.touched)
    value = b.value(node.width, halves=halves)
    (b.halves if value.halves else b.floats)[node] = value

    def text() -> str:
        name, width = value.name, value.width
        if is_eight:
            return (
                f"map_eight<Cfg, {width}, {_flag(value.halves)}>(tile, {name}, {function});"
                f"{_zeros(value)}"
            )
        if value.halves:
            return f"map_half<Cfg, {width}, {value.chunks}>(tile, {name}, {function});"
        return f"map_float<Cfg, {width}>(tile, {name}, {function});"

    b.add(Step(f"map {node.op} {list(node.dims)}", text, reads, (value,), flops=node.width))


def _at_place(node: Node) -> Callable[[Expression, Index], str]:
    return lambda scope, place: scope.element(node, unflat(place, node.dims))


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _zeros(value: Value) -> str:
    """Return text that fills the chunks behind a value's columns, which a Linear may read."""
    first = value.width // value.per_chunk
    if not value.halves or first == value.chunks:
        return ""
    return f" zero_chunks(tile, {value.name}, {first}, {value.chunks - first});"


def _reduce(b: TileBuilder, node: Node) -> None:
    source = node.sources[0]
    assert isinstance(node.arg, tuple)
    axes = [axis - 1 for axis in node.arg]
    b.place(source)
    reduced = [source.dims[axis] for axis in axes]
    count = math.prod(reduced)

    def element(scope: Expression, place: Index) -> str:
        inner = iter(unflat(Term("k"), reduced))
        at = list(unflat(place, node.dims))
        for axis in axes:
            at[axis] = next(inner)
        return scope.element(source, tuple(at))

    first, fold = _REDUCTIONS[node.op]
    finish = f"v * {literal(1 / count, DType.FLOAT)}" if node.op is Op.MEAN else "v"
    _fold(b, node, count, element, first, fold, finish, smooth=b.is_smooth(source))


def _matmul(b: TileBuilder, node: Node) -> None:
    left, right = node.sources
    b.store_source(left)
    b.store_source(right)

    def element(scope: Expression, place: Index) -> str:
        at = unflat(place, node.dims)
        one = scope.element(left, (*at[:-1], Term("k")))
        other = scope.element(right, (*at[:-2], Term("k"), at[-1]))
        return f"{one} * {other}"

    smooth = b.is_smooth(left) and b.is_smooth(right)
    _fold(b, node, left.dims[-1], element, "0.f", "a + b", "v", smooth=smooth)


def _fold(
    b: TileBuilder,
    node: Node,
    count: int,
    element: Callable[[Expression, Index], str],
    first: str,
    fold: str,
    finish: str,
    *,
    smooth: bool,
) -> None:
    """Make the step of a fold of ``count`` elements a result; k is the place among them."""
    width, is_eight = node.width, smooth and node.width % 8 == 0
    arguments = "int r, int c, int k"
    if is_eight:
        function = b.function_of_eight(arguments, element, "c")
    else:
        scope = b.expression()
        function = f"[&]({arguments}) -> float {{ {scope.body(element(scope, Term('c')))} }}"
    reads = tuple(b.touched)
    value = b.value(width, halves=is_eight and node in b.wants_halves)
    (b.halves if value.halves else b.floats)[node] = value
    lanes = _lanes(b, width // 8 if is_eight else width, count)

    def text() -> str:
        sizes = f"{width}, {count}, {lanes}"
        kind = f"reduce_eight<Cfg, {sizes}, {_flag(value.halves)}>"
        if not is_eight:
            kind = f"reduce_float<Cfg, {sizes}>"
        return (
            f"{kind}(tile, {value.name}, {first}, {function}, "
            f"[](float a, float b) {{ return {fold}; }}, [](float v) {{ return {finish}; }});"
            f"{_zeros(value)}"
        )

    title = f"{node.op} of {count} {list(node.dims)}"
    b.add(Step(title, text, reads, (value,), flops=2 * count * width))


def _lanes(b: TileBuilder, items: int, count: int) -> int:
    """Threads that share one result: enough to keep the block busy, a power of two."""
    threads, lanes = b.shape.warps * 32, 1
    while lanes < 32 and 2 * lanes <= count and b.shape.rows * items * lanes < threads:
        lanes *= 2
    return lanes


def _along(node: Node, axis: int) -> tuple[int, list[Index]]:
    """Return how many lines along an axis a row has, and the coordinates of element k of line c."""
    outer = [1 if position == axis else dim for position, dim in enumerate(node.dims)]
    at: list[Index] = list(unflat(Term("c"), outer))
    at[axis] = Term("k")
    return math.prod(outer), at


def _softmax(b: TileBuilder, node: Node) -> None:
    source = node.sources[0]
    assert isinstance(node.arg, int)
    b.store_source(source)
    lines, at = _along(node, node.arg - 1)
    count = node.dims[node.arg - 1]
    function = b.function(source, "int r, int c, int k", at)
    value = b.value(node.width, halves=False)
    text = (
        f"softmax<Cfg, {lines}, {count}, {_lanes(b, lines, count)}>(tile, {function}, "
        f"[&](int r, int c, int k, float v) {{ {_element_store(value, node, at)} }});"
    )
    b.floats[node] = value
    title = f"softmax {list(node.dims)}"
    b.add(Step(title, lambda: text, tuple(b.touched), (value,), flops=5 * node.width))


def _top_k(b: TileBuilder, node: Node) -> None:
    source, arg = node.sources[0], node.arg
    assert isinstance(arg, TopK)
    b.store_source(source)
    lines, at = _along(node, arg.axis - 1)
    function = b.function(source, "int r, int c, int k", at)
    value = b.value(node.width, halves=False)
    b.floats[node] = value
    text = (
        f"top_k<Cfg, {lines}, {source.dims[arg.axis - 1]}, {arg.k}, "
        f"{1 if arg.largest else -1}>(tile, {function}, "
        f"[&](int r, int c, int k, float v) {{ {_element_store(value, node, at)} }});"
    )
    b.add(Step(f"top_k {list(node.dims)}", lambda: text, tuple(b.touched), (value,)))


def _element_store(value: Value, node: Node, at: Sequence[Index]) -> str:
    place = flat(at, node.dims)
    return f"store_shared_f32(float_address<Cfg::R>({value.name}, r, {place}), v);"


def pieces(node: Node) -> tuple[Node, ...]:
    """Return the values that lie one after the other in a value's row."""
    if node.op is Op.RESHAPE:
        return pieces(node.sources[0])
    if node.op is Op.CONCAT:
        assert isinstance(node.arg, int)
        if math.prod(node.dims[: node.arg - 1]) == 1:
            return tuple(piece for source in node.sources for piece in pieces(source))
    return (node,)


def write(b: TileBuilder, output: Node) -> None:
    """Make the steps that write an output of the phase to its matrix."""
    target, column = b.targets[output], 0
    for piece in pieces(output):
        _write_piece(b, piece, target, column)
        column += piece.width


def _write_piece(b: TileBuilder, piece: Node, target: Matrix, column: int) -> None:
    """Write columns of a matrix; whole chunks where both sides allow it."""
    found = located(piece, b.matrices)
    of_floats, kind = not b.precision.has_halves, "columns" if b.precision.has_halves else "floats"
    whole = (of_floats or b.has_fragments()) and not (column % 8 or piece.width % 8)
    whole = whole and target.element_bytes == b.precision.item_bytes
    whole = whole and target.row_bytes % 16 == 0
    to = f"{b.parameter(target)}, {column}"
    if whole and found is not None and tile.is_aligned(found.matrix, found.first):
        source, row = found.matrix, "request(r)" if found.requests else "r"
        b.fetch(source, row)
        copy = (
            f"copy_{kind}<Cfg, {source.element}, {piece.width}, {source.ld}, {target.ld}>"
            f"(tile, {to}, {b.parameter(source)}, {found.first}, "
            f"[&](int r) {{ return {b.row_of(source, row)}; }});"
        )
        b.add(Step(f"copy {piece.width} columns", lambda: copy))
        return
    b.place(piece)
    view = aligned_view(piece)
    held = None if view is None else b.halves.get(view.base)
    if whole and held is not None and view is not None:
        chunks = (
            f"store_{kind}<Cfg, {piece.width}, {target.ld}>"
            f"(tile, {to}, {held.name} + {view.column // held.per_chunk} * Cfg::R * 16);"
        )
        b.add(Step(f"write {piece.width} columns", lambda: chunks, (held,)))
        return
    function = b.function(piece, "int r, int c", unflat(Term("c"), piece.dims))
    text = f"map_matrix<Cfg, {target.element}, {piece.width}, {target.ld}>(tile, {to}, {function});"
    b.add(Step(f"write {piece.name}", lambda: text, tuple(b.touched)))

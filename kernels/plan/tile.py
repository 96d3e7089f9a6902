"""A phase of row tiles becomes steps over values in shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.errors import GraphError
from kernels.ir.build import make
from kernels.ir.node import DType, Linear, Node, Op, TopK, topological
from kernels.ir.rules import RULES
from kernels.plan.expression import (
    C_TYPES,
    ELEMENTWISE,
    MOVEMENT,
    Expression,
    literal,
)
from kernels.plan.index import Index, add, mul, unflat
from kernels.plan.matrix import Matrix, located
from kernels.plan.pack import F32, Blob, rank_columns
from kernels.plan.pairs import PairDots, match_pair_dots
from kernels.plan.phases import Phase, aligned_view, matrix_view
from kernels.plan.steps import Constants, Step, Stream, Value
from kernels.program import Precision, Role

# Outputs up to which a Linear is a dot product of a warp rather than a tile of 8 columns.
_NARROW: Final = 4
# Rows of a tensor-core product; smaller tiles compute in fp32 throughout.
_FRAGMENT_ROWS: Final = 16
# Accumulators of a thread, in groups of four: what fits registers beside the fragments.
_MOST_TILES: Final = 16
# A matrix is loaded whole if so much of it is read, and if it leaves room for the rest.
_MOST_OF_A_BLOCK: Final = 0.6
_LARGEST_BLOCK: Final = 65_536
_REDUCTIONS: Final = {
    Op.SUM: ("0.f", "a + b"),
    Op.MEAN: ("0.f", "a + b"),
    Op.PROD: ("1.f", "a * b"),
    Op.REDUCE_MAX: ("-__int_as_float(0x7f800000)", "b > a || b != b ? b : a"),
    Op.REDUCE_MIN: ("__int_as_float(0x7f800000)", "b < a || b != b ? b : a"),
}


@attrs.frozen
class TileShape:
    """How a tile kernel is cut.

    Attributes:
        rows: Of a tile; 16 or more for tensor cores.
        cluster: Blocks that share a tile.
        warps: That consume.
    """

    rows: int
    cluster: int
    warps: int = 8


@attrs.define(eq=False)
class TileBuilder:
    """Makes the steps of one phase. Implements ``expression.Memory``.

    Attributes:
        matrices: What lies in global memory: inputs, and values of earlier phases.
        targets: Where the phase's outputs go.
        globals: Constants too large for shared memory; the kernel gets their address.
        steps: In the order of the graph.
    """

    phase: Phase
    shape: TileShape
    precision: Precision
    matrices: Mapping[Node, Matrix]
    targets: Mapping[Node, Matrix]
    globals: Blob
    steps: list[Step] = attrs.field(factory=list)
    constants: Constants = attrs.field(init=False)
    parameters: dict[Matrix, str] = attrs.field(factory=dict)
    reads_requests: bool = False
    fetched: dict[Matrix, None] = attrs.field(factory=dict)
    _floats: dict[Node, Value] = attrs.field(factory=dict)
    _halves: dict[Node, Value] = attrs.field(factory=dict)
    _readers: dict[Node, list[Node]] = attrs.field(factory=dict)
    _wants_halves: set[Node] = attrs.field(factory=set)
    _pairs: dict[Node, PairDots] = attrs.field(factory=dict)
    _touched: list[Value] = attrs.field(factory=list)
    _n_values: int = 0

    def __attrs_post_init__(self) -> None:
        self.constants = Constants(self.shape.cluster)

    def build(self) -> None:
        """Make all steps.

        Raises:
            GraphError: An op cannot run in a tile.
        """
        nodes = [
            node
            for node in topological(self.phase.outputs)
            if node.lead is self.phase.lead and not self._lies_in_memory(node)
        ]
        for node in nodes:
            for source in dict.fromkeys(node.sources):
                self._readers.setdefault(source, []).append(node)
            if self._takes_fragments(node):
                assert isinstance(node.arg, Linear)
                for source in node.sources[: node.arg.n_inputs]:
                    view = aligned_view(source)
                    self._wants_halves.add(source if view is None else view.base)
            found = match_pair_dots(node) if self._has_fragments() else None
            if found is not None:
                self._pairs[node] = found
        self._load_blocks(nodes)
        for output in self.phase.outputs:
            if self.targets[output].element_bytes == 2 and self._has_fragments():
                self._wants_halves.update(_pieces(output))
        for output in self.phase.outputs:
            self._write(output)

    def _load_blocks(self, nodes: Sequence[Node]) -> None:
        """Load matrices of which most columns are needed, at once, before anything reads them."""
        if not self._has_fragments():
            return
        paired = set(topological(pair.sources[0] for pair in self._pairs))
        used: dict[Node, set[range]] = {}
        for node in nodes:
            if node.op in MOVEMENT or (node.op is Op.MATMUL and node in paired):
                continue
            for source in node.sources:
                view = matrix_view(source)
                if view is not None and view.base in self.matrices:
                    columns = range(view.column, view.column + source.width)
                    used.setdefault(view.base, set()).add(columns)
        for base, ranges in used.items():
            matrix = self.matrices[base]
            n_used = len(set().union(*ranges))
            size = matrix.ld * 2 * self.shape.rows
            if n_used >= _MOST_OF_A_BLOCK * matrix.columns and size <= _LARGEST_BLOCK:
                self._load(base, matrix, 0, requests=False)

    # ---- expression.Memory

    def load(self, node: Node, element: Index, row: str) -> str | None:
        """Return text that loads an element; see ``expression.Memory``."""
        matrix = self.matrices.get(node)
        value = self._floats.get(node) or self._halves.get(node) if row == "r" else None
        if value is not None and matrix is not None and matrix.element == "Float32":
            value = None  # a copy in halves is for tensor cores; others read all its bits
        if value is not None:
            self._touched.append(value)
            if value.halves:
                text = f"load_half<Cfg::R, Cfg::T>({value.name}, r, {element})"
            else:
                text = f"load_float<Cfg::R>({value.name}, r, {element})"
            return _as_type(node.dtype, text)
        if matrix is not None:
            self._fetch(matrix, row)
            name, at = self.parameter(matrix), self.row_of(matrix, row)
            text = f"load_matrix<{matrix.element}, {matrix.ld}>({name}, {at}, {element})"
            return _as_type(node.dtype, text)
        return None

    def table(self, values: Sequence[int | float], dtype: DType, index: Index) -> str:
        """Return text that reads a constant; see ``expression.Memory``."""
        array = np.array(values, np.float32 if dtype is DType.FLOAT else np.int32)
        offset = self.constants.add(array)
        if offset is None:
            start = self.globals.add(array)
            kind = C_TYPES[dtype]
            return f"(({kind} const*)(globals + {start}))[{index}]"
        address = add(mul(index, 4), offset)
        if dtype is DType.FLOAT:
            return f"load_shared_f32(constants + {address})"
        return f"(int)load_shared_u32(constants + {address})"

    def parameter(self, matrix: Matrix) -> str:
        """Return the kernel parameter that points to a matrix."""
        return self.parameters.setdefault(matrix, f"m{len(self.parameters)}")

    def _fetch(self, matrix: Matrix, row: str) -> None:
        """Note that a step reads rows of a matrix where they lie, which is worth a prefetch."""
        if row == "r" and matrix.pointer.role in (Role.USER, Role.CANDIDATE):
            self.fetched[matrix] = None

    def row_of(self, matrix: Matrix, row: str = "r") -> str:
        """Return text for the row of a matrix that tile row ``r`` reads."""
        if row == "r":
            return "tile.row(r)"
        self.reads_requests = True
        return row

    # ---- what lies where

    def _has_fragments(self) -> bool:
        return self.precision is not Precision.FP32 and self.shape.rows >= _FRAGMENT_ROWS

    def _lies_in_memory(self, node: Node) -> bool:
        return node.op in (Op.INPUT, Op.CONST) or node in self.matrices

    def _takes_fragments(self, node: Node) -> bool:
        """Whether a Linear runs on the tensor cores."""
        if node.op is not Op.LINEAR or not self._has_fragments():
            return False
        assert isinstance(node.arg, Linear)
        n = node.dims[-1]
        if node.arg.grouped:
            widths = [source.dims[-1] for source in node.sources[: node.arg.n_inputs]]
            whole = not any(width % 8 for width in widths) and n % (8 * self.shape.cluster) == 0
            return len(node.dims) == 2 and n > _NARROW and whole
        return len(node.dims) == 1 and n > _NARROW

    def _place(self, node: Node) -> None:
        """Make sure that an expression can read ``node``: store it if it must be, else its sources."""
        if self._lies_in_memory(node) or node in self._floats or node in self._halves:
            return
        if node.op is Op.TO_ROWS:
            return  # its source lies in memory, or is movement of what does
        if self._must_store(node):
            self._store(node)
            return
        for source in node.sources:
            self._place(source)

    def _must_store(self, node: Node) -> bool:
        if node.lead is not self.phase.lead:
            return False
        if node in self._pairs or (node.op not in ELEMENTWISE and node.op not in MOVEMENT):
            return True
        if node.op in MOVEMENT:
            return False
        readers = self._readers.get(node, [])
        return len(readers) > 1 or any(reader.width >= 2 * node.width for reader in readers)

    def _store(self, node: Node) -> None:
        """Compute a node into a value, with the elementwise ops before it."""
        if node in self._floats or node in self._halves or self._lies_in_memory(node):
            return
        if node in self._pairs:
            self._pair_dots(node)
        elif node.op is Op.LINEAR:
            self._linear(node, node)
        elif node.op in ELEMENTWISE:
            linear = self._fusable(node)
            if linear is not None:
                self._linear(linear, node)
            else:
                self._map(node)
        elif node.op in _REDUCTIONS:
            self._reduce(node)
        elif node.op is Op.MATMUL:
            self._matmul(node)
        elif node.op is Op.SOFTMAX:
            self._softmax(node)
        elif node.op is Op.TOP_K:
            self._top_k(node)
        elif node.op in MOVEMENT:
            self._map(node)
        else:
            raise GraphError(f"node {node.name!r}, op {node.op}: no tile runs it")
        if node in self._wants_halves and node not in self._halves:
            self._map(node)

    def _store_source(self, node: Node) -> None:
        """Place what a step reads many times: an expression that is worth it is stored."""
        if self._lies_in_memory(node) or node in self._floats or node in self._halves:
            return
        if node.op in MOVEMENT:
            for source in node.sources:
                self._store_source(source)
        elif node.op is not Op.TO_ROWS:
            self._store(node)

    def _fusable(self, root: Node) -> Node | None:
        """Find the Linear whose epilogue can be all elementwise ops up to ``root``."""
        found: list[Node] = []

        def visit(node: Node) -> None:
            for source in node.sources:
                if source.width != root.width or source.dims != root.dims:
                    continue
                if self._readers.get(source) != [node] or source in self._floats:
                    continue
                if source.op is Op.LINEAR and not self._lies_in_memory(source):
                    found.append(source)
                elif source.op in ELEMENTWISE and not self._lies_in_memory(source):
                    visit(source)

        visit(root)
        return max(found, key=lambda each: each.sources[-2].width, default=None)

    # ---- steps

    def value(self, width: int, *, halves: bool) -> Value:
        """Make a value with a name of its own."""
        self._n_values += 1
        return Value(f"value{self._n_values}", halves and self._has_fragments(), width)

    def _expression(self) -> Expression:
        self._touched = []
        return Expression(self)

    def _function(
        self, node: Node, arguments: str, coordinates: Sequence[Index], result: str = "float"
    ) -> str:
        """Return a lambda that computes an element of ``node``."""
        expression = self._expression()
        text = expression.body(expression.element(node, tuple(coordinates)))
        return f"[&]({arguments}) -> {result} {{ {text} }}"

    def _add(self, step: Step) -> None:
        self.steps.append(step)

    def _write(self, output: Node) -> None:
        """Write an output of the phase to its matrix."""
        target, column = self.targets[output], 0
        for piece in _pieces(output):
            self._write_piece(piece, target, column)
            column += piece.width

    def _write_piece(self, piece: Node, target: Matrix, column: int) -> None:
        """Write columns of a matrix; whole chunks where both sides allow it."""
        found = located(piece, self.matrices)
        whole = self._has_fragments() and not (column % 8 or piece.width % 8)
        whole = whole and target.element_bytes == 2 and target.row_bytes % 16 == 0
        to = f"{self.parameter(target)}, {column}"
        if whole and found is not None and _is_aligned(found.matrix, found.first):
            source = found.matrix
            self._fetch(source, "request(r)" if found.requests else "r")
            row = self.row_of(source, "request(r)" if found.requests else "r")
            text = (
                f"copy_columns<Cfg, {source.element}, {piece.width}, {source.ld}, {target.ld}>"
                f"(tile, {to}, {self.parameter(source)}, {found.first}, "
                f"[&](int r) {{ return {row}; }});"
            )
            self._add(Step(f"copy {piece.width} columns", lambda: text))
            return
        self._place(piece)
        view = aligned_view(piece)
        held = None if view is None else self._halves.get(view.base)
        if whole and held is not None and view is not None:
            first = view.column // 8
            text = (
                f"store_columns<Cfg, {piece.width}, {target.ld}>"
                f"(tile, {to}, {held.name} + {first} * Cfg::R * 16);"
            )
            self._add(Step(f"write {piece.width} columns", lambda: text, (held,)))
            return
        function = self._function(piece, "int r, int c", unflat("c", piece.dims))
        text = (
            f"map_matrix<Cfg, {target.element}, {piece.width}, {target.ld}>"
            f"(tile, {to}, {function});"
        )
        self._add(Step(f"write {piece.name}", lambda: text, tuple(self._touched)))

    def _map(self, node: Node) -> None:
        halves = node in self._wants_halves and self._has_fragments()
        if not (node in self._floats or node in self._halves):
            for source in node.sources:
                self._place(source)
        function = self._function(node, "int r, int c", unflat("c", node.dims))
        reads = tuple(self._touched)
        value = self.value(node.width, halves=halves)
        (self._halves if value.halves else self._floats)[node] = value

        def text() -> str:
            if value.halves:
                sizes = f"{value.width}, {value.chunks}"
                return f"map_half<Cfg, {sizes}>(tile, {value.name}, {function});"
            return f"map_float<Cfg, {value.width}>(tile, {value.name}, {function});"

        self._add(Step(f"map {node.op} {list(node.dims)}", text, reads, (value,), flops=node.width))

    def _reduce(self, node: Node) -> None:
        source = node.sources[0]
        assert isinstance(node.arg, tuple)
        axes = [axis - 1 for axis in node.arg]
        self._place(source)
        reduced = [source.dims[axis] for axis in axes]
        count = math.prod(reduced)
        inner = iter(unflat("k", reduced))
        at = list(unflat("c", node.dims))
        for axis in axes:
            at[axis] = next(inner)
        function = self._function(source, "int r, int c, int k", at)
        first, fold = _REDUCTIONS[node.op]
        finish = f"v * {literal(1 / count, DType.FLOAT)}" if node.op is Op.MEAN else "v"
        self._fold(node, count, function, first, fold, finish, count)

    def _fold(
        self, node: Node, count: int, function: str, first: str, fold: str, finish: str, flops: int
    ) -> None:
        value = self.value(node.width, halves=False)
        reads = tuple(self._touched)
        self._floats[node] = value
        text = (
            f"reduce_float<Cfg, {node.width}, {count}, {self._lanes(node.width, count)}>"
            f"(tile, {value.name}, {first}, {function}, "
            f"[](float a, float b) {{ return {fold}; }}, [](float v) {{ return {finish}; }});"
        )
        title = f"{node.op} of {count} {list(node.dims)}"
        self._add(Step(title, lambda: text, reads, (value,), flops=flops * node.width))

    def _lanes(self, width: int, count: int) -> int:
        """Threads that share one result: enough to keep the block busy, a power of two."""
        threads, lanes = self.shape.warps * 32, 1
        while lanes < 32 and 2 * lanes <= count and self.shape.rows * width * lanes < threads:
            lanes *= 2
        return lanes

    def _matmul(self, node: Node) -> None:
        a, b = node.sources
        self._store_source(a)
        self._store_source(b)
        at = unflat("c", node.dims)
        expression = self._expression()
        left = expression.element(a, (*at[:-1], "k"))
        right = expression.element(b, (*at[:-2], "k", at[-1]))
        body = expression.body(f"{left} * {right}")
        function = f"[&](int r, int c, int k) -> float {{ {body} }}"
        count = a.dims[-1]
        self._fold(node, count, function, "0.f", "a + b", "v", 2 * count)

    def _softmax(self, node: Node) -> None:
        source = node.sources[0]
        assert isinstance(node.arg, int)
        axis = node.arg - 1
        self._store_source(source)
        outer = [1 if position == axis else dim for position, dim in enumerate(node.dims)]
        at = list(unflat("c", outer))
        at[axis] = "k"
        function = self._function(source, "int r, int c, int k", at)
        value = self.value(node.width, halves=False)
        count, width = node.dims[axis], math.prod(outer)
        store = self._element_store(value, node, at)
        text = (
            f"softmax<Cfg, {width}, {count}, {self._lanes(width, count)}>(tile, {function}, "
            f"[&](int r, int c, int k, float v) {{ {store} }});"
        )
        reads = tuple(self._touched)
        self._floats[node] = value
        self._add(
            Step(f"softmax {list(node.dims)}", lambda: text, reads, (value,), flops=5 * node.width)
        )

    def _element_store(self, value: Value, node: Node, at: Sequence[Index]) -> str:
        place: Index = 0
        for position, index in enumerate(at):
            place = add(place, mul(index, math.prod(node.dims[position + 1 :])))
        return f"store_shared_f32(float_address<Cfg::R>({value.name}, r, {place}), v);"

    def _top_k(self, node: Node) -> None:
        source, arg = node.sources[0], node.arg
        assert isinstance(arg, TopK)
        axis = arg.axis - 1
        self._store_source(source)
        outer = [1 if position == axis else dim for position, dim in enumerate(node.dims)]
        at = list(unflat("c", outer))
        at[axis] = "k"
        function = self._function(source, "int r, int c, int k", at)
        reads = tuple(self._touched)
        value = self.value(node.width, halves=False)
        self._floats[node] = value
        store = self._element_store(value, node, at)
        text = (
            f"top_k<Cfg, {math.prod(outer)}, {source.dims[axis]}, {arg.k}, "
            f"{1 if arg.largest else -1}>(tile, {function}, "
            f"[&](int r, int c, int k, float v) {{ {store} }});"
        )
        self._add(Step(f"top_k {list(node.dims)}", lambda: text, reads, (value,)))

    # ---- Linears

    def _linear(self, linear: Node, root: Node) -> None:
        """Make the steps of a Linear whose epilogue computes ``root``."""
        assert isinstance(linear.arg, Linear)
        path = {linear}
        for node in topological([root]):
            if not path.isdisjoint(node.sources):
                path.add(node)
        for node in path - {linear}:
            for source in node.sources:
                if source not in path:
                    self._place(source)
        if self._takes_fragments(linear):
            self._fragment_linear(linear, root)
        elif len(linear.dims) == 1 and linear.width <= _NARROW:
            self._narrow_linear(linear, root)
        else:
            self._contraction(linear, root)

    def _epilogue(
        self,
        linear: Node,
        root: Node,
        at: Sequence[Index],
        bound: str,
        expression: Expression | None = None,
    ) -> str:
        """Return statements, the last of them ``bound = result``, for one element."""
        assert isinstance(linear.arg, Linear)
        expression = expression or self._expression()
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

    def _fragment_linear(self, linear: Node, root: Node) -> None:
        assert isinstance(linear.arg, Linear)
        arg = linear.arg
        sources = linear.sources[: arg.n_inputs]
        weight, bias = (each.array.astype(np.float32) for each in linear.sources[arg.n_inputs :])
        groups = linear.dims[0] if arg.grouped else 1
        n = linear.dims[-1]
        views = [self._half_view(source) for source in sources]
        value = self.value(linear.width, halves=root in self._wants_halves)
        (self._halves if value.halves else self._floats)[root] = value
        columns = self._pass_columns(n)
        for group in range(groups):
            matrix = weight[group] if arg.grouped else weight
            offsets = bias[group] if arg.grouped else bias
            for start in range(0, n, columns):
                stop = min(start + columns, n)
                blocks, inputs, first = [], [], 0
                for source, (held, column) in zip(sources, views, strict=True):
                    k = source.dims[-1]
                    blocks.append(np.ascontiguousarray(matrix[first : first + k, start:stop]))
                    inputs.append((held, column + group * k))
                    first += k
                self._fragment_step(
                    linear,
                    root,
                    value,
                    group * n + start,
                    Stream(stop - start, tuple(blocks)),
                    inputs,
                    offsets[start:stop],
                )

    def _pass_columns(self, n: int) -> int:
        """Columns that one pass of a Linear computes: its sums must fit registers."""
        tiles = _MOST_TILES * 16 // self.shape.rows * self.shape.warps
        return min(n, tiles * 8 * self.shape.cluster)

    def _fragment_step(
        self,
        linear: Node,
        root: Node,
        value: Value,
        column: int,
        stream: Stream,
        inputs: Sequence[tuple[Value, int]],
        bias: F32,
    ) -> None:
        cluster = self.shape.cluster
        ranked = tuple(rank_columns(bias, rank, cluster) for rank in range(cluster))
        bias_at = self.constants.add_ranked(ranked)
        for (held, first), steps in zip(inputs, stream.steps, strict=True):
            held.reserve(first + 32 * steps)
        written = len(ranked[0]) * cluster
        value.reserve(column + written)
        epilogue = []
        for bound, offset in (("v0", 0), ("v1", 1)):
            at = unflat(add("c", column + offset), linear.dims)
            epilogue.append(f"{{ {self._epilogue(linear, root, at, bound)} }}")
            touched = self._touched if offset == 0 else touched
        reads = (*(held for held, _ in inputs), *touched)

        def text() -> str:
            name = f"Linear<Cfg, {stream.n}>"
            rows = "Cfg::R * 16"
            lines = [f"{name}::Sums sums;", f"{name}::clear(sums);"]
            for (held, first), steps in zip(inputs, stream.steps, strict=True):
                lines.append(
                    f"{name}::accumulate<{steps}>(tile, sums, "
                    f"{held.name} + {first // 8} * {rows}, stream);"
                )
            per = value.per_chunk
            lines.append(
                f"{name}::finish<{'true' if value.halves else 'false'}>(tile, sums, "
                f"{value.name} + {column // per} * {rows}, constants + {bias_at}, "
                f"[&](int r, int c, float& v0, float& v1) {{ {' '.join(epilogue)} }});"
            )
            end = (column + written) // per
            if end < value.chunks and column + stream.n >= value.width:
                lines.append(f"zero_chunks(tile, {value.name}, {end}, {value.chunks - end});")
            return "{ " + " ".join(lines) + " }"

        k = sum(block.shape[0] for block in stream.blocks)
        title = f"linear {k} -> {stream.n}" + ("" if root is linear else f", then {root.op}")
        self._add(Step(title, text, reads, (value,), stream=stream, flops=2 * k * stream.n))

    def _half_view(self, source: Node) -> tuple[Value, int]:
        """Return a value of halves that holds a Linear's source, and its first column."""
        if source in self._halves:
            return self._halves[source], 0
        view = aligned_view(source)
        if view is not None and view.base in self._halves:
            return self._halves[view.base], view.column
        if view is not None and not self._lies_in_memory(view.base):
            self._wants_halves.add(view.base)
            if view.base in self._floats and view.base not in self._halves:
                self._map(view.base)
            self._store(view.base)
            return self._halves[view.base], view.column
        if source in self._pairs:
            self._wants_halves.add(source)
            self._store(source)
            return self._halves[source], 0
        located = self._located(source)
        if located is not None and not self._is_loaded(source):
            matrix, column, requests = located
            return self._load(source, matrix, column, requests=requests), 0
        self._wants_halves.add(source)
        for each in source.sources:
            self._place(each)
        self._map(source)
        return self._halves[source], 0

    def _is_loaded(self, node: Node) -> bool:
        """Whether the matrix that a node is moved from lies in shared memory as well."""
        view = matrix_view(node)
        return view is not None and view.base in self._halves

    def _located(self, node: Node) -> tuple[Matrix, int, bool] | None:
        """Find consecutive columns of a matrix in global memory, maybe of requests."""
        found = located(node, self.matrices)
        return None if found is None else (found.matrix, found.first, found.requests)

    def _load(self, source: Node, matrix: Matrix, column: int, *, requests: bool) -> Value:
        value = self.value(source.width, halves=True)
        self._halves[source] = value
        row = self.row_of(matrix, "request(r)" if requests else "r")
        aligned = _is_aligned(matrix, column)
        name = self.parameter(matrix)

        def text() -> str:
            return (
                f"load_columns<Cfg, {matrix.element}, {value.width}, {value.chunks}, {matrix.ld}, "
                f"{'true' if aligned else 'false'}>(tile, {value.name}, {name}, {column}, "
                f"[&](int r) {{ return {row}; }});"
            )

        self._add(Step(f"load {value.width} columns", text, (), (value,), loads=True))
        return value

    def _joined(self, linear: Node) -> Node:
        """Return a Linear's sources as one value, which is never stored."""
        assert isinstance(linear.arg, Linear)
        sources = linear.sources[: linear.arg.n_inputs]
        for source in sources:
            self._place(source)
        if len(sources) == 1:
            return sources[0]
        return make(Op.CONCAT, *sources, arg=len(sources[0].shape) - 1)

    def _narrow_linear(self, linear: Node, root: Node) -> None:
        assert isinstance(linear.arg, Linear)
        joined = self._joined(linear)
        weight = linear.sources[-2].array.astype(np.float32)
        offset = self.constants.add(np.ascontiguousarray(weight.T))
        if offset is None:
            self._contraction(linear, root)
            return
        n, k = linear.width, weight.shape[0]
        function = self._function(joined, "int r, int k", unflat("k", joined.dims))
        reads = list(self._touched)
        value, store = self._result_store(linear, root, unflat("n", linear.dims), "n")
        text = (
            f"narrow_linear<Cfg, {n}, {k}>(tile, constants + {offset}, {function}, "
            f"[&](int r, int n, float v) {{ {store} }});"
        )
        reads += self._touched
        self._floats[root] = value
        title = f"narrow linear {k} -> {n}"
        self._add(Step(title, lambda: text, tuple(reads), (value,), flops=2 * k * n))

    def _result_store(
        self, linear: Node, root: Node, at: Sequence[Index], place: Index
    ) -> tuple[Value, str]:
        """Return where ``root`` goes, and statements that make it of a sum ``v`` and store it."""
        value = self.value(linear.width, halves=False)
        expression = self._expression()
        bias = linear.sources[-1]
        offset = expression.element(bias, tuple(at[len(at) - len(bias.dims) :]))
        expression.lines.append(f"v += {offset};")
        epilogue = self._epilogue(linear, root, at, "v", expression)
        store = f"store_shared_f32(float_address<Cfg::R>({value.name}, r, {place}), v);"
        return value, f"{epilogue} {store}"

    def _contraction(self, linear: Node, root: Node) -> None:
        assert isinstance(linear.arg, Linear)
        joined = self._joined(linear)
        if joined.op is not Op.CONCAT:
            self._store_source(joined)
        weight = linear.sources[-2].array.astype(np.float32)
        start = self.globals.add(weight)
        *outer, n = linear.dims
        k, groups = joined.dims[-1], math.prod(outer)
        at_outer = unflat("g", outer)
        function = self._function(joined, "int r, int g, int k", (*at_outer, "k"))
        reads = list(self._touched)
        place = add(mul("g", n), "n")
        value, store = self._result_store(linear, root, (*at_outer, "n"), place)
        grouped = "true" if linear.arg.grouped else "false"
        if linear.arg.grouped and len(outer) != 1:
            raise GraphError(f"node {linear.name!r}, op linear: groups within a sequence")
        text = (
            f"contract<Cfg, {groups}, {n}, {k}, {grouped}>(tile, (const float*)(globals + {start}), "
            f"{function}, [&](int r, int g, int n, float v) {{ {store} }});"
        )
        reads += self._touched
        self._floats[root] = value
        title = f"contraction {groups} x {k} -> {n}"
        self._add(Step(title, lambda: text, tuple(reads), (value,), flops=2 * k * n * groups))

    # ---- pairs

    def _pair_dots(self, node: Node) -> None:
        pairs = self._pairs[node]
        fetches, lines = [], []
        first = 0
        for piece in pairs.pieces:
            count = piece.dims[0] if len(piece.dims) == 2 else piece.width // pairs.dim
            located = self._located(piece)
            held: Value | None = None
            if located is not None and located[1] % 8 == 0 and located[0].row_bytes % 16 == 0:
                matrix, column, requests = located
                row = "request(r)" if requests else "r"
                self._fetch(matrix, row)
                row = self.row_of(matrix, row)
                fetch = (
                    f"load_eight<Cfg::T, {matrix.element}>({self.parameter(matrix)} + "
                    f"((u64){row} * {matrix.ld} + {column} + (v - {first}) * {pairs.dim} + "
                    f"part * {pairs.dim // 4} + CHUNK) * {matrix.element_bytes})"
                )
            else:
                held, column = self._half_view(piece)
                fetches.append(held)
                fetch = (
                    f"chunk_of<Cfg::R>({held.name}, r, {column} + (v - {first}) * {pairs.dim} + "
                    f"part * {pairs.dim // 4} + CHUNK)"
                )
            puts = (
                f"put_words(f + {4 * i}, {fetch.replace('CHUNK', str(8 * i))});"
                for i in range(pairs.dim // 32)
            )
            lines.append(f"if (v < {first + count}) {{ {' '.join(puts)} }}")
            first += count
        value = self.value(node.width, halves=node in self._wants_halves)
        (self._halves if value.halves else self._floats)[node] = value
        table = np.full(pairs.n * pairs.n, -1, np.int32)
        for place, (i, j) in enumerate(pairs.pairs):
            table[i * pairs.n + j] = place
        direct = pairs.pairs == tuple((i, j) for i in range(pairs.n) for j in range(i))
        where = "i * (i - 1) / 2 + j"
        if not direct:
            where = self.table(table.tolist(), DType.INT, f"(i * {pairs.n} + j)")
        store = (
            f"store_shared_u16(half_address<Cfg::R>({value.name}, r, c), (u16)Cfg::T::pack2(dot, 0.f));"
            if value.halves
            else f"store_shared_f32(float_address<Cfg::R>({value.name}, r, c), dot);"
        )

        def text() -> str:
            zeros = ""
            if value.halves and value.columns > value.width:
                zeros = (
                    f"for (int r = tile.warp; r < Cfg::R; r += Cfg::NW) "
                    f"for (int c = {value.width} + tile.lane; c < {value.columns}; c += 32) "
                    f"store_shared_u16(half_address<Cfg::R>({value.name}, r, c), 0);"
                )
            diagonal = "true" if any(i == j for i, j in pairs.pairs) else "false"
            body = " else ".join(lines)
            return (
                f"pair_dots<Cfg, {pairs.n}, {pairs.dim}, {diagonal}>(tile, "
                f"[&](int r, int v, int part, u32* f) {{ {body} }}, "
                f"[&](int r, int i, int j, float dot) {{ const int c = {where}; "
                f"if ({'true' if direct else 'c >= 0'}) {store} }}); {zeros}"
            )

        flops = 2 * pairs.n * pairs.n * pairs.dim
        title = f"pair dots {pairs.n} x {pairs.dim}"
        self._add(Step(title, text, tuple(fetches), (value,), flops=flops))


def _as_type(dtype: DType, text: str) -> str:
    return text if dtype is DType.FLOAT else f"(int){text}"


def _pieces(node: Node) -> tuple[Node, ...]:
    """Return the values that lie one after the other in a value's row."""
    if node.op is Op.RESHAPE:
        return _pieces(node.sources[0])
    if node.op is Op.CONCAT and math.prod(node.dims[: _axis(node)]) == 1:
        return tuple(piece for source in node.sources for piece in _pieces(source))
    return (node,)


def _axis(node: Node) -> int:
    assert isinstance(node.arg, int)
    return node.arg - 1


def _is_aligned(matrix: Matrix, column: int) -> bool:
    """Whether 16-byte accesses may begin at a column of every row."""
    return not (column * matrix.element_bytes % 16 or matrix.row_bytes % 16)

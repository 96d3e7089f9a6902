"""A phase of row tiles becomes steps over values in shared memory.

What is stored and what is computed where it is read is decided here; the steps themselves are made
by ``tile_rows.py``, ``tile_linear.py`` and ``pairs.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.ir.node import DType, Linear, Node, Op, topological
from kernels.plan import tile_linear, tile_rows
from kernels.plan.expression import C_TYPES, ELEMENTWISE, MOVEMENT, Expression
from kernels.plan.gather import Gather
from kernels.plan.index import Index, Term, add, mul
from kernels.plan.matrix import Matrix
from kernels.plan.pack import Blob
from kernels.plan.pairs import PairDots, match_pair_dots, pair_dots
from kernels.plan.phases import Phase, aligned_view, matrix_view
from kernels.plan.shape import TileShape
from kernels.plan.steps import Constants, Step, Value
from kernels.program import Precision, Role

EIGHT: Final = 8
"""Neighbours that a row program computes at once: 16 bytes of halves."""

NARROW: Final = 4
"""Outputs up to which a Linear is a dot product of lanes rather than a tile of 8 columns."""

# Rows of a tensor-core product; smaller tiles store floats throughout.
_FRAGMENT_ROWS: Final = 16
# A matrix is loaded whole if so much of it is read, and if it leaves room for the rest.
_MOST_OF_A_BLOCK: Final = 0.6
_LARGEST_BLOCK: Final = 65_536


@attrs.define(eq=False)
class TileBuilder:
    """Makes the steps of one phase. Implements ``expression.Memory``.

    Attributes:
        matrices: What lies in global memory: inputs, and values of earlier phases.
        targets: Where the phase's outputs go.
        globals: Constants too large for shared memory; the kernel gets their address.
        gathers: Blocks that the tile makes its rows of before anything else.
        steps: In the order of the graph.
        floats: What is stored as floats.
        halves: What is stored as the tensor cores read it: halves, or, in a precision that stores
            floats, ``floats`` itself.
    """

    phase: Phase
    shape: TileShape
    precision: Precision
    matrices: Mapping[Node, Matrix]
    targets: Mapping[Node, Matrix]
    globals: Blob
    gathers: Sequence[Gather] = ()
    steps: list[Step] = attrs.field(factory=list)
    constants: Constants = attrs.field(init=False)
    parameters: dict[Matrix, str] = attrs.field(factory=dict)
    reads_requests: bool = False
    fetched: dict[Matrix, None] = attrs.field(factory=dict)
    floats: dict[Node, Value] = attrs.field(factory=dict)
    halves: dict[Node, Value] = attrs.field(factory=dict)
    readers: dict[Node, list[Node]] = attrs.field(factory=dict)
    wants_halves: set[Node] = attrs.field(factory=set)
    pairs: dict[Node, PairDots] = attrs.field(factory=dict)
    touched: list[Value] = attrs.field(factory=list)
    _n_values: int = 0

    def __attrs_post_init__(self) -> None:
        self.constants = Constants(self.shape.cluster)
        if not self.precision.has_halves:
            self.halves = self.floats

    def build(self) -> None:
        """Make all steps.

        Raises:
            GraphError: An op cannot run in a tile.
        """
        nodes = [
            node
            for node in topological(self.phase.outputs)
            if node.lead is self.phase.lead and not self.lies_in_memory(node)
        ]
        for node in nodes:
            for source in dict.fromkeys(node.sources):
                self.readers.setdefault(source, []).append(node)
            if self.takes_fragments(node):
                assert isinstance(node.arg, Linear)
                for source in node.sources[: node.arg.n_inputs]:
                    view = aligned_view(source)
                    self.wants_halves.add(source if view is None else view.base)
            found = match_pair_dots(node) if self.has_fragments() else None
            if found is not None:
                self.pairs[node] = found
        self._load_blocks(nodes)
        for output in self.phase.outputs:
            if self.targets[output].element_bytes == 2 and self.has_fragments():
                self.wants_halves.update(tile_rows.pieces(output))
        for output in self.phase.outputs:
            tile_rows.write(self, output)

    def _load_blocks(self, nodes: Sequence[Node]) -> None:
        """Load matrices of which most columns are needed, at once, before anything reads them."""
        if not self.has_fragments():
            return
        paired = set(topological(pair.sources[0] for pair in self.pairs))
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
            size = matrix.ld * self.precision.item_bytes * self.shape.rows
            if n_used >= _MOST_OF_A_BLOCK * matrix.columns and size <= _LARGEST_BLOCK:
                tile_linear.load(self, base, matrix, 0, requests=False)

    # ---- expression.Memory

    def load(self, node: Node, element: Index, row: str, scope: Expression) -> str | None:
        """Return text that loads an element; see ``expression.Memory``."""
        matrix = self.matrices.get(node)
        value = self.floats.get(node) or self.halves.get(node) if row == "r" else None
        if value is not None and value.halves and matrix is not None and matrix.element_bytes != 2:
            value = None  # a copy in halves is for tensor cores; others read all its bits
        if value is not None:
            self.touched.append(value)
            return _as_type(node.dtype, _load_value(value, element, scope))
        if matrix is not None:
            self.fetch(matrix, row)
            name, at = self.parameter(matrix), self.row_of(matrix, row)
            return _as_type(node.dtype, _load_matrix(matrix, name, at, element, scope))
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

    def fetch(self, matrix: Matrix, row: str) -> None:
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

    def has_fragments(self) -> bool:
        """Whether the tile's rows are those of products on the tensor cores."""
        return self.shape.rows >= _FRAGMENT_ROWS

    def lies_in_memory(self, node: Node) -> bool:
        """Whether a value is there before the phase begins."""
        return node.op in (Op.INPUT, Op.CONST) or node in self.matrices

    def takes_fragments(self, node: Node) -> bool:
        """Whether a Linear runs on the tensor cores."""
        if node.op is not Op.LINEAR or not self.has_fragments():
            return False
        assert isinstance(node.arg, Linear)
        n = node.dims[-1]
        if node.arg.grouped:
            widths = [source.dims[-1] for source in node.sources[: node.arg.n_inputs]]
            whole = not any(width % 8 for width in widths) and n % self.shape.quantum == 0
            return len(node.dims) == 2 and n > NARROW and whole
        return len(node.dims) == 1 and n > NARROW

    def place(self, node: Node) -> None:
        """Let expressions read ``node``: store it if it must be, else what it is computed from."""
        if self.lies_in_memory(node) or node in self.floats or node in self.halves:
            return
        if node.op is Op.TO_ROWS:
            return  # its source lies in memory, or is movement of what does
        if self._must_store(node):
            self.store(node)
            return
        for source in node.sources:
            self.place(source)

    def _must_store(self, node: Node) -> bool:
        if node.lead is not self.phase.lead:
            return False
        if node in self.pairs or (node.op not in ELEMENTWISE and node.op not in MOVEMENT):
            return True
        if node.op in MOVEMENT:
            return False
        readers = self.readers.get(node, [])
        return len(readers) > 1 or any(reader.width >= 2 * node.width for reader in readers)

    def store(self, node: Node) -> None:
        """Compute a node into a value, with the elementwise ops before it."""
        if node in self.floats or node in self.halves or self.lies_in_memory(node):
            return
        if node in self.pairs:
            pair_dots(self, node)
        elif node.op is Op.LINEAR:
            tile_linear.linear(self, node, node)
        elif node.op in ELEMENTWISE and (fused := self.fusable(node)) is not None:
            tile_linear.linear(self, fused, node)
        else:
            tile_rows.store(self, node)
        if node in self.wants_halves and node not in self.halves:
            tile_rows.map_value(self, node)

    def store_source(self, node: Node) -> None:
        """Place what a step reads many times: an expression that is worth it is stored."""
        if self.lies_in_memory(node) or node in self.floats or node in self.halves:
            return
        if node.op in MOVEMENT:
            for source in node.sources:
                self.store_source(source)
        elif node.op is not Op.TO_ROWS:
            self.store(node)

    def fusable(self, root: Node) -> Node | None:
        """Find the Linear whose epilogue can be all elementwise ops up to ``root``."""
        found: list[Node] = []

        def visit(node: Node) -> None:
            for source in node.sources:
                if source.width != root.width or source.dims != root.dims:
                    continue
                if self.readers.get(source) != [node] or source in self.floats:
                    continue
                if source.op is Op.LINEAR and not self.lies_in_memory(source):
                    found.append(source)
                elif source.op in ELEMENTWISE and not self.lies_in_memory(source):
                    visit(source)

        visit(root)
        return max(found, key=lambda each: each.sources[-2].width, default=None)

    # ---- helpers of steps

    def value(self, width: int, *, halves: bool) -> Value:
        """Make a value with a name of its own."""
        self._n_values += 1
        halves = halves and self.precision.has_halves and self.has_fragments()
        return Value(f"value{self._n_values}", halves, width)

    def expression(self) -> Expression:
        """Begin an expression; the values that it loads are noted in ``touched``."""
        self.touched = []
        return Expression(self)

    def function(
        self, node: Node, arguments: str, coordinates: Sequence[Index], result: str = "float"
    ) -> str:
        """Return a lambda that computes an element of ``node``."""
        expression = self.expression()
        text = expression.body(expression.element(node, tuple(coordinates)))
        return f"[&]({arguments}) -> {result} {{ {text} }}"

    def function_of_eight(
        self, arguments: str, element: Callable[[Expression, Index], str], place: str
    ) -> str:
        """Return a lambda that leaves eight neighbours, from ``place`` on, in ``v``."""
        expression = self.expression()
        results = [element(expression, Term(place, j, EIGHT)) for j in range(EIGHT)]
        stores = " ".join(f"v[{j}] = {result};" for j, result in enumerate(results))
        return f"[&]({arguments}, float* v) {{ {' '.join(expression.lines)} {stores} }}"

    def is_smooth(self, node: Node) -> bool:
        """Whether eight neighbours of an inline expression come from neighbours."""
        if self.lies_in_memory(node) or node in self.floats or node in self.halves:
            return True
        if node.op in (Op.CONCAT, Op.TAKE):
            return False
        return all(self.is_smooth(source) for source in node.sources)

    def add(self, step: Step) -> None:
        """Append a step; in it, zeros are put behind floats that products will read."""
        floats = [value for value in step.writes if not value.halves]
        if floats and step.stream is None and not step.loads:
            text = step.text
            step.text = lambda: text() + "".join(map(_zeros_behind, floats))
        self.steps.append(step)


def _zeros_behind(value: Value) -> str:
    if value.read_to <= value.width:
        return ""
    return f" zero_floats<Cfg, {value.width}, {value.read_to}>(tile, {value.name});"


def _load_value(value: Value, element: Index, scope: Expression) -> str:
    first = _first_of(element, value.per_chunk)
    if first is None:
        kind = "load_half<Cfg::R, Cfg::T>" if value.halves else "load_float<Cfg::R>"
        return f"{kind}({value.name}, r, {element})"
    start, place = first
    if value.halves:
        held = scope.shared("U32x4", f"chunk_of<Cfg::R>({value.name}, r, {start})")
        return f"half_of<Cfg::T, {place}>({held})"
    held = scope.shared("F32x4", f"floats_of<Cfg::R>({value.name}, r, {start})")
    return f"{held}.{'xyzw'[place]}"


def _load_matrix(matrix: Matrix, name: str, row: str, element: Index, scope: Expression) -> str:
    first = _first_of(element, 16 // matrix.element_bytes)
    if first is None or not is_aligned(matrix, 0):
        return f"load_matrix<{matrix.element}, {matrix.ld}>({name}, {row}, {element})"
    start, place = first
    at = f"{name} + ((u64){row} * {matrix.ld} + {start}) * {matrix.element_bytes}"
    held = scope.shared("U32x4", f"load_global_u32x4({at})")
    if matrix.element_bytes == 2:
        return f"half_of<{matrix.element}, {place}>({held})"
    return f"__uint_as_float({held}.{'xyzw'[place]})"


def _first_of(element: Index, n: int) -> tuple[Index, int] | None:
    """Split a place into that of its chunk of ``n``, and the place within; None if unknown."""
    if isinstance(element, int) or element.multiple % n:
        return None
    return attrs.evolve(element, offset=element.offset // n * n), element.offset % n


def _as_type(dtype: DType, text: str) -> str:
    return text if dtype is DType.FLOAT else f"(int){text}"


def is_aligned(matrix: Matrix, column: int) -> bool:
    """Whether 16-byte accesses may begin at a column of every row."""
    return not (column * matrix.element_bytes % 16 or matrix.row_bytes % 16)

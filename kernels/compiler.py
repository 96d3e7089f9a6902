"""A dense graph and a bucket become a program: phases, their kernels' text and packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.device_tables import DeviceTables, GatheredSide
from kernels.errors import GraphError
from kernels.fp8 import Fp8
from kernels.ir.node import Graph, Lead, Node, Op
from kernels.ir.reference import flops
from kernels.lengths.bind import bind, has_steps
from kernels.passes import expand, optimise
from kernels.passes.expand import expand_norms
from kernels.plan.eights import Eights, plan_eights
from kernels.plan.facts import launch_facts
from kernels.plan.gather import INCLUDE, Gather
from kernels.plan.matrix import ELEMENTS, Matrix
from kernels.plan.pack import Blob
from kernels.plan.phases import SEQUENCES, Kind, Phase, plan_phases
from kernels.plan.sequence_phase import sequence_launch, unsupported
from kernels.plan.shape import TileShape
from kernels.plan.tile import TileBuilder
from kernels.plan.tile_kernel import TileKernel, assemble, describe, has_streams, launch
from kernels.plan.wide_phase import (
    quantised,
    wide_inputs,
    wide_layer,
    wide_matrix,
    wide_staged,
)
from kernels.program import (
    Bucket,
    Launch,
    LaunchFacts,
    Pointer,
    Precision,
    Program,
    Role,
    Source,
    Target,
    leading_dimension,
)
from kernels.wide import WideConfig, choose, emit, pack

# Rows up to which a tile is cut so: measured on an H100 and an H200 with DeepFM and DLRM.
_SMALL_ROWS: Final = 64
_MIDDLE_ROWS: Final = 512
# Bytes of weights below which a cluster has nothing to split.
_SPLIT_BYTES: Final = 65_536
_ALIGNMENT: Final = 256
# Of a phase's weights, at most one in so many bytes is loaded by a tile of 64 rows.
_LOADED_SHARE: Final = 8
# Steps of a bucket that has all of them.
_ALL_STEPS: Final = 1 << 30
# For graphs with so many values a row that a tile of 16 does not fit; without tensor cores.
_SMALL_TILES: Final = tuple(TileShape(rows, 1) for rows in (8, 4, 2, 1))
_TILE_INCLUDES: Final = '#include "math.cuh"\n#include "tile_linear.cuh"\n'
_FLOAT_INCLUDES: Final = '#include "tile_tf32.cuh"\n'
_GROUP_INCLUDE: Final = '#include "tile_wgmma.cuh"\n'


@attrs.frozen
class Options:
    """Choices of whoever compiles.

    Attributes:
        input_dtype: Of the staged blocks: float16 halves the copies to the card, float32 takes any
            value that a feature may have.
        user_once: Whether what depends on the user alone is computed once a request.
        wide: Whether large Linears may get launches of their own.
        tile: Forces the cut of all tiles, for experiments.
        fp8: Floats of eight bits for Linears with launches of their own, on sm_90a; scales and all
            are in there. Values are ``precision`` elsewhere.
    """

    precision: Precision = Precision.FP16
    input_dtype: str = "float32"
    user_once: bool = True
    wide: bool = True
    tile: TileShape | None = None
    fp8: Fp8 | None = None


def compile_graph(
    graph: Graph,
    bucket: Bucket,
    target: Target,
    options: Options | None = None,
    tables: DeviceTables | None = None,
) -> Program:
    """Compile a dense graph for one bucket.

    Args:
        graph: Of the model, as imported, or with ``Steps`` as ``kernels.lengths`` finds them.
        bucket: How many rows and requests, and steps of sequences that may be shorter.
        target: The card.
        options: Choices.
        tables: Those on the card, in the options' precision, of which kernels gather their columns
            of the blocks.

    Raises:
        GraphError: An op cannot run on the card, or the graph does not fit it; names model, node
            and op.
    """
    if has_steps(graph):
        graph = bind(graph, bucket.length or _ALL_STEPS)
    try:
        return _Compiler(graph, bucket, target, options or Options(), tables).program()
    except GraphError as error:
        raise GraphError(f"{graph.model}: {error}") from error


@attrs.define(eq=False)
class _Compiler:
    graph: Graph
    bucket: Bucket
    target: Target
    options: Options
    tables: DeviceTables | None
    matrices: dict[Node, Matrix] = attrs.field(factory=dict)
    sources: list[Source] = attrs.field(factory=list)
    launches: list[Launch] = attrs.field(factory=list)
    weights: Blob = attrs.field(factory=Blob)
    scratch: int = 0
    notes: list[str] = attrs.field(factory=list)
    facts: list[LaunchFacts] = attrs.field(factory=list)
    gathers: dict[Lead, Gather] = attrs.field(factory=dict)
    eights: Eights = attrs.field(factory=Eights)
    as_eights: dict[Node, Matrix] = attrs.field(factory=dict)

    def program(self) -> Program:
        options, bucket = self.options, self.bucket
        graph = self._lowered()
        for name, node in graph.inputs.items():
            self.matrices[node] = self._input(Role(name), node)
        phases = plan_phases(
            graph,
            wide=options.wide,
            sequences=True,
            reads_inputs=options.input_dtype == options.precision.storage,
            item_bytes=options.precision.item_bytes,
        )
        phases = self._with_gathers(phases)
        if options.fp8 is not None:
            self._check_fp8()
            self.eights = plan_eights(phases, options.fp8)
        for index, phase in enumerate(phases):
            self._phase(graph, phase, index)
        widths = {name: self._row_width(name, node) for name, node in graph.inputs.items()}
        user, candidate = widths.get("user", 0), widths.get("candidate", 0)
        dtype = np.dtype(options.input_dtype)
        inputs = (user * bucket.requests + candidate * bucket.rows) * dtype.itemsize
        return Program(
            bucket=bucket,
            precision=options.precision,
            input_dtype=dtype,
            user_width=user,
            candidate_width=candidate,
            n_outputs=graph.output.width,
            sources=tuple(self.sources),
            launches=tuple(self.launches),
            weights=self.weights.bytes(),
            scratch_bytes=self.scratch,
            table_bytes=self.tables.size_bytes if self.tables is not None else 0,
            flops=flops(graph).total(bucket.rows, bucket.requests),
            bytes_moved=inputs + self.weights.size + bucket.rows * graph.output.width * 4,
            notes=tuple(self.notes),
            facts=tuple(self.facts),
        )

    def _check_fp8(self) -> None:
        if self.target.arch != "sm_90a":
            raise GraphError(f"floats of eight bits need sm_90a (Hopper), not {self.target.arch}")
        if not self.options.precision.has_halves:
            precision = self.options.precision
            raise GraphError(
                f"floats of eight bits go with fp16 or bf16 elsewhere, not {precision}"
            )

    def _lowered(self) -> Graph:
        """Return the graph as the planner takes it: what has no kernel is written out."""
        graph = optimise(self.graph, user_once=self.options.user_once)
        sequences = [node for node in graph.nodes() if node.op in SEQUENCES]
        precision = self.options.precision
        if not precision.has_halves or any(unsupported(node, precision) for node in sequences):
            return expand(graph)
        return expand_norms(graph)

    def _rows(self, lead: Lead) -> int:
        return self.bucket.rows if lead is Lead.ROWS else self.bucket.requests

    def _input(self, role: Role, node: Node) -> Matrix:
        assert node.lead is not None
        element = "Float32" if self.options.input_dtype == "float32" else "Fp16"
        width = self._row_width(role, node)
        staged = Matrix(Pointer(role), node.lead, width, leading_dimension(width), element)
        side = self._side(role)
        if self.tables is None or side is None or not side.lookups:
            return staged
        if side.width != node.width:
            problem = f"tables make {side.width} columns of {role}, the graph takes {node.width}"
            raise GraphError(problem)
        ld = leading_dimension(node.width)
        block = self._in_scratch(Matrix(Pointer(role), node.lead, node.width, ld, element))
        self.gathers[node.lead] = Gather(self.tables, side, staged, block)
        return block

    def _side(self, name: str) -> GatheredSide | None:
        if self.tables is None:
            return None
        return self.tables.user if name == Role.USER else self.tables.candidate

    def _row_width(self, name: str, node: Node) -> int:
        """Return the elements of a staged row."""
        side = self._side(name)
        if side is None:
            return node.width
        return side.row_width(np.dtype(self.options.input_dtype).itemsize)

    def _with_gathers(self, phases: list[Phase]) -> list[Phase]:
        """Let a tile phase stand first for each block that is gathered: the first of its lead.

        Rows read users' blocks, too: those must be whole before any row is.
        """
        first = []
        for lead in self.gathers:
            leading = next((each for each in phases if each.lead is lead), None)
            if leading is None or leading.kind is not Kind.TILE:
                first.append(Phase(Kind.TILE, lead, ()))
        return [*first, *phases]

    def _scratch(self, node: Node) -> Matrix:
        lead = node.lead
        assert lead is not None
        ld = leading_dimension(node.width)
        element = ELEMENTS[self.options.precision]
        return self._in_scratch(Matrix(Pointer(Role.SCRATCH), lead, node.width, ld, element))

    def _scratch_eights(self, node: Node) -> Matrix:
        assert node.lead is not None
        ld = -(-node.width // 16) * 16  # a tensor map's rows are a multiple of 16 bytes
        return self._in_scratch(Matrix(Pointer(Role.SCRATCH), node.lead, node.width, ld, "E4m3"))

    def _in_scratch(self, matrix: Matrix) -> Matrix:
        """Return a matrix moved to a place of its own."""
        placed = attrs.evolve(matrix, pointer=Pointer(Role.SCRATCH, self.scratch))
        size = matrix.row_bytes * self._rows(matrix.lead)
        self.scratch += -(-size // _ALIGNMENT) * _ALIGNMENT
        return placed

    def _phase(self, graph: Graph, phase: Phase, index: int) -> None:
        targets: dict[Node, Matrix] = {}
        for output in phase.outputs:
            if output is graph.output:
                n = output.width
                targets[output] = Matrix(Pointer(Role.SCORES), Lead.ROWS, n, n, "Float32")
            elif output not in self.eights.only:
                targets[output] = self._scratch(output)
            if output in self.eights.scales:
                self.as_eights[output] = self._scratch_eights(output)
        weights = self.weights.size
        cut: TileKernel | WideConfig | None = None
        if phase.kind is Kind.TILE:
            cut = self._tile(phase, index, targets)
        elif phase.kind is Kind.WIDE:
            cut = self._wide(phase, index, targets.get(phase.outputs[0]))
        else:
            self._sequence(phase, index, targets[phase.outputs[0]])
        weights = self.weights.size - weights
        written = {each: targets.get(each) or self.as_eights[each] for each in phase.outputs}
        before = {n: m for n, m in self.as_eights.items() if n not in written} | self.matrices
        self.facts.append(launch_facts(phase, self.bucket, before, written, cut, weights))
        self.matrices.update({n: m for n, m in targets.items() if n is not graph.output})

    def _tile(self, phase: Phase, index: int, targets: Mapping[Node, Matrix]) -> TileKernel:
        dependent = self._is_dependent(index)
        kernel = self._assembled(phase, f"phase{index}", targets, dependent=dependent)
        includes = _TILE_INCLUDES + (INCLUDE if kernel.builder.gathers else "")
        if not self.options.precision.has_halves:
            includes += _FLOAT_INCLUDES
        if kernel.builder.shape.groups:
            includes += _GROUP_INCLUDE
        source = self._source(includes + kernel.text)
        at = self.weights.add(kernel.blob.bytes())
        rows = self._rows(phase.lead)
        self.launches.append(launch(kernel, source, rows, at, dependent=dependent))
        self.notes += describe(kernel, self.launches[-1])
        return kernel

    def _wide(self, phase: Phase, index: int, target: Matrix | None) -> WideConfig:
        precision, rows = self.options.precision, self._rows(phase.lead)
        layer = wide_layer(phase, rows, self.eights, floats=not precision.has_halves)
        config = choose(layer, self.target)
        kernel = emit(layer, config, f"phase{index}", precision)
        weight, bias = (node.array.astype(np.float32) for node in phase.chain[0].sources[-2:])
        blob = pack(layer, weight, bias, precision, quantised(phase, self.eights))
        stored = self.as_eights.get(phase.outputs[0])
        made = kernel.launch(
            self._source(kernel.text),
            counts=self._counts(phase.lead),
            weights=Pointer(Role.WEIGHTS, self.weights.add(blob)),
            output=None if target is None else wide_matrix(target),
            eights=None if stored is None else wide_matrix(stored),
            inputs=wide_inputs(phase, self.as_eights if layer.eights else self.matrices),
            staged=wide_staged(phase, self.matrices),
            dependent=self._is_dependent(index),
        )
        self.launches.append(made)
        epilogue = ", ".join(node.op for node in phase.chain[1:])
        self.notes += [
            f"phase{index}: {made.grid[0]} blocks of {made.block} threads, {config}",
            f"  wide linear {layer.groups} x {layer.k} -> {layer.n} {epilogue}"
            + (", of e4m3" if layer.eights else ""),
        ]
        return config

    def _sequence(self, phase: Phase, index: int, target: Matrix) -> None:
        precision, rows = self.options.precision, self._rows(phase.lead)
        made = sequence_launch(
            phase, f"phase{index}", precision, self.target, rows, self.matrices, target
        )
        self.launches.append(
            made.launch(
                self._source(made.text),
                weights=Pointer(Role.WEIGHTS, self.weights.add(made.weights)),
                dependent=self._is_dependent(index),
            )
        )
        last = self.launches[-1]
        self.notes += [
            f"phase{index}: {last.grid[0]} blocks of {last.block} threads",
            f"  {phase.kind}",
        ]

    def _source(self, text: str) -> int:
        """Add a module, unless one of the same text is there; return its index."""
        for index, source in enumerate(self.sources):
            if source.text == text:
                return index
        bucket = self.bucket
        shape = "x".join(map(str, attrs.astuple(bucket)))
        name = f"{self.graph.model}-{shape}-{len(self.sources)}"
        self.sources.append(Source(name, text, self.target.arch))
        return len(self.sources) - 1

    def _counts(self, lead: Lead) -> Pointer:
        return Pointer(Role.COUNTS, 0 if lead is Lead.ROWS else 4)

    def _is_dependent(self, index: int) -> bool:
        return index > 0 and has_streams(self.target)

    def _assembled(
        self, phase: Phase, entry: str, targets: Mapping[Node, Matrix], *, dependent: bool
    ) -> TileKernel:
        gather = self.gathers.pop(phase.lead, None)
        gathers = () if gather is None else (gather,)
        for shape in self._shapes(phase):
            builder = TileBuilder(
                phase, shape, self.options.precision, self.matrices, targets, Blob(16), gathers
            )
            builder.build()
            if shape.groups and self.options.tile is None and not self._suits_groups(builder):
                continue
            kernel = assemble(builder, entry, self.target, dependent=dependent)
            if kernel is not None:
                return kernel
        output = phase.outputs[0]
        raise GraphError(
            f"node {output.name!r}, op {output.op}: what leads to it does not fit shared memory; "
            "the host executor can run this model"
        )

    def _shapes(self, phase: Phase) -> Sequence[TileShape]:
        """Return cuts to try, best first."""
        if self.options.tile is not None:
            return [self.options.tile]
        rows, n_sms = self._rows(phase.lead), self.target.n_sms
        smallest = [TileShape(16, 1), *_SMALL_TILES]
        if not has_streams(self.target):
            return [TileShape(32, 1), *smallest] if rows > _MIDDLE_ROWS else smallest
        if self._streamed_bytes(phase) < _SPLIT_BYTES:
            return [TileShape(32, 1), *smallest] if rows > 16 * n_sms else smallest
        if rows <= _SMALL_ROWS:
            return [*(TileShape(16, cluster) for cluster in (8, 4, 2)), *smallest]
        # Pairs of blocks, while all run at once: a second wave would take as long as the first.
        for tile_rows in (16, 32):
            if -(-rows // tile_rows) * 2 <= n_sms:
                return [TileShape(tile_rows, 2), TileShape(16, 2), *smallest]
        groups = self.target.arch == "sm_90a" and self.options.precision.has_halves
        return [*([TileShape(64, 2)] if groups else []), TileShape(32, 1), *smallest]

    def _suits_groups(self, builder: TileBuilder) -> bool:
        """Whether a tile of 64 rows gains: pairs of blocks load all of its rows, but fewer weights.

        Measured on an H100, 4,096 rows: DeepFM gains a fifth and DLRM a tenth; MMoE would take a
        quarter longer.
        """
        rows = builder.shape.rows
        loaded = sum(v.size(rows) for step in builder.steps if step.loads for v in step.writes)
        return loaded * _LOADED_SHARE <= self._streamed_bytes(builder.phase)

    def _streamed_bytes(self, phase: Phase) -> int:
        """Return the bytes of weights of the Linears that a tile phase computes."""
        found: dict[Node, None] = {}
        stack = list(phase.outputs)
        while stack:
            node = stack.pop()
            if node not in found and node not in self.matrices and node.lead is phase.lead:
                found[node] = None
                stack.extend(node.sources)
        item = self.options.precision.item_bytes
        return sum(item * node.sources[-2].width for node in found if node.op is Op.LINEAR)

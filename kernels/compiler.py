"""A dense graph and a bucket become a program: phases, tiles, text and packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.errors import GraphError
from kernels.ir.node import Graph, Lead, Node, Op
from kernels.ir.reference import flops
from kernels.passes import expand, optimise
from kernels.plan.matrix import Matrix
from kernels.plan.pack import Blob
from kernels.plan.phases import Kind, Phase, plan_phases
from kernels.plan.tile import TileBuilder, TileShape
from kernels.plan.tile_kernel import TileKernel, assemble, has_streams, launch
from kernels.program import (
    Bucket,
    Launch,
    Pointer,
    Precision,
    Program,
    Role,
    Source,
    Target,
    leading_dimension,
)

# Rows up to which a tile is cut so: measured on an H100 with DeepFM and DLRM (GPU_FINDINGS).
_SMALL_ROWS: Final = 64
_MIDDLE_ROWS: Final = 512
# Bytes of weights below which a cluster has nothing to split.
_SPLIT_BYTES: Final = 65_536
_ALIGNMENT: Final = 256
# For graphs with so many values a row that a tile of 16 does not fit; without tensor cores.
_SMALL_TILES: Final = tuple(TileShape(rows, 1) for rows in (8, 4, 2, 1))


@attrs.frozen
class Options:
    """Choices of whoever compiles.

    Attributes:
        input_dtype: Of the staged blocks: float16 halves the copies to the card, float32 takes any
            value that a feature may have.
        user_once: Whether what depends on the user alone is computed once a request.
        wide: Whether large Linears may get launches of their own.
        tile: Forces the cut of all tiles, for experiments.
    """

    precision: Precision = Precision.FP16
    input_dtype: str = "float32"
    user_once: bool = True
    wide: bool = True
    tile: TileShape | None = None


def compile_graph(
    graph: Graph, bucket: Bucket, target: Target, options: Options | None = None
) -> Program:
    """Compile a dense graph for one bucket.

    Raises:
        GraphError: An op cannot run on the card, or the graph does not fit it; names model, node
            and op.
    """
    options = options or Options()
    try:
        return _Compiler(graph, bucket, target, options).program()
    except GraphError as error:
        raise GraphError(f"{graph.model}: {error}") from error


@attrs.define(eq=False)
class _Compiler:
    graph: Graph
    bucket: Bucket
    target: Target
    options: Options
    matrices: dict[Node, Matrix] = attrs.field(factory=dict)
    texts: list[str] = attrs.field(factory=list)
    launches: list[Launch] = attrs.field(factory=list)
    weights: Blob = attrs.field(factory=Blob)
    scratch: int = 0
    notes: list[str] = attrs.field(factory=list)

    def program(self) -> Program:
        options, bucket = self.options, self.bucket
        graph = optimise(self.graph, user_once=options.user_once)
        graph = expand(graph)
        widths = {name: node.width for name, node in graph.inputs.items()}
        for name, node in graph.inputs.items():
            role = Role(name)
            element = "Float32" if options.input_dtype == "float32" else "Fp16"
            lead = node.lead
            assert lead is not None
            self.matrices[node] = Matrix(
                Pointer(role), lead, node.width, leading_dimension(node.width), element
            )
        phases = plan_phases(graph, wide=False, sequences=False)
        for index, phase in enumerate(phases):
            self._phase(graph, phase, index)
        total = flops(graph)
        inputs = widths.get("user", 0) * bucket.requests + widths.get("candidate", 0) * bucket.rows
        moved = inputs * np.dtype(options.input_dtype).itemsize + self.weights.size
        n_outputs = graph.output.width
        includes = '#include "math.cuh"\n#include "tile.cuh"\n'
        return Program(
            bucket=bucket,
            precision=options.precision,
            input_dtype=np.dtype(options.input_dtype),
            user_width=widths.get("user", 0),
            candidate_width=widths.get("candidate", 0),
            n_outputs=n_outputs,
            sources=(
                Source(
                    f"{graph.model}-{bucket.rows}x{bucket.requests}",
                    includes + "\n".join(self.texts),
                    self.target.arch,
                ),
            ),
            launches=tuple(self.launches),
            weights=self.weights.bytes(),
            scratch_bytes=self.scratch,
            flops=int(total.row * bucket.rows + total.request * bucket.requests),
            bytes_moved=int(moved + bucket.rows * n_outputs * 4),
            notes=tuple(self.notes),
        )

    def _rows(self, lead: Lead) -> int:
        return self.bucket.rows if lead is Lead.ROWS else self.bucket.requests

    def _phase(self, graph: Graph, phase: Phase, index: int) -> None:
        targets: dict[Node, Matrix] = {}
        for output in phase.outputs:
            if output is graph.output:
                pointer = Pointer(Role.SCORES)
                targets[output] = Matrix(pointer, Lead.ROWS, output.width, output.width, "Float32")
            else:
                targets[output] = self._scratch(output)
        if phase.kind is Kind.TILE:
            self._tile(phase, index, targets)
        self.matrices.update({n: m for n, m in targets.items() if n is not graph.output})

    def _scratch(self, node: Node) -> Matrix:
        lead = node.lead
        assert lead is not None
        element = {Precision.FP16: "Fp16", Precision.BF16: "Bf16", Precision.FP32: "Float32"}[
            self.options.precision
        ]
        ld = leading_dimension(node.width)
        matrix = Matrix(Pointer(Role.SCRATCH, self.scratch), lead, node.width, ld, element)
        size = matrix.row_bytes * self._rows(lead)
        self.scratch += -(-size // _ALIGNMENT) * _ALIGNMENT
        return matrix

    def _tile(self, phase: Phase, index: int, targets: Mapping[Node, Matrix]) -> None:
        dependent = index > 0 and has_streams(self.target)
        kernel = self._assembled(phase, f"phase{index}", targets, dependent=dependent)
        self.texts.append(kernel.text)
        at = self.weights.add(kernel.blob.bytes())
        rows = self._rows(phase.lead)
        self.launches.append(launch(kernel, 0, rows, at, dependent=dependent))
        self.notes += _describe(kernel, self.launches[-1])

    def _assembled(
        self, phase: Phase, entry: str, targets: Mapping[Node, Matrix], *, dependent: bool
    ) -> TileKernel:
        for shape in self._shapes(phase):
            builder = TileBuilder(
                phase, shape, self.options.precision, self.matrices, targets, Blob(16)
            )
            builder.build()
            kernel = assemble(builder, entry, self.target, dependent=dependent)
            if kernel is not None:
                return kernel
        raise GraphError(
            f"node {phase.outputs[0].name!r}, op {phase.outputs[0].op}: what leads to it does not "
            "fit shared memory; the host executor can run this model"
        )

    def _shapes(self, phase: Phase) -> Sequence[TileShape]:
        """Return cuts to try, best first."""
        if self.options.tile is not None:
            return [self.options.tile]
        if self.options.precision is Precision.FP32:
            return [TileShape(16, 1), *_SMALL_TILES]
        rows = self._rows(phase.lead)
        if not has_streams(self.target):
            return (
                [TileShape(16, 1)] if rows <= _MIDDLE_ROWS else [TileShape(32, 1), TileShape(16, 1)]
            )
        weights = sum(
            node.sources[-2].width * 2
            for node in _computed(phase, self.matrices)
            if node.op is Op.LINEAR
        )
        if weights < _SPLIT_BYTES:
            clusters = [1]
        elif rows <= _SMALL_ROWS:
            clusters = [8, 4, 2, 1]
        else:
            clusters = [2, 1]
        narrow = [TileShape(16, cluster) for cluster in clusters]
        if rows > _MIDDLE_ROWS:
            narrow = [TileShape(32, 1), *narrow[-1:]]
        return [*narrow, *_SMALL_TILES]


def _computed(phase: Phase, matrices: Mapping[Node, Matrix]) -> list[Node]:
    found: dict[Node, None] = {}
    stack = list(phase.outputs)
    while stack:
        node = stack.pop()
        if node not in found and node not in matrices and node.lead is phase.lead:
            found[node] = None
            stack.extend(node.sources)
    return list(found)


def _describe(kernel: TileKernel, made: Launch) -> list[str]:
    shape, layout = kernel.builder.shape, kernel.layout
    head = (
        f"{kernel.entry}: {made.grid[0]} blocks of {made.block} threads, tiles of {shape.rows} rows, "
        f"clusters of {shape.cluster}, {layout.total} bytes of shared memory "
        f"({layout.n_stages} stages of {layout.stage_bytes}), {kernel.barriers} barriers"
    )
    return [head, *(f"  {step.title}" for step in kernel.steps)]

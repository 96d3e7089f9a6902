"""From a bundle to a GPU executor: the compiler behind a function of the bucket."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import attrs
import numpy as np

from kernels.arenas import HotPlan
from kernels.bundle.load import Bundle
from kernels.bundle.manifest import Manifest
from kernels.bundle.representative import fp8_of
from kernels.compiler import Options, compile_graph
from kernels.device_tables import DeviceTables
from kernels.fp8 import Fp8, Scales
from kernels.gpu.buckets import Cost, Work
from kernels.gpu.device import Isolation
from kernels.gpu.executor import GpuExecutor, Model
from kernels.gpu.lanes import Blocks
from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import flops
from kernels.lengths.bind import bind
from kernels.lengths.columns import Shortened
from kernels.lengths.find import find_sequences
from kernels.lengths.side import input_facts, shorten_tables
from kernels.nvrtc import Builder, Cache, default_folder
from kernels.passes import optimise
from kernels.program import Bucket, Precision, Program, Target

# A process of the compiler takes 100 MB, and a model has about as many buckets.
_WORKERS_MOST: Final = 8
# Steps of sequences from which on it is asked what a step costs.
_STEPS_TO_TELL: Final = 2


def model_of(
    bundle: Bundle,
    *,
    max_rows: int,
    max_requests: int,
    options: Options | None = None,
    device_tables: Collection[str] | str = (),
    hot: HotPlan | None = None,
) -> Model:
    """Return a bundle's dense graph, to be compiled bucket by bucket.

    Args:
        bundle: Its dense graph is read and imported; of it only tables are kept, which are read
            when the model is opened.
        max_rows: Rows of the largest bucket.
        max_requests: Requests of the largest bucket.
        options: Of the compiler.
        device_tables: Names of tables that lie on the card, or ``all``; stored as the precision of
            the options says.
        hot: Tables of which hot rows lie there.

    Raises:
        GraphError: An operator has no kernel; names it. The host executor can run the model. Or
            there is no such table, or no room for a hot one.
    """
    options = options or Options()
    manifest = bundle.manifest
    tables = None
    if device_tables or hot is not None:
        tables = DeviceTables.of(manifest, device_tables, options.precision, hot)
    graph = import_dense(bundle.dense_model(), manifest.model)
    found = find_sequences(graph, input_facts(manifest, bundle.spec_text))
    dense = _Dense(manifest, max_rows, max_requests, options, found.graph, found.shortened, tables)
    if found.shortened is not None and not dense.can_be_cut():
        dense = attrs.evolve(dense, graph=graph, sequences=None)
    blocks = dense.blocks()
    return Model(
        name=manifest.model,
        blocks=blocks,
        compile=dense.compile,
        cost=cost_of(dense.graph, blocks, options),
        table=bundle.open_table,
    )


@attrs.frozen(eq=False)
class _Dense:
    """A bundle's dense graph at each length of its sequences."""

    manifest: Manifest
    max_rows: int
    max_requests: int
    options: Options
    graph: Graph
    sequences: Shortened | None
    tables: DeviceTables | None

    def can_be_cut(self) -> bool:
        """Whether what is gathered on the card can be cut where steps end."""
        try:
            self.tables_at(1)
        except ValueError:
            return False
        return True

    def tables_at(self, length: int) -> DeviceTables | None:
        if self.tables is None or self.sequences is None or not 0 < length < self.sequences.most:
            return self.tables
        return shorten_tables(self.tables, self.manifest, self.sequences, length)

    def blocks(self, length: int = 0) -> Blocks:
        """Return the blocks of a length; of the whole, if it is 0."""
        manifest, sequences = self.manifest, self.sequences
        item = np.dtype(self.options.input_dtype).itemsize
        widths = {"user": manifest.user.width, "candidate": manifest.candidate.width}
        if length and sequences is not None:
            widths = {name: sequences.width(name, n, length) for name, n in widths.items()}
        tables = self.tables_at(length)
        if tables is not None:
            widths = {
                "user": tables.user.row_width(item),
                "candidate": tables.candidate.row_width(item),
            }
        return Blocks(
            max_rows=self.max_rows,
            max_requests=self.max_requests,
            user_width=widths["user"],
            candidate_width=widths["candidate"],
            n_outputs=sum(output.width for output in manifest.outputs),
            input_dtype=np.dtype(self.options.input_dtype),
            tables=tables,
            sequences=sequences,
            shorter=self.blocks,
        )

    def compile(self, bucket: Bucket, target: Target) -> Program:
        """Compile for one bucket; see ``Compile``."""
        tables = self.tables_at(bucket.length)
        options = attrs.evolve(self.options, fp8=self._fp8_at(bucket.length))
        return compile_graph(self.graph, bucket, target, options, tables)

    def _fp8_at(self, length: int) -> Fp8 | None:
        """Return the choice of fp8 with the columns that are left at a length."""
        fp8, sequences = self.options.fp8, self.sequences
        if fp8 is None or sequences is None or not length:
            return fp8
        inputs = {}
        for side, block in fp8.inputs.items():
            kept = sequences.kept(side, block.shape[1], length)
            inputs[side] = np.concatenate([block[:, start:stop] for start, stop in kept], 1)
        return attrs.evolve(fp8, inputs=inputs)


def cost_of(graph: Graph, blocks: Blocks, options: Options) -> Cost:
    """Return what a row and a request bring: their bytes, and their products of matrices.

    What depends on the user alone is a request's, where it is computed once a request. What depends
    on the length of sequences is taken to be linear in it.
    """
    most = blocks.length
    row, request = _seconds(graph, blocks, options, most)
    if most < _STEPS_TO_TELL:
        return Cost(row, request)
    half = most // 2
    less_row, less_request = _seconds(graph, blocks, options, half)
    row_step = max(row - less_row, 0.0) / (most - half)
    request_step = max(request - less_request, 0.0) / (most - half)
    return Cost(
        max(row - most * row_step, 0.0),
        max(request - most * request_step, 0.0),
        row_step,
        request_step,
    )


def _seconds(graph: Graph, blocks: Blocks, options: Options, length: int) -> tuple[float, float]:
    """Return what a row and what a request take at a length."""
    if length:
        graph, blocks = bind(graph, length), blocks.at(length)
    work = flops(optimise(graph, user_once=options.user_once))
    item = blocks.input_dtype.itemsize
    row_bytes = blocks.candidate_width * item + 4 * (1 + blocks.n_outputs)
    request = Work(blocks.user_width * item, work.request)
    return Work(row_bytes, work.row).seconds, request.seconds


def open_gpu(
    bundle: Bundle,
    n_lanes: int = 1,
    *,
    max_rows: int = 1024,
    max_requests: int = 256,
    mode: str = "streams",
    precision: str = "fp16",
    fp8: str | None = None,
    input_dtype: str = "float32",
    device_tables: Collection[str] | str = (),
    hot_tables: Mapping[str, int] | None = None,
    buckets: Iterable[int | Bucket] | None = None,
    ahead: bool = True,
    mapped: Collection[str] = (),
    cache: Path | None = None,
    n_workers: int | None = None,
    device: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> GpuExecutor:
    """Compile a bundle's dense graph and open it on a card.

    Args:
        bundle: The bundle.
        n_lanes: Launches at once.
        max_rows: Rows of the largest bucket.
        max_requests: Requests of the largest bucket.
        mode: One of ``Isolation``.
        precision: One of ``Precision``.
        fp8: One of ``fp8.Scales``, for wide Linears over floats of eight bits; None for none.
        input_dtype: ``float32`` or ``float16``, of what is staged.
        device_tables: Names of tables that lie on the card, or ``all``: their lookups' ids are
            staged instead of their columns, see ``kernels.device_tables``.
        hot_tables: Names of tables of which hot rows lie on the card, and how many bytes of each
            in every context: slots are staged, and rows put there by ``GpuExecutor.filler``.
        buckets: As ``GpuExecutor``; so are ``ahead``, ``mapped``, ``device`` and ``progress``.
        ahead: See there.
        mapped: See there.
        cache: Folder of compiled kernels; None for the user's.
        n_workers: Processes that compile; None for one for every second core, up to 8.
        device: See there.
        progress: See there.

    Raises:
        CudaError: There is no driver or no such card, or its memory is full.
        GraphError: An operator has no kernel; names it. The host executor can run the model.
        KernelsError: Kernels do not compile, or cannot be kept.
        BundleError: Scales for ``fp8`` are to be found, and a table's rows are not here.
    """
    options = Options(
        precision=Precision(precision),
        input_dtype=input_dtype,
        fp8=fp8_of(bundle, Scales(fp8)) if fp8 is not None else None,
    )
    hot = None
    if hot_tables:
        # A context of each lane's own has one lane's spare rows, others those of all.
        alone = Isolation(mode) is Isolation.CONTEXTS
        hot = HotPlan(
            max_bytes=hot_tables,
            max_rows=max_rows,
            max_requests=max_requests,
            n_lanes=1 if alone else n_lanes,
        )
    model = model_of(
        bundle,
        max_rows=max_rows,
        max_requests=max_requests,
        options=options,
        device_tables=device_tables,
        hot=hot,
    )
    workers = n_workers or min(max((os.cpu_count() or 1) // 2, 1), _WORKERS_MOST)
    return GpuExecutor(
        model,
        Builder(Cache(cache or default_folder()), workers),
        n_lanes,
        mode=Isolation(mode),
        buckets=buckets,
        ahead=ahead,
        mapped=mapped,
        device=device,
        progress=progress,
    )

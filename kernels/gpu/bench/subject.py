"""What is served: a dense graph, from a bundle or from the six models of ``kernels.bench``."""

from __future__ import annotations

import functools
from pathlib import Path

import attrs
import numpy as np

from kernels.bench.graphs import graph_of
from kernels.bench.models import MODELS
from kernels.bundle.load import Bundle, load_bundle
from kernels.compiler import Options, compile_graph
from kernels.errors import KernelsError
from kernels.gpu.executor import Compile, Model
from kernels.gpu.lanes import Blocks
from kernels.gpu.model import cost_of
from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense
from kernels.lengths import find
from kernels.lengths.side import input_facts

_SEED = 1


@attrs.frozen(eq=False)
class Subject:
    """A dense graph, and how it is compiled.

    Attributes:
        compile: Makes programs; asked twice for one, it gives the same.
        found: Its sequences, and which of them may be shorter.
    """

    name: str
    graph: Graph
    options: Options
    compile: Compile
    found: find.Found

    def width(self, side: str) -> int:
        """Return the columns of an input; 0 if the graph has none of that name."""
        node = self.graph.inputs.get(side)
        return 0 if node is None else node.width

    def model(self, max_rows: int, max_requests: int) -> Model:
        """Return it as the executor takes it."""
        blocks = self._blocks(max_rows, max_requests, 0)
        cost = cost_of(self.found.graph, blocks, self.options)
        return Model(name=self.name, blocks=blocks, compile=self.compile, cost=cost)

    def _blocks(self, max_rows: int, max_requests: int, length: int) -> Blocks:
        sequences = self.found.shortened
        widths = {side: self.width(side) for side in ("user", "candidate")}
        if length and sequences is not None:
            widths = {side: sequences.width(side, n, length) for side, n in widths.items()}
        return Blocks(
            max_rows=max_rows,
            max_requests=max_requests,
            user_width=widths["user"],
            candidate_width=widths["candidate"],
            n_outputs=self.graph.output.width,
            input_dtype=np.dtype(self.options.input_dtype),
            sequences=sequences,
            shorter=functools.partial(self._blocks, max_rows, max_requests),
        )


def subject_of(
    graph: Graph,
    options: Options | None = None,
    held: Bundle | None = None,
) -> Subject:
    """Return a graph as a subject, which may be of a bundle."""
    options = options or Options()
    facts = find.InputFacts() if held is None else input_facts(held.manifest, held.spec_text)
    found = find.find_sequences(graph, facts)
    # Every way to keep lanes apart runs the same programs: planned once, they open faster.
    planned = functools.cache(functools.partial(compile_graph, found.graph, options=options))
    return Subject(
        graph.model, graph, options, lambda bucket, target: planned(bucket, target), found
    )


def open_subject(bundle: Path | None, model: str | None, options: Options | None = None) -> Subject:
    """Read a bundle, or draw the parameters of a model by its name.

    Raises:
        KernelsError: There is no such bundle or model, or it cannot be compiled.
    """
    if bundle is not None:
        held = load_bundle(bundle)
        graph = import_dense(held.dense_model(), held.manifest.model)
        return subject_of(graph, options, held)
    if model is None or model not in MODELS:
        raise KernelsError(f"no model {model!r}; there are {', '.join(MODELS)}")
    chosen = MODELS[model]
    return subject_of(graph_of(chosen, chosen.draw_parameters(_SEED)), options)

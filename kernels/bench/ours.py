"""Ours: a model compiled, built, loaded and captured, fed by the candidate block."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels import _cuda
from kernels.bench.contender import Case, Stopwatch, Timing, Work
from kernels.bench.graphs import graph_of
from kernels.bench.models import Inputs, Model, Parameters
from kernels.compiler import Options, compile_graph
from kernels.errors import KernelsError
from kernels.fp8 import Fp8, Scales
from kernels.gpu.loaded import LoadedProgram
from kernels.nvrtc import Builder, Cubin
from kernels.program import Bucket, Precision, Program, Target

NAME: Final = "ours"
# For scales of activations; no draw of inputs that is scored has such a seed.
_REPRESENTATIVE_ROWS: Final = 128
_REPRESENTATIVE_SEED: Final = 1_000_003


@attrs.frozen(eq=False)
class Prepared:
    """A program whose cubins are being built.

    Attributes:
        generated_s: Seconds from the model to the program.
    """

    program: Program
    generated_s: float
    cubins: tuple[Future[Cubin], ...]

    def built(self) -> list[Cubin]:
        """Wait for the cubins.

        Raises:
            KernelsError: One cannot be built.
        """
        return [cubin.result() for cubin in self.cubins]

    def compile_s(self) -> float:
        """Return seconds to generate and to build, one source after the other, past the cache."""
        return self.generated_s + sum(cubin.seconds for cubin in self.built())


def prepare(
    model: Model,
    rows: int,
    parameters: Parameters,
    target: Target,
    precision: Precision,
    builder: Builder,
    scales: Scales | None = None,
) -> Prepared:
    """Compile a model for a batch of ``rows``; its sources are built meanwhile.

    Args:
        model: The model.
        rows: Of a batch.
        parameters: The model's.
        target: The card.
        precision: Of what is stored.
        builder: Builds the sources.
        scales: Of weights of eight bits; None for no floats of eight bits. Scales of activations
            are found from rows drawn as those that are scored, but others.

    Raises:
        GraphError: The compiler cannot.
    """
    start = time.perf_counter()
    input_dtype = "float16" if precision.has_halves else "float32"
    fp8 = None
    if scales is not None:
        drawn = model.draw_inputs(_REPRESENTATIVE_ROWS, _REPRESENTATIVE_SEED, precision)
        fp8 = Fp8({"candidate": model.block(drawn)}, scales=scales)
    options = Options(precision=precision, input_dtype=input_dtype, fp8=fp8)
    program = compile_graph(graph_of(model, parameters), Bucket(rows), target, options)
    seconds = time.perf_counter() - start
    return Prepared(program, seconds, tuple(builder.submit(each) for each in program.sources))


class Ours:
    """Runs programs that were prepared, by model and rows; or raises why they could not be."""

    name = NAME

    def __init__(
        self, stopwatch: Stopwatch, prepared: Mapping[tuple[str, int], Prepared | KernelsError]
    ) -> None:
        self._stopwatch = stopwatch
        self._prepared = prepared

    def open(self, case: Case) -> OursRunning:
        """Load a case's program.

        Raises:
            KernelsError: It was not compiled or built, or does not load.
        """
        prepared = self._prepared[case.model.name, case.rows]
        if isinstance(prepared, KernelsError):
            raise prepared
        return OursRunning(self._stopwatch, case, prepared)


class OursRunning:
    """A loaded and captured program."""

    def __init__(self, stopwatch: Stopwatch, case: Case, prepared: Prepared) -> None:
        program = prepared.program
        self.launches = len(program.launches)
        self.compile_s = prepared.compile_s()
        self.work = Work(program.flops, program.bytes_moved)
        self._stopwatch = stopwatch
        self._case = case
        images = [cubin.image for cubin in prepared.built()]
        self._loaded = LoadedProgram(stopwatch.context, program, images)
        self._graph = self._loaded.capture(stopwatch.stream)

    def scores(self, inputs: Inputs) -> NDArray[Any]:
        """Score a batch; see ``Running``."""
        rows = self._case.rows
        self._loaded.write(
            np.zeros((1, 0), np.float32),
            self._case.model.block(inputs),
            np.zeros(rows, np.int32),
        )
        self._loaded.poison()
        with self._stopwatch.context.use():
            self._graph.launch(self._stopwatch.stream)
            _cuda.stream_synchronize(self._stopwatch.stream)
        return self._loaded.scores(rows)

    def timing(self) -> Timing:
        """Time replays of the graph."""
        with self._stopwatch.context.use():
            return self._stopwatch.time(lambda: self._graph.launch(self._stopwatch.stream))

    def close(self) -> None:
        """Free graph and buffers; modules and weights stay until the context is closed."""
        self._graph.close()
        self._loaded.close()

"""What a request's own part costs: computed once, or again for each of its candidates.

An MLP over a concat of as many columns of the user as of the candidate. With the pass, the user's
half of the first layer is a product a request instead of a product a candidate.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import numpy as np

from kernels import _cuda
from kernels.compiler import Options, compile_graph
from kernels.errors import KernelsError
from kernels.gpu.device import Context, Device, time_launches
from kernels.gpu.loaded import LoadedProgram
from kernels.ir.build import concat, linear, to_rows
from kernels.ir.node import Graph, Lead, Op, input_node
from kernels.ir.reference import evaluate
from kernels.nvrtc import Builder
from kernels.program import Bucket, Program, Target

CANDIDATES: Final = 270
"""A request: the mean of MLPerf's sizes."""

_LAYERS: Final = (1024, 512, 256, 1)
_N_REPEATS: Final = 100
_TOLERANCE: Final = 2e-3
_SPREAD: Final = 0.3


def user_side_graph(width: int, layers: tuple[int, ...] = _LAYERS, seed: int = 1) -> Graph:
    """Return an MLP with ReLUs and a sigmoid over ``width`` columns, half of them the user's."""
    random = np.random.default_rng(seed)
    user = input_node("user", Lead.REQUESTS, width // 2)
    candidate = input_node("candidate", Lead.ROWS, width - width // 2)
    x = concat(to_rows(user), candidate)
    for index, (k, n) in enumerate(itertools.pairwise((width, *layers))):
        limit = math.sqrt(6 / k)
        weight = random.uniform(-limit, limit, (k, n)).astype(np.float32)
        last = index == len(layers) - 1
        x = linear(x, weight, None, Op.SIGMOID if last else Op.RELU, name=f"layer {index}")
    return Graph("user side", {"user": user, "candidate": candidate}, x)


def user_side_program(graph: Graph, n_requests: int, target: Target, *, once: bool) -> Program:
    """Compile for so many requests of 270 candidates."""
    options = Options(user_once=once, input_dtype="float16")
    return compile_graph(graph, Bucket(n_requests * CANDIDATES, n_requests), target, options)


def measure_user_side(
    device: Device, builder: Builder, width: int, requests: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Time batches of so many requests with the pass and without it.

    Raises:
        KernelsError: Scores are off.
    """
    graph = user_side_graph(width)
    found = []
    context = Context(device)
    try:
        for n_requests in requests:
            for once in (True, False):
                program = user_side_program(graph, n_requests, device.target(), once=once)
                images = [cubin.image for cubin in builder.build_all(program.sources)]
                loaded = LoadedProgram(context, program, images)
                try:
                    seconds = _timed(context, loaded, graph, n_requests)
                finally:
                    loaded.close()
                found.append(
                    {
                        "requests": n_requests,
                        "rows": n_requests * CANDIDATES,
                        "user_once": once,
                        "launches": len(program.launches),
                        "mflops": program.flops / 1e6,
                        "device_us": seconds * 1e6,
                    }
                )
    finally:
        context.close()
    return found


def _timed(context: Context, loaded: LoadedProgram, graph: Graph, n_requests: int) -> float:
    """Return the median device time of a batch whose scores are right."""
    random = np.random.default_rng(2)
    request_of_row = np.repeat(np.arange(n_requests), CANDIDATES)
    inputs = {}
    for name, n in (("user", n_requests), ("candidate", len(request_of_row))):
        drawn = random.standard_normal((n, graph.inputs[name].width)) * _SPREAD
        inputs[name] = drawn.astype(np.float16).astype(np.float32)
    loaded.write(inputs["user"], inputs["candidate"], request_of_row)
    loaded.poison()
    stream = context.stream()
    try:
        captured = loaded.capture(stream)
        try:
            with context.use():
                captured.launch(stream)
                _cuda.stream_synchronize(stream)
            error = np.abs(
                loaded.scores(len(request_of_row)) - evaluate(graph, inputs, request_of_row)
            ).max()
            if not error <= _TOLERANCE:
                raise KernelsError(f"user side: scores are off by {error:.2g} from float64")
            times = time_launches(
                context, stream, lambda: captured.launch(stream), n_repeats=_N_REPEATS
            )
        finally:
            captured.close()
    finally:
        _cuda.destroy_stream(stream)
    return float(np.median(times))

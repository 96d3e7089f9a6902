"""Torch as a peer: eager or compiled (default mode), each captured into a CUDA graph."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.bench.contender import Case, Stopwatch, Timing, Work
from kernels.bench.models import Inputs, Model, Parameters
from kernels.bench.torch_models import module_of
from kernels.program import Precision

EAGER: Final = "eager"
COMPILE: Final = "compile"
_DTYPES: Final = {
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
    Precision.TF32: torch.float32,
    Precision.FP32: torch.float32,
}


def expected_scores(
    device: str, model: Model, parameters: Parameters, inputs: Inputs
) -> NDArray[np.float64]:
    """Return a batch's scores in float64, by torch on ``device``."""
    module = module_of(model, parameters).double().to(device)
    with torch.inference_mode():
        given = [torch.as_tensor(inputs[name]).to(device).double() for name in model.inputs]
        scores: NDArray[np.float64] = module(*given).cpu().numpy()
    return scores


def kernels_of(call: Callable[[], object]) -> tuple[int, float]:
    """Return how many kernels a call runs on the card and their summed time in seconds.

    Both are 0 where the profiler sees nothing of the card.
    """
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        call()
        torch.cuda.synchronize()
    found = [
        event
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Memcpy", "Memset"))
    ]
    return len(found), sum(event.device_time for event in found) * 1e-6


class TorchPeer:
    """Torch, eager or compiled. Matrix products in fp32 stay fp32."""

    def __init__(self, stopwatch: Stopwatch, *, compiled: bool) -> None:
        self.name = COMPILE if compiled else EAGER
        self._stopwatch = stopwatch
        self._compiled = compiled

    def open(self, case: Case) -> TorchRunning:
        """Build, compile and capture the model."""
        torch.backends.cuda.matmul.allow_tf32 = case.precision is Precision.TF32
        return TorchRunning(self._stopwatch, case, compiled=self._compiled)


class TorchRunning:
    """A captured module with the tensors that it reads."""

    work: Work | None = None

    def __init__(self, stopwatch: Stopwatch, case: Case, *, compiled: bool) -> None:
        self._stopwatch = stopwatch
        self._names = tuple(case.model.inputs)
        dtype = _DTYPES[case.precision]
        inputs = case.draws[0][0]
        with torch.inference_mode():
            start = time.perf_counter()
            module: Any = module_of(case.model, case.parameters).to("cuda", dtype)
            self._inputs = [torch.as_tensor(inputs[name]).to("cuda", dtype) for name in self._names]
            if compiled:
                torch.compiler.reset()
                module = torch.compile(module, mode="default", dynamic=False)
            module(*self._inputs)
            torch.cuda.synchronize()
            self.compile_s = time.perf_counter() - start
            self.launches = kernels_of(lambda: module(*self._inputs))[0] or None
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(3):
                    module(*self._inputs)
            torch.cuda.synchronize()
            self._module = module  # the graph reads its weights
            self._graph: Any = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output: Any = module(*self._inputs)

    def scores(self, inputs: Inputs) -> NDArray[Any]:
        """Score a batch; see ``Running``."""
        with torch.inference_mode():
            for tensor, name in zip(self._inputs, self._names, strict=True):
                tensor.copy_(torch.as_tensor(inputs[name]))
            self._output.fill_(float("nan"))
            self._graph.replay()
            torch.cuda.synchronize()
            scores: NDArray[Any] = self._output.double().cpu().numpy()
        return scores

    def timing(self) -> Timing:
        """Time replays of the graph, on the stopwatch's stream."""
        handle: Any = self._stopwatch.stream
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(int(handle))):
            return self._stopwatch.time(self._graph.replay)

    def close(self) -> None:
        """Free the graph's memory."""
        torch.cuda.synchronize()
        del self._graph, self._output, self._inputs, self._module
        gc.collect()
        torch.cuda.empty_cache()

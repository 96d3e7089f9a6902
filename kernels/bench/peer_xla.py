"""XLA as a peer, through jax.

Its batches cannot be captured into a graph of ours. For a batch alone stands the wall time a call
of 200 queued calls, which may be the host's rather than the card's; for batches in a row, the
summed time of its kernels, as torch's profiler has it, without the gaps between them. Both are with
L2 as the batch before left it, which favours it.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.bench.contender import Case, Timing, Work
from kernels.bench.models import Inputs
from kernels.bench.xla_models import function_of
from kernels.program import Precision

XLA: Final = "xla"
_DTYPES: Final = {
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
    Precision.TF32: "float32",
    Precision.FP32: "float32",
}
_CALLS: Final = 200

Count = Callable[[Callable[[], object]], tuple[int, float]]
"""How many kernels a call runs, and their summed time in seconds."""


@functools.cache
def _jax() -> Any:  # noqa: ANN401 - jax reaches type checkers only if installed
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # it shares the card
    return importlib.import_module("jax")


class XlaPeer:
    """XLA. Matrix products in fp32 stay fp32.

    Args:
        count: Profiles a call, where something can.
    """

    name = XLA

    def __init__(self, count: Count | None) -> None:
        self._count = count

    def open(self, case: Case) -> XlaRunning:
        """Compile the model."""
        kind = "tensorfloat32" if case.precision is Precision.TF32 else "highest"
        _jax().config.update("jax_default_matmul_precision", kind)
        return XlaRunning(case, self._count)


class XlaRunning:
    """A compiled function with its parameters on the device."""

    work: Work | None = None

    def __init__(self, case: Case, count: Count | None) -> None:
        self._names = tuple(case.model.inputs)
        self._dtype = _DTYPES[case.precision]
        self._parameters = {name: self._array(array.T) for name, array in case.parameters.items()}
        self._place(case.draws[0][0])
        start = time.perf_counter()
        self._function = _jax().jit(function_of(case.model.name))
        self._run()
        self.compile_s = time.perf_counter() - start
        self.launches: int | None = None
        self._kernel_s: float | None = None
        if count is not None and (found := count(self._run))[0]:
            self.launches, self._kernel_s = found

    def scores(self, inputs: Inputs) -> NDArray[Any]:
        """Score a batch; see ``Running``. Its results are new arrays: nothing is left to poison."""
        self._place(inputs)
        scores: NDArray[Any] = np.asarray(self._run()).astype(np.float64)
        return scores

    def timing(self) -> Timing:
        """Time queued calls; see the module's text."""
        for _ in range(_CALLS // 4):
            self._run()
        start = time.perf_counter()
        for _ in range(_CALLS):
            result = self._function(self._parameters, *self._inputs)
        result.block_until_ready()
        call_s = (time.perf_counter() - start) / _CALLS
        kernel_s = call_s if self._kernel_s is None else min(call_s, self._kernel_s)
        return Timing(call_s * 1e6, kernel_s * 1e6)

    def close(self) -> None:
        """Let go of the arrays."""
        del self._function, self._parameters, self._inputs

    def _array(self, array: NDArray[Any]) -> Any:  # noqa: ANN401 - a jax array
        return _jax().numpy.asarray(array, self._dtype)

    def _place(self, inputs: Inputs) -> None:
        self._inputs = [self._array(inputs[name]) for name in self._names]

    def _run(self) -> Any:  # noqa: ANN401 - a jax array
        return self._function(self._parameters, *self._inputs).block_until_ready()

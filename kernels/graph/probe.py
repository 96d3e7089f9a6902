"""Probing: a graph is run on a few batches with every tensor exposed.

Exporters leave shapes out, or compute them at run time. What a tensor's shape is, which of its
dimensions follow the batch, and what a chain of Shape, Gather and Concat comes to, is read off
ONNX Runtime's own results; nothing here knows an operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from kernels.errors import GraphError
from kernels.graph.model import Array, Graph, make_model

# Constants from this size on are fed as inputs, which does not copy them into the model.
_FEED_BYTES = 1 << 16

# The runtime's exceptions have no base of their own: these are all of them.
_ERRORS = tuple(
    each
    for each in vars(onnxruntime_pybind11_state).values()
    if isinstance(each, type) and issubclass(each, Exception)
)


def open_file(path: Path) -> onnxruntime.InferenceSession:
    """Open a model's file, with its external data."""
    return _open(str(path), optimise=True)


def session(model: bytes, *, optimise: bool) -> onnxruntime.InferenceSession:
    """Open a model in ONNX Runtime on one thread."""
    return _open(model, optimise=optimise)


def _open(model: bytes | str, *, optimise: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except _ERRORS as error:
        raise GraphError(f"ONNX Runtime refuses the model: {_first_line(error)}") from error


def run_session(
    opened: onnxruntime.InferenceSession, outputs: list[str] | None, feeds: Mapping[str, Array]
) -> list[Any]:
    """Run an opened model.

    Raises:
        GraphError: ONNX Runtime failed on these inputs.
    """
    try:
        results: list[Any] = opened.run(outputs, dict(feeds))
    except _ERRORS as error:
        raise GraphError(f"ONNX Runtime: {_first_line(error)}") from error
    return results


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:400]


@attrs.frozen(eq=False)
class Prober:
    """A graph that is open for running, all of its tensors exposed."""

    names: tuple[str, ...]
    opened: onnxruntime.InferenceSession
    fed: Mapping[str, Array]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every tensor that is an array (and not a sequence) by name, inputs included."""
        results = run_session(self.opened, list(self.names), {**feeds, **self.fed})
        tensors = {
            name: value
            for name, value in zip(self.names, results, strict=True)
            if isinstance(value, np.ndarray)
        }
        return {**feeds, **tensors}


def open_prober(graph: Graph, names: Iterable[str] | None = None) -> Prober:
    """Open a graph with all tensors (or those of ``names``) exposed and optimisations off."""
    if names is None:
        names = [name for node in graph.nodes for name in node.output if name]
    fed = {n: a for n, a in graph.constants.items() if a.nbytes >= _FEED_BYTES and a.ndim}
    inputs = [
        onnx.helper.make_tensor_value_info(
            port.name,
            onnx.helper.np_dtype_to_tensor_dtype(port.dtype),
            [None, *port.shape[1:]],
        )
        for port in graph.inputs
    ]
    inputs += [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in fed.items()
    ]
    model = make_model(
        graph,
        nodes=graph.nodes,
        constants={name: a for name, a in graph.constants.items() if name not in fed},
        inputs=inputs,
        outputs=[onnx.ValueInfoProto(name=name) for name in names],
    )
    return Prober(tuple(names), session(model.SerializeToString(), optimise=False), fed)

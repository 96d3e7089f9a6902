"""Small dense graphs as ONNX text, and their import held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from kernels.ir.check import check
from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import evaluate

USER, CANDIDATE = 6, 24
REQUESTS = "request_of_row"


def dense_text(
    body: str, constants: Mapping[str, Any] | None = None, *, opset: int = 18
) -> onnx.ModelProto:
    """Make a model of the nodes in ``body``: from ``user [R, 6]``, ``candidate [N, 24]``."""
    text = (
        f'<ir_version: 9, opset_import: ["" : {opset}]>\n'
        f"dense (float[R,{USER}] user, float[N,{CANDIDATE}] candidate, int64[N] {REQUESTS}) "
        f"=> (float[N,M] scores) {{\n{body}\n}}"
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in (constants or {}).items()
    )
    return model


def feeds_of(model: onnx.ModelProto, rows: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw the inputs that a dense graph has, rows dealt to up to three requests."""
    random = np.random.default_rng([seed, rows])
    places = np.sort(random.integers(0, 3, rows)) if rows > 1 else np.zeros(rows, np.int64)
    places = np.unique(places, return_inverse=True)[1].astype(np.int64)
    found: dict[str, NDArray[Any]] = {}
    for info in model.graph.input:
        if info.name == REQUESTS:
            found[info.name] = places
            continue
        width = info.type.tensor_type.shape.dim[1].dim_value
        n = rows if info.name == "candidate" else int(places[-1]) + 1
        found[info.name] = random.normal(size=(n, width)).astype(np.float32)
    return found


def agree(
    model: onnx.ModelProto | bytes, *, name: str = "m", atol: float = 1e-5, one_row: bool = True
) -> Graph:
    """Import a model, check it, and compare with ONNX Runtime at 1 and 37 rows.

    Args:
        model: A dense graph.
        name: Of the model.
        atol: Error allowed, of ``|got - want| / max(1, |want|)``.
        one_row: Whether ONNX Runtime can run it on one row.
    """
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else model
    graph = import_dense(proto.SerializeToString(), name)
    check(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for rows in (1, 37) if one_row else (2, 37):
        feeds = feeds_of(proto, rows)
        want = session.run(None, feeds)[0].astype(np.float64)
        places = feeds.get(REQUESTS, np.zeros(rows, np.int64))
        got = evaluate(graph, {each: feeds[each] for each in graph.inputs}, places)
        assert got.shape == want.shape
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        error = np.abs(got - want) / np.maximum(1.0, np.abs(want))
        assert np.nanmax(error, initial=0.0) <= atol
    return graph

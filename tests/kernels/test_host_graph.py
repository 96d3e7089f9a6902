from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.host_graph import for_host


def sums(n_fields: int, dim: int, axis: int, keepdims: int, opset: int = 18) -> bytes:
    """Return a model that cuts rows into fields and sums them along an axis."""
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["fields"]),
            helper.make_node("ReduceSum", ["fields", "axes"], ["summed"], keepdims=keepdims),
            helper.make_node("Identity", ["summed"], ["y"]),
        ],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", n_fields * dim])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([-1, n_fields, dim]), "shape"),
            numpy_helper.from_array(np.array([axis]), "axes"),
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def run(model: bytes, n_columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    x = np.random.default_rng(1).standard_normal((5, n_columns)).astype(np.float32)
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    (scores,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    return scores


def ops(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.mark.parametrize("n_fields", [2, 3, 8])
@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_a_sum_over_a_few_fields_is_split_and_keeps_its_result(
    n_fields: int, axis: int, keepdims: int, opset: int
) -> None:
    before = sums(n_fields, 4, axis, keepdims, opset)
    after = for_host(before)
    assert "ReduceSum" not in ops(after)
    a, b = run(before, 4 * n_fields), run(after, 4 * n_fields)
    assert a.shape == b.shape
    np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("n_fields", "dim", "axis"), [(9, 4, 1), (3, 4, 2), (3, 1, 1)])
def test_other_sums_stay_as_they_are(n_fields: int, dim: int, axis: int) -> None:
    assert "ReduceSum" in ops(for_host(sums(n_fields, dim, axis, 1)))

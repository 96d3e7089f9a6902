"""Moving operators on numpy arrays do what ONNX Runtime does."""

from typing import Any

import numpy as np
import onnx
import pytest

from kernels.graph.movement import is_move, move, n_moved
from kernels.graph.probe import session

X = np.arange(2 * 3 * 4, dtype=np.int64).reshape(2, 3, 4)


def i64(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Identity", [X], {}, 1),
    ("Reshape", [X, i64(0, -1)], {}, 1),
    ("Reshape", [X, i64(4, 6)], {}, 1),
    ("Flatten", [X], {"axis": 2}, 1),
    ("Flatten", [X], {"axis": 0}, 1),
    ("Flatten", [X], {"axis": -1}, 1),
    ("Squeeze", [X[:, :1], i64(1)], {}, 1),
    ("Squeeze", [X[:1, :1]], {}, 1),
    ("Unsqueeze", [X, i64(0, -1)], {}, 1),
    ("Transpose", [X], {}, 1),
    ("Transpose", [X], {"perm": [1, 2, 0]}, 1),
    ("Concat", [X, X[:, 1:]], {"axis": 1}, 1),
    ("Concat", [X, X], {"axis": -1}, 1),
    ("Slice", [X, i64(1), i64(3), i64(2)], {}, 1),
    ("Slice", [X, i64(-2), i64(2**62), i64(-1)], {}, 1),
    ("Slice", [X, i64(0, 1), i64(2, 3)], {}, 1),
    ("Slice", [X, i64(3), i64(-(2**62)), i64(2), i64(-2)], {}, 1),
    ("Slice", [X, i64(2), i64(0), i64(2), i64(-1)], {}, 1),
    ("Slice", [X, i64(5), i64(9), i64(2)], {}, 1),
    ("Split", [X, i64(1, 3)], {"axis": 2}, 2),
    ("Split", [X], {"axis": 2, "num_outputs": 2}, 2),
    ("Split", [X[:, :, :3]], {"axis": 2, "num_outputs": 2}, 2),
    ("Expand", [X[:, :1], i64(2, 3, 4)], {}, 1),
    ("Expand", [X, i64(5, 1, 1, 4)], {}, 1),
    ("Tile", [X, i64(1, 2, 3)], {}, 1),
    ("Gather", [X, i64(2, 0, -1)], {"axis": 1}, 1),
    ("Gather", [X, np.asarray(1, np.int64)], {"axis": 2}, 1),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "n_outputs"), CASES)
def test_a_move_is_what_onnx_runtime_does(
    op: str, inputs: list[Any], attributes: dict[str, Any], n_outputs: int
) -> None:
    names = [f"i{i}" for i in range(len(inputs))]
    outputs = [f"o{i}" for i in range(n_outputs)]
    node = onnx.helper.make_node(op, names, outputs, **attributes)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [info(n, onnx.TensorProto.INT64, a.shape) for n, a in zip(names, inputs, strict=True)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    opened = session(model.SerializeToString(), optimise=False)
    want = opened.run(None, dict(zip(names, inputs, strict=True)))
    got = move(node, inputs)
    assert [each.tolist() for each in got] == [each.tolist() for each in want]
    assert [each.shape for each in got] == [each.shape for each in want]


def test_operands_may_be_attributes_as_in_older_opsets() -> None:
    make = onnx.helper.make_node
    sliced = move(make("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[2]), [X])
    assert sliced[0].tolist() == X[:, :, 1:3].tolist()
    parts = move(make("Split", ["x"], ["a", "b"], axis=2, split=[1, 3]), [X])
    assert [part.shape for part in parts] == [(2, 3, 1), (2, 3, 3)]
    assert move(make("Unsqueeze", ["x"], ["y"], axes=[0]), [X])[0].shape == (1, 2, 3, 4)
    assert move(make("Squeeze", ["x"], ["y"], axes=[0]), [X[:1]])[0].shape == (3, 4)


def test_all_inputs_of_a_concat_are_moved_and_one_of_others() -> None:
    assert n_moved(onnx.helper.make_node("Concat", ["a", "b", "c"], ["y"], axis=0)) == 3
    assert n_moved(onnx.helper.make_node("Slice", ["a", "b", "c"], ["y"])) == 1
    assert not is_move(onnx.helper.make_node("Relu", ["a"], ["y"]))
    assert not is_move(onnx.helper.make_node("Reshape", ["a", "b"], ["y"], domain="mine"))

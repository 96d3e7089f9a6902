from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kernels.bundle.user_once import user_side_once

F32 = NDArray[np.float32]


class Builder:
    """Writes a dense graph as the cut does: it begins by gathering the user's columns."""

    def __init__(self, user: int, candidate: int) -> None:
        self.widths = {"user": user, "candidate": candidate}
        self.nodes = [helper.make_node("Gather", ["user", "request_of_row"], ["user_rows"], axis=0)]
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(3)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Sequence[int] | NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant((0.3 * self.rng.standard_normal(shape)).astype(np.float32))

    def model(self, output: str, width: int) -> onnx.ModelProto:
        """Return the model whose scores are ``output`` as ``[rows, width]``."""
        flat = self.op("Reshape", output, self.constant([-1, width]))
        self.nodes.append(helper.make_node("Identity", [flat], ["scores"]))
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "dense",
            [
                info("user", TensorProto.FLOAT, ["requests", self.widths["user"]]),
                info("candidate", TensorProto.FLOAT, ["rows", self.widths["candidate"]]),
                info("request_of_row", TensorProto.INT64, ["rows"]),
            ],
            [info("scores", TensorProto.FLOAT, ["rows", width])],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(made, full_check=True)
        return made


def run(model: onnx.ModelProto, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    counts = [3, 1, 4]
    widths = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    scores: F32 = session.run(
        ["scores"],
        {
            "user": rng.standard_normal((3, widths["user"][1].dim_value)).astype(np.float32),
            "candidate": rng.standard_normal((8, widths["candidate"][1].dim_value)).astype(
                np.float32
            ),
            "request_of_row": np.repeat(np.arange(3), counts),
        },
    )[0]
    return scores


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a model, and hold the result against it."""
    after = user_side_once(model, user="user", rows="request_of_row")
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(run(after), run(model), rtol=1e-4, atol=1e-5)
    return after


def shapes(model: onnx.ModelProto, op: str) -> list[list[str | int]]:
    """Return the first operand's shape for each node of a kind."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim]
        for each in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    return [known[node.input[0]] for node in model.graph.node if node.op_type == op]


def mlp(user: int, candidate: int) -> onnx.ModelProto:
    b = Builder(user, candidate)
    x = b.op("Concat", "user_rows", "candidate", axis=1)
    h = b.op("Relu", b.op("Gemm", x, b.weight(16, user + candidate), b.weight(16), transB=1))
    return b.model(b.op("MatMul", h, b.weight(16, 1)), 1)


def test_a_linear_over_user_and_candidate_multiplies_the_user_once_a_request() -> None:
    after = check(mlp(40, 5))
    assert shapes(after, "MatMul") == [["requests", 40], ["rows", 16]]
    assert shapes(after, "Gemm") == [["rows", 5]]
    assert not shapes(after, "Concat")


def test_a_few_user_columns_are_not_worth_a_split() -> None:
    assert shapes(check(mlp(3, 5)), "Gemm") == [["rows", 8]]


def test_a_tower_on_user_columns_alone_runs_once_a_request() -> None:
    b = Builder(6, 4)
    tower = b.op("Sigmoid", b.op("Gemm", "user_rows", b.weight(6, 4), b.weight(4)))
    scores = b.op("ReduceSum", b.op("Mul", tower, "candidate"), b.constant([1]))
    after = check(b.model(scores, 1))
    assert shapes(after, "Gemm") == [["requests", 6]]
    assert shapes(after, "Sigmoid") == [["requests", 4]]
    assert shapes(after, "Gather") == [["requests", 4]]


def test_the_sums_of_a_factorisation_machine_are_split() -> None:
    b = Builder(5 * 4, 2 * 4)
    x = b.op("Concat", "user_rows", "candidate", axis=1)
    fields = b.op("Reshape", x, b.constant([-1, 7, 4]))
    axis = b.constant([1])
    square_of_sum = b.op(
        "Pow", b.op("ReduceSum", fields, axis), b.constant(np.full(1, 2.0, np.float32))
    )
    sum_of_squares = b.op("ReduceSum", b.op("Mul", fields, fields), axis)
    after = check(b.model(b.op("Sub", square_of_sum, sum_of_squares), 4))
    firsts = [shape[1] for shape in shapes(after, "ReduceSum")]
    assert sorted(firsts) == [2, 2, 5, 5]


def test_a_graph_without_user_columns_stays_as_it_is() -> None:
    b = Builder(0, 4)
    model = b.model(b.op("Relu", "candidate"), 4)
    after = check(model)
    assert [node.op_type for node in after.graph.node] == ["Relu", "Reshape", "Identity"]


@pytest.mark.parametrize(
    "mix",
    [
        lambda b, x: b.op("Softmax", x, axis=0),
        lambda b, x: b.op("ReduceMax", x, b.constant([0])),
        lambda b, x: b.op(
            "Transpose", b.op("Softmax", b.op("Transpose", x, perm=[1, 0])), perm=[1, 0]
        ),
        lambda b, x: b.op("Sub", x, b.op("ReduceMean", x, b.constant([0]))),
        lambda b, x: b.op("CumSum", x, b.constant(np.array(0))),
    ],
)
def test_ops_across_rows_see_every_row(mix: Callable[[Builder, str], str]) -> None:
    b = Builder(6, 6)
    check(b.model(b.op("Add", mix(b, "user_rows"), "candidate"), 6))


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs over matrices, of ops that the pass knows and some that it does not."""
    user, candidate = draw(st.integers(1, 6)) * 8, draw(st.integers(1, 3)) * 8
    b = Builder(user, candidate)
    pool = [("user_rows", user), ("candidate", candidate)]
    for _ in range(draw(st.integers(1, 12))):
        name, width = draw(st.sampled_from(pool))
        kind = draw(
            st.sampled_from(
                [
                    "unary",
                    "linear",
                    "concat",
                    "fields",
                    "binary",
                    "scale",
                    "slice",
                    "softmax",
                    "sum",
                ]
            )
        )
        if kind == "unary":
            made = (b.op(draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "Abs"])), name), width)
        elif kind == "linear":
            out = draw(st.sampled_from([8, 16]))
            made = (b.op("Gemm", name, b.weight(width, out), b.weight(out)), out)
        elif kind == "concat":
            others = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))
            names = [name, *(each for each, _ in others)]
            made = (b.op("Concat", *names, axis=1), width + sum(each for _, each in others))
        elif kind == "fields":
            fields = b.op("Reshape", name, b.constant([-1, width // 8, 8]))
            squared = b.op("Mul", fields, fields) if draw(st.booleans()) else fields
            axis, rest = draw(st.sampled_from([(1, 8), (2, width // 8)]))
            summed = b.op(
                "ReduceSum", squared, b.constant([axis]), keepdims=draw(st.integers(0, 1))
            )
            flat = b.op("Reshape", summed, b.constant([-1, rest]))
            made = (
                b.op("Concat", *[flat] * (8 if rest != 8 else 1), axis=1),
                rest * (8 if rest != 8 else 1),
            )
        elif kind == "binary":
            alike = [each for each in pool if each[1] == width]
            other, _ = draw(st.sampled_from(alike))
            made = (b.op(draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), name, other), width)
        elif kind == "scale":
            by = draw(st.sampled_from([(1,), (width,), (1, width)]))
            made = (b.op(draw(st.sampled_from(["Mul", "Add"])), name, b.weight(*by)), width)
        elif kind == "slice":
            ends = [b.constant([each]) for each in (0, 8, 1)]
            made = (b.op("Slice", name, *ends), 8)
        elif kind == "softmax":
            made = (b.op("Softmax", name, axis=draw(st.sampled_from([-1, 0]))), width)
        else:
            total = b.op("ReduceSum", name, b.constant([-1]), keepdims=1)
            made = (b.op("Mul", total, name), width)
        pool.append(made)
    name, width = pool[-1]
    return b.model(
        b.op("Concat", name, *(each for each, _ in pool[2:-1][-2:]), axis=1),
        width + sum(each for _, each in pool[2:-1][-2:]),
    )


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs_keep_their_meaning(model: onnx.ModelProto) -> None:
    before = run(model)
    after = user_side_once(model, user="user", rows="request_of_row")
    scale = max(1.0, float(np.abs(before).max()))
    np.testing.assert_allclose(run(after) / scale, before / scale, rtol=1e-3, atol=1e-4)

"""Import of dense graphs: the zoo's and torch's, rows on any axis, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from kernels.bundle.build import gpu_support
from kernels.bundle.load import load_bundle
from kernels.errors import GraphError
from kernels.ir import onnx_import
from kernels.ir.node import Lead, Node, Op
from kernels.ir.onnx_call import Call
from kernels.ir.onnx_import import import_dense
from kernels.ir.onnx_value import Value
from kernels.ir.reference import evaluate
from tests import zoo, zoo_rows
from tests.kernels import peer_models
from tests.kernels.onnx_help import CANDIDATE, agree, dense_text

needs_zoo = pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")
needs_peers = pytest.mark.skipif(bool(peer_models.missing()), reason=str(peer_models.missing()))

# Squeezes its rows' axis away where there is one row.
SEVERAL_ROWS = {"deepctr_DCNMix.dynamo"}
HOST_ONLY = {"deepctr_DIEN_GRU.legacy": "NonZero"}
# One of each kind of interaction; all others take the slow run.
QUICK = "AFM.legacy CCPM DCNMix DIN_dice.legacy DeepFM_varlen.dynamo DIEN MMOE.d xDeepFM.d DLRM_v1"


def _zoo_names() -> list[Any]:
    if not zoo.ZOO.exists():
        return []
    names = [model.name for model in zoo.models(zoo.ZOO)]
    return [
        name
        if any(each in name for each in QUICK.split())
        else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@needs_zoo
@pytest.mark.parametrize("name", _zoo_names())
def test_a_model_of_the_zoo_is_imported(name: str, zoo_built: Callable[[str], zoo.Built]) -> None:
    built = zoo_built(name)
    if name in HOST_ONLY:
        assert not built.manifest.gpu.supported
        assert built.manifest.gpu.reason.startswith(f"{name}: {HOST_ONLY[name]} ")
        return
    assert built.manifest.gpu.supported, built.manifest.gpu.reason
    dense = load_bundle(built.path).dense_model()
    # float32 in ONNX Runtime sums products of numbers that are larger than a model's.
    agree(dense, name=name, atol=5e-5, one_row=name not in SEVERAL_ROWS)


@needs_peers
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "DLRMDCNv2" else name
        for name in peer_models.NAMES
    ],
)
def test_a_model_of_torch_equals_torch_in_float64(name: str) -> None:
    graph, module, layout = peer_models.peer_graph(name)
    rows = 37
    inputs = peer_models.peer_inputs(module, rows)
    want = peer_models.peer_scores(module, inputs)
    got = evaluate(graph, {"candidate": layout.block(inputs)})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@needs_peers
@pytest.mark.parametrize("name", ["DIN", "MMoE"])
def test_scores_of_a_model_can_be_spread(name: str) -> None:
    module = peer_models.peer_module(name)
    peer_models.spread_scores(module, 1.5)
    scores = peer_models.peer_scores(module, peer_models.peer_inputs(module, 256, seed=1))
    logits = np.log(scores / (1 - scores))
    np.testing.assert_allclose(logits.std(axis=0), 1.5, rtol=1e-3)


def test_a_layout_has_embeddings_first_and_dense_last() -> None:
    shapes = {"dense": (13,), "first": (26,), "emb": (26, 16), "other": (8,)}
    layout = peer_models.layout_of(shapes)
    assert list(layout.columns) == list(shapes)
    offsets = {name: each.offset for name, each in layout.columns.items()}
    assert offsets == {"emb": 0, "other": 416, "first": 424, "dense": 450}
    assert layout.width == 463
    inputs = {name: np.full((2, *shape), len(name)) for name, shape in shapes.items()}
    assert layout.block(inputs)[1, [0, 416, 424, 450]].tolist() == [3, 5, 5, 5]


# Rows on any axis

Axes = list[list[int | str]]


class Random:
    """Draws a graph: moves axes about, rows among them, and does something now and then.

    An axis is a list of its factors, slowest first; ``"N"`` is the rows.
    """

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.axes: Axes = [["N"], [CANDIDATE]]  # the rows, and their columns
        self.tensor = "candidate"

    def add(self, op: str, *inputs: str, **attributes: Any) -> None:  # noqa: ANN401
        output = f"t{len(self.nodes)}"
        node = onnx.helper.make_node(op, [self.tensor, *inputs], [output], **attributes)
        self.nodes.append(node)
        self.tensor = output

    def constant(self, array: Any) -> str:  # noqa: ANN401
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def draw(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def size(self, axis: int) -> int:
        return math.prod(each for each in self.axes[axis] if isinstance(each, int))

    def plain(self) -> list[int]:
        """Return the axes without rows."""
        return [i for i, axis in enumerate(self.axes) if "N" not in axis]

    def reshape(self, axes: Axes) -> None:
        self.axes = axes
        sizes = [-1 if "N" in axis else self.size(i) for i, axis in enumerate(axes)]
        self.add("Reshape", self.constant(np.asarray(sizes, np.int64)))

    def transpose(self) -> None:
        order = self.data.draw(st.permutations(range(len(self.axes))))
        self.axes = [self.axes[i] for i in order]
        self.add("Transpose", perm=order)

    def merge(self) -> None:
        at = self.draw(0, len(self.axes) - 2)
        merged = [*self.axes[at], *self.axes[at + 1]]
        self.reshape([*self.axes[:at], merged, *self.axes[at + 2 :]])

    def cut(self) -> None:
        axes: Axes = []
        for axis in self.axes:
            for each in axis:
                if isinstance(each, int) and each > 1 and each % 2 == 0:
                    axes += [[2], [each // 2]]
                else:
                    axes.append([each])
        if len(axes) <= 6:
            self.reshape(axes)

    def softmax(self, axis: int) -> None:
        self.add("Softmax", axis=axis)

    def total(self, axis: int) -> None:
        keep = self.draw(0, 1)
        self.add("ReduceMean", self.constant(np.asarray([axis], np.int64)), keepdims=keep)
        kept: Axes = [[1]] if keep else []
        self.axes = [*self.axes[:axis], *kept, *self.axes[axis + 1 :]]

    def slice(self, axis: int) -> None:
        size = self.size(axis)
        step = self.data.draw(st.sampled_from([1, 2, -1]))
        start, stop = (0, size) if step > 0 else (size - 1, -size - 1)
        bounds = [self.constant(np.asarray([each], np.int64)) for each in (start, stop, axis, step)]
        self.add("Slice", *bounds)
        self.axes[axis] = [len(range(0, size, abs(step)))]

    def gather(self, axis: int) -> None:
        size = self.size(axis)
        indices = self.data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
        self.add("Gather", self.constant(np.asarray(indices, np.int64)), axis=axis)
        self.axes[axis] = [len(indices)]

    def bias(self) -> None:
        first = self.draw(0, len(self.axes) - 1)
        sizes = [
            1 if "N" in axis or self.draw(0, 1) else self.size(i)
            for i, axis in enumerate(self.axes)
        ]
        numbers = np.random.default_rng(len(self.nodes)).normal(size=sizes[first:])
        self.add("Add", self.constant(numbers.astype(np.float32)))

    def linear(self) -> None:
        if "N" not in self.axes[-1]:
            size = self.size(len(self.axes) - 1)
            weight = np.random.default_rng(size).normal(size=(size, 4)) / size
            self.add("MatMul", self.constant(weight.astype(np.float32)))
            self.axes[-1] = [4]

    def pairs(self) -> None:
        rank = len(self.axes)
        if rank > 2 and all("N" not in axis for axis in self.axes[-2:]):
            x = self.tensor
            self.add("Transpose", perm=[*range(rank - 2), rank - 1, rank - 2])
            turned, self.tensor = self.tensor, x
            self.add("MatMul", turned)
            self.axes[-1] = list(self.axes[-2])

    def step(self) -> None:
        moves = [self.transpose, self.transpose, self.merge, self.cut, self.bias, self.linear]
        moves += [self.pairs, lambda: self.add("Tanh")]
        plain = self.plain()
        if len(self.axes) < 2 or not plain:
            self.cut()
            return
        axis = self.data.draw(st.sampled_from(plain))
        works = [self.softmax, self.total, self.slice, self.gather]
        chosen = self.draw(0, len(moves) + len(works) - 1)
        if chosen < len(moves):
            moves[chosen]()
        else:
            works[chosen - len(moves)](axis)

    def model(self) -> onnx.ModelProto:
        for _ in range(self.draw(1, 8)):
            self.step()
        self.reshape([[each] for axis in self.axes for each in axis])
        rows = next(i for i, axis in enumerate(self.axes) if axis == ["N"])
        order = [rows, *(i for i in range(len(self.axes)) if i != rows)]
        self.add("Transpose", perm=order)
        self.add("Reshape", self.constant(np.asarray([0, -1], np.int64)))
        self.nodes[-1].output[0] = "scores"
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            "g",
            [info("candidate", onnx.TensorProto.FLOAT, ["N", CANDIDATE])],
            [info("scores", onnx.TensorProto.FLOAT, ["N", None])],
            [onnx.numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        opsets = [onnx.helper.make_opsetid("", 18)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(st.data())
def test_rows_may_stand_on_any_axis(data: st.DataObject) -> None:
    agree(Random(data).model())


# Refusals

I64: Mapping[str, NDArray[Any]] = {
    "i0": np.asarray([0], np.int64),
    "i1": np.asarray([1], np.int64),
    "i3": np.asarray([3], np.int64),
    "first": np.asarray(0, np.int64),
    "to_64": np.asarray([-1, 6, 4], np.int64),
    "to_m1": np.asarray([-1, 12], np.int64),
    "to_5": np.asarray([5, 24], np.int64),
    "x34": np.ones((3, 24), np.float32),
}
REFUSED = {
    "scores = NonZero(candidate)": "NonZero 'scores': is not an operator",
    "scores = com.other.Gelu(candidate)": "Gelu 'scores': of domain 'com.other' is not an",
    "y = ReduceSum(candidate, i0)\nscores = Add(candidate, y)": "ReduceSum 'y': works across rows",
    "y = ReduceSum(candidate)\nscores = Add(candidate, y)": "ReduceSum 'y': works across rows",
    "scores = Softmax<axis=0>(candidate)": "Softmax 'scores': works across rows",
    "y = Gather(candidate, first)\nscores = Add(candidate, y)": "Gather 'y': works across rows",
    "y = CumSum(candidate, i0)\nscores = Identity(y)": "CumSum 'y': works across rows",
    "scores = Concat<axis=0>(candidate, candidate)": "Concat 'scores': works across rows",
    "scores = Reshape(candidate, to_m1)": "one row of floats for each candidate",
    "t = Transpose(candidate)\ny = Reshape(t, to_m1)\nscores = Identity(y)": (
        "Reshape 'y': makes ['2*rows', '12'] of ['24', 'rows'], which would mix rows"
    ),
    "t = Transpose(candidate)\ny = MatMul(candidate, t)\nscores = MatMul(y, candidate)": (
        "MatMul 'y': multiplies some rows with others"
    ),
    "t = Transpose(candidate)\ny = MatMul(t, candidate)\nscores = MatMul(candidate, y)": (
        "MatMul 'y': works across rows"
    ),
    "v, y = TopK(candidate, i3)\nz = Cast<to=1>(y)\nscores = Add(z, v)": (
        "Cast 'z': reads 'y', which nothing computes"
    ),
    "y = Cast<to=7>(candidate)\nscores = GatherElements<axis=1>(candidate, y)": (
        "GatherElements 'scores': takes elements at computed places"
    ),
    "y = Cast<to=1>(request_of_row)\nz = Unsqueeze(y, i1)\nscores = Mul(candidate, z)": (
        "Cast 'y': uses request_of_row for more than to gather rows"
    ),
    "s = Shape(candidate)\ny = Cast<to=1>(s)\nz = ReduceSum<keepdims=0>(y)\n"
    "scores = Mul(candidate, z)": "uses the number of rows as a number",
    "y = Gather(candidate, request_of_row)\nscores = Identity(y)": (
        "Gather 'y': gathers what is not one row a request"
    ),
    "y, a, b = BatchNormalization<training_mode=1>(candidate, o, o, o, o)\nscores = Abs(y)": (
        "is in training mode"
    ),
    "x = ReduceSum(candidate, i1)\nt = Transpose(x)\ny = Mul(x, t)\nscores = ReduceMax(y, i1)": (
        "Mul 'y': sets some rows against others: they stand on different axes"
    ),
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_outside_is_refused_by_operator_node_and_model(body: str) -> None:
    constants = {**I64, "o": np.ones(CANDIDATE, np.float32)}
    if "com.other" in body:
        model = dense_text(body.replace("com.other.", ""), constants)
        model.graph.node[0].domain = "com.other"
        model.opset_import.append(onnx.helper.make_opsetid("com.other", 1))
    else:
        model = dense_text(body, constants)
    with pytest.raises(GraphError) as caught:
        import_dense(model.SerializeToString(), "film")
    assert str(caught.value).startswith("film: ")
    assert REFUSED[body] in str(caught.value)


def test_what_an_operator_makes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def flattened(call: Call) -> Value:
        [made] = call.inputs
        assert isinstance(made, Value)
        return attrs.evolve(made, node=Node(Op.ABS, (made.node,), (Lead.ROWS, 1), name="odd"))

    monkeypatch.setattr(onnx_import, "HANDLERS", {**onnx_import.HANDLERS, "Abs": flattened})
    model = dense_text("scores = Abs(candidate)", {})
    with pytest.raises(GraphError, match=r"film: abs 'odd': says that it is \[rows, 1\] of float"):
        import_dense(model.SerializeToString(), "film")


def test_no_onnx_and_no_dense_graph_are_refused(tmp_path: Any) -> None:  # noqa: ANN401
    with pytest.raises(GraphError, match="film: not an ONNX model"):
        import_dense(b"damaged", "film")
    with pytest.raises(GraphError, match="film: not an ONNX model"):
        import_dense(tmp_path / "none.onnx", "film")
    model = dense_text("scores = Identity(candidate)")
    model.graph.input[1].name = "items"
    model.graph.node[0].input[0] = "items"
    with pytest.raises(GraphError, match="film: not a dense graph"):
        import_dense(model.SerializeToString(), "film")


# What comes out


def test_a_users_linear_is_done_on_requests_and_repeated() -> None:
    body = "l = MatMul(user, w)\nu = Gather(l, request_of_row)\nscores = Add(u, candidate)"
    graph = agree(dense_text(body, {"w": np.ones((6, 24), np.float32)}))
    linear = next(node for node in graph.nodes() if node.op is Op.LINEAR)
    assert linear.lead is Lead.REQUESTS
    (rows,) = [node for node in graph.nodes() if node.op is Op.TO_ROWS]
    assert rows.sources == (linear,)
    assert list(graph.inputs) == ["user", "candidate"]


def test_scale_and_bias_of_a_gemm_are_in_its_constants() -> None:
    body = "scores = Gemm<alpha=0.5, beta=2.0, transB=1>(candidate, w, b)"
    constants = {"w": np.ones((5, 24), np.float32), "b": np.ones(5, np.float32)}
    graph = import_dense(dense_text(body, constants).SerializeToString(), "m")
    _, weight, bias = graph.output.sources
    assert graph.output.op is Op.LINEAR
    assert weight.shape == (24, 5)
    assert np.all(weight.array == 0.5)
    assert np.all(bias.array == 2.0)


def test_moves_that_change_nothing_leave_no_nodes() -> None:
    body = "x = Unsqueeze(candidate, i1)\ny = Transpose<perm=[1,0,2]>(x)\nz = Squeeze(y, i0)\n"
    graph = agree(
        dense_text(
            body + "w = Expand(z, one)\nscores = Relu(w)",
            {"i1": np.asarray([1]), "i0": np.asarray([0]), "one": np.asarray([1, 1])},
        )
    )
    ops = [node.op for node in graph.nodes()]
    assert ops.count(Op.TRANSPOSE) == 0
    assert ops.count(Op.EXPAND) == 0


def test_a_bundle_says_why_it_is_for_the_host_alone() -> None:
    model = dense_text("y = NonZero(candidate)\nz = Cast<to=1>(y)\nscores = Transpose(z)")
    support = gpu_support(model.SerializeToString(), "film")
    assert not support.supported
    assert support.reason.startswith("film: NonZero 'y': ")
    fine = gpu_support(dense_text("scores = Relu(candidate)").SerializeToString(), "film")
    assert fine.supported
    assert fine.reason == ""


@needs_zoo
def test_random_inputs_on_the_host_agree_with_the_oracle(tmp_path: Any) -> None:  # noqa: ANN401
    (model,) = zoo.models(zoo.ZOO, "^deepctr_DIN.dynamo$")
    result = zoo.check_here(model, rows=[1, 64])
    assert result.ok, result.problem
    assert set(result.random) == {1, 64}
    assert max(result.random.values()) < 1e-5


def test_rows_are_dealt_to_requests_without_gaps() -> None:
    random = np.random.default_rng(0)
    for n_rows in (1, 2, 37, 513):
        places = zoo_rows.requests_of(n_rows, random)
        assert places.shape == (n_rows,)
        assert set(np.diff(places)) <= {0, 1}
        assert places[0] == 0
        assert places[-1] == min(n_rows // 16, 63)


def test_nan_and_other_shapes_are_infinite_errors() -> None:
    ones = np.ones((2, 1))
    assert zoo_rows.largest_error(ones, ones * 3) == pytest.approx(2 / 3)
    assert zoo_rows.largest_error(ones * np.nan, ones) == math.inf
    assert zoo_rows.largest_error(ones, np.ones((1, 1))) == math.inf

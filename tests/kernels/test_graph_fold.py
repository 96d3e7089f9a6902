"""Probing and folding: what a graph is simplified to."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kernels.errors import GraphError
from kernels.graph.facts import Dim, Facts, Kind, learn
from kernels.graph.fold import simplify
from kernels.graph.model import Graph, load_graph, reads
from kernels.graph.trace import Columns, Root, Tracer, encode, row_columns
from tests.kernels.bundle_help import table, write_model


def graph_of(path: Path, signature: str, body: str, **constants: Any) -> Graph:  # noqa: ANN401
    return load_graph(write_model(path / "m.onnx", signature, body, constants))


def simplified(path: Path, signature: str, body: str, **constants: Any) -> tuple[Graph, Facts]:  # noqa: ANN401
    graph = graph_of(path, signature, body, **constants)
    return graph, simplify(graph, {})


def test_dimensions_that_follow_the_batch_are_told_from_those_that_do_not(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        "(float[B,3] x) => (float[N] y)",
        "s = Shape(x)\ntwice = Concat<axis=0>(x, x)\ny = Reshape(twice, flat)",
        flat=np.asarray([-1], np.int64),
    )
    facts = learn(graph, {})
    assert facts.dims["x"] == (Dim(0, 1), Dim(3, 0))
    assert facts.dims["twice"] == (Dim(0, 2), Dim(3, 0))
    assert facts.dims["y"] == (Dim(0, 6),)
    assert facts.row_size("y") == 6
    assert facts.shape("twice", 11) == (22, 3)


def test_what_a_tensor_depends_on_is_found_through_shapes_and_lookups(tmp_path: Path) -> None:
    body = """
        s = Shape(x)
        e = Gather(t, x)
        r = Relu(e)
        n = NonZero(x)
        ns = Shape(n)
        es = Shape(e)
        c = Add(one, one)
        y = Identity(r)
        z = Concat<axis=0>(s, ns, es, c)
    """
    graph = graph_of(
        tmp_path,
        "(int64[B,2] x) => (float[B,2,4] y, int64[N] z)",
        body,
        t=table(9),
        one=np.asarray([1], np.int64),
    )
    kinds = learn(graph, {}).kinds
    assert [kinds[name] for name in ["s", "e", "r", "n", "ns", "es", "c"]] == [
        Kind.BATCH,
        Kind.MIXED,
        Kind.MIXED,
        Kind.FEATURES,
        Kind.FEATURES,  # how many are not zero is in the data
        Kind.BATCH,
        Kind.CONSTANT,
    ]


def test_constants_are_computed_and_idle_nodes_removed(tmp_path: Path) -> None:
    body = """
        two = Add(one, one)
        s = Shape(x)
        width = Gather(s, place)
        shape = Concat<axis=0>(minus, width)
        a = Reshape(x, shape)
        b = Identity(a)
        d = Mul(b, ones)
        e = Cast<to=1>(d)
        f = Add(zeros, e)
        y = Mul(f, two)
    """
    graph, _ = simplified(
        tmp_path,
        "(float[B,3] x) => (float[B,3] y)",
        body,
        one=np.float32(1),
        place=np.asarray([1], np.int64),
        minus=np.asarray([-1], np.int64),
        ones=np.ones((1, 3), np.float32),
        zeros=np.zeros(3, np.float32),
    )
    assert [(node.op_type, list(node.input)) for node in graph.nodes] == [("Mul", ["x", "two"])]
    assert graph.constants["two"] == 2


def test_a_node_keeps_its_outputs_that_are_not_constant(tmp_path: Path) -> None:
    body = "s = Shape(x)\nn, w = Split<num_outputs=2>(s)\nt = Mul(w, two)\n"
    body += "d = Concat<axis=0>(n, t)\ne = Concat<axis=1>(x, x)\ny = Reshape(e, d)"
    graph, facts = simplified(
        tmp_path, "(float[B,3] x) => (float[B,M] y)", body, two=np.asarray([2], np.int64)
    )
    assert graph.constants["t"].tolist() == [6]
    assert facts.dims["y"] == (Dim(0, 1), Dim(6, 0))


def test_neutral_operands_that_change_the_shape_are_kept(tmp_path: Path) -> None:
    graph, _ = simplified(
        tmp_path,
        "(float[B,1] x) => (float[B,3] z)",
        "y = Add(x, zeros)\nz = Relu(y)",
        zeros=np.zeros(3, np.float32),
    )
    assert [node.op_type for node in graph.nodes] == ["Add", "Relu"]


def test_a_branch_that_is_always_taken_replaces_its_if(tmp_path: Path) -> None:
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    f32 = onnx.TensorProto.FLOAT
    yes = onnx.helper.make_graph(
        [make("Squeeze", ["x", "axis"], ["inner"])], "yes", [], [info("inner", f32, None)]
    )
    no = onnx.helper.make_graph(
        [make("Identity", ["x"], ["same"])], "no", [], [info("same", f32, None)]
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                make("Shape", ["x"], ["s"]),
                make("Gather", ["s", "axis"], ["n"]),
                make("Equal", ["n", "axis"], ["is"]),
                make("If", ["is"], ["z"], then_branch=yes, else_branch=no),
                make("Relu", ["z"], ["y"]),
            ],
            "g",
            [info("x", f32, ["B", 1])],
            [info("y", f32, ["B"])],
            [onnx.numpy_helper.from_array(np.asarray([1], np.int64), "axis")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, str(tmp_path / "m.onnx"))
    graph = load_graph(tmp_path / "m.onnx")
    (branch,) = (node for node in graph.nodes if node.op_type == "If")
    assert set(reads(branch)) == {"is", "x", "axis"}
    simplify(graph, {})
    assert [node.op_type for node in graph.nodes] == ["Squeeze", "Relu"]


def test_functions_are_inlined(tmp_path: Path) -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 18, "mine" : 1]>
        model (float[B,3] x) => (float[B,3] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["" : 18]>
        twice (a) => (b) { two = Constant<value = float {2.0}>() b = Mul(a, two) }
    """
    onnx.save(onnx.parser.parse_model(text), str(tmp_path / "m.onnx"))
    graph = load_graph(tmp_path / "m.onnx")
    simplify(graph, {})
    assert [node.op_type for node in graph.nodes] == ["Mul"]


def test_large_constants_are_fed_and_not_copied_into_the_probed_model(tmp_path: Path) -> None:
    big = table(20_000)
    graph = graph_of(tmp_path, "(int64[B] x) => (float[B,4] y)", "y = Gather(t, x)", t=big)
    assert learn(graph, {}).lookups == ("y",)


def test_a_model_that_runs_on_no_batch_says_why(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        "(float[B,3] x) => (float[B,3] y)",
        "y = Reshape(x, shape)",
        shape=np.asarray([2, 3], np.int64),
    )
    with pytest.raises(GraphError, match=r"m: does not run on batches of \(3, 5, 7\)"):
        learn(graph, {})


def traced(graph: Graph, facts: Facts, *, offsets: bool = False) -> dict[str, list[int] | None]:
    columns = Columns()
    roots = {
        port.name: encode(
            columns.of(Root("column", port.name), facts.row_size(port.name) or 0),
            facts.shape(port.name),
        )
        for port in graph.inputs
    }
    tracer = Tracer(graph, facts, roots, is_integral=lambda _: True, offsets=offsets)
    return {name: row_columns(each.codes) for name, each in tracer.run().items()}


def test_moved_elements_are_traced_to_their_columns(tmp_path: Path) -> None:
    body = """
        a, b = Split<axis=1>(x, sizes)
        c = Concat<axis=1>(b, a)
        d = Cast<to=7>(c)
        e = Transpose<perm=[1,0]>(d)
        f = Transpose<perm=[1,0]>(e)
        g = Gather<axis=1>(f, picks)
        h = Cast<to=1>(g)
        y = Sqrt(h)
    """
    graph = graph_of(
        tmp_path,
        "(float[B,3] x) => (float[B,3] y)",
        body,
        sizes=np.asarray([1, 2], np.int64),
        picks=np.asarray([2, 0, 0], np.int64),
    )
    found = traced(graph, learn(graph, {}))
    assert found["c"] == [1, 2, 0]
    assert found["e"] is None  # columns first
    assert found["f"] == [1, 2, 0]
    assert found["h"] == [0, 1, 1]
    assert "y" not in found


def test_added_integers_are_traced_only_where_ids_are(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        "(int64[B,2] x) => (int64[B,2] y)",
        "z = Add(x, offsets)\ny = Mul(z, offsets)",
        offsets=np.asarray([3, 5], np.int64),
    )
    facts = learn(graph, {})
    assert set(traced(graph, facts)) == {"x"}
    assert set(traced(graph, facts, offsets=True)) == {"x", "z"}


def test_casts_that_lose_something_are_not_moves(tmp_path: Path) -> None:
    body = """
        a = Cast<to=10>(x)
        b = Cast<to=9>(x)
        c = Cast<to=3>(x)
        d = Cast<to=11>(x)
        y = Concat<axis=1>(x, x)
    """
    signature = "(float[B,2] x) => (float16[B,2] a, bool[B,2] b, int8[B,2] c, double[B,2] d)"
    graph = graph_of(tmp_path, signature, body)
    graph.outputs = ("a", "b", "c", "d")
    assert set(traced(graph, learn(graph, {}))) == {"x", "d", "y"}

"""Each way to write a lookup that exporters use: cut, and equal to the whole model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kernels.bundle.manifest import Source
from tests.kernels.bundle_help import Built, build, ids, padded, table, write_model

LENGTH, ROWS, DIM = 6, 20, 4
AXIS1 = np.asarray([1], np.int64)
SEQUENCE = "(int64[B,6] x) => (float[B,D] y)"


def sequence(tmp_path: Path, body: str, **constants: object) -> Built:
    """Build a model that pools ``Gather(t, x)``."""
    return build(
        write_model(
            tmp_path / "m.onnx",
            SEQUENCE,
            body,
            {"t": table(ROWS), "axis": AXIS1, "zero": np.int64(0), **constants},
        )
    )


def check_sequence(built: Built) -> None:
    built.agrees(*({"x": padded(n, LENGTH, rows=ROWS)} for n in (1, 37)))


def test_ids_are_columns_of_a_float_matrix_reached_by_slice_and_cast(tmp_path: Path) -> None:
    body = """
        a = Slice(X, zero, one, one)
        ia = Cast<to=7>(a)
        ea = Gather(ta, ia)
        b = Slice(X, two, four, one)
        ib = Cast<to=6>(b)
        eb = Gather(tb, ib)
        e = Concat<axis=1>(ea, eb)
        flat = Flatten<axis=1>(e)
        number = Slice(X, one, two, one)
        y = Concat<axis=1>(number, flat)
    """
    numbers = {"zero": [0], "one": [1], "two": [2], "four": [4]}
    constants = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    constants |= {"ta": table(20), "tb": table(10, seed=1)}
    path = write_model(tmp_path / "m.onnx", "(float[B,4] X) => (float[B,13] y)", body, constants)
    built = build(path)
    assert built.candidate.ids == (
        Source(feature="X[0]"),
        Source(feature="X[2:4]"),
        Source(feature="X[2:4]", column=1),
    )
    assert built.candidate.values == (Source(feature="X[1]"),)
    assert built.candidate.program is None
    assert {table.name: table.rows for table in built.bundle.manifest.tables} == {
        "ta": 20,
        "tb": 10,
    }
    x = np.concatenate([ids(37, 1, rows=20), ids(37, 3, rows=10)], 1).astype(np.float32)
    x[:, 1] += 0.5
    built.agrees({"X": x}, {"X": x[:1]})


def test_ids_are_parts_of_a_split(tmp_path: Path) -> None:
    body = """
        a, b = Split<axis=1>(x, sizes)
        sa = Squeeze(a, axis)
        ea = Gather(t, sa)
        sb = Reshape(b, flat)
        eb = Gather(t, sb)
        both = Reshape(eb, wide)
        y = Concat<axis=1>(ea, both)
    """
    constants = {
        "sizes": np.asarray([1, 2], np.int64),
        "axis": AXIS1,
        "flat": np.asarray([-1], np.int64),
        "wide": np.asarray([-1, 2 * DIM], np.int64),
        "t": table(ROWS),
    }
    path = write_model(tmp_path / "m.onnx", "(int32[B,3] x) => (float[B,12] y)", body, constants)
    built = build(path)
    assert [lookup.n_ids for lookup in built.candidate.lookups] == [1, 2]
    assert len(built.bundle.manifest.tables) == 1
    assert built.ops == []
    built.agrees({"x": ids(5, 3, rows=ROWS).astype(np.int32)})


def test_lookups_in_two_tables_share_their_ids(tmp_path: Path) -> None:
    body = "a = Gather(t, x)\nb = Gather(u, x)\ny = Concat<axis=1>(a, b)"
    constants = {"t": table(ROWS), "u": table(15, 1)}
    path = write_model(tmp_path / "m.onnx", "(int64[B] x) => (float[B,5] y)", body, constants)
    built = build(path)
    assert built.candidate.ids == (Source(feature="x"),)
    assert [lookup.first_id for lookup in built.candidate.lookups] == [0, 0]
    assert "size = 15" in built.bundle.spec_text  # the smaller table bounds the ids
    built.agrees({"x": ids(9, rows=15)})


def test_features_with_offsets_into_one_table_are_told_apart(tmp_path: Path) -> None:
    body = "z = Add(x, offsets)\ne = Gather(t, z)\ny = Flatten<axis=1>(e)"
    constants = {"offsets": np.asarray([0, 5, 12], np.int64), "t": table(ROWS)}
    path = write_model(tmp_path / "m.onnx", "(int64[B,3] x) => (float[B,12] y)", body, constants)
    built = build(path)
    assert built.candidate.ids == (
        Source(feature="x[0]"),
        Source(feature="x[1]", add=5),
        Source(feature="x[2]", add=12),
    )
    sizes = [line for line in built.bundle.spec_text.splitlines() if line.startswith("size")]
    assert sizes == ["size = 5", "size = 7", "size = 8"]
    x = np.stack([ids(7, rows=5), ids(7, rows=7), ids(7, rows=8)], 1)
    built.agrees({"x": x})


@pytest.mark.parametrize(
    ("reduce", "pooling"), [("ReduceSum", "sum"), ("ReduceMean", "mean"), ("ReduceMax", "max")]
)
def test_a_reduction_over_the_sequence_is_pooled(tmp_path: Path, reduce: str, pooling: str) -> None:
    built = sequence(tmp_path, f"e = Gather(t, x)\ny = {reduce}<keepdims=0>(e, axis)")
    assert (built.lookup.pooling, built.lookup.n_ids, built.lookup.width) == (pooling, 6, DIM)
    assert built.ops == []
    check_sequence(built)


MASK = "is = Equal(x, zero)\nkeep = Not(is)\nmask = Cast<to=1>(keep)\n"


@pytest.mark.parametrize(
    "body",
    [
        "m = Unsqueeze(mask, two)\nw = Mul(e, m)\ny = ReduceSum<keepdims=0>(w, axis)",
        "m = Unsqueeze(mask, axis)\np = MatMul(m, e)\ny = Squeeze(p, axis)",
        "m = Unsqueeze(mask, two)\nf = Transpose<perm=[0,2,1]>(e)\np = MatMul(f, m)\n"
        "y = Squeeze(p, two)",
        'y = Einsum<equation="bl,bld->bd">(mask, e)',
        "m = Unsqueeze(keep, two)\nw = Where(m, e, nothing)\ny = ReduceSum<keepdims=0>(w, axis)",
        "m = Unsqueeze(mask, two)\nr = Expand(m, wide)\nw = Mul(e, r)\n"
        "y = ReduceSum<keepdims=0>(w, axis)",
    ],
    ids=["mul", "matmul", "matmul-right", "einsum", "where", "expanded"],
)
def test_a_masked_sum_is_pooled_with_the_mask_as_weights(tmp_path: Path, body: str) -> None:
    built = sequence(
        tmp_path,
        MASK + "e = Gather(t, x)\n" + body,
        two=np.asarray([2], np.int64),
        nothing=np.float32(0),
        wide=np.asarray([1, 1, DIM], np.int64),
    )
    assert (built.lookup.pooling, built.lookup.first_weight) == ("sum", 0)
    assert len(built.candidate.weights) == LENGTH
    assert built.candidate.program == "candidate.onnx"
    assert built.ops == []
    check_sequence(built)


def test_the_count_of_a_masked_mean_crosses_as_one_value(tmp_path: Path) -> None:
    body = """
        e = Gather(t, x)
        m = Unsqueeze(mask, two)
        w = Mul(e, m)
        total = ReduceSum<keepdims=0>(w, axis)
        n = ReduceSum<keepdims=1>(mask, axis)
        y = Div(total, n)
    """
    built = sequence(tmp_path, MASK + body, two=np.asarray([2], np.int64))
    assert built.lookup.pooling == "sum"
    assert len(built.candidate.values) == 1
    assert built.ops == ["Split", "Div"]
    check_sequence(built)


@pytest.mark.parametrize(
    "body",
    [
        "far = Sub(one, mask)\nlow = Mul(far, big)\nb = Unsqueeze(low, two)\nw = Sub(e, b)",
        "far = Sub(mask, one)\nlow = Mul(far, big)\nb = Unsqueeze(low, two)\nw = Add(b, e)",
        "m = Unsqueeze(is, two)\nw = Where(m, lowest, e)",
        "far = Sub(one, mask)\nlow = Mul(far, big)\nb = Unsqueeze(low, two)\n"
        "r = Expand(b, wide)\nw = Sub(e, r)",
    ],
    ids=["sub", "add", "where", "expanded"],
)
def test_a_masked_maximum_is_pooled_with_a_bias(tmp_path: Path, body: str) -> None:
    built = sequence(
        tmp_path,
        MASK + "e = Gather(t, x)\n" + body + "\ny = ReduceMax<keepdims=0>(w, axis)",
        two=np.asarray([2], np.int64),
        one=np.float32(1),
        big=np.float32(1e9),
        lowest=np.float32(-1e9),
        wide=np.asarray([1, 1, DIM], np.int64),
    )
    assert (built.lookup.pooling, built.lookup.first_weight) == ("max", 0)
    assert len(built.candidate.weights) == LENGTH
    check_sequence(built)


def test_bags_of_several_features_in_one_gather_are_pools_of_their_own(tmp_path: Path) -> None:
    body = "e = Gather(t, x)\ns = ReduceSum<keepdims=0>(e, axis)\ny = Flatten<axis=1>(s)"
    path = write_model(
        tmp_path / "m.onnx",
        "(int64[B,2,3] x) => (float[B,8] y)",
        body,
        {"t": table(ROWS), "axis": np.asarray([2], np.int64)},
    )
    built = build(path)
    assert [(each.pooling, each.first_id) for each in built.candidate.lookups] == [
        ("sum", 0),
        ("sum", 3),
    ]
    built.agrees({"x": ids(4, 6, rows=ROWS).reshape(4, 2, 3)})


def test_pooling_of_a_concat_is_pooling_of_its_parts(tmp_path: Path) -> None:
    body = """
        a = Gather(t, x)
        b = Gather(u, x)
        e = Concat<axis=2>(a, b)
        y = ReduceMean<keepdims=0>(e, axis)
    """
    built = sequence(tmp_path, body, u=table(ROWS, 2))
    assert [each.pooling for each in built.candidate.lookups] == ["mean", "mean"]
    assert built.ops == []
    check_sequence(built)


def test_a_sequence_that_is_also_used_unpooled_is_looked_up_once_and_pooled_in_the_graph(
    tmp_path: Path,
) -> None:
    body = """
        e = Gather(t, x)
        q = ReduceMean<keepdims=1>(e, axis)
        scores = Mul(e, q)
        a = Softmax<axis=1>(scores)
        w = Mul(a, e)
        y = ReduceSum<keepdims=0>(w, axis)
    """
    built = sequence(tmp_path, body)
    assert (built.lookup.pooling, built.lookup.width) == ("none", LENGTH * DIM)
    check_sequence(built)


def test_weights_that_differ_by_column_are_not_pooled(tmp_path: Path) -> None:
    body = "e = Gather(t, x)\nw = Mul(e, scale)\ny = ReduceSum<keepdims=0>(w, axis)"
    built = sequence(tmp_path, body, scale=table(LENGTH))
    assert built.lookup.pooling == "none"
    check_sequence(built)


def bag_loop(*, gather_inside: bool, op: str) -> onnx.ModelProto:
    """Write an EmbeddingBag as torch's two exporters do: a Loop over the offsets of the bags."""
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    kinds = onnx.TensorProto
    body = [
        make("Reshape", ["i", "flat"], ["from"]),
        make("Add", ["from", "one"], ["next"]),
        make("Slice", ["offsets", "from", "next"], ["start"]),
        make("Add", ["next", "one"], ["after"]),
        make("Slice", ["offsets", "next", "after"], ["end"]),
    ]
    if gather_inside:
        body += [
            make("Slice", ["flat_ids", "start", "end"], ["bag_ids"]),
            make("Gather", ["t", "bag_ids"], ["bag"]),
        ]
    else:
        body.append(make("Slice", ["all_rows", "start", "end"], ["bag"]))
    if op == "ReduceSum":
        body.append(make(op, ["bag", "zero1"], ["pooled"], keepdims=0))
    else:
        body.append(make(op, ["bag"], ["pooled"], axes=[0], keepdims=0))
    body.append(make("Identity", ["go"], ["go_out"]))
    loop = onnx.helper.make_graph(
        body,
        "body",
        [info("i", kinds.INT64, []), info("go", kinds.BOOL, [])],
        [info("go_out", kinds.BOOL, []), info("pooled", kinds.FLOAT, [DIM])],
    )
    nodes = [
        make("Reshape", ["x", "flat"], ["flat_ids"]),
        make("Shape", ["flat_ids"], ["n_ids"]),
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "zero"], ["n"]),
        make("Mul", ["n", "length"], ["total"]),
        make("Range", ["zero", "total", "length"], ["starts"]),
        make("Concat", ["starts", "n_ids"], ["offsets"], axis=0),
        make("Gather", ["t", "flat_ids"], ["all_rows"]),
        make("Loop", ["n", "true"], ["y"], body=loop),
    ]
    if gather_inside:
        del nodes[-2]
    constants = {
        "t": table(ROWS),
        "flat": np.asarray([-1], np.int64),
        "one": np.asarray([1], np.int64),
        "zero": np.int64(0),
        "zero1": np.asarray([0], np.int64),
        "length": np.int64(LENGTH),
        "true": np.bool_(1),
    }
    graph = onnx.helper.make_graph(
        nodes,
        "bag",
        [info("x", kinds.INT64, ["B", LENGTH])],
        [info("y", kinds.FLOAT, ["B", DIM])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("gather_inside", [True, False])
@pytest.mark.parametrize(
    ("op", "pooling"), [("ReduceSum", "sum"), ("ReduceMean", "mean"), ("ReduceMax", "max")]
)
def test_an_embedding_bag_written_as_a_loop_is_pooled(
    tmp_path: Path, op: str, pooling: str, *, gather_inside: bool
) -> None:
    onnx.save(bag_loop(gather_inside=gather_inside, op=op), str(tmp_path / "m.onnx"))
    built = build(tmp_path / "m.onnx")
    assert (built.lookup.pooling, built.lookup.n_ids) == (pooling, LENGTH)
    assert built.ops == []
    built.agrees(*({"x": ids(n, LENGTH, rows=ROWS)} for n in (1, 37)))


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("(int64[B] x) => (float[B,1] y)", "e = Gather(t, x)\ny = Unsqueeze(e, one)"),
        ("(int64[B] x) => (float[B,2,2] y)", "y = Gather(t3, x)"),
        (
            "(int64[B] x) => (float[B,4] y)",
            "e = Gather<axis=1>(tt, x)\ny = Transpose<perm=[1,0]>(e)",
        ),
        ("(int64[B,1] x) => (float[B,4] y)", "y = GatherND(t2, x)"),
        ("(int64[B] x) => (float[B,4] y)", "h = OneHot(x, depth, values)\ny = MatMul(h, t2)"),
        (
            "(int64[B] x) => (float[B,4] y)",
            "h = OneHot(x, depth, values)\ny = Gemm<transB=1>(h, tt, bias)",
        ),
        (
            "(int64[B] x) => (float[B,4] y)",
            "u, f, i, c = Unique(x)\ne = Gather(t2, u)\ny = Gather(e, i)",
        ),
        ("(int64[B] x) => (float[B,4] y)", "e = Gather(t16, x)\ny = Cast<to=1>(e)"),
        ("(int64[B] x) => (double[B,4] y)", "y = Gather(t64, x)"),
        (
            "(int64[B] x) => (float[B,4] y)",
            "e = Gather(t8, x)\ny = DequantizeLinear(e, scale)",
        ),
    ],
    ids=[
        "rank1",
        "rank3",
        "axis1",
        "gathernd",
        "onehot",
        "onehot-gemm",
        "unique",
        "half",
        "double",
        "bytes",
    ],
)
def test_other_ways_to_look_up_are_cut_too(tmp_path: Path, signature: str, body: str) -> None:
    constants: dict[str, Any] = {
        "t": table(ROWS, 1)[:, 0],
        "t2": table(ROWS),
        "t3": table(ROWS).reshape(ROWS, 2, 2),
        "tt": np.ascontiguousarray(table(ROWS).T),
        "t16": table(ROWS).astype(np.float16),
        "t64": table(ROWS).astype(np.float64),
        "t8": (50 * table(ROWS)).astype(np.int8),
        "scale": np.float32(0.02),
        "one": AXIS1,
        "depth": np.int64(ROWS),
        "values": np.asarray([0, 1], np.float32),
        "bias": np.arange(4, dtype=np.float32),
    }
    used = {name: array for name, array in constants.items() if name in body.replace("<", " ")}
    built = build(write_model(tmp_path / "m.onnx", signature, body, used))
    (cut,) = built.bundle.manifest.tables
    assert cut.rows == ROWS
    assert built.bundle.table(cut.name).dtype == np.float32
    assert "OneHot" not in built.ops
    x = ids(37, rows=ROWS).reshape((37, 1) if "[B,1] x" in signature else (37,))
    built.agrees({"x": x}, {"x": x[:1]})


def test_ids_with_the_batch_in_another_axis_are_cut(tmp_path: Path) -> None:
    body = """
        ids = Transpose<perm=[1,0]>(x)
        e = Gather(t, ids)
        last = Gather<axis=0>(e, index)
        y = Relu(last)
    """
    built = sequence(tmp_path, body, index=np.int64(-1))
    assert built.lookup.n_ids == LENGTH
    check_sequence(built)


def test_computed_ids_come_from_a_program(tmp_path: Path) -> None:
    body = "z = Mul(x, by)\nw = Mod(z, buckets)\ny = Gather(t, w)"
    constants: dict[str, Any] = {"by": np.int64(31), "buckets": np.int64(ROWS), "t": table(ROWS)}
    path = write_model(tmp_path / "m.onnx", "(int64[B] x) => (float[B,4] y)", body, constants)
    built = build(path)
    assert built.candidate.ids == (Source(feature="w", program=True),)
    built.agrees({"x": ids(20, rows=10**9)})


def test_ids_computed_by_arithmetic_are_bounded_by_what_their_tables_hold(tmp_path: Path) -> None:
    body = "z = Mul(x, by)\nw = Add(z, fields)\ne = Gather(t, w)\ny = Flatten<axis=1>(e)"
    constants: dict[str, Any] = {
        "by": np.int64(3),
        "fields": np.arange(3, dtype=np.int64),
        "t": table(3 * 7),
    }
    path = write_model(tmp_path / "m.onnx", "(int64[B,1] x) => (float[B,12] y)", body, constants)
    built = build(path)
    assert "size = 7\n" in built.bundle.spec_text
    built.agrees({"x": ids(20, 1, rows=7)})


def test_a_positional_table_may_stay_and_is_listed(tmp_path: Path) -> None:
    body = """
        shape = Shape(x)
        n = Gather(shape, one)
        positions = Range(zero, n, one)
        p = Gather(pos, positions)
        e = Gather(t, x)
        h = Add(e, p)
        r = Relu(h)
        y = ReduceSum<keepdims=0>(r, axis)
    """
    built = sequence(tmp_path, body, pos=table(10, seed=3), one=np.int64(1))
    (kept,) = built.bundle.manifest.kept
    assert (kept.name, kept.positional) == ("pos", True)
    assert "range of positions" in kept.reason
    check_sequence(built)


def test_a_table_indexed_by_what_the_dense_graph_computes_is_listed_as_left(
    tmp_path: Path,
) -> None:
    body = """
        e = Gather(t, x)
        s = ReduceSum<keepdims=0>(e, axis)
        best = ArgMax<axis=1, keepdims=0>(s)
        y = Gather(u, best)
    """
    built = sequence(tmp_path, body, u=table(DIM, seed=4))
    (kept,) = built.bundle.manifest.kept
    assert (kept.name, kept.positional) == ("u", False)
    assert "'best', which the dense graph computes" in kept.reason
    check_sequence(built)


def test_integer_work_is_hoisted_and_crosses_as_columns(tmp_path: Path) -> None:
    body = """
        e = Gather(t, x)
        h = Relu(e)
        at = Cast<to=7>(n)
        short = Less(places, at)
        m = Unsqueeze(short, two)
        w = Where(m, h, nothing)
        y = ReduceSum<keepdims=0>(w, axis)
    """
    path = write_model(
        tmp_path / "m.onnx",
        "(int64[B,6] x, float[B,1] n) => (float[B,4] y)",
        body,
        {
            "t": table(ROWS),
            "places": np.arange(LENGTH, dtype=np.int64)[None],
            "axis": AXIS1,
            "two": np.asarray([2], np.int64),
            "nothing": np.float32(0),
        },
    )
    built = build(path)
    assert len(built.candidate.values) == LENGTH
    assert all(source.program for source in built.candidate.values)
    assert "Less" not in built.ops
    lengths = 1 + ids(37, 1, rows=LENGTH).astype(np.float32)
    built.agrees({"x": ids(37, LENGTH, rows=ROWS), "n": lengths})


def test_batch_sized_constants_are_rebuilt_from_the_number_of_rows(tmp_path: Path) -> None:
    body = """
        shape = Shape(x)
        n = Gather(shape, first)
        size = Concat<axis=0>(n, one)
        zeros = ConstantOfShape(size)
        e = Gather(t, x)
        s = ReduceSum<keepdims=0>(e, axis)
        z = Add(s, zeros)
        target = Concat<axis=0>(n, four)
        y = Reshape(z, target)
    """
    built = sequence(
        tmp_path,
        body,
        first=np.asarray([0], np.int64),
        one=AXIS1,
        four=np.asarray([DIM], np.int64),
    )
    assert built.ops == []
    check_sequence(built)


def test_neighbouring_columns_need_no_node_at_all(tmp_path: Path) -> None:
    body = """
        a = Gather(ta, xa)
        b = Gather(tb, xb)
        e = Concat<axis=1>(a, b, d)
        h = MatMul(e, w)
        y = Relu(h)
    """
    constants = {"ta": table(ROWS), "tb": table(9, 2), "w": table(9, 3, seed=5)}
    path = write_model(
        tmp_path / "m.onnx",
        "(int64[B] xa, int64[B] xb, float[B,3] d) => (float[B,3] y)",
        body,
        constants,
    )
    built = build(path)
    assert built.ops == ["MatMul", "Relu"]
    feeds = {"xa": ids(5, rows=ROWS), "xb": ids(5, rows=9), "d": table(5, 3)}
    built.agrees(feeds)

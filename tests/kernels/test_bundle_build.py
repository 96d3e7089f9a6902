"""Builds with a spec, sides, refusals, and what a build promises of its folder."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import pytest

from kernels.bundle import build as build_module
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.cut import Cut, make_cut
from kernels.bundle.load import load_bundle
from kernels.bundle.manifest import Source
from kernels.bundle.picture import draw
from kernels.bundle.reference import block
from kernels.bundle.show import describe
from kernels.errors import BundleError, GraphError, SpecError
from kernels.features.blocks import RawRequest
from kernels.features.parser import Parser
from kernels.features.spec import load_spec
from tests.kernels.bundle_help import build, ids, padded, table, write_model
from transport.messages import CANDIDATE, USER, Block

ROWS, LENGTH = 20, 6
SIDES = """
[features.past]
side = "user"
kind = "categorical"
encode = "identity"
size = 20
width = 6

[features.item]
side = "candidate"
kind = "categorical"
encode = "identity"
size = 20

[features.price]
side = "candidate"
kind = "numeric"
"""
ATTENTION = """
    h = Gather(t, past)
    q = Gather(t, item)
    q3 = Unsqueeze(q, axis)
    dot = Mul(h, q3)
    score = ReduceSum<keepdims=0>(dot, two)
    none = Equal(past, zero)
    hidden = Where(none, lowest, score)
    a = Softmax<axis=1>(hidden)
    a3 = Unsqueeze(a, two)
    w = Mul(a3, h)
    s = ReduceSum<keepdims=0>(w, axis)
    y = Concat<axis=1>(s, q, price)
"""
CONSTANTS: dict[str, Any] = {
    "t": table(ROWS),
    "axis": np.asarray([1], np.int64),
    "two": np.asarray([2], np.int64),
    "zero": np.int64(0),
    "lowest": np.float32(-1e9),
}


def attention(path: Path) -> Path:
    signature = "(int64[B,6] past, int64[B] item, float[B,1] price) => (float[B,9] y)"
    return write_model(path / "m.onnx", signature, ATTENTION, CONSTANTS)


def simple(path: Path, name: str = "m.onnx", seed: int = 0) -> Path:
    body = "e = Gather(t, x)\ny = Relu(e)"
    signature = "(int64[B] x) => (float[B,4] y)"
    return write_model(path / name, signature, body, {"t": table(ROWS, seed=seed)})


def test_what_a_user_has_is_looked_up_on_the_user_side(tmp_path: Path) -> None:
    built = build(attention(tmp_path), SIDES)
    assert [(each.side, each.n_ids) for each in built.user.lookups] == [("user", LENGTH)]
    assert [(each.side, each.n_ids) for each in built.candidate.lookups] == [("candidate", 1)]
    assert len(built.bundle.manifest.tables) == 1  # both sides look up in one table
    assert built.user.program == "user.onnx"  # the mask
    assert built.candidate.program is None
    past = np.repeat(padded(3, LENGTH, rows=ROWS), [1, 5, 3], axis=0)
    price = np.arange(9, dtype=np.float32)[:, None]
    built.agrees({"past": past, "item": ids(9, rows=ROWS), "price": price})


def test_one_gather_of_ids_of_both_sides_becomes_a_lookup_for_each(tmp_path: Path) -> None:
    spec = """
        [features.a]
        side = "user"
        kind = "categorical"
        encode = "identity"
        size = 20
        input = "x"
        [features.b]
        side = "candidate"
        kind = "categorical"
        encode = "identity"
        size = 20
        input = "x"
        column = 1
        width = 2
    """
    body = "e = Gather(t, x)\nr = Relu(e)\ny = Flatten<axis=1>(r)"
    path = write_model(
        tmp_path / "m.onnx", "(int64[B,3] x) => (float[B,12] y)", body, {"t": table(ROWS)}
    )
    built = build(path, spec)
    assert [each.n_ids for each in built.user.lookups] == [1]
    assert [each.n_ids for each in built.candidate.lookups] == [2]
    x = ids(6, 3, rows=ROWS)
    x[:4, 0] = 7
    built.agrees({"x": x})


def test_a_bag_of_ids_of_both_sides_is_pooled_on_the_candidate_side(tmp_path: Path) -> None:
    spec = """
        [features.a]
        side = "user"
        kind = "categorical"
        encode = "identity"
        size = 20
        input = "x"
        [features.b]
        side = "candidate"
        kind = "categorical"
        encode = "identity"
        size = 20
        input = "x"
        column = 1
        width = 2
    """
    body = "e = Gather(t, x)\ny = ReduceSum<keepdims=0>(e, axis)"
    constants = {"t": table(ROWS), "axis": np.asarray([1], np.int64)}
    path = write_model(tmp_path / "m.onnx", "(int64[B,3] x) => (float[B,4] y)", body, constants)
    built = build(path, spec)
    assert (built.lookup.side, built.lookup.pooling, built.lookup.n_ids) == ("candidate", "sum", 3)
    program = onnx.load_from_string(built.bundle.program("candidate") or b"")
    assert [each.name for each in program.graph.input] == ["a"]  # widened from the user side


def test_a_feature_may_bring_its_own_table(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", table(10, 3))
    (tmp_path / "genres.txt").write_text("drama\ncomedy\n")
    spec = """
        [features.genres]
        side = "candidate"
        kind = "multi"
        encode = "vocabulary"
        vocabulary = "genres.txt"
        first_id = 1
        max_length = 4
        missing = "skip"
        unseen = "skip"
        table = "rows.npy"
        pooling = "mean"
        [features.price]
        side = "candidate"
        kind = "numeric"
    """
    body = "c = Concat<axis=1>(genres, price)\ny = Relu(c)"
    path = write_model(
        tmp_path / "m.onnx", "(float[B,3] genres, float[B,1] price) => (float[B,4] y)", body
    )
    built = build(path, spec)
    assert built.lookup.n_ids == 4
    assert built.lookup.first_weight == 0
    assert built.bundle.table(built.lookup.table).tolist() == table(10, 3).tolist()
    assert (built.bundle.path / "genres.txt").read_text() == "drama\ncomedy\n"
    with pytest.raises(BundleError, match="'genres' has its own table"):
        built.agrees({"genres": table(1, 3), "price": table(1, 1)})


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
def test_a_list_is_pooled_over_its_entries_and_not_its_padding(
    tmp_path: Path, pooling: str
) -> None:
    np.save(tmp_path / "rows.npy", table(10, 3))
    spec = f"""
        [features.past]
        side = "user"
        kind = "multi"
        encode = "identity"
        size = 10
        max_length = 4
        table = "rows.npy"
        pooling = "{pooling}"
        [features.price]
        side = "candidate"
        kind = "numeric"
    """
    body = "c = Concat<axis=1>(past, price)\ny = Identity(c)"
    path = write_model(
        tmp_path / "m.onnx", "(float[B,3] past, float[B,1] price) => (float[B,4] y)", body
    )
    bundle = build(path, spec).bundle
    splits = np.array([0, 3], np.int32)
    request = RawRequest(
        1,
        [
            Block(side=USER, names=("past",), values=np.array([7, 2, 7]), row_splits=splits),
            Block(side=CANDIDATE, names=("price",), values=np.zeros((1, 1), np.float32)),
        ],
    )
    parsed = Parser.for_bundle(bundle, max_candidates=1).parse([request])
    tables = {each.name: bundle.table(each.name) for each in bundle.manifest.tables}
    rows = block(bundle.manifest.user, parsed.user, tables)
    want = getattr(np, pooling)(table(10, 3)[[7, 2, 7]], axis=0)
    np.testing.assert_allclose(rows, want[np.newaxis], rtol=1e-6)


def test_inference_adds_only_what_the_spec_leaves_out(tmp_path: Path) -> None:
    spec = SIDES[: SIDES.index("[features.item]")]
    built = build(attention(tmp_path), spec, infer=True)
    features = load_spec(built.bundle.spec_path, tables=False).by_name
    assert {name: each.side for name, each in features.items()} == {
        "past": "user",
        "item": "candidate",
        "price": "candidate",
    }
    assert features["item"].ids == (0, ROWS - 1)
    assert features["price"].dtype == "float32"


def test_open_dimensions_are_taken_from_the_spec_or_given(tmp_path: Path) -> None:
    body = "e = Gather(t, x)\ny = ReduceSum<keepdims=0>(e, axis)"
    constants = {"t": table(ROWS), "axis": np.asarray([1], np.int64)}
    path = write_model(tmp_path / "m.onnx", "(int64[B,L] x) => (float[B,4] y)", body, constants)
    with pytest.raises(GraphError, match="'x' leaves its shape open"):
        build(path)
    assert build(path, shapes={"x": (5,)}).lookup.n_ids == 5
    with pytest.raises(GraphError, match=r"rows of input 'x': \[None\], not \[5, 2\]"):
        build(path, shapes={"x": (5, 2)}, force=True)
    spec = """
        [features.x]
        side = "user"
        kind = "sequence"
        encode = "identity"
        size = 20
        max_length = 7
    """
    assert build(path, spec, force=True).lookup.n_ids == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[features.price]", "[features.cost]"), "'cost' .* is for input 'cost'; the model has"),
        (("size = 20\nwidth = 6", "size = 21\nwidth = 6"), "'past' gives ids 0 to 20, .* 20 rows"),
        (("width = 6", "width = 7"), "'past' fills columns 0 to 6 of input 'past', which has 6"),
        (("width = 6", "width = 5"), "no feature fills columns 5 of input 'past'"),
    ],
)
def test_a_spec_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        build(attention(tmp_path), SIDES.replace(*change))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("signature", "body", "message"),
    [
        ("(float[B,3] x) => (float[1,3] y)", "y = ReduceSum(x, zero)", "output 'y' is not one"),
        ("(float[B,3] x) => (float[3] y)", "y = ReduceSum<keepdims=0>(x, zero)", "output 'y' is"),
        (
            "(float[B,3] x) => (float[B,3] y)",
            "m = ReduceMax(x, zero)\ny = Sub(x, m)",
            "output 'y' is not one result a row",
        ),
        (
            "(float[B,3] x) => (float[B,3] y)",
            "y = RandomNormalLike(x)",
            r"its rows depend on chance \(RandomNormalLike\)",
        ),
        (
            "(float[B,3] x) => (float[1] y, float[B,3] z)",
            "y = Identity(c)\nz = Relu(x)",
            "'y' does",
        ),
        ("(float[2,3] x) => (float[2,3] y)", "y = Reshape(x, two)", "dynamic batch dimension"),
        ("(float x, float[B] z) => (float[B] y)", "y = Add(x, z)", "'x' is a scalar"),
    ],
    ids=["summed", "no-batch", "other-rows", "chance", "constant", "fixed-batch", "scalar"],
)
def test_a_model_whose_rows_cannot_be_served_one_by_one_is_refused(
    tmp_path: Path, signature: str, body: str, message: str
) -> None:
    constants = {
        "zero": np.asarray([0], np.int64),
        "c": np.ones(1, np.float32),
        "two": np.asarray([2, 3], np.int64),
    }
    used = {name: array for name, array in constants.items() if name in body}
    with pytest.raises(GraphError, match=message):
        build(write_model(tmp_path / "m.onnx", signature, body, used))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"none\.onnx: cannot be read: No such file"):
        build(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(GraphError, match="not an ONNX model"):
        build(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(GraphError, match="not an ONNX model"):
        build(tmp_path / "empty.onnx")


def test_a_build_without_features_is_refused_unless_they_are_to_be_inferred(
    tmp_path: Path,
) -> None:
    with pytest.raises(GraphError, match="no features are given"):
        build(simple(tmp_path), infer=False)
    with pytest.raises(SpecError):
        build(simple(tmp_path), "[features.x]\nkind = 'strange'\n")


def test_weights_in_an_external_file_are_found(tmp_path: Path) -> None:
    path = simple(tmp_path)
    model = onnx.load(str(path))
    onnx.save(
        model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    built = build(path)
    assert built.bundle.table("t").tolist() == table(ROWS).tolist()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(GraphError, match=r"data of 't' in .*weights\.bin"):
        build(path, force=True)


def test_the_same_model_gives_the_same_version_and_another_another(tmp_path: Path) -> None:
    versions = [
        build(simple(tmp_path / name, seed=seed)).bundle.manifest.version
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert versions[0] == versions[1]
    assert versions[0] != versions[2]
    assert len(versions[0]) == 64


def test_a_bundle_is_replaced_only_by_force_and_other_folders_never(tmp_path: Path) -> None:
    first = build(simple(tmp_path)).bundle
    with pytest.raises(BundleError, match="exists already"):
        build(simple(tmp_path, seed=1))
    assert load_bundle(first.path).manifest.version == first.manifest.version
    second = build(simple(tmp_path, seed=1), force=True).bundle
    assert second.manifest.version != first.manifest.version
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="not a bundle, so it is not replaced"):
        build_bundle(simple(tmp_path), None, folder, BuildOptions(infer=True, force=True))
    assert (folder / "letter.txt").read_text() == "dear"
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "bundle", "precious"}


def test_a_wrong_cut_is_found_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = make_cut

    def wrong(*arguments: Any) -> Cut:  # noqa: ANN401 - the cut's own
        cut = right(*arguments)
        arrays = {
            name: array + np.float32(0.01)
            for name, array in cut.arrays.items()
            if isinstance(array, np.ndarray)
        }
        return attrs.evolve(cut, arrays=arrays)

    monkeypatch.setattr(build_module, "make_cut", wrong)
    with pytest.raises(GraphError, match=r"output 'y' differs .* by up to 0\.01"):
        build(simple(tmp_path))
    assert not (tmp_path / "bundle").exists()
    build_bundle(simple(tmp_path), None, tmp_path / "bundle", BuildOptions(infer=True, check=False))


def test_two_outputs_are_two_stretches_of_the_scores(tmp_path: Path) -> None:
    body = "e = Gather(t, x)\nz = Relu(e)\ns = ReduceSum<keepdims=0>(e, axis)\ny = Sigmoid(s)"
    constants = {"t": table(ROWS), "axis": np.asarray([1], np.int64)}
    signature = "(int64[B] x) => (float[B] y, float[B,4] z)"
    built = build(write_model(tmp_path / "m.onnx", signature, body, constants))
    outputs = [(each.name, each.offset, each.width) for each in built.bundle.manifest.outputs]
    assert outputs == [("y", 0, 1), ("z", 1, 4)]
    assert [each.shape for each in built.bundle.manifest.outputs] == [(), (4,)]
    built.agrees({"x": ids(3, rows=ROWS)})


def test_names_of_the_graph_may_be_those_that_the_dense_graph_uses(tmp_path: Path) -> None:
    body = "candidate = Gather(t, user)\nscores = Relu(candidate)"
    signature = "(int64[B] user) => (float[B,4] scores)"
    built = build(write_model(tmp_path / "m.onnx", signature, body, {"t": table(ROWS)}))
    assert built.candidate.ids == (Source(feature="user"),)
    built.agrees({"user": ids(3, rows=ROWS)})


def test_a_description_and_a_picture_show_tables_lookups_and_ops(tmp_path: Path) -> None:
    built = build(
        attention(tmp_path), SIDES.replace("[features.past]", '[features."a<b>&"]\ninput = "past"')
    )
    text = describe(built.bundle)
    assert "tables    1 cut, 320 bytes" in text
    assert "a<b>&[0:6]" in text
    assert "6 side by side" in text
    assert "Softmax 1" in text
    root = ET.fromstring(draw(built.bundle))
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a<b>&", "item", "price", "t", "Softmax", "y: 9 a row"} <= set(words)


@pytest.mark.parametrize("side", ["user", "candidate"])
def test_fields_that_become_rows_of_a_product_stay_with_their_row(
    tmp_path: Path, side: str
) -> None:
    body = """
        a = Gather(t, past)
        b = Gather(t, item)
        b3 = Unsqueeze(b, axis)
        both = Concat<axis=1>(a, b3)
        fields = Reshape(both, flat)
        made = MatMul(fields, w)
        r = Relu(made)
        y = Reshape(r, wide)
    """
    constants = {
        "t": table(ROWS),
        "w": table(4, 3, seed=6),
        "axis": np.asarray([1], np.int64),
        "flat": np.asarray([-1, 4], np.int64),
        "wide": np.asarray([-1, 21], np.int64),
    }
    signature = "(int64[B,6] past, int64[B] item) => (float[B,21] y)"
    path = write_model(tmp_path / "m.onnx", signature, body, constants)
    spec = SIDES[: SIDES.index("[features.price]")].replace(
        'side = "candidate"', f'side = "{side}"'
    )
    built = build(path, spec)
    past = np.repeat(ids(3, LENGTH, rows=ROWS), [1, 5, 3], axis=0)
    built.agrees({"past": past, "item": ids(9, rows=ROWS)})

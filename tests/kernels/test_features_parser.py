from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kernels.bundle.manifest import Manifest, SideName, Source
from kernels.errors import BundleError
from kernels.features.blocks import RawRequest
from kernels.features.faults import CANDIDATE, USER
from kernels.features.parser import Parser
from tests.kernels.features_help import (
    Block,
    candidates,
    manifest_of,
    parse_one,
    parser_of,
    problem,
    ragged,
    side_layout,
    spec_of,
    splits,
    texts,
    user,
    whole_manifest,
)

SHOP = """
[features.age]
side = "user"
kind = "numeric"

[features.city]
side = "user"
kind = "categorical"
encode = "hash"
buckets = 50

[features.item]
side = "candidate"
kind = "categorical"
encode = "identity"
size = 1000

[features.price]
side = "candidate"
kind = "numeric"
transform = "log"
missing = 0

[features.tags]
side = "candidate"
kind = "multi"
encode = "identity"
size = 10
max_length = 2
missing = "skip"
"""


@pytest.fixture(scope="module")
def shop() -> Parser:
    return parser_of(SHOP)


def good(n: int = 3) -> list[Block]:
    return [
        user("age", 30),
        texts(USER, "city", ["Graz"]),
        candidates(["item", "price"], np.stack([np.arange(n), np.full(n, 1.5)])),
    ]


def with_item(block: Block) -> list[Block]:
    return [*good()[:2], candidates("price", [1, 2, 3]), block]


def test_a_batch_of_requests_of_different_sizes_is_laid_end_to_end(shop: Parser) -> None:
    sizes = [2, 0, 3]
    requests = [RawRequest(n, good(n)) for n in sizes]
    parsed = shop.parse(requests)
    assert parsed.failed == {}
    assert parsed.parsed.tolist() == [0, 1, 2]
    assert parsed.n_rows.tolist() == sizes
    assert parsed.parsed.dtype == parsed.n_rows.dtype == np.int32
    assert parsed.user.values.tolist() == [[30], [30], [30]]
    assert parsed.candidate.ids[0].tolist() == [0, 1, 0, 1, 2]
    np.testing.assert_allclose(parsed.candidate.values, np.log1p([[1.5]] * 5), rtol=1e-6)


def test_no_requests_give_empty_matrices_of_the_right_shapes(shop: Parser) -> None:
    parsed = shop.parse([])
    assert parsed.user.ids.shape == (1, 0)
    assert parsed.user.values.shape == (0, 1)
    assert parsed.candidate.ids.shape == (3, 0)
    assert parsed.candidate.values.shape == (0, 1)


def test_requests_of_different_layouts_come_back_in_their_order(shop: Parser) -> None:
    def other(n: int) -> list[Block]:
        item = candidates("item", np.arange(100, 100 + n), np.uint16)
        return [item, texts(USER, "city", ["Graz"]), user("age", 40, np.int8)]

    requests = [
        RawRequest(2, good(2)),
        RawRequest(1, other(1)),
        RawRequest(2, [user("age", 1)]),
        RawRequest(3, good(3)),
        RawRequest(0, [*good(0)[:2]]),
        RawRequest(2, other(2)),
    ]
    parsed = shop.parse(requests)
    assert parsed.parsed.tolist() == [0, 1, 3, 4, 5]
    assert parsed.n_rows.tolist() == [2, 1, 3, 0, 2]
    assert parsed.user.values[:, 0].tolist() == [30, 40, 30, 30, 40]
    assert parsed.candidate.ids[0].tolist() == [0, 1, 100, 0, 1, 2, 100, 101]
    assert list(parsed.failed) == [2]


def test_wrong_requests_are_reported_and_the_others_unharmed(shop: Parser) -> None:
    bad_item = with_item(candidates("item", [1, 1000, 2]))
    requests = [
        RawRequest(3, with_item(candidates("item", [7, 8, 9]))),
        RawRequest(3, bad_item),
        RawRequest(3, with_item(candidates("item", [4, 5, 6]))),
        RawRequest(3, with_item(candidates("item", [4, 5]))),
        RawRequest(2**40, with_item(candidates("item", [4, 5]))),
    ]
    parsed = shop.parse(requests)
    assert {k: str(error) for k, error in parsed.failed.items()} == {
        1: "item: 1000 is outside 0 to 999 (candidate 1)",
        3: "item: want 3 values, one for each candidate, got 2",
        4: "n_candidates: 1099511627776: want 0 to 100",
    }
    assert parsed.candidate.ids[0].tolist() == [7, 8, 9, 4, 5, 6]


@pytest.mark.parametrize(
    ("block", "field", "text"),
    [
        (candidates("item", [1, -1, 2]), "item", "-1 is outside 0 to 999 (candidate 1)"),
        (candidates("item", [1, 2, 0.5]), "item", "0.5 is not an integer (candidate 2)"),
        (candidates("item", [1, np.inf, 2]), "item", "inf is not an integer (candidate 1)"),
        (candidates("item", [1, 1e300, 2]), "item", "1e+300 is outside 0 to 999 (candidate 1)"),
        (
            candidates("item", [np.nan, 1, 2]),
            "item",
            "is missing, and has no default (candidate 0)",
        ),
        (candidates("item", [1, 2**63, 2], np.uint64), "item", "is outside 0 to 999 (candidate 1)"),
        (candidates("item", [1, 2]), "item", "want 3 values, one for each candidate, got 2"),
        (candidates("item", [1, 2, 3], np.complex64), "item", "want numbers, got complex64"),
        (candidates("item", ["a", "b", "c"], "S1"), "item", "want numbers, got bytes"),
        (texts(CANDIDATE, "item", ["1", "2", "3"]), "item", "want numbers, got text"),
        (user("item", 1), "item", "is a candidate feature, sent as a user one"),
        (candidates("age", [1, 2, 3]), "age", "is a user feature, sent as a candidate one"),
        (candidates("itme", [1, 2, 3]), "itme", "the model has no such feature"),
        (candidates("price", [1, 2, 3]), "price", "is there twice"),
        (candidates(["item", "item"], [[1, 2, 3]] * 2), "item", "is there twice"),
        (
            Block(side=CANDIDATE, names=("item",), values=np.zeros((1, 3, 2))),
            "item",
            "want 1 values in each row, got 2",
        ),
        (
            Block(side=CANDIDATE, names=("item",), values=np.zeros((2, 3))),
            "item",
            "its block has 1 names and 2 rows of values",
        ),
        (
            Block(side=CANDIDATE, names=("item",), values=np.zeros(3)),
            "item",
            "want values [n_names, n] or [n_names, n, w], got 1 names and 1 dimensions",
        ),
        (
            Block(side=7, names=("item",), values=np.zeros((1, 3))),
            "blocks",
            "side 7: want 0 (user) or 1",
        ),
        (
            ragged(CANDIDATE, "item", [[1], [2, 3], [4]]),
            "item",
            "want 1 values, got 2 (candidate 1)",
        ),
        (ragged(CANDIDATE, "item", [[1], [2]]), "item", "want 3 values, got 2"),
        (
            ragged(CANDIDATE, "tags", [[1], [2, 3, 4], []]),
            "tags",
            "has more than 2 entries (candidate 1)",
        ),
        (
            ragged(CANDIDATE, "tags", [[1], [2, 10], []]),
            "tags",
            "10 is outside 0 to 9 (candidate 1)",
        ),
    ],
)
def test_what_is_wrong_with_a_feature_is_said(
    shop: Parser, block: Block, field: str, text: str
) -> None:
    blocks = with_item(block)
    if "tags" in block.names:
        blocks.append(candidates("item", [1, 2, 3]))
    found, said = problem(shop, 3, *blocks)
    assert found == field
    assert text in said


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("row_splits", [0, 2, 1, 3]),
        ("row_splits", [1, 2, 2, 3]),
        ("row_splits", [0, 1, 2, 4]),
        ("row_splits", [0, -1, 2, 3]),
        ("row_splits", [0, 1, 2, 2**31 - 1]),
        ("row_splits", []),
        ("char_splits", [0, 2, 1, 3]),
        ("char_splits", [0, 1, 1, 2]),
        ("char_splits", [0, 1, 9, 3]),
    ],
)
def test_bad_splits_are_named_and_harm_nobody(name: str, bad: list[int]) -> None:
    encode = 'encode = "hash"\nbuckets = 9\nmax_length = 3'
    parser = parser_of(f'[features.x]\nside = "candidate"\nkind = "multi"\n{encode}')
    text = texts(CANDIDATE, "x", [["a"], ["b"], ["c"]])
    row_splits = np.array(bad, np.int32) if name == "row_splits" else text.row_splits
    char_splits = np.array(bad, np.int32) if name == "char_splits" else text.char_splits
    block = Block(
        side=CANDIDATE,
        names=("x",),
        values=text.values,
        row_splits=row_splits,
        char_splits=char_splits,
    )
    parsed = parser.parse([RawRequest(3, [text]), RawRequest(3, [block]), RawRequest(3, [text])])
    assert parsed.parsed.tolist() == [0, 2]
    assert parsed.failed[1].field == "x"
    assert name in parsed.failed[1].problem
    assert (parsed.candidate.ids[:, :3] == parsed.candidate.ids[:, 3:]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a\xff", "is not UTF-8"),
        ("ü".encode()[:1], "is not UTF-8"),
        (b"x" * 1025, "a text of 1025 bytes, over the limit of 1024"),
    ],
)
def test_texts_that_are_none_are_refused(shop: Parser, text: bytes, said: str) -> None:
    blocks = [user("age", 1), texts(USER, "city", [text]), *good()[2:]]
    field, found = problem(shop, 3, *blocks)
    assert field == "city"
    assert said in found


def test_a_character_cut_in_two_by_the_splits_is_refused() -> None:
    # The bytes are UTF-8 as a whole: only the boundary is wrong.
    encode = 'encode = "hash"\nbuckets = 9'
    parser = parser_of(f'[features.x]\nside = "candidate"\nkind = "categorical"\n{encode}')
    data = np.frombuffer("aüb".encode(), np.uint8)
    block = Block(side=CANDIDATE, names=("x",), values=data, char_splits=splits([2, 2]))
    assert problem(parser, 2, block)[0] == "x"


def test_integers_and_their_decimal_texts_are_one_value(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("17\n-3\n123456789012\n")
    parser = parser_of(
        '[features.h]\nside = "candidate"\nkind = "categorical"\nencode = "hash"\nbuckets = 997\n'
        '[features.v]\nside = "candidate"\nkind = "categorical"\nencode = "vocabulary"\n'
        'vocabulary = "v.txt"\nfirst_id = 1\nunseen = 0',
        tmp_path,
    )
    values = [17, -3, 123456789012, 4]
    as_text = [texts(CANDIDATE, name, [str(v) for v in values]) for name in ("h", "v")]
    want = parse_one(parser, 4, *as_text).candidate.ids.tolist()
    assert want[1] == [1, 2, 3, 0]
    for dtype in (np.int64, np.float64):
        got = parse_one(parser, 4, candidates(["h", "v"], [values, values], dtype))
        assert got.candidate.ids.tolist() == want


def test_floats_too_large_to_be_exact_integers_are_refused() -> None:
    parser = parser_of(
        '[features.x]\nside = "candidate"\nkind = "categorical"\nencode = "identity"\n'
        f"size = {2**30}"
    )
    exact = 2**24 - 1
    assert parse_one(parser, 1, candidates("x", exact, "f4")).candidate.ids.tolist() == [[exact]]
    large = 2**24 + 2
    assert parse_one(parser, 1, candidates("x", large, "f8")).candidate.ids.tolist() == [[large]]
    field, text = problem(parser, 1, candidates("x", large, "f4"))
    assert field == "x"
    assert text.startswith("16777218 may have been rounded: float32 holds all integers only below")


def test_ids_that_the_model_wants_as_float32_are_not_rounded_silently() -> None:
    spec = spec_of(
        '[features.x]\nside = "candidate"\nkind = "categorical"\nencode = "identity"\n'
        f"size = {2**30}"
    )
    manifest = manifest_of(
        side_layout("user"), side_layout("candidate", values=[Source(feature="x")]), {}
    )
    parser = Parser(spec, manifest, {})
    parsed = parse_one(parser, 2, candidates("x", [5, 2**24], np.int64))
    assert parsed.candidate.values.tolist() == [[5], [2**24]]
    field, text = problem(parser, 2, candidates("x", [5, 2**24 + 1], np.int64))
    assert field == "x"
    assert "16777217 goes to the model as float32, which would round it (candidate 1)" in text


def test_features_that_were_not_sent_get_their_defaults() -> None:
    parser = parser_of(
        '[features.n]\nside = "user"\nkind = "numeric"\ntransform = "log"\nmissing = 3\nwidth = 2\n'
        '[features.b]\nside = "user"\nkind = "numeric"\ntransform = "bucketise"\n'
        "boundaries = [1, 2]\nmissing = 1.5\n"
        '[features.c]\nside = "candidate"\nkind = "categorical"\nencode = "identity"\nsize = 5\n'
        "missing = 9\n"
    )
    parsed = parse_one(parser, 2)
    np.testing.assert_allclose(parsed.user.values, [[np.log(4)] * 2], rtol=1e-6)
    assert parsed.user.ids.tolist() == [[1]]
    assert parsed.candidate.ids.tolist() == [[9, 9]]


def test_a_missing_candidate_feature_matters_only_where_there_are_candidates(shop: Parser) -> None:
    assert problem(shop, 1, *good()[:2]) == ("item", "is missing, and has no default")
    assert parse_one(shop, 0, *good()[:2]).parsed.tolist() == [0]


def test_several_features_may_share_a_table_at_offsets() -> None:
    spec = spec_of(SHOP)
    layout = side_layout(
        "candidate",
        ids=[Source(feature="item", add=5), Source(feature="item"), Source(feature="tags", add=2)],
        tables=["t", "t", "t"],
    )
    manifest = manifest_of(side_layout("user"), layout, {"t": 1005})
    parsed = parse_one(
        Parser(spec, manifest, {}),
        2,
        candidates("item", [999, 0]),
        ragged(CANDIDATE, "tags", [[7], []]),
    )
    assert parsed.candidate.ids.tolist() == [[1004, 5], [999, 0], [9, 2]]


def test_user_features_that_the_candidate_side_reads_are_repeated_for_each_candidate() -> None:
    spec = spec_of(SHOP)
    layout = side_layout(
        "candidate",
        ids=[Source(feature="city"), Source(feature="item")],
        values=[Source(feature="price"), Source(feature="age"), Source(feature="price")],
        tables=["c", "i"],
    )
    parser = Parser(spec, manifest_of(side_layout("user"), layout, {"c": 50, "i": 1000}), {})
    first = [
        user("age", 1),
        texts(USER, "city", ["A"]),
        candidates(["item", "price"], [[1, 2]] * 2),
    ]
    second = [user("age", 2), texts(USER, "city", ["B"]), candidates(["item", "price"], [[3]] * 2)]
    parsed = parser.parse([RawRequest(2, first), RawRequest(1, second)])
    a, b = (parse_one(parser, 1, *first[:2], *second[2:]) for _ in range(2))
    assert parsed.candidate.values[:, 1].tolist() == [1, 1, 2]
    assert (parsed.candidate.values[:, 0] == parsed.candidate.values[:, 2]).all()
    city = parsed.candidate.ids[0].tolist()
    assert city[0] == city[1] == int(a.candidate.ids[0, 0]) == int(b.candidate.ids[0, 0])
    assert city[2] != city[0]
    assert parsed.candidate.ids[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("layouts", "rows", "said"),
    [
        ({"ids": [Source(feature="item")], "tables": ["t"]}, 999, "gives ids 0 to 999"),
        ({"ids": [Source(feature="item", add=1)], "tables": ["t"]}, 1000, "gives ids 1 to 1000"),
        ({"ids": [Source(feature="item", add=-1)], "tables": ["t"]}, 1000, "gives ids -1 to 998"),
        ({"ids": [Source(feature="price")], "tables": ["t"]}, 9, "'price' is a number"),
        ({"ids": [Source(feature="item", column=1)], "tables": ["t"]}, 1000, "no column 1"),
        ({"values": [Source(feature="nobody")]}, 9, "has no feature 'nobody'"),
        ({"values": [Source(feature="y", program=True)]}, 9, "no program gives 'y'"),
        ({"ids": [Source(feature="y", program=True)], "tables": ["t"]}, 9, "want an int64 output"),
        ({"program": "candidate.onnx"}, 9, "disagree on the candidate side"),
    ],
)
def test_a_manifest_that_does_not_fit_the_spec_is_refused(
    layouts: dict[str, list[Source]], rows: int, said: str
) -> None:
    candidate = side_layout("candidate", **layouts)  # type: ignore[arg-type]
    with pytest.raises(BundleError) as caught:
        Parser(spec_of(SHOP), manifest_of(side_layout("user"), candidate, {"t": rows}), {})
    assert said in str(caught.value)


def test_the_user_side_cannot_read_candidate_features() -> None:
    layout = side_layout("user", values=[Source(feature="price")])
    with pytest.raises(BundleError, match="'price' is a candidate feature, read on the user side"):
        Parser(spec_of(SHOP), manifest_of(layout, side_layout("candidate"), {}), {})


def test_features_that_the_model_does_not_read_are_checked_by_name_and_type_alone() -> None:
    manifest = manifest_of(
        side_layout("user", values=[Source(feature="age")]), side_layout("candidate"), {}
    )
    parser = Parser(spec_of(SHOP), manifest, {})
    parsed = parse_one(parser, 2, user("age", 3), candidates("item", [-5, np.nan]))
    assert parsed.failed == {}
    assert parsed.user.values.tolist() == [[3]]
    assert problem(parser, 2, user("age", 3), candidates("item", [1]))[0] == "item"


def test_ever_new_layouts_do_not_fill_the_memory() -> None:
    names = [f"n{k}" for k in range(6)]
    parser = parser_of(
        "\n".join(f'[features.{name}]\nside = "user"\nkind = "numeric"' for name in names)
    )
    rng = np.random.default_rng(0)
    for _ in range(600):
        order = rng.permutation(6)
        parsed = parse_one(parser, 0, user([names[k] for k in order], order))
        assert parsed.user.values.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert parser.n_layouts <= 256


def test_what_a_client_sent_is_never_written_to(shop: Parser) -> None:
    blocks = [
        user("age", 1, np.float32),
        texts(USER, "city", ["x"]),
        candidates(["item", "price"], np.array([[1], [np.nan]]), np.float32),
    ]
    for block in blocks:
        block.values.flags.writeable = False
    before = [block.values.copy() for block in blocks]
    parsed = parse_one(shop, 1, *blocks)
    assert parsed.failed == {}
    for block, values in zip(blocks, before, strict=True):
        np.testing.assert_array_equal(block.values, values)


# Programs


def program(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
    **constants: object,
) -> bytes:
    """Return a serialised model; types by TensorProto's numbers, shapes [n, 1]."""
    graph = helper.make_graph(
        nodes,
        "program",
        [helper.make_tensor_value_info(k, t, ["n", 1]) for k, t in inputs.items()],
        [helper.make_tensor_value_info(k, t, ["n", 1]) for k, t in outputs.items()],
        [onnx.numpy_helper.from_array(np.array(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def computing_parser(rows: int = 100) -> Parser:
    """Candidate ids are item * 2 + age, through a table of 10 numbers; values item as float."""
    model = program(
        [
            helper.make_node("Cast", ["age"], ["age_id"], to=TensorProto.INT64),
            helper.make_node("Mul", ["item", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "age_id"], ["computed"]),
            helper.make_node("Gather", ["squares", "item"], ["square"]),
        ],
        {"age": TensorProto.FLOAT, "item": TensorProto.INT64},
        {"computed": TensorProto.INT64, "square": TensorProto.FLOAT},
        two=np.int64(2),
        squares=np.arange(10, dtype=np.float32) ** 2,
    )
    layout = side_layout(
        "candidate",
        ids=[Source(feature="item"), Source(feature="computed", program=True, add=1)],
        values=[Source(feature="square", program=True), Source(feature="price")],
        tables=["i", "c"],
        program="candidate.onnx",
    )
    manifest = manifest_of(side_layout("user"), layout, {"i": 1000, "c": rows})
    return Parser(spec_of(SHOP), manifest, {"candidate": model})


def computed_request(age: float, items: list[int]) -> RawRequest:
    block = candidates(["item", "price"], np.stack([items, np.zeros(len(items))]))
    return RawRequest(len(items), [user("age", age), block])


def test_a_program_computes_ids_and_values_over_all_requests() -> None:
    parsed = computing_parser().parse(
        [computed_request(10, [1, 2]), computed_request(0, []), computed_request(20, [3])]
    )
    assert parsed.failed == {}
    assert parsed.candidate.ids.tolist() == [[1, 2, 3], [13, 15, 27]]
    assert parsed.candidate.values.tolist() == [[1, 0], [4, 0], [9, 0]]


def test_a_batch_without_any_candidate_does_not_run_the_program() -> None:
    parsed = computing_parser().parse([computed_request(10, [])])
    assert parsed.candidate.ids.shape == (2, 0)
    assert parsed.candidate.values.shape == (0, 2)


def test_computed_ids_outside_their_table_fail_their_request_alone() -> None:
    parsed = computing_parser(rows=20).parse(
        [computed_request(1, [1]), computed_request(1, [2, 9]), computed_request(2, [1])]
    )
    assert parsed.candidate.ids[1].tolist() == [4, 5]
    assert {k: str(e) for k, e in parsed.failed.items()} == {
        1: "computed: the id 20 that the model computes is outside its table's rows 0 to 19 "
        "(candidate 1)"
    }


def test_a_request_on_which_a_program_fails_does_so_alone() -> None:
    parsed = computing_parser().parse(
        [computed_request(1, [1]), computed_request(1, [2, 500]), computed_request(2, [1])]
    )
    assert parsed.parsed.tolist() == [0, 2]
    assert parsed.candidate.values[:, 0].tolist() == [1, 1]
    assert parsed.failed[1].field == "candidate features"
    assert "the model cannot use them" in parsed.failed[1].problem


def one_input(name: str, kind: int) -> tuple[Manifest, bytes]:
    model = program([helper.make_node("Identity", [name], ["y"])], {name: kind}, {"y": kind})
    layout = side_layout("user", values=[Source(feature="y", program=True)], program="user.onnx")
    return manifest_of(layout, side_layout("candidate"), {}), model


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("age", TensorProto.DOUBLE, "'age' is tensor(double): want int64 or float"),
        ("age", TensorProto.INT64, "input 'age' wants ids, the feature is a number"),
        ("who", TensorProto.FLOAT, "has no feature 'who'"),
        ("item", TensorProto.INT64, "'item' is a candidate feature, read on the user side"),
    ],
)
def test_a_program_that_does_not_fit_the_spec_is_refused(name: str, kind: int, said: str) -> None:
    manifest, model = one_input(name, kind)
    with pytest.raises(BundleError) as caught:
        Parser(spec_of(SHOP), manifest, {"user": model})
    assert said in str(caught.value)


def test_a_program_that_is_no_model_is_refused() -> None:
    manifest, _ = one_input("age", TensorProto.FLOAT)
    side: SideName = "user"
    with pytest.raises(BundleError, match=r"user\.onnx: "):
        Parser(spec_of(SHOP), manifest, {side: b"no model"})


def test_ids_may_feed_a_program_as_floats() -> None:
    manifest, model = one_input("city", TensorProto.FLOAT)
    parser = Parser(spec_of(SHOP), manifest, {"user": model})
    city = parser_of(SHOP.split("[features.item]")[0])
    block = texts(USER, "city", ["Wien"])
    want = parse_one(city, 0, user("age", 0), block).user.ids[0, 0]
    assert parse_one(parser, 0, block).user.values.tolist() == [[float(want)]]


def test_whole_manifests_read_every_feature() -> None:
    # Guards the other tests: a helper that left features out would make them prove nothing.
    spec = spec_of(SHOP)
    manifest = whole_manifest(spec)
    read = {
        source.feature
        for layout in (manifest.user, manifest.candidate)
        for source in (*layout.ids, *layout.weights, *layout.values)
    }
    assert read == set(spec.by_name)

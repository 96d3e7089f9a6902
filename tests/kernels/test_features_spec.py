from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernels.errors import SpecError
from kernels.features.spec import load_spec, parse_spec
from tests.kernels.features_help import spec_of

GOOD = """\
version = 1

[features.user_id]
side = "user"
kind = "categorical"
encode = "vocabulary"
vocabulary = "users.txt"
first_id = 1
missing = 0
unseen = 4
input = "X"
column = 3

[features.price]
side = "candidate"
kind = "numeric"
transform = "standardise"
mean = 12.5
std = 3
missing = 1
width = 13

[features."genre.s"]
side = "candidate"
kind = "multi"
encode = "hash"
buckets = 100
first_id = 1
max_length = 6
keep = "first"
table = "genres.npy"
pooling = "mean"

[features.history]
side = "user"
kind = "sequence"
encode = "identity"
size = 1000
max_length = 30
pad_side = "left"
pad = 1000

[features.history_length]
kind = "length"
of = "history"
input = "X"
column = 4

[features.history_mask]
kind = "mask"
of = "history"

[features.age]
side = "candidate"
kind = "numeric"
transform = "bucketise"
boundaries = [18, 25, 35.5]
first_id = 2

[features.cross]
kind = "cross"
of = ["user_id", "age"]
buckets = 10
first_id = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "users.txt").write_text("ann\nbob\n")
    np.save(tmp_path / "genres.npy", np.zeros((101, 4), np.float32))
    (tmp_path / "features.toml").write_text(GOOD)
    return tmp_path


def problems(folder: Path, old: str, new: str) -> list[str]:
    """Return what is wrong with GOOD after a change."""
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD.replace(old, new, 1), folder)
    return str(caught.value).split("\n")


def line_of(text: str) -> int:
    return GOOD[: GOOD.index(text)].count("\n") + 1


def test_a_spec_says_what_each_feature_gives(folder: Path) -> None:
    spec = load_spec(folder / "features.toml")
    got = [
        (f.name, f.side, f.dtype, f.width, f.input, f.column, f.ids, f.line) for f in spec.features
    ]
    assert got == [
        ("user_id", "user", "int64", 1, "X", 3, (0, 4), 3),
        ("price", "candidate", "float32", 13, "price", 0, None, 14),
        ("genre.s", "candidate", "int64", 6, "genre.s", 0, (0, 100), 23),
        ("genre.s.weight", "candidate", "float32", 6, "", 0, None, 23),
        ("history", "user", "int64", 30, "history", 0, (0, 1000), 34),
        ("history_length", "user", "int64", 1, "X", 4, (0, 30), 43),
        ("history_mask", "user", "float32", 30, "history_mask", 0, None, 49),
        ("age", "candidate", "int64", 1, "age", 0, (2, 5), 53),
        ("cross", "candidate", "int64", 1, "cross", 0, (5, 14), 60),
    ]
    genres = spec.by_name["genre.s"]
    assert (genres.table, genres.pooling, genres.dim, genres.graph_width) == (
        "genres.npy",
        "mean",
        4,
        4,
    )
    assert spec.files == ("users.txt",)
    assert spec.members == {"user_id", "age", "history", "genre.s"}


def test_sequences_keep_the_last_entries_and_other_lists_refuse_more(folder: Path) -> None:
    spec = parse_spec(GOOD.replace('keep = "first"\n', ""), folder)
    keeps = [f.padding.keep for f in spec.features if f.padding is not None]
    assert keeps == ["error", "last"]


def test_a_description_for_clients_is_json_of_what_they_send(folder: Path) -> None:
    described = json.loads(json.dumps(load_spec(folder / "features.toml").describe()))
    assert [(d["name"], d["side"], d["kind"], d["width"]) for d in described] == [
        ("user_id", "user", "categorical", 1),
        ("price", "candidate", "numeric", 13),
        ("genre.s", "candidate", "multi", 6),
        ("history", "user", "sequence", 30),
        ("age", "candidate", "numeric", 1),
    ]
    assert [d["optional"] for d in described] == [True, True, False, False, False]
    assert [d["type"] for d in described[:2]] == ["text or integer", "number"]
    assert described[3]["size"] == 1000


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("version = 1", "version = 2", 1, "version: want 1, got 2"),
        ("version = 1", "version = 1\nmodel = 3", 2, "unknown key 'model'"),
        ('side = "user"', 'side = "usr"', 4, "side: want one of user, candidate, got 'usr'"),
        ('side = "user"\n', "", 3, "side: is missing: want one of user, candidate"),
        ('kind = "categorical"', 'kind = "categoric"', 5, "did you mean 'categorical'?"),
        ("missing = 0", "mising = 0", 9, "mising: unknown key (did you mean 'missing'?)"),
        ("first_id = 1", "first_id = true", 8, "first_id: want an integer of 0 to"),
        ("first_id = 1", "first_id = -1", 8, "first_id: want an integer of 0 to"),
        ("missing = 0", 'missing = "zero"', 9, "missing: want a number or error, got 'zero'"),
        ("missing = 0", 'missing = "skip"', 9, "missing: want a number or error, got 'skip'"),
        ('"users.txt"', '"../users.txt"', 7, "want a file in the spec's folder"),
        ('"users.txt"', '"/etc/passwd"', 7, "want a file in the spec's folder"),
        ('"users.txt"', '"none.txt"', 7, "none.txt: No such file"),
        ("std = 3", "std = 0", 17, "standardise wants mean and a std over 0"),
        ("mean = 12.5\n", "", 17, "standardise wants mean and a std over 0"),
        ("mean = 12.5", "mean = inf", 18, "mean: want a finite number, got inf"),
        ("width = 13", "width = 0", 21, "width: want an integer of 1 to"),
        ("buckets = 100", "buckets = 0", 27, "buckets: want an integer of 1 to"),
        ("buckets = 100", "size = 100", 23, "buckets: is missing"),
        ("buckets = 100", "buckets = 101", 31, "genres.npy has 101 rows, ids go up to 101"),
        ('"genres.npy"', '"users.txt"', 31, "cannot read users.txt"),
        ('table = "genres.npy"\n', "", 31, "pooling: wants a table"),
        ('pooling = "mean"', 'pooling = "men"', 32, "did you mean 'mean'?"),
        ("max_length = 30\n", "", 34, "max_length: is missing"),
        ('pad_side = "left"', 'pad_side = "top"', 40, "want one of left, right"),
        ("column = 4", "column = 3", 43, "column: 3 of input 'X' belongs to 'user_id' already"),
        ('of = "history"', 'of = "price"', 45, "want the name of a multi or sequence feature"),
        ("[18, 25, 35.5]", "[18, 18]", 57, "boundaries: want numbers that increase"),
        ("[18, 25, 35.5]", '[18, "x"]', 57, "boundaries: want a list of finite numbers"),
        ('"age"]', '"agee"]', 62, "of: there is no feature 'agee'"),
        ('"age"]', '"price"]', 62, "'price' is numeric: want categorical or bucketised"),
        ('"age"]', '"history"]', 62, "'history' is sequence: want categorical or bucketised"),
        ('"age"]', '"history_length"]', 62, "'history_length' is length: want categorical"),
        (', "age"]', "]", 62, "of: want at least two features"),
        ('of = ["user_id", "age"]', 'of = "age"', 62, "of: want a list of texts"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    folder: Path, old: str, new: str, line: int, problem: str
) -> None:
    found = problems(folder, old, new)
    # A change that adds or drops a line moves those below it
    moved = new.count("\n") - old.count("\n")
    lines = {line, line + moved} if line > line_of(old) else {line}
    assert any(
        each.startswith(tuple(f"features.toml:{n}: " for n in lines)) and problem in each
        for each in found
    ), found


def test_all_problems_are_reported_at_once_by_line(folder: Path) -> None:
    text = GOOD.replace("std = 3", "std = 0").replace("version = 1", "version = 9")
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace("buckets = 10\n", "bucket = 10\n"), folder)
    lines = [int(each.split(":")[1]) for each in str(caught.value).split("\n")]
    assert len(lines) >= 3
    assert lines == sorted(lines)


def test_a_kind_that_is_unknown_brings_no_other_problems(folder: Path) -> None:
    assert len(problems(folder, 'kind = "numeric"\ntransform = "stan', 'kind="n"\n#')) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "want at least one [features.NAME] table"),
        ("[features]\nx = 3", "features.toml:3: features.x: want a table"),
        ('[features.""]\nkind = "numeric"', "features.toml:2: '' is no name"),
        ("[features.x\n", "features.toml: Expected ']'"),
    ],
)
def test_what_is_no_spec_at_all_is_said(text: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(text)
    assert problem in str(caught.value)


def test_a_problem_is_found_in_inline_and_dotted_tables_too() -> None:
    with pytest.raises(SpecError, match=r"features\.toml:3: .*transform: want"):
        spec_of('[features]\nx = {side = "user", kind = "numeric", transform = "lgo"}')
    with pytest.raises(SpecError, match=r"features\.toml:4: .*transform: want"):
        spec_of('[features.x]\nside = "user"\ntransform = "lgo"\nkind = "numeric"')


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.toml: No such file"):
        load_spec(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(SpecError, match=r"bytes\.toml: not UTF-8"):
        load_spec(tmp_path / "bytes.toml")


def test_a_bundles_copy_is_read_without_its_tables(folder: Path) -> None:
    (folder / "genres.npy").unlink()
    spec = load_spec(folder / "features.toml", tables=False)
    assert spec.by_name["genre.s"].graph_width is None
    with pytest.raises(SpecError, match=r"genres\.npy"):
        load_spec(folder / "features.toml")


def test_a_derived_weight_never_takes_the_name_of_another_feature(folder: Path) -> None:
    found = problems(folder, "[features.price]", '[features."genre.s.weight"]')
    assert any("its weights would be 'genre.s.weight', which is there already" in f for f in found)

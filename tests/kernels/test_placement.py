from __future__ import annotations

import itertools
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings

from kernels.bundle import codec
from kernels.bundle.manifest import Manifest
from kernels.errors import BundleError, PlacementError
from kernels.placement import (
    CachedTable,
    Piece,
    Placement,
    check_placement,
    derive,
    read_placement,
    write_placement,
)
from kernels.shards import assign_tables
from tests.kernels.placement_help import manifest_of, owners_of, placements, table_of

MANIFEST = manifest_of(
    table_of("users", segments=4),
    table_of("ads", segments=8, keyed=True),
    table_of("genres"),
    table_of("huge", rows=2**31, segments=2),
)
GOOD = Placement(
    groups=(
        (Piece("users", 0, 4), Piece("ads", 0, 3)),
        (Piece("ads", 3, 8), Piece("huge", 0, 2)),
    ),
    device=("genres",),
    cached=(CachedTable("huge", 1000),),
)


def test_tables_are_pooled_where_they_lie_whole_and_fetched_otherwise() -> None:
    check_placement(GOOD, MANIFEST, 2)
    assert [GOOD.pooled(group) for group in range(2)] == [("users",), ()]
    assert GOOD.fetched == ("ads", "huge")
    assert GOOD.group_of("ads").tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert GOOD.segments(1, "ads") == range(3, 8)
    assert GOOD.segments(1, "users") == range(0)
    assert GOOD.tables(0) == ("users", "ads")
    with pytest.raises(KeyError):
        GOOD.group_of("genres")


@settings(deadline=None)
@given(placements())
def test_every_segment_lies_where_its_group_says(drawn: tuple[Manifest, Placement]) -> None:
    manifest, placement = drawn
    check_placement(placement, manifest, placement.n_groups)
    for table in manifest.tables:
        if table.name in placement.device:
            continue
        owners = owners_of(placement, table.name, table.segments)
        assert placement.group_of(table.name).tolist() == [owner for [owner] in owners]
        homes = {owner for [owner] in owners}
        cached = any(each.table == table.name for each in placement.cached)
        assert (table.name in placement.fetched) == (len(homes) > 1 or cached)
        for group in range(placement.n_groups):
            whole = homes == {group} and not cached
            assert (table.name in placement.pooled(group)) == whole
            held = placement.segments(group, table.name)
            assert list(held) == [i for i, [owner] in enumerate(owners) if owner == group]


@settings(deadline=None)
@given(placements())
def test_a_file_gives_back_what_was_written(drawn: tuple[Manifest, Placement]) -> None:
    manifest, placement = drawn
    with TemporaryDirectory() as folder:
        path = Path(folder) / "placement.toml"
        write_placement(placement, path, "What it is for:\nsay \u2028 or \x7f\n\nmore")
        read = read_placement(path, manifest, placement.n_groups)
        assert [file.name for file in Path(folder).iterdir()] == ["placement.toml"]
    assert read == placement
    assert read.digest == placement.digest


def test_the_digest_tells_placements_apart_that_differ() -> None:
    turned = attrs.evolve(GOOD, groups=tuple(group[::-1] for group in GOOD.groups))
    assert turned.digest == GOOD.digest
    others = [
        attrs.evolve(GOOD, groups=GOOD.groups[::-1]),
        attrs.evolve(GOOD, device=()),
        attrs.evolve(GOOD, cached=()),
    ]
    assert len({each.digest for each in (GOOD, *others)}) == 4


def test_without_a_plan_whole_tables_are_divided() -> None:
    placement = derive(MANIFEST, 3, device=["genres"])
    check_placement(placement, MANIFEST, 3)
    assert placement.fetched == ()
    assert [placement.pooled(group) for group in range(3)] == [("users",), ("ads",), ("huge",)]
    assert derive(MANIFEST, 2).groups == tuple(
        tuple(Piece(name, 0, table.segments) for name in names for table in MANIFEST.tables
              if table.name == name)
        for names in assign_tables(MANIFEST, 2)
    )  # fmt: skip
    with pytest.raises(ValueError, match="want at least 1"):
        derive(MANIFEST, 0)


USERS, ADS = Piece("users", 0, 4), Piece("ads", 0, 8)
HUGE = Piece("huge", 0, 2)


@pytest.mark.parametrize(
    ("groups", "device", "cached", "problem"),
    [
        ([[USERS, ADS]], ["genres"], [], "table 'huge' is placed nowhere: neither device nor a g"),
        ([[USERS, ADS, HUGE], [Piece("x", 0, 1)]], ["genres"], [], "group 1: the model has no tab"),
        (
            [[USERS, HUGE, Piece("ads", 0, 3)], [Piece("ads", 4, 8)]],
            ["genres"],
            [],
            "table 'ads': segment 3 of 8 is in no group",
        ),
        (
            [[USERS, HUGE, Piece("ads", 0, 5)]],
            ["genres"],
            [],
            "table 'ads': segment 5 of 8 is in no group, nor are 2 others",
        ),
        (
            [[USERS, HUGE, Piece("ads", 0, 5)], [Piece("ads", 3, 8)]],
            ["genres"],
            [],
            "group 1: table 'ads': segment 3 is in group 0 as well",
        ),
        (
            [[USERS, HUGE, Piece("ads", 0, 5), Piece("ads", 5, 8)]],
            ["genres"],
            [],
            "group 0: table 'ads' has two pieces",
        ),
        ([[Piece("users", 0, 5)]], [], [], "'users': want segments of 0 to 4, exclusive, got 0 to"),
        ([[Piece("users", 2, 2)]], [], [], "'users': want segments of 0 to 4, exclusive, got 2 to"),
        ([[Piece("users", -1, 2)]], [], [], "'users': want segments of 0 to 4, exclusive, got -1"),
        ([[USERS, ADS, HUGE]], ["x"], [], "device: the model has no table 'x'; there are ads, ge"),
        ([[USERS, ADS, HUGE]], ["genres"] * 2, [], "device: table 'genres' is named twice"),
        ([[USERS, HUGE]], ["genres", "ads"], [], "device: table 'ads' is found by keys"),
        ([[USERS, ADS]], ["genres", "huge"], [], "device: table 'huge' of 2147483648 rows cannot"),
        ([[USERS, ADS, HUGE]], ["users"], [], "group 0: table 'users' lies on the device already"),
        ([[USERS]], [], [("x", 1, 1.0)], "cached: the model has no table 'x'"),
        ([[USERS]], [], [("ads", 1, 1.0), ("ads", 2, 1.0)], "cached: table 'ads' is named twice"),
        ([[USERS]], ["genres"], [("genres", 1, 1.0)], "cached: table 'genres' lies on the device"),
        (
            [[USERS]],
            [],
            [("ads", 0, 1.0)],
            "table 'ads': max_bytes: want at least 924, for",
        ),
        ([[USERS]], [], [("ads", 1000, -1.0)], "table 'ads': stale_s: want seconds, got -1.0"),
        ([[USERS]], [], [("ads", 1000, math.nan)], "table 'ads': stale_s: want seconds, got nan"),
    ],
)
def test_what_does_not_fit_is_refused_naming_table_and_segment(
    groups: list[list[Piece]],
    device: list[str],
    cached: list[tuple[str, int, float]],
    problem: str,
) -> None:
    placement = Placement(
        groups=tuple(map(tuple, groups)),
        device=tuple(device),
        cached=tuple(itertools.starmap(CachedTable, cached)),
    )
    with pytest.raises(PlacementError) as caught:
        check_placement(placement, MANIFEST)
    assert problem in str(caught.value)


def test_as_many_groups_as_serve_the_model() -> None:
    with pytest.raises(PlacementError, match="divides over 2 groups, but 3 serve the model"):
        check_placement(GOOD, MANIFEST, 3)


BY_HAND = """\
version = 1
device = ["genres"]

[cached.huge]
max_bytes = 4_000
stale_s = 2

[[groups]]
users = "all"
ads = [0, 3]

[[groups]]
ads = [3, 8]
huge = "all"
"""


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "placement.toml"
    path.write_text(BY_HAND)
    want = attrs.evolve(GOOD, cached=(CachedTable("huge", 4000, 2.0),))
    assert read_placement(path, MANIFEST, 2) == want
    assert read_placement(path, MANIFEST) == want
    path.write_text('version = 1\ndevice = ["genres"]\n')
    assert read_placement(path, MANIFEST, 3) == derive(MANIFEST, 3, device=["genres"])
    small = manifest_of(table_of("a"), table_of("b"))
    path.write_text('version = 1\ndevice = "all"\n')
    assert read_placement(path, small, 2) == Placement(groups=((), ()), device=("a", "b"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("version = 1", "version = 2", "version: want 1, got 2"),
        ("version = 1", "", "version: want 1, got None"),
        ("device = [", "devices = [", "devices is unknown; there are version, device, cached, gr"),
        ('["genres"]', "3", 'device: want a list of tables or "all", got 3'),
        ('["genres"]', "[3]", 'device: want a list of tables or "all", got [3]'),
        ("[cached.huge]", "[cached]", "cached: table 'max_bytes': want max_bytes and stale_s, go"),
        ("max_bytes", "bytes", "cached: table 'huge': bytes is unknown"),
        ("max_bytes = 4_000", "", "cached: table 'huge': max_bytes: want a whole number, got Non"),
        ("stale_s = 2", "stale_s = '2'", "cached: table 'huge': stale_s: want a number, got '2'"),
        ("stale_s = 2", "stale_s = true", "cached: table 'huge': stale_s: want a number, got True"),
        ('users = "all"', "users = 3", "group 0: table 'users': want \"all\" or [first, last]"),
        ("[0, 3]", "[0, 3.0]", "group 0: table 'ads': want \"all\" or [first, last]"),
        ("[0, 3]", "[0, 2]", "table 'ads': segment 2 of 8 is in no group"),
        ("[[groups]]\nads", "[groupes]\nads", "groupes is unknown"),
        ("version", "=", "cannot be read:"),
    ],
)
def test_a_mistake_in_a_file_is_told(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in BY_HAND
    path = tmp_path / "placement.toml"
    path.write_text(BY_HAND.replace(old, new, 1))
    with pytest.raises(PlacementError) as caught:
        read_placement(path, MANIFEST)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_a_file_needs_groups_where_nothing_says_how_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "placement.toml"
    for text, problem in (
        ("version = 1", "groups: are missing"),
        ("version = 1\ngroups = 3", "groups: want tables"),
        ("version = 1\ncached = 3\ngroups = []", "cached: want tables headed"),
    ):
        path.write_text(text)
        with pytest.raises(PlacementError, match=problem):
            read_placement(path, MANIFEST)
    with pytest.raises(PlacementError, match="cannot be read"):
        read_placement(tmp_path / "absent.toml", MANIFEST)


def test_manifests_from_before_tables_had_keys_are_read() -> None:
    text = codec.dumps(manifest_of(table_of("a")))
    old = text.replace('"fp32"', '"float32"')
    for field in ('   "keyed": false,\n', ',\n   "segments": 1'):
        assert field in old
        old = old.replace(field, "")
    assert codec.loads(old) == codec.loads(text)
    with pytest.raises(BundleError, match="keyed: want bool, got 3"):
        codec.loads(text.replace('"keyed": false', '"keyed": 3'))

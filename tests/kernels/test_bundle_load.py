import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from kernels.bundle import codec
from kernels.bundle.load import load_bundle
from kernels.bundle.manifest import (
    KeptTable,
    Lookup,
    Manifest,
    Output,
    SideLayout,
    Source,
    Table,
)
from kernels.errors import BundleError, LookupFailed
from kernels.store.build import build_dense, build_keyed

MANIFEST = Manifest(
    format=1,
    model="toy",
    version="0" * 64,
    tables=(Table(name="item", rows=5, dim=3, dtype="float32", file="item.npy"),),
    user=SideLayout(ids=(), weights=(), values=(), lookups=(), width=0, program=None),
    candidate=SideLayout(
        ids=(Source(feature="item"), Source(feature="past", column=1, add=2)),
        weights=(Source(feature="mask", program=True), Source(feature="mask", column=1)),
        values=(Source(feature="price"),),
        lookups=(
            Lookup(
                side="candidate",
                table="item",
                tensor="gather",
                pooling="sum",
                first_id=0,
                n_ids=2,
                first_weight=0,
                offset=0,
                width=3,
            ),
        ),
        width=4,
        program="candidate.onnx",
    ),
    outputs=(Output(name="y", offset=0, width=1, shape=(1,)),),
    kept=(KeptTable(name="pos", shape=(4, 2), reason="indexed by a range", positional=True),),
)


def write(path: Path, manifest: Manifest = MANIFEST) -> Path:
    (path / "tables").mkdir(parents=True)
    np.save(path / "tables" / "item.npy", np.arange(15, dtype=np.float32).reshape(5, 3))
    np.save(path / "sample.npy", np.asarray([[1, 2, 3, 4]], np.float32))
    (path / "features.toml").write_text("version = 1\n")
    (path / "dense.onnx").write_bytes(b"dense")
    (path / "candidate.onnx").write_bytes(b"program")
    (path / "manifest.json").write_text(codec.dumps(manifest))
    return path


def test_a_manifest_survives_the_round_trip_through_json() -> None:
    assert codec.loads(codec.dumps(MANIFEST)) == MANIFEST


def test_a_manifest_from_before_executors_were_named_is_for_the_host() -> None:
    fields = json.loads(codec.dumps(MANIFEST))
    del fields["gpu"]
    manifest = codec.loads(json.dumps(fields))
    assert not manifest.gpu.supported
    assert "build it again" in manifest.gpu.reason
    with pytest.raises(BundleError, match=r"manifest\.gpu: reason is missing"):
        codec.loads(json.dumps({**fields, "gpu": {"supported": False}}))


def test_a_whole_bundle_loads_and_maps_its_tables_read_only(tmp_path: Path) -> None:
    bundle = load_bundle(write(tmp_path / "b"))
    table = bundle.table("item")
    assert isinstance(table, np.memmap)
    assert table.tolist() == np.arange(15).reshape(5, 3).tolist()
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1
    assert bundle.dense_model() == b"dense"
    assert bundle.program("candidate") == b"program"
    assert bundle.program("user") is None
    assert bundle.spec_text == "version = 1\n"
    user, candidate = bundle.sample()
    assert (user.shape, candidate.tolist()) == ((1, 0), [[1, 2, 3, 4]])
    with pytest.raises(BundleError, match="no table named 'users'"):
        bundle.table("users")


@pytest.mark.parametrize("file", ["dense.onnx", "features.toml", "candidate.onnx", "sample.npy"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    path = write(tmp_path / "b")
    (path / file).unlink()
    with pytest.raises(BundleError, match=f"{file} is missing"):
        load_bundle(path)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "does not hold an object"),
        ('{"format": 99}', "format 99; this reads 1"),
        (codec.dumps(MANIFEST).replace('"rows": 5', '"rows": "5"'), r"rows: want int, got '5'"),
        (codec.dumps(MANIFEST).replace('"sum"', '"sun"'), "pooling: 'sun' is none of"),
        (codec.dumps(MANIFEST).replace('"model"', '"modell"'), "unknown fields .'modell'."),
    ],
)
def test_a_damaged_manifest_is_refused_by_field(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "b")
    (path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_a_table_of_another_shape_or_a_truncated_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    file = path / "tables" / "item.npy"
    np.save(file, np.zeros((4, 3), np.float32))
    with pytest.raises(BundleError, match=r"want C-ordered float32 \[5, 3\], got float32 \[4, 3\]"):
        load_bundle(path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BundleError, match="is damaged"):
        load_bundle(path)
    file.unlink()
    with pytest.raises(BundleError, match=r"tables/item\.npy is missing"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_ids": 3}, "ids 0 to 3 of 2"),
        ({"first_weight": 1}, "weights 1 to 3 of 2"),
        ({"table": "users"}, "no table named 'users'"),
        ({"width": 4}, "width 4 does not fit"),
        ({"offset": 1}, "starts at column 1, not 0"),
        ({"side": "user"}, "of the user side"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    lookup = attrs.evolve(MANIFEST.candidate.lookups[0], **change)
    side = attrs.evolve(MANIFEST.candidate, lookups=(lookup,))
    path = write(tmp_path / "b", attrs.evolve(MANIFEST, candidate=side))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def write_stored(path: Path, keys: list[int] | None, segments: int = 2) -> Path:
    """Write the toy bundle with a folder of the store for its table."""
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    folder = path / "tables" / "item"
    if keys is None:
        header = build_dense(folder, [rows], rows=5, dim=3, dtype="fp16", n_segments=segments)
    else:
        batch = np.array(keys, np.int64), rows
        header = build_keyed(folder, [batch], dim=3, dtype="fp16", n_segments=segments)
    table = Table(
        name="item",
        rows=5,
        dim=3,
        dtype="fp16",
        file="item",
        keyed=keys is not None,
        segments=segments,
        version=header.version,
    )
    write(path.with_name("whole"), attrs.evolve(MANIFEST, tables=(table,)))
    for file in path.with_name("whole").iterdir():
        if file.is_file():
            file.rename(path / file.name)
    return path


def test_a_table_may_be_a_folder_of_the_store(tmp_path: Path) -> None:
    keys = [7, -1, 2**62, 0, 5]
    bundle = load_bundle(write_stored(tmp_path / "b", keys))
    table = bundle.open_table("item")
    got = table.fetch(np.array([0, 7, 3, 2**62], np.int64))
    assert got.tolist() == [[9, 10, 11], [0, 1, 2], [0, 0, 0], [6, 7, 8]]
    for segment in range(2):
        part = bundle.open_table("item", range(segment, segment + 1))
        mine = part.keys_of(segment)
        assert part.fetch(mine).tolist() == table.fetch(mine).tolist()
    with pytest.raises(BundleError, match="'item' is a folder of the store: open it"):
        bundle.table("item")


def test_any_table_is_opened_in_the_same_way(tmp_path: Path) -> None:
    rows = np.array([4, 0], np.int64)
    want = [[12, 13, 14], [0, 1, 2]]
    bundle = load_bundle(write(tmp_path / "array"))
    assert bundle.open_table("item").fetch(rows).tolist() == want
    stored = load_bundle(write_stored(tmp_path / "stored", None))
    assert stored.open_table("item").fetch(rows).tolist() == want
    with pytest.raises(LookupFailed, match="segment 1"):
        stored.open_table("item", range(1)).fetch(rows)
    with pytest.raises(BundleError, match="no table named 'users'"):
        bundle.open_table("users")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 4}, "rows: the manifest wants 4, the table has 5"),
        ({"dim": 4}, "dim: the manifest wants 4, the table has 3"),
        ({"dtype": "int8"}, "dtype: the manifest wants int8, the table has fp16"),
        ({"dtype": "int4"}, "table 'item' has rows of 'int4'"),
        ({"keyed": False}, "keyed: the manifest wants False, the table has True"),
        ({"segments": 3}, "segments: the manifest wants 3, the table has 2"),
        ({"segments": 0}, "table 'item' has 0 segments"),
        ({"version": "1" * 64}, "version: the manifest wants 11111"),
        ({"file": "../item"}, "'../item' is no name of a file"),
        ({"file": "other"}, "other is not the folder of a table"),
    ],
)
def test_a_table_of_another_kind_than_the_manifest_says_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_stored(tmp_path / "b", [1, 2, 3, 4, 5])
    manifest = codec.loads((path / "manifest.json").read_text())
    table = attrs.evolve(manifest.tables[0], **change)
    (path / "manifest.json").write_text(codec.dumps(attrs.evolve(manifest, tables=(table,))))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_a_bundle_that_is_placed_otherwise_is_another_version(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    assert load_bundle(path).manifest.version == MANIFEST.version
    versions = set()
    for text in ("version = 1\n", 'version = 1\ndevice = "all"\n', "version = 1\n"):
        (path / "placement.toml").write_text(text)
        versions.add(load_bundle(path).manifest.version)
    assert len(versions | {MANIFEST.version}) == 3

"""Bundles of models whose tables are folders of the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from kernels.bundle import check as check_module
from kernels.bundle.__main__ import main
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.recorded import Case
from kernels.bundle.stores import adopt, whole_model
from kernels.bundle.verify import verify
from kernels.device_tables import DeviceTables
from kernels.errors import GraphError, LookupFailed, StoreError
from kernels.program import Precision
from kernels.store.build import build_dense, build_keyed
from kernels.store.rows import RowType
from kernels.store.table import StoredTable
from tests.kernels.bundle_help import table, write_model

Array = NDArray[Any]

KEYS = np.array([5, -1, 2**62, -(2**63), 17, 123456789012345, 3, 99], np.int64)
SIGNATURE = "(int64[B] ad, int64[B, 3] past) => (float[B, 1] y)"
# The history is summed where it is not the pad, 0, which the graph itself finds out.
BODY = """
    zero = Constant <value = int64[1] {0}> ()
    there = Equal (past, zero)
    absent = Not (there)
    mask = Cast <to = 1> (absent)
    axis = Constant <value = int64[1] {-1}> ()
    wide = Unsqueeze (mask, axis)
    rows = Gather (ads, past)
    masked = Mul (rows, wide)
    one = Constant <value = int64[1] {1}> ()
    history = ReduceSum <keepdims = 0> (masked, one)
    mine = Gather (ads, ad)
    both = Concat <axis = 1> (mine, history)
    y = MatMul (both, w)
"""
FEATURES = """\
version = 1
[features.ad]
side = "candidate"
kind = "categorical"
encode = "key"
[features.past]
side = "user"
kind = "sequence"
encode = "key"
max_length = 3
missing = "skip"
"""


def model_of(folder: Path, rows: int = 2, signature: str = SIGNATURE) -> Path:
    """Write the model with a table of a few rows, which are not those of the store."""
    constants = {"ads": table(rows, 4, seed=9), "w": table(8, 1, seed=2)}
    return write_model(folder / "m.onnx", signature, BODY, constants)


def keyed(folder: Path, dtype: RowType = "fp16", n_segments: int = 3) -> Path:
    default = np.full(4, 0.25, np.float32)
    batch = KEYS, table(len(KEYS), 4, seed=1)
    build_keyed(folder, [batch], dim=4, dtype=dtype, n_segments=n_segments, default=default)
    return folder


def built(folder: Path, store: Path, features: str = FEATURES, force: bool = False) -> Bundle:
    spec = folder / "features.toml"
    spec.write_text(features)
    model = folder / "m.onnx" if (folder / "m.onnx").exists() else model_of(folder)
    build = BuildOptions(tables={"ads": store}, force=force)
    build_bundle(model, spec, folder / "bundle", build)
    return load_bundle(folder / "bundle")


def scores(ad: list[int], past: list[list[int]], store: Path) -> Array:
    """Compute the model in numpy."""
    stored = StoredTable.open(store)
    weights = table(8, 1, seed=2)
    mine = stored.fetch(np.array(ad, np.int64))
    history = np.array(past, np.int64)
    rows = stored.fetch(history.ravel()).reshape(*history.shape, 4)
    summed = (rows * (history != 0)[:, :, None]).sum(axis=1)
    return np.asarray(np.concatenate([mine, summed], axis=1) @ weights)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_rows_come_from_the_store_by_their_keys(tmp_path: Path, dtype: RowType) -> None:
    store = keyed(tmp_path / "ads", dtype)
    bundle = built(tmp_path, store)
    (stored,) = bundle.manifest.tables
    assert (stored.keyed, stored.rows, stored.dim, stored.dtype) == (True, len(KEYS), 4, dtype)
    assert stored.segments == 3
    assert stored.version == StoredTable.open(store).header.version
    assert [lookup.pooling for lookup in bundle.manifest.user.lookups] == ["sum"]
    ad = [5, -(2**63), 4, 2**62]
    past = [[5, 0, -1], [5, 0, -1], [0, 0, 0], [77, 17, 17]]
    inputs = {"ad": np.array(ad, np.int64), "past": np.array(past, np.int64)}
    case = Case(inputs, {"y": scores(ad, past, store).astype(np.float32)})
    assert verify(bundle, {"c": case}, rtol=1e-4, atol=1e-5).ok


def test_users_that_differ_in_keys_alone_are_told_apart(tmp_path: Path) -> None:
    bundle = built(tmp_path, keyed(tmp_path / "ads"))
    past = [[2**62, 0, 0], [2**62 + 1, 0, 0]]  # alike as float64
    inputs = {"ad": np.array([5, 5], np.int64), "past": np.array(past, np.int64)}
    want = scores([5, 5], past, tmp_path / "ads").astype(np.float32)
    assert want[0] != want[1]
    assert verify(bundle, {"c": Case(inputs, {"y": want})}, rtol=1e-4, atol=1e-5).ok


def test_files_are_linked_and_the_version_is_that_of_the_rows(tmp_path: Path) -> None:
    store = keyed(tmp_path / "ads")
    first = built(tmp_path, store).manifest
    (file,) = (tmp_path / "bundle" / "tables" / "ads").glob("*/000001.rows")
    assert file.stat().st_nlink == 2
    again = built(tmp_path, store, force=True).manifest
    assert again.version == first.version
    batch = KEYS, table(len(KEYS), 4, seed=7)
    build_keyed(store, [batch], dim=4, dtype="fp16", n_segments=3)
    assert load_bundle(tmp_path / "bundle").open_table("ads").fetch(KEYS).shape == (8, 4)
    other = built(tmp_path, store, force=True).manifest
    assert other.version != first.version


def test_where_there_are_no_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert adopt(keyed(tmp_path / "ads"), tmp_path / "copy") == "copied"
    copy = StoredTable.open(tmp_path / "copy")
    assert copy.fetch(KEYS).tolist() == StoredTable.open(tmp_path / "ads").fetch(KEYS).tolist()
    (tmp_path / "ads" / copy.header.rows_file(0)).unlink()
    with pytest.raises(StoreError, match=r"000000\.rows is missing"):
        adopt(tmp_path / "ads", tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_dense_table_may_be_larger_than_the_models_own(tmp_path: Path) -> None:
    store = tmp_path / "ads"
    build_dense(store, [table(1000, 4)], rows=1000, dim=4, dtype="fp16", n_segments=4)
    features = FEATURES.replace('encode = "key"', 'encode = "identity"\nsize = 1000')
    bundle = built(tmp_path, store, features)
    assert bundle.manifest.tables[0].rows == 1000
    with pytest.raises(GraphError, match=r"gives ids 0 to 1000, .* it has 1000 rows"):
        built(tmp_path, store, features.replace("1000", "1001"), force=True)
    with pytest.raises(GraphError, match="gives keys, but table 'ads' is found by row numbers"):
        built(tmp_path, store, force=True)


def test_features_of_keys_are_inferred(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    tables = {"ads": keyed(tmp_path / "ads")}
    build_bundle(model, None, tmp_path / "b", BuildOptions(infer=True, tables=tables))
    text = load_bundle(tmp_path / "b").spec_text
    assert text.count('encode = "key"') == 2


def test_a_wrong_cut_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    build_keyed(other, [(KEYS, table(len(KEYS), 4, seed=8))], dim=4, dtype="fp16")
    stores = {"ads": StoredTable.open(other)}
    monkeypatch.setattr(
        check_module, "whole_model", lambda path, _, keys: whole_model(path, stores, keys)
    )
    with pytest.raises(GraphError, match="output 'y' differs"):
        built(tmp_path, keyed(tmp_path / "ads"))


def test_the_whole_model_finds_rows_by_their_keys(tmp_path: Path) -> None:
    store = keyed(tmp_path / "ads")
    keys = np.sort(np.append(KEYS, 0))
    whole = whole_model(model_of(tmp_path), {"ads": StoredTable.open(store)}, {"ads": keys})
    session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    past = [[17, 0, 3], [0, 0, 0]]
    feeds = {"ad": np.array([-1, 99], np.int64), "past": np.array(past, np.int64)}
    np.testing.assert_allclose(
        session.run(None, feeds)[0], scores([-1, 99], past, store), rtol=1e-5
    )


def test_a_features_own_table_may_be_a_folder_of_the_store(tmp_path: Path) -> None:
    store = keyed(tmp_path / "past.table")
    features = FEATURES + 'table = "past.table"\npooling = "mean"\n'
    model = write_model(
        tmp_path / "m.onnx",
        "(int64[B] ad, float[B, 4] past) => (float[B, 1] y)",
        "mine = Gather (ads, ad)\nboth = Concat <axis = 1> (mine, past)\ny = MatMul (both, w)",
        {"ads": table(2, 4), "w": table(8, 1)},
    )
    assert model.exists()
    bundle = built(tmp_path, store, features)
    (lookup,) = bundle.manifest.user.lookups
    stored = next(each for each in bundle.manifest.tables if each.name == lookup.table)
    assert (stored.keyed, lookup.pooling) == (True, "sum")
    assert bundle.open_table(stored.name).find(KEYS).min() >= 0


@pytest.mark.parametrize(
    ("signature", "features", "name", "dim", "problem"),
    [
        (SIGNATURE, FEATURES, "nothing", 4, "'nothing' is no table of it; there are 'ads', 'w'"),
        (SIGNATURE, FEATURES, "ads", 5, "table 'ads' has 4 numbers a row, and .* has 5"),
        (SIGNATURE, FEATURES, "w", 1, "table 'w' is not cut"),
        (
            SIGNATURE.replace("int64[B] ad", "int32[B] ad"),
            FEATURES,
            "ads",
            4,
            "feature 'ad' gives keys of 64 bits, but input 'ad' is int32",
        ),
    ],
)
def test_what_cannot_be_is_told(
    tmp_path: Path, signature: str, features: str, name: str, dim: int, problem: str
) -> None:
    model = model_of(tmp_path, signature=signature)
    (tmp_path / "features.toml").write_text(features)
    build_keyed(
        tmp_path / "t", [(KEYS, table(len(KEYS), dim))], dim=dim, dtype="fp16", n_segments=2
    )
    tables = {"ads": keyed(tmp_path / "ads"), name: tmp_path / "t"}
    options = BuildOptions(tables=tables)
    with pytest.raises(GraphError, match=problem):
        build_bundle(model, tmp_path / "features.toml", tmp_path / "b", options)


def test_a_table_is_named_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = keyed(tmp_path / "ads")
    arguments = ["build", str(model_of(tmp_path)), "--infer-features", "-o", str(tmp_path / "b")]
    assert main([*arguments, "--table", f"ads={store}"]) == 0
    assert main(["show", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "table ads: 8 rows, " in shown
    assert f"linked from {store}" in shown
    assert "fp16" in shown
    assert "keys" in shown
    assert main([*arguments, "--force", "--table", f"ads={tmp_path}"]) == 2
    assert "has no table.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--table", "ads"])


def test_ids_of_a_dense_table_are_still_checked(tmp_path: Path) -> None:
    store = tmp_path / "ads"
    build_dense(store, [table(10, 4)], rows=10, dim=4, dtype="fp32")
    features = FEATURES.replace('encode = "key"', 'encode = "identity"\nsize = 10')
    bundle = built(tmp_path, store, features)
    inputs = {"ad": np.array([10], np.int64), "past": np.zeros((1, 3), np.int64)}
    with pytest.raises(LookupFailed):
        verify(bundle, {"c": Case(inputs, {"y": np.zeros((1, 1))})}, rtol=1, atol=1)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.FP32])
def test_a_dense_table_of_the_store_may_lie_on_a_card(tmp_path: Path, precision: Precision) -> None:
    rows = table(1000, 4)
    build_dense(tmp_path / "ads", [rows], rows=1000, dim=4, dtype="fp16", n_segments=4)
    features = FEATURES.replace('encode = "key"', 'encode = "identity"\nsize = 1000')
    bundle = built(tmp_path, tmp_path / "ads", features)
    placed = DeviceTables.of(bundle.manifest, ["ads"], precision)
    ((at, written),) = placed.pieces(bundle.open_table)
    assert at == 0
    stored = written.view(np.float16 if precision is Precision.FP16 else np.float32)
    np.testing.assert_array_equal(stored, rows.astype(np.float16))

"""``python -m kernels.bundle``: what it prints, and how it fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from kernels.bundle.__main__ import main
from tests.kernels.bundle_help import ids, table, write_model

ROWS = 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    body = "e = Gather(t, x)\nr = Relu(e)\ns = ReduceSum<keepdims=0>(r, axis)\ny = Exp(s)"
    constants = {"t": table(ROWS), "axis": np.asarray([1], np.int64)}
    return write_model(tmp_path / "m.onnx", "(int64[B] x) => (float[B] y)", body, constants)


@pytest.fixture
def pairs(model: Path) -> Path:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    arrays: dict[str, Any] = {}
    for n in (1, 37):
        x = ids(n, rows=ROWS)
        arrays[f"b{n}/in/x"] = x
        arrays[f"b{n}/out/y"] = session.run(None, {"x": x})[0]
    path = model.with_name("pairs.npz")
    np.savez(path, **arrays)
    return path


def run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def test_a_model_is_built_shown_and_verified(
    tmp_path: Path, model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "b"
    assert run("build", model, "--infer-features", "-o", bundle) == 0
    assert "1 tables cut, 0 left" in capsys.readouterr().out
    assert run("show", bundle) == 0
    assert "[20, 4]" in capsys.readouterr().out
    assert (tmp_path / "b.svg").read_text().startswith("<svg")
    assert run("verify", bundle, "--io", pairs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    verdict = json.loads(lines[0])
    assert verdict.pop("seconds") >= 0
    assert verdict.pop("max_abs_error") < 1e-5
    assert verdict.pop("max_rel_error") < 1e-5
    assert verdict == {"cases": 2, "tables_cut": 1, "tables_left": 0}


def test_verifying_a_model_builds_it_first(
    model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", model, "--io", pairs, "--executor", "host") == 0
    assert json.loads(capsys.readouterr().out)["cases"] == 2
    assert {path.name for path in model.parent.iterdir()} == {"m.onnx", "pairs.npz"}


def test_errors_beyond_the_tolerance_exit_with_1(
    model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = dict(np.load(pairs))
    arrays["b37/out/y"] *= 1.01
    np.savez(pairs, **arrays)
    assert run("verify", model, "--io", pairs) == 1
    assert 0.009 < json.loads(capsys.readouterr().out)["max_rel_error"] < 0.011
    assert run("verify", model, "--io", pairs, "--rtol", "0.02") == 0
    assert run("verify", model, "--io", pairs, "--rtol", "0", "--atol", "1e6") == 0


def test_nan_where_a_number_was_recorded_is_an_error(model: Path, pairs: Path) -> None:
    arrays = dict(np.load(pairs))
    arrays["b1/out/y"][:] = np.nan
    np.savez(pairs, **arrays)
    assert run("verify", model, "--io", pairs) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("b1/in/x", None), "b1/in/x is missing"),
        (("b1/out/y", None), "b1/out/y is missing"),
        (("b1/out/y", "b1/y"), "key 'b1/y' is neither"),
        (("b1/out/y", "b1/out/z"), "b1/out/y is missing"),
    ],
)
def test_missing_keys_of_recorded_pairs_are_named(
    model: Path,
    pairs: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str | None],
    message: str,
) -> None:
    arrays = dict(np.load(pairs))
    old, new = change
    array = arrays.pop(old)
    if new is not None:
        arrays[new] = array
    np.savez(pairs, **arrays)
    assert run("verify", model, "--io", pairs) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_outputs_of_another_shape_are_refused(
    model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = dict(np.load(pairs))
    arrays["b37/out/y"] = arrays["b37/out/y"][:, None]
    np.savez(pairs, **arrays)
    assert run("verify", model, "--io", pairs) == 2
    assert "[37, 1] was recorded; the model gives [37]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "none.onnx", "--infer-features", "-o", "b"], "none.onnx: cannot be read"),
        (["build", "m.onnx", "-o", "b"], "no features are given"),
        (["build", "m.onnx", "--features", "none.toml", "-o", "b"], "none.toml"),
        (["show", "."], "not a bundle"),
        (["verify", ".", "--io", "pairs.npz"], "not a bundle"),
        (["verify", "m.onnx", "--io", "m.onnx"], "not an .npz of arrays"),
        (["verify", "m.onnx", "--io", "none.npz"], "none.npz"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    model: Path,
    pairs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(model.parent)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert pairs.exists()


def test_an_argument_that_is_no_shape_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("build", model, "--infer-features", "-o", "b", "--shape", "x=many")
    assert "want INPUT=30 or INPUT=5x16, got 'x=many'" in capsys.readouterr().err


def test_the_oracle_verifies_a_bundle(
    tmp_path: Path, model: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", model, "--infer-features", "-o", tmp_path / "b") == 0
    assert "executors: host, cuda\n" in capsys.readouterr().out
    assert run("verify", tmp_path / "b", "--io", pairs, "--executor", "reference") == 0
    assert json.loads(capsys.readouterr().out)["max_abs_error"] < 1e-5


def test_a_model_for_the_host_alone_says_so_and_runs_on_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "e = Gather(t, x)\nr = ArgMax<axis=1>(e)\ny = Cast<to=1>(r)"
    path = write_model(
        tmp_path / "m.onnx", "(int64[B] x) => (float[B,1] y)", body, {"t": table(ROWS)}
    )
    assert run("build", path, "--infer-features", "-o", tmp_path / "b") == 0
    reason = "host only: m: ArgMax 'r': is not an operator that the compiler of GPU kernels knows"
    assert f"executors: {reason}\n" in capsys.readouterr().out
    assert run("show", tmp_path / "b") == 0
    assert f"executors {reason}\n" in capsys.readouterr().out
    x = ids(2, rows=ROWS)
    np.savez(tmp_path / "p.npz", **{"b/in/x": x, "b/out/y": table(ROWS)[x].argmax(1)[:, None]})
    for executor in ("reference", "cuda"):
        command = ("verify", tmp_path / "b", "--io", tmp_path / "p.npz", "--executor", executor)
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert "runs on the host executor only: m: ArgMax 'r'" in error
        assert error.count("\n") == 1
    assert run("verify", tmp_path / "b", "--io", tmp_path / "p.npz") == 0

"""The zoo's table: on models made here, and on the zoo beside the checkout where it is there."""

import json
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnxruntime
import pytest

from tests import zoo
from tests.kernels import shim
from tests.kernels.bundle_help import ids, table, write_model
from tests.kernels.gpu_help import FakeCuda, ShimBuilder, fake_cuda
from tests.zoo_table import Result

__all__ = ["fake_cuda"]

# One of each kind of cut: many tables, masked pools, attention, recurrence over sorted sequences,
# bags, bags as loops, one table for each pair of fields, no table at all.
KINDS = [
    "deepctr_DeepFM.legacy",
    "deepctr_DeepFM_varlen.dynamo",
    "deepctr_DIN_dice.legacy",
    "deepctr_DIEN_GRU.legacy",
    "deepctr_ONN.dynamo",
    "plain_DLRM_DCNv2_small.dynamo",
    "plain_DLRM_DCNv2_small_embeddingbag.dynamo",
    "plain_DLRM_DCNv2_small_dense.dynamo",
]
needs_zoo = pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")


def make_zoo(folder: Path, body: str) -> Path:
    """Make a zoo of one model, whose recorded outputs are those of ONNX Runtime."""
    constants = {"t": table(20), "u": table(4, seed=1), "axis": np.asarray([1], np.int64)}
    constants["zero"] = np.zeros((), np.float32)
    used = {name: array for name, array in constants.items() if name in body}
    path = write_model(
        folder / "models" / "toy.made.onnx", "(int64[B,3] x) => (float[B,4] y)", body, used
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays: dict[str, Any] = {}
    for n in (1, 37):
        x = ids(n, 3, rows=20)
        arrays[f"b{n}_0/in/x"] = x
        arrays[f"b{n}_0/out/y"] = session.run(None, {"x": x})[0]
    (folder / "io").mkdir()
    np.savez(folder / "io" / "toy.npz", **arrays)
    exports = [
        {"exporter": "made", "status": "ok", "file": "models/toy.made.onnx"},
        {"exporter": "other", "status": "ok", "file": None},
    ]
    manifest = {
        "tolerance": {"rtol": 1e-3, "atol": 1e-5},
        "entries": [{"name": "toy", "exports": exports}],
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


POOLED = "e = Gather(t, x)\ny = ReduceSum<keepdims=0>(e, axis)"
LEFT = POOLED.replace("y =", "s =") + "\nb = ArgMax<axis=1, keepdims=0>(s)\ny = Gather(u, b)"


def test_a_zoo_that_passes_prints_its_table_and_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo.main([str(make_zoo(tmp_path, POOLED)), "--in-process"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["model", "cases"]
    assert lines[1].split()[:2] == ["toy.made", "2"]
    assert lines[1].endswith("pass")
    assert lines[-1] == "1 of 1 pass"


def test_a_table_left_behind_fails_and_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo.main([str(make_zoo(tmp_path, LEFT)), "--in-process"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "toy.made: LEFT: u [4, 4]: indexed by 'b'" in out


def test_outputs_that_differ_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_zoo(tmp_path, POOLED)
    arrays = dict(np.load(folder / "io" / "toy.npz"))
    arrays["b37_0/out/y"][5] += 1
    np.savez(folder / "io" / "toy.npz", **arrays)
    assert zoo.main([str(folder), "--in-process"]) == 1
    assert "toy.made: b37_0: y differs by 1" in capsys.readouterr().out


def test_a_model_that_cannot_be_read_fails_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_zoo(tmp_path, POOLED)
    (folder / "models" / "toy.made.onnx").write_bytes(b"damaged")
    assert zoo.main([str(folder), "--in-process"]) == 1
    assert "toy.made: GraphError: " in capsys.readouterr().out


def test_models_for_the_host_alone_are_told_from_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "e = Gather(t, x)\ns = ReduceSum<keepdims=0>(e, axis)\nn = NonZero(s)\n"
    body += "f = Cast<to=1>(n)\ng = ReduceMax<keepdims=0>(f)\nh = Mul(g, zero)\ny = Add(s, h)"
    folder = make_zoo(tmp_path, body)
    command = [str(folder), "--rows", "1,20"]
    assert zoo.main([*command, "--executor", "reference"]) == 0
    out = capsys.readouterr().out
    assert "0 of 1 pass, 1 for the host alone" in out
    assert "toy.made: host only: toy.made: NonZero" in out
    assert zoo.main([str(folder), "--in-process"]) == 0


def test_random_inputs_are_held_against_the_oracle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(make_zoo(tmp_path, POOLED)), "--executor", "reference", "--rows", "1,20"]
    assert zoo.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "random 1" in lines[0]
    assert "random 20" in lines[0]
    assert lines[-1] == "1 of 1 pass"
    with pytest.raises(SystemExit, match="2"):
        zoo.main([*command[:-1], "1,none"])


class Deadly:
    """Ends the process that receives it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def test_models_in_processes_of_their_own_cost_each_other_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_zoo(tmp_path, POOLED)
    command = [str(folder), "--executor", "reference", "--rows", "1,20", "--processes", "2"]
    assert zoo.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 pass"
    [model] = zoo.models(folder)
    deadly: Any = Deadly()
    done: list[Result] = []
    results = zoo.check_apart(
        [attrs.evolve(model, name="deadly", io=deadly), model], "host", (), 2, done.append
    )
    assert [result.problem for result in results] == ["its process ended with status 3", ""]
    assert {result.name for result in done} == {"deadly", "toy.made"}


@pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
@pytest.mark.parametrize("executor", ["cuda", "cuda-fp32", "cuda-tf32", "cuda-bf16", "cuda-fp8"])
def test_a_zoo_runs_on_a_card_in_each_precision(
    executor: str,
    fake_cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("kernels.nvrtc.Builder", ShimBuilder)
    command = [str(make_zoo(tmp_path, POOLED)), "--executor", executor, "--rows", "1,20"]
    assert zoo.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 pass"
    assert fake_cuda.launched > 0


def test_a_folder_that_is_no_zoo_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo.main([str(tmp_path)]) == 2
    assert "is not a zoo" in capsys.readouterr().err
    assert zoo.main([str(make_zoo(tmp_path, POOLED)), "--only", "nothing"]) == 1


@needs_zoo
@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_each_kind_equals_its_recorded_outputs(name: str) -> None:
    (model,) = zoo.models(zoo.ZOO, f"^{name}$")
    result = zoo.check_here(model)
    assert result.ok, result.problem or result.left
    assert set(result.max_abs) == {1, 37}

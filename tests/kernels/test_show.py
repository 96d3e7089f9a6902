"""``python -m kernels.show``: the plan as text and picture, and how it fails."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.show.__main__ import main
from tests.kernels.bundle_help import build, ids, table, write_model
from tests.zoo import ZOO

MOVIELENS = Path(__file__).parents[2] / "examples" / "movielens" / "bundle"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle of one table, one wide matrix and one narrow one."""
    random = np.random.default_rng(0)
    constants = {
        "t": table(20, 64),
        "w1": random.normal(size=(64, 40)).astype(np.float32),
        "w2": random.normal(size=(40, 1)).astype(np.float32),
    }
    body = "e = Gather(t, x)\nh = MatMul(e, w1)\nr = Relu(h)\nz = MatMul(r, w2)\ny = Sigmoid(z)"
    model = write_model(tmp_path / "m.onnx", "(int64[B] x) => (float[B, 1] y)", body, constants)
    return build(model).bundle.path


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A bundle that attends to six items, those that are not 0, and lays three out side by side."""
    random = np.random.default_rng(1)
    constants = {
        "t": table(20, 8),
        "zero": np.zeros(1, np.int64),
        "low": np.array(-1e9, np.float32),
        "v": random.normal(size=(8, 1)).astype(np.float32),
        "flat": np.array([-1, 6], np.int64),
        "one": np.array([-1, 1, 6], np.int64),
        "row": np.array([-1, 8], np.int64),
        "wide": np.array([-1, 24], np.int64),
        "w": random.normal(size=(32, 1)).astype(np.float32),
    }
    body = """k = Equal(x, zero)
        e = Gather(t, x)
        a = MatMul(e, v)
        b = Reshape(a, flat)
        c = Where(k, low, b)
        d = Softmax <axis = 1> (c)
        f = Reshape(d, one)
        g = MatMul(f, e)
        h = Reshape(g, row)
        i = Gather(t, n)
        j = Tanh(i)
        l = Reshape(j, wide)
        o = Concat <axis = 1> (h, l)
        y = MatMul(o, w)"""
    signature = "(int64[B, 6] x, int64[B, 3] n) => (float[B, 1] y)"
    model = write_model(tmp_path / "history.onnx", signature, body, constants)
    return build(model).bundle.path


def show(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def test_sequences_are_listed_with_what_makes_them_short(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(history, "--no-compile", "--length", 2) == 0
    printed = capsys.readouterr().out
    assert "512 rows of 256 requests, 2 steps; user [0], candidate [42]" in printed
    assert re.search(r"sequence  candidate\[\d+:\d+\], 6 steps of 8: the first of them", printed)
    assert re.search(r"mask      candidate\[\d+:\d+\], 6 steps of 1: 1 where there is no", printed)
    assert "without any step that counts, all 6 are needed, unless they are alike" in printed
    assert show(history, "--no-compile") == 0
    assert "512 rows of 256 requests, 6 steps; user [0], candidate [78]" in capsys.readouterr().out


def test_a_length_of_no_sequence_is_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(small, "--length", 2) == 2
    assert "has no sequences that may be shorter" in capsys.readouterr().err


def test_the_plan_is_printed_and_drawn(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(small, "--bucket", 300, "--cache", small.with_name("cubins")) == 0
    printed = capsys.readouterr().out
    assert "bucket    300 rows of 256 requests" in printed
    assert "launches  1," in printed
    assert re.search(r"kernel  phase0: [1-9]\d* registers, 0 bytes spilled", printed)
    assert "linear 64 -> 40" in printed
    # 64 x 40 + 40 multiply-adds a row, twice.
    assert f"{300 * 2 * (64 * 40 + 40):,} FLOPs / 800 TFLOP/s" in printed
    assert "batches of 257 to 300 rows: 14 % to 0 %; tiles of rows: 1 %" in printed
    picture = small.with_name(f"{small.name}-plan-300.svg")
    assert printed.endswith(f"picture   {picture}\n")
    texts = [each.text or "" for each in ElementTree.parse(picture).iter(f"{SVG}text")]
    assert any("300 rows of 256 requests in 1 launch, sm_90a, fp16" in text for text in texts)
    assert any("linear 64 -> 40" in text for text in texts)


def test_rates_of_the_bound_can_be_given(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--no-compile", "--picture", small.with_name("p.svg"), "--bucket", 16)
    assert show(small, *options, "--tb-per-s", 1, "--tflops", 1e-3) == 0
    printed = capsys.readouterr().out
    assert "/ 1 TB/s" in printed
    assert ": arithmetic, " in printed
    assert "registers" not in printed


def test_the_graph_is_printed_before_and_after_the_passes(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--no-compile", "--picture", small.with_name("p.svg"))
    assert show(small, *options, "--graph") == 0
    before, after = capsys.readouterr().out.split("after the passes")
    assert "sigmoid(" in before
    assert "linear(" in after
    assert "sigmoid(" not in after.split("model ")[0]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_the_example_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str, precision: str
) -> None:
    picture = tmp_path / "p.svg"
    options = ("--arch", arch, "--precision", precision, "--no-compile", "--picture", picture)
    assert show(MOVIELENS, *options) == 0
    printed = capsys.readouterr().out
    assert "tile of 256 requests" in printed, "the user's side comes first"
    assert "tile of 512 rows" in printed
    work = re.search(r"user side ([\d,]+) FLOPs; ([\d,]+) if .* each row: (0\.\d+)", printed)
    assert work is not None
    once, each_row = (int(number.replace(",", "")) for number in work.groups()[:2])
    assert float(work[3]) == pytest.approx(once / each_row, abs=0.01)
    launches = int(re.search(r"launches  (\d+),", printed)[1])  # type: ignore[index]
    root = ElementTree.parse(picture).getroot()
    arrows = [each.get("class") for each in root.iter(f"{SVG}path")]
    # The user's side leaves something that the candidates' side reads.
    assert arrows.count("writes") >= launches == 2
    assert arrows.count("reads") > arrows.count("writes")


def test_values_in_use_at_once_lie_apart_in_the_picture(small: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    assert show(small, "--no-compile", "--picture", picture) == 0
    root = ElementTree.parse(picture).getroot()
    boxes = [
        [float(each.get(key, "0")) for key in ("x", "y", "width", "height")]
        for each in root.iter(f"{SVG}rect")
        if " bytes from " in (each.findtext(f"{SVG}title") or "")
    ]
    assert len(boxes) > 4
    for i, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:i]:
            across = min(x + width, other_x + other_width) - max(x, other_x)
            along = min(y + height, other_y + other_height) - max(y, other_y)
            assert across <= 0.3 or along <= 0


@pytest.mark.skipif(not ZOO.exists(), reason="no zoo beside the checkout")
def test_a_zoo_model_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "bundle"
    model = ZOO / "models" / "plain_DLRM_v1.dynamo.onnx"
    build_bundle(model, None, target, BuildOptions(infer=True, check=False))
    assert show(target, "--bucket", 64, "--no-compile") == 0
    printed = capsys.readouterr().out
    assert "model     plain_DLRM_v1.dynamo" in printed
    assert "writes  linear_5 (scores) [rows, 1]" in printed
    assert (tmp_path / "bundle-plan-64.svg").is_file()


def test_errors_are_told_in_a_sentence(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert error.startswith("kernels.show: ")
    assert error.count("\n") == 1
    for bucket in (0, -3, "many", 1 << 21):
        with pytest.raises(SystemExit, match="2"):
            show(small, f"--bucket={bucket}")
        assert "want 1 to 1048576" in capsys.readouterr().err


def test_a_model_for_the_host_alone_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "e = Gather(t, x)\nd = Det(e)\ny = Exp(d)"
    constants = {"t": np.stack([table(4, 4, seed) for seed in range(20)])}
    model = write_model(tmp_path / "m.onnx", "(int64[B] x) => (float[B] y)", body, constants)
    bundle = build(model).bundle.path
    assert ids(3, rows=20).max() < 20
    assert show(bundle) == 2
    error = capsys.readouterr().err
    assert "Det" in error
    assert error.rstrip().endswith("only the host executor can run this model")
    assert error.count("\n") == 1

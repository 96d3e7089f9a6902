"""A few emitted texts, pinned: a change of what the compiler emits shows in a review.

``python -m tests.kernels.test_golden`` writes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kernels.bench.graphs import graph_of
from kernels.bench.models import MODELS
from kernels.compiler import Options, compile_graph
from kernels.device_tables import ALL, DeviceTables
from kernels.program import A100, H100, Bucket, Precision, Program, Target
from tests.kernels import gather_help

FOLDER = Path(__file__).with_name("golden")


def model(name: str, target: Target = H100, options: Options | None = None) -> Program:
    made = MODELS[name]
    return compile_graph(graph_of(made, made.draw_parameters(0)), Bucket(64), target, options)


def gathers() -> Program:
    made = gather_help.manifest()
    placed = DeviceTables.of(made, ALL)
    return compile_graph(gather_help.dense(made, "tensor cores"), Bucket(64, 8), H100, None, placed)


GOLDEN: dict[str, Callable[[], Program]] = {
    "deepfm-fp32-sm_80": lambda: model("DeepFM", A100, Options(Precision.FP32)),
    "dlrm-fp16-sm_90a": lambda: model("DLRM"),
    "din-bf16-sm_90a": lambda: model("DIN", H100, Options(Precision.BF16)),
    "mmoe-fp16-sm_90a": lambda: model("MMoE"),
    "bst-fp16-sm_80": lambda: model("BST", A100),
    "gathers-fp16-sm_90a": gathers,
}


def text_of(program: Program) -> str:
    """Return sources with the launches that run them, in order."""
    lines = []
    for number, source in enumerate(program.sources):
        lines += [f"// ---- source {number}", source.text.rstrip()]
    for launch in program.launches:
        shape = f"{launch.grid} x {launch.block}, clusters of {launch.cluster}"
        dependent = ", dependent" if launch.dependent else ""
        lines.append(
            f"// launch {launch.entry} of source {launch.source}: {shape}, "
            f"{launch.shared_bytes} bytes{dependent}"
        )
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_emitted_is_what_was_reviewed(name: str) -> None:
    wanted = (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
    assert text_of(GOLDEN[name]()) == wanted, "python -m tests.kernels.test_golden, then review"


def test_there_is_no_file_that_nothing_emits() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(GOLDEN)


if __name__ == "__main__":
    for each, make in GOLDEN.items():
        (FOLDER / f"{each}.cu").write_text(text_of(make()), encoding="utf-8")

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.bench import __main__ as command
from kernels.bench import contender as contender_module
from kernels.bench.contender import Case, Contender, Stopwatch, Timing, Work
from kernels.bench.graphs import expected_scores, graph_of
from kernels.bench.models import MODELS, Inputs, Model, rounded
from kernels.bench.report import Ceilings, Line, columns, line_of, table, to_json
from kernels.bench.session import Result, make_case, run_case
from kernels.errors import CudaError, DeviceLost
from kernels.gpu.device import Context, Device
from kernels.ir.check import check
from kernels.program import H100, Precision
from tests.kernels.gpu_help import FakeCuda, fake_cuda

__all__ = ["fake_cuda"]

ROWS = 5
CEILINGS = Ceilings(4e12, 8e14)
DEEPFM = MODELS["DeepFM"]


# The models


@pytest.mark.parametrize("name", MODELS)
def test_graph_and_torch_module_mean_the_same(name: str) -> None:
    pytest.importorskip("torch")
    from kernels.bench.peer_torch import expected_scores as by_torch

    model = MODELS[name]
    parameters = model.draw_parameters(1)
    inputs = model.draw_inputs(ROWS, 2, Precision.FP16)
    graph = graph_of(model, parameters)
    check(graph)
    scores = expected_scores(model, parameters, inputs)
    np.testing.assert_allclose(scores, by_torch("cpu", model, parameters, inputs), atol=1e-12)
    assert scores.shape == (ROWS, 4 if name == "MMoE" else 1)
    assert scores.std() > 0.01  # else a check of them finds nothing


@pytest.mark.parametrize("name", MODELS)
def test_jax_function_means_the_same(name: str) -> None:
    pytest.importorskip("jax")
    from kernels.bench.peer_xla import XlaPeer

    case = make_case(MODELS[name], ROWS, Precision.FP32, expected_scores, seed=0, n_draws=1)
    running = XlaPeer(None).open(case)
    inputs, expected = case.draws[0]
    np.testing.assert_allclose(running.scores(inputs), expected, atol=1e-5)
    assert running.launches is None
    assert running.compile_s > 0
    assert 0 < running.timing().us < 1e6
    running.close()


@pytest.mark.parametrize("name", MODELS)
def test_modules_mean_what_the_published_peers_do(name: str) -> None:
    torch = pytest.importorskip("torch")
    from kernels.bench.torch_models import module_of
    from tests.kernels import peer_models

    if not peer_models.MODELS.exists():
        pytest.skip("the peers' folder is not here")
    model = MODELS[name]
    parameters = model.draw_parameters(3)
    inputs = model.draw_inputs(ROWS, 4, Precision.FP32)
    peer = peer_models.peer_module(name)
    assert list(peer.inputs) == list(model.inputs)
    given = [torch.as_tensor(inputs[key]).double() for key in model.inputs]
    peer.load_state_dict(module_of(model, parameters).state_dict(), strict=False)
    with torch.no_grad():
        expected = peer.double()(*given)
        found = module_of(model, parameters).double()(*given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_come_first_and_aligned_and_numbers_last(name: str) -> None:
    model = MODELS[name]
    found = model.columns
    assert [found[each] for each in found] == sorted(found.values(), key=lambda each: each.start)
    assert found[next(iter(found))].start == 0
    for name, columns_ in found.items():
        if len(model.inputs[name]) == 2:
            assert columns_.start % 8 == 0
    if "dense" in found:
        assert found["dense"].stop == model.width


def test_a_block_holds_each_input_in_its_columns() -> None:
    inputs = DEEPFM.draw_inputs(ROWS, 0, Precision.FP16)
    block = DEEPFM.block(inputs)
    assert block.shape == (ROWS, 26 * 16 + 26 + 13)
    for name, columns_ in DEEPFM.columns.items():
        np.testing.assert_array_equal(block[:, columns_], inputs[name].reshape(ROWS, -1))


def test_masks_are_ragged_and_never_empty() -> None:
    mask = MODELS["DIN"].draw_inputs(200, 0, Precision.BF16)["mask"]
    lengths = mask.sum(1)
    assert lengths.min() >= 1
    assert len(set(lengths.tolist())) > 50
    np.testing.assert_array_equal(mask, np.arange(100) < lengths[:, None])


@pytest.mark.parametrize("precision", list(Precision))
def test_inputs_are_held_exactly_and_rounded_to_nearest(precision: Precision) -> None:
    array = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    held = rounded(array, precision)
    np.testing.assert_array_equal(rounded(held, precision), held)
    torch = pytest.importorskip("torch")
    kind = {
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "fp32": torch.float32,
        "tf32": torch.float32,
    }[precision]
    np.testing.assert_array_equal(held, torch.as_tensor(array).to(kind).float().numpy())


# A session


@attrs.define(eq=False)
class Fake:
    """A contender that gives what is expected, plus an error."""

    name: str = "ours"
    us: float = 10.0
    off: float = 0.0
    fails: Exception | None = None
    opened: int = 0
    closed: int = 0
    launches: int | None = 1
    compile_s: float = 0.5
    work: Work | None = None
    case: Case | None = None

    def open(self, case: Case) -> Fake:
        self.opened += 1
        if self.fails is not None:
            raise self.fails
        self.case = case
        return self

    def scores(self, inputs: Inputs) -> NDArray[Any]:
        assert self.case is not None
        for given, expected in self.case.draws:
            if given is inputs:
                return np.asarray(expected + self.off)
        raise AssertionError("other inputs")

    def timing(self) -> Timing:
        return Timing(self.us, self.us / 2)

    def close(self) -> None:
        self.closed += 1


def fake_reference(model: Model, parameters: object, inputs: Inputs) -> NDArray[np.float64]:
    rows = len(next(iter(inputs.values())))
    return np.linspace(0, 1, rows)[:, None]


def fake_case(n_draws: int = 2) -> Case:
    return make_case(DEEPFM, ROWS, Precision.FP16, fake_reference, seed=0, n_draws=n_draws)


def run(
    *contenders: Contender,
    ends: float = float("inf"),
    clock: Callable[[], float] = lambda: 0.0,
) -> list[Result]:
    reported: list[Result] = []
    results = run_case(fake_case(), contenders, reported.append, ends=ends, clock=clock)
    assert results == reported
    return results


def test_each_draw_is_of_other_inputs_and_all_are_checked() -> None:
    case = fake_case(3)
    first, second, third = (inputs["emb"] for inputs, _ in case.draws)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    (result,) = run(fake := Fake(off=1e-4))
    assert result.max_abs_error == pytest.approx(1e-4)
    assert result.score_spread == pytest.approx(np.linspace(0, 1, ROWS).std())
    assert result.timing == Timing(10, 5)
    assert (fake.opened, fake.closed) == (1, 1)


def test_scores_that_are_not_numbers_are_no_result() -> None:
    (result,) = run(fake := Fake(off=float("nan")))
    assert result.timing is None
    assert result.error == f"{ROWS} of {ROWS} scores are not numbers"
    assert fake.closed == 1


def test_scores_of_another_shape_are_no_result() -> None:
    class Flat(Fake):
        def scores(self, inputs: Inputs) -> NDArray[Any]:
            return super().scores(inputs)[:, 0]

    (result,) = run(Flat())
    assert result.error == f"scores are [{ROWS}], want [{ROWS}, 1]"


def test_a_peer_that_fails_stands_in_the_report_and_the_others_run() -> None:
    results = run(
        Fake(), Fake("eager", fails=RuntimeError("no such kernel\nand more")), Fake("xla", 20)
    )
    assert [result.error for result in results] == [None, "RuntimeError: no such kernel", None]


def test_a_lost_device_ends_the_run() -> None:
    with pytest.raises(DeviceLost):
        run(Fake(fails=DeviceLost("cuLaunchKernelEx: CUDA_ERROR_ILLEGAL_ADDRESS")))


def test_no_peer_is_started_once_the_budget_is_spent() -> None:
    times = iter([5.0, 15.0])
    late = Fake("xla")
    results = run(Fake(), Fake("eager"), late, ends=10.0, clock=lambda: next(times))
    assert [result.error is None for result in results] == [True, True, False]
    assert late.opened == 0


# The report


def compared(*contenders: Contender) -> Line:
    return line_of(run(*contenders), CEILINGS, Precision.FP16)


def test_ours_is_compared_with_the_best_peer_and_the_bound() -> None:
    work = Work(flops=int(4e9), bytes_moved=int(1e6))  # 5 us of arithmetic, 0.25 of memory
    line = compared(Fake(us=10, work=work), Fake("eager", 40), Fake("xla", 25))
    assert line.best_peer == "xla"
    assert line.ratio == pytest.approx(0.4)
    assert line.bound_us == pytest.approx(5)
    assert line.fraction == pytest.approx(0.5)
    assert line.problem is None
    assert CEILINGS.bound_us(Work(0, int(4e6))) == pytest.approx(1)


def test_an_error_over_the_tolerance_is_a_problem() -> None:
    assert compared(Fake(off=1.9e-3)).problem is None
    assert "0.0021" in str(compared(Fake(off=2.1e-3)).problem)
    assert compared(Fake(fails=CudaError("full"))).problem == "CudaError: full"


def test_a_line_without_peers_or_without_ours_has_no_ratio() -> None:
    assert compared(Fake()).ratio is None
    line = compared(Fake(fails=CudaError("full")), Fake("eager"))
    assert (line.ratio, line.best_peer, line.fraction) == (None, "eager", None)


def test_the_table_has_a_row_a_case_and_says_what_failed() -> None:
    lines = [
        compared(Fake(work=Work(8 * 10**8, 0)), Fake("eager", 40.25), Fake("xla", 25)),
        compared(Fake(off=float("nan")), Fake("eager"), Fake("xla", fails=OSError("gone"))),
    ]
    head, first, second, *notes = table(lines).splitlines()
    assert "eager" in head
    assert first.split() == [
        *("DeepFM", "5", "10.0", "40.2", "25.0", "0.40", "5.0", "20.1", "12.5", "0.40"),
        *("1", "/", "1", "/", "1"),
        *("1.0", "0.10", "0.0e+00", "0.35", "0.5", "/", "0.5", "/", "0.5"),
    ]
    assert second.split()[:6] == ["DeepFM", "5", "-", "10.0", "-", "-"]
    assert notes == [
        "DeepFM, 5 rows: ours: 5 of 5 scores are not numbers",
        "DeepFM, 5 rows: xla: OSError: gone",
    ]


def test_the_json_is_valid_whatever_was_found() -> None:
    lines = [
        compared(Fake(us=1 / 3, work=Work(1, 2)), Fake("eager")),
        compared(Fake(off=float("nan"))),
        line_of(
            [Result(model="DIN", rows=1, contender="ours", max_abs_error=float("nan"))],
            CEILINGS,
            Precision.FP32,
        ),
    ]
    text = json.dumps(to_json(lines), allow_nan=False)
    first, second, third = json.loads(text)
    assert first["ours"]["us"] == 0.3333
    assert (first["ours"]["flops"], first["ours"]["bytes_moved"]) == (1, 2)
    assert first["peers"]["eager"]["us"] == 10
    assert second["problem"] == second["ours"]["error"]
    assert third["problem"] is not None


def test_columns_are_aligned() -> None:
    assert columns([["a", "b"], ["long", "1000"]]) == ["a        b", "long  1000"]


# The command


def bench(*arguments: str) -> Sequence[str]:
    return ["--models", "DeepFM", "--rows", "64", "--workers", "1", "--reps", "5", *arguments]


def test_a_dry_run_builds_everything_and_prints_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = bench("--cache", str(tmp_path), "--dry-run")
    assert command.main(arguments) == 0
    first = capsys.readouterr().out
    head, row, *_ = first.splitlines()
    assert head.split()[:4] == ["model", "rows", "kernel", "grid"]
    assert row.split()[:2] == ["DeepFM", "64"]
    assert command.main(arguments) == 0  # from the cache, with the same seconds to build
    assert capsys.readouterr().out.splitlines()[0] == head


def test_a_dry_run_fails_on_a_spill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.nvrtc.compile.problems", lambda log: ["phase0 spills"])
    assert command.main(bench("--cache", str(tmp_path), "--dry-run")) == 1
    assert "DeepFM, 64 rows: phase0 spills" in capsys.readouterr().out


def test_without_a_card_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels._cuda.available", lambda: "there is no NVIDIA driver")
    assert command.main(bench("--cache", str(tmp_path))) == 2
    assert capsys.readouterr().err == "kernels.bench: there is no NVIDIA driver\n"


@pytest.mark.parametrize(
    "arguments", [["--models", "GPT"], ["--rows", "0"], ["--peers", "tvm"], ["--precision", "fp7"]]
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)


def test_the_stopwatch_takes_medians_of_events(
    fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contender_module, "_FLUSH_BYTES", 4096)
    context = Context(Device.open())
    stopwatch = Stopwatch(context, 5)
    n_queued = 0

    def queue() -> None:
        nonlocal n_queued
        n_queued += 1

    timing = stopwatch.time(queue)
    assert timing.us == pytest.approx(2500)  # what each pair of the fake's events says
    assert timing.back_to_back_us == pytest.approx(125)
    assert n_queued == 200 + 5 + 3 * 21
    stopwatch.close()
    context.close()


def test_a_kernel_that_writes_nothing_is_found(
    fake_cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(contender_module, "_FLUSH_BYTES", 4096)
    path = tmp_path / "results.json"
    arguments = bench("--cache", str(tmp_path / "cache"), "--peers", "", "--json", str(path))
    assert command.main(arguments) == 1  # cubins load into the fake, and do nothing there
    assert fake_cuda.launched > 0
    document = json.loads(path.read_text())
    (result,) = document["results"]
    assert result["problem"] == "64 of 64 scores are not numbers"
    assert document["run"]["precision"] == "fp16"
    assert "64 of 64 scores" in capsys.readouterr().out


def test_a_lost_device_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = types.SimpleNamespace(name="a card", n_sms=132, target=lambda: H100)
    monkeypatch.setattr(command, "Device", types.SimpleNamespace(open=lambda: card))
    monkeypatch.setattr(command, "Context", lambda device: None)
    monkeypatch.setattr(command, "Stopwatch", lambda context, n_repeats: None)
    cases: list[int] = []

    def lost_later(case: Case, *_: object, **__: object) -> list[Result]:
        if cases:
            raise DeviceLost("cuGraphLaunch: CUDA_ERROR_LAUNCH_FAILED")
        cases.append(case.rows)
        return [Result(model="DeepFM", rows=64, contender="ours", timing=Timing(9, 8))]

    monkeypatch.setattr(command, "run_case", lost_later)
    path = tmp_path / "results.json"
    arguments = bench("--cache", str(tmp_path), "--peers", "", "--json", str(path))
    assert command.main([*arguments, "--rows", "64,512"]) == 2
    (result,) = json.loads(path.read_text())["results"]
    assert result["ours"]["us"] == 9
    said = capsys.readouterr()
    assert "DeepFM" in said.out
    assert "CUDA_ERROR_LAUNCH_FAILED" in said.err

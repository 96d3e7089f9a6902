"""A sitting at a card, with steps that need none."""

from __future__ import annotations

import json
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from kernels.bench import __main__ as kernels_bench
from kernels.gpu.bench import __main__ as gpu_bench
from runtime.bench import __main__ as runtime_bench
from tests import zoo
from tests.gpu import sitting
from tests.gpu.sitting import Outcome, Sitting, report, runs
from tests.gpu.sitting_steps import (
    Step,
    last_lines,
    ratios,
    sanitizer,
    sections_of,
    steps,
    zoo_lines,
)

PARSERS: dict[str, Callable[[Sequence[str]], object]] = {
    "kernels.bench": kernels_bench._parser().parse_args,
    "kernels.gpu.bench": gpu_bench._parser().parse_args,
    "runtime.bench": runtime_bench._parser().parse_args,
    "tests.zoo": zoo.parser().parse_args,
}


def step(name: str, text: str, limit_s: float = 30, **more: Any) -> Step:  # noqa: ANN401
    return Step(name=name, limit_s=limit_s, command=("-c", text), digest=last_lines, **more)


def run(tmp_path: Path, *chosen: Step, seconds: float = 100) -> list[Outcome]:
    return list(Sitting(tmp_path, seconds, {"WORD": "told"}).run(chosen))


def test_all_steps_fit_a_call_of_ten_minutes(tmp_path: Path) -> None:
    every = steps(tmp_path, zoo.ZOO)
    assert sum(each.limit_s for each in every) <= 570
    assert len({each.name for each in every}) == len(every)


@pytest.mark.parametrize("name", [each.name for each in steps(Path("out"), zoo.ZOO)])
def test_every_command_is_understood(name: str) -> None:
    [chosen] = [each for each in steps(Path("out"), zoo.ZOO) if each.name == name]
    _, module, *arguments = chosen.command
    if module in PARSERS:
        PARSERS[module](arguments)
    else:
        assert module == "pytest"
        assert all((sitting.ROOT / each).exists() for each in arguments if "/" in each)


def test_a_step_that_fails_or_hangs_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sitting, "_LEAST_S", 0.1)
    monkeypatch.setattr(sitting, "_LAST_WORDS_S", 300.0)  # a busy machine takes its time
    outcomes = run(
        tmp_path,
        step("fails", "print('so'); raise SystemExit(3)"),
        step("hangs", "import signal; signal.pause()", most_s=0.5),
        step("works", "import os; print(os.environ['WORD'])"),
        seconds=1000,
    )
    assert [each.verdict for each in outcomes] == ["exit 3", "over time", "ok"]
    assert (outcomes[0].found, outcomes[2].found) == (("so",), ("told",))
    assert (tmp_path / "works.log").read_text() == "told\n"


def test_a_step_is_asked_to_end_by_a_sitting_that_ignores_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sitting, "_LEAST_S", 0.1)
    monkeypatch.setattr(sitting, "_LAST_WORDS_S", 300.0)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        [outcome] = run(
            tmp_path, step("hangs", "import signal; signal.pause()", most_s=0.5), seconds=1000
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.verdict == "over time"


def test_what_a_step_leaves_of_its_time_others_may_take(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path,
        step("short", "", 50),
        step("long", "", 10, most_s=70),
        step("others", "", 10),
        step("last", "", 10, most_s=12),
    )
    assert outcomes[1].allowed_s > 40
    assert [each.allowed_s for each in outcomes[2:]] == [20, 12]


def test_nothing_is_begun_without_time_or_packages(tmp_path: Path) -> None:
    outcomes = run(
        tmp_path,
        step("lacks", "", needs=("json", "no_such_package")),
        step("tool", "", tool=("no-such-tool",)),
        seconds=60,
    ) + run(tmp_path, step("late", ""), seconds=12)
    assert [each.verdict for each in outcomes] == [
        "not begun: there is no no_such_package",
        "not begun: there is no no-such-tool",
        "not begun: no time is left",
    ]


def test_a_digest_that_breaks_says_so(tmp_path: Path) -> None:
    def broken(text: str, document: object) -> Iterator[str]:
        raise KeyError("us")
        yield text

    [outcome] = run(tmp_path, attrs.evolve(step("odd", ""), digest=broken))
    assert outcome.verdict == "ok"
    assert outcome.found == ("no digest: KeyError('us'); see odd.log",)


def test_the_report_ends_in_a_table() -> None:
    outcomes = [
        Outcome(step=step("one", ""), verdict="ok", seconds=1.4, allowed_s=30, found=("a", "b")),
        Outcome(step=step("other", ""), verdict="not begun: no time is left"),
    ]
    assert runs(outcomes, "2026-11-24, abc, a card") == (
        "- 2026-11-24, abc, a card, `python3 -c ''`: ok; a; b\n"
    )
    text = report(outcomes)
    assert [line.split()[:4] for line in text.splitlines()[-3:]] == [
        ["step", "seconds", "of", "verdict"],
        ["one", "1", "30", "ok"],
        ["other", "0", "0", "not"],
    ]


def test_the_command_lists_runs_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sitting.main(["--list", "--out", str(tmp_path)]) == 0
    assert "right-fp16, 30 s: python3 -m kernels.bench" in capsys.readouterr().out
    monkeypatch.setattr(sitting, "steps", lambda out, zoo: [step("one", "print('hello')")])
    assert sitting.main(["--out", str(tmp_path), "--commit", "abc"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("one: ok, ")
    kept = (tmp_path / "report.txt").read_text()
    assert kept.startswith(said.split("\n\n", 1)[1])
    assert ", abc, " in kept
    with tarfile.open(tmp_path / "sitting.tar.gz") as archive:
        assert "sitting/one.log" in archive.getnames()
    with pytest.raises(SystemExit):
        sitting.main(["--only", "two"])


def line(rows: int, **more: object) -> dict[str, object]:
    ours = {"us": 1.5 * rows, "launches": 1, "max_abs_error": 1e-4 * rows}
    return {"model": "DLRM", "rows": rows, "ours": ours, "ratio": None, "problem": None, **more}


def test_digests_are_short() -> None:
    results = {"results": [line(2, ratio=0.4), line(4, problem="no kernel")]}
    assert list(ratios("", json.loads(json.dumps(results)))) == [
        "DLRM, ratio 0.4 / -, rows 2 / 4, us 3.0 / 6.0, launches 1 / 1, error 4.0e-04, "
        "4 rows: no kernel"
    ]
    assert list(ratios("", None)) == []
    document = {
        "sections": {"lanes": [{"lanes": 4, "requests_per_s": 1234.56, "rows_per_launch": 2}]},
        "summary": ["windows: 2"],
    }
    assert list(sections_of("", document)) == ["lanes: lanes 4, requests_per_s 1235", "windows: 2"]
    text = (
        "model  cases  max abs     random 1  random 37  cut  left  seconds\n"
        "a      3      1.0e-04     2.0e-04   1.0e-03    4    0     1.0      pass\n"
        "b      3      1.0e-04     -         9.0e-03    4    0     1.0      FAIL\n"
        "1 of 2 pass\n"
    )
    text = text.replace("1 of 2", "b: random inputs: differs\n1 of 2")
    assert list(zoo_lines(text, None)) == [
        "1 of 2 pass",
        "largest error on random rows of those that pass 1.0e-03",
        "failed: b",
        "b: random inputs: differs",
    ]
    cut_off = (
        text.rsplit("1 of 2", 1)[0] + "d      3      -           -         -   0  0  0.1  host only"
    )
    assert next(zoo_lines(cut_off, None)) == "cut off after 1 pass, 1 FAIL, 1 host only"
    said = "========= Invalid __global__ read\n.\n========= ERROR SUMMARY: 1 error\n3 passed in 2 s"
    assert list(sanitizer(said, None)) == [
        "ERROR SUMMARY: 1 error",
        "Invalid __global__ read",
        "3 passed in 2 s",
    ]

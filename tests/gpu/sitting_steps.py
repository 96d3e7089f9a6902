"""What a sitting at a card runs, and what it says of each step in a few lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

_ROWS: Final = "1,37,64,513,4096"
_SERVING: Final = ("onnx", "onnxruntime", "msgpack", "zmq", "trio", "cffi")
# Cases of ``test_emitted.py`` that have each kind of kernel once; a race check is slow.
_SMALL: Final = "small and not fp32"
_RACES: Final = "small and fp16 and (dlrm or din or bst or tensor)"


@attrs.frozen(kw_only=True)
class Step:
    """One command.

    Attributes:
        limit_s: Seconds that are kept for it.
        most_s: The most that it may have, with what others left; 0 for twice its limit.
        command: Arguments of Python, behind ``tool``.
        needs: Packages without which it is not begun.
        digest: Makes lines of what it printed and of its JSON file's content, or None.
    """

    name: str
    limit_s: float
    most_s: float = 0.0
    command: tuple[str, ...]
    tool: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    digest: Callable[[str, Any], Iterator[str]]

    @property
    def shown(self) -> str:
        """The command as somebody would type it."""
        words = [*self.tool, "python3", *self.command]
        return " ".join(f"'{word}'" if " " in word or not word else word for word in words)


def steps(out: Path, zoo: Path) -> list[Step]:
    """Return all steps in order: what is right, what is fast, and what takes all that is left.

    Args:
        out: Where JSON files go, named for their steps.
        zoo: Folder of the zoo.
    """

    # pytest-benchmark, where it is installed, refuses to run beside xdist.
    tests = ("-m", "pytest", "-q", "-p", "no:benchmark", "--require-gpu")

    def kept(name: str, *options: str) -> tuple[str, ...]:
        return (*options, "--json", str(out / f"{name}.json"))

    def right(name: str, limit_s: float, *options: str) -> Step:
        start = ("-m", "kernels.bench", "--rows", _ROWS, "--peers", "", "--reps", "10")
        return Step(name=name, limit_s=limit_s, command=kept(name, *start, *options), digest=ratios)

    def serving(name: str, limit_s: float, sections: str, *options: str) -> Step:
        start = ("-m", "kernels.gpu.bench", "--model", "DLRM", "--quick", "--only", sections)
        return Step(
            name=name, limit_s=limit_s, command=kept(name, *start, *options), digest=sections_of
        )

    def zoo_on(name: str, limit_s: float, executor: str) -> Step:
        options = ("--executor", executor, "--rows", _ROWS, "--processes", "8")
        command = ("-m", "tests.zoo", str(zoo), *options)
        return Step(name=name, limit_s=limit_s, command=command, needs=_SERVING, digest=zoo_lines)

    def sanitized(tool: str, limit_s: float, most_s: float, chosen: str) -> Step:
        return Step(
            name=tool,
            limit_s=limit_s,
            most_s=most_s,
            tool=("compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
            command=(*tests, "tests/gpu/test_emitted.py", "-k", chosen),
            needs=("pytest",),
            digest=sanitizer,
        )

    sizes = ("--rows", "64,512,4096,16384", "--peers", "", "--reps", "30")
    eights = ("-m", "kernels.bench", "--models", "DLRMDCNv2", *sizes, "--fp8", "row")
    served = ("--device", "cuda", "--lanes", "1,4", "--windows", "on,off", "--clients", "64")
    load = ("--sizes", "mlperf", "--duration", "3", "--warmup", "1")
    deepfm = str(zoo / "models" / "deepctr_DeepFM.dynamo.onnx")
    what = ("--onnx", deepfm, "--user-columns", "23")
    return [
        right("right-fp16", 30),
        right("right-fp32", 30, "--precision", "fp32"),
        right("right-bf16", 25, "--precision", "bf16"),
        Step(
            name="emitted",
            limit_s=45,
            command=(*tests, "tests/gpu/test_emitted.py", "-n", "8", "--dist", "worksteal"),
            needs=("pytest", "xdist"),
            digest=last_lines,
        ),
        Step(
            name="tests",
            limit_s=40,
            command=(*tests, "tests/gpu", "--ignore", "tests/gpu/test_emitted.py"),
            needs=("pytest", *_SERVING),
            digest=last_lines,
        ),
        zoo_on("zoo-fp16", 40, "cuda"),
        zoo_on("zoo-fp32", 35, "cuda-fp32"),
        Step(
            name="fast",
            limit_s=190,
            command=kept("fast", "-m", "kernels.bench", "--reps", "60", "--budget-s", "180"),
            digest=ratios,
        ),
        Step(
            name="fp8",
            limit_s=20,
            command=kept("fp8", *eights),
            digest=ratios,
        ),
        serving("lanes", 30, "windows,lanes,user_side"),
        serving("shares", 20, "processes,stall"),
        serving("compile", 20, "compile", "--all-models"),
        Step(
            name="cluster",
            limit_s=35,
            command=("-m", "runtime.bench", *what, *served, *load),
            needs=_SERVING,
            digest=last_lines,
        ),
        sanitized("memcheck", 5, 60, _SMALL),
        sanitized("racecheck", 5, float("inf"), _RACES),
    ]


def ratios(text: str, document: Any) -> Iterator[str]:  # noqa: ANN401 - of JSON
    """Say of each model, for its sizes: ratio, time, launches, largest error; and what is wrong."""
    del text
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for line in (document or {"results": []})["results"]:
        by_model.setdefault(line["model"], []).append(line)
    for model, lines in by_model.items():
        parts = [
            f"rows {_joined(lines, lambda line: line['rows'])}",
            f"us {_joined(lines, lambda line: line['ours']['us'])}",
            f"launches {_joined(lines, lambda line: line['ours']['launches'])}",
            f"error {_largest(line['ours']['max_abs_error'] for line in lines)}",
        ]
        if any(line["ratio"] is not None for line in lines):
            parts.insert(0, f"ratio {_joined(lines, lambda line: line['ratio'])}")
        wrong = [f"{line['rows']} rows: {line['problem']}" for line in lines if line["problem"]]
        yield ", ".join([model, *parts, *wrong])


def sections_of(text: str, document: Any) -> Iterator[str]:  # noqa: ANN401 - of JSON
    """Say each section's lines in few words, and the ratios between them."""
    del text
    for section, lines in (document or {}).get("sections", {}).items():
        for line in lines:
            words = [
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in line.items()
                if key in _TOLD
            ]
            yield f"{section}: {', '.join(words)}"
    yield from (document or {}).get("summary", ())


_TOLD: Final = (
    *("model", "mode", "lanes", "windows", "processes", "mps", "compiling", "user_once"),
    *("requests", "mflops", "device_us", "buckets", "cold_s", "warm_s", "stall_worst_ms"),
    *("requests_per_s", "p99_ms", "launches_per_request", "padding", "error"),
)


def zoo_lines(text: str, document: Any) -> Iterator[str]:  # noqa: ANN401 - of JSON
    """Say how many passed, also of a run that was cut off; the largest error; which failed."""
    del document
    lines = text.strip().splitlines()
    heads = next((line for line in lines if line.startswith("model ")), "")
    n_random = heads.count("random ")
    drawn: list[float] = []
    names: dict[str, list[str]] = {"pass": [], "FAIL": [], "host only": []}
    for line in lines:
        cells = line.split()
        for verdict, named in names.items():
            if line.endswith(f" {verdict}") and len(cells) > n_random:
                named.append(cells[0])
        if line.endswith(" pass") and n_random:  # the last four: cut, left, seconds, verdict
            drawn += [float(cell) for cell in cells[-4 - n_random : -4] if cell != "-"]
    done = [line for line in lines if re.match(r"\d+ of \d+ pass", line)]
    counts = ", ".join(f"{len(named)} {verdict}" for verdict, named in names.items())
    yield from done or [f"cut off after {counts}"]
    if drawn:
        yield f"largest error on random rows of those that pass {max(drawn):.1e}"
    if failed := names["FAIL"]:
        yield f"failed: {', '.join(failed)}"
        for name in failed[:3]:
            yield from (line for line in lines if line.startswith(f"{name}: "))


def sanitizer(text: str, document: Any) -> Iterator[str]:  # noqa: ANN401 - of JSON
    """Say what the tool found: its summary, the first of its reports, and how far tests came."""
    del document
    told = [line for line in text.splitlines() if line.startswith("=========")]
    summary = [line for line in told if "SUMMARY" in line]
    reports = [line for line in told if re.search(r"Error|Race|hazard|Invalid", line)]
    yield from (line.removeprefix("=========").strip() for line in [*summary, *reports[:4]])
    yield from (line for line in text.splitlines() if re.search(r"\d+ (passed|failed)", line))


def last_lines(text: str, document: Any) -> Iterator[str]:  # noqa: ANN401 - of JSON
    """Give the last lines of a text, without what is JSON."""
    del document
    lines = [line for line in text.strip().splitlines() if line and not line.startswith("{")]
    yield from lines[-8:]


def _joined(lines: list[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], object]) -> str:
    return " / ".join("-" if of(line) is None else str(of(line)) for line in lines)


def _largest(values: Iterator[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.1e}" if known else "-"

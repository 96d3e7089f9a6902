"""One sitting at a card: everything that RUNS.md asks for, in one call of under ten minutes.

    python3 -m tests.gpu.sitting --out FOLDER [--only STEP,STEP] [--seconds 570] [--wheels FOLDER]

Each step is a command in a process group of its own, with a limit; what it leaves of its time, the
steps behind it may take. One that fails, hangs or lacks a package costs no other. After each step
``FOLDER`` has two files: ``sitting.tar.gz``, all that the steps printed and wrote, and
``report.txt``, what each found and lines for RUNS.md. A short table comes last. ``--list`` prints
the commands and runs none. Exit status 1: a step was not ok.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from tests.gpu.sitting_steps import Step, steps

ROOT: Final = Path(__file__).parents[2]
# Kept for the table, and between steps.
_SPARE_S: Final = 5.0
# Too little to begin a step with.
_LEAST_S: Final = 5.0
# From being asked to end until being killed: a step may have a daemon to stop.
_LAST_WORDS_S: Final = 10.0
_SHOWN: Final = 14


@attrs.frozen(kw_only=True)
class Outcome:
    """How a step went.

    Attributes:
        verdict: ``ok``, ``exit N``, ``over time``, or why it was not begun.
        found: Lines about what it found.
    """

    step: Step
    verdict: str
    seconds: float = 0.0
    allowed_s: float = 0.0
    found: tuple[str, ...] = ()


@attrs.define
class Sitting:
    """Runs steps, one after another.

    Attributes:
        out: Where what they print goes.
        seconds: Of all.
        environment: Variables of theirs.
    """

    out: Path
    seconds: float
    environment: dict[str, str]
    _left_over: float = attrs.field(default=0.0, init=False)

    def run(self, chosen: Sequence[Step]) -> Iterator[Outcome]:
        """Yield the outcome of each step once it has ended."""
        ends = time.monotonic() + self.seconds - _SPARE_S
        for step in chosen:
            most = min(step.limit_s + self._left_over, step.most_s or 2 * step.limit_s)
            allowed = min(most, ends - time.monotonic() - _LAST_WORDS_S)
            missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
            if step.tool and shutil.which(step.tool[0]) is None:
                missing.append(step.tool[0])
            if missing:
                self._left_over += step.limit_s
                yield Outcome(step=step, verdict=f"not begun: there is no {', '.join(missing)}")
            elif allowed < _LEAST_S:
                yield Outcome(step=step, verdict="not begun: no time is left")
            else:
                outcome = self._run(step, allowed)
                self._left_over += step.limit_s - outcome.seconds
                yield outcome

    def _run(self, step: Step, allowed_s: float) -> Outcome:
        started = time.monotonic()
        log = self.out / f"{step.name}.log"
        command = [*step.tool, sys.executable, *step.command]
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_interrupts,
            )
            verdict = _wait(process, allowed_s)
        text = log.read_text(encoding="utf-8", errors="replace")
        return Outcome(
            step=step,
            verdict=verdict,
            seconds=time.monotonic() - started,
            allowed_s=allowed_s,
            found=tuple(_found(step, text, self.out / f"{step.name}.json")),
        )


def _heed_interrupts() -> None:
    """Let a step be asked to end, also where this process ignores that, in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait(process: subprocess.Popen[bytes], allowed_s: float) -> str:
    """Wait for a step, but no longer; leave nothing of its process group."""
    try:
        code = process.wait(allowed_s)
        verdict = "ok" if code == 0 else f"exit {code}"
    except subprocess.TimeoutExpired:
        verdict = "over time"
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            verdict = "over time, killed"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return verdict


def _found(step: Step, text: str, path: Path) -> list[str]:
    """Digest what a step left, whole or not."""
    document: Any = None
    if path.exists():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            document = None
    try:
        lines = list(step.digest(text, document))
    except (LookupError, TypeError, ValueError) as error:
        lines = [f"no digest: {error!r}; see {path.with_suffix('.log').name}"]
    return lines if lines else text.strip().splitlines()[-3:]


def report(outcomes: Sequence[Outcome]) -> str:
    """Return what was found, and a table last."""
    from kernels.bench.report import columns  # whose packages may have to be installed first

    rows = [["step", "seconds", "of", "verdict"]]
    rows += [
        [each.step.name, f"{each.seconds:.0f}", f"{each.allowed_s:.0f}", each.verdict]
        for each in outcomes
    ]
    lines = []
    for each in outcomes:
        lines.append(f"{each.step.name}:")
        lines += [f"  {line}" for line in each.found[:_SHOWN]]
        if len(each.found) > _SHOWN:
            lines.append(f"  and {len(each.found) - _SHOWN} more in {each.step.name}.log")
    return "\n".join([*lines, "", *columns(rows)]) + "\n"


def runs(outcomes: Sequence[Outcome], where: str) -> str:
    """Return lines for RUNS.md."""
    return "".join(
        f"- {where}, `{each.step.shown}`: {each.verdict}; {'; '.join(each.found)}\n"
        for each in outcomes
        if each.found
    )


def _where(commit: str | None) -> str:
    """Return date, commit and card, as a line of RUNS.md begins."""
    card = _printed("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "no card"
    found = commit or _printed("git", "rev-parse", "--short", "HEAD") or "a tree without a commit"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{today}, {found}, {card.splitlines()[0]}"


def _printed(*command: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _install(wheels: Path, site: Path) -> None:
    """Unpack wheels that were carried here, as there may be no registry; let this process see."""
    files = [str(each) for each in sorted(wheels.glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", str(site), *files], check=True)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sitting; see the module's text for the exit status."""
    parser = argparse.ArgumentParser(prog="tests.gpu.sitting", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the two files")
    parser.add_argument("--only", default="", metavar="STEP,STEP")
    parser.add_argument("--seconds", type=float, default=570.0, help="of the whole sitting (570)")
    parser.add_argument("--zoo", type=Path, default=_zoo_folder(), metavar="FOLDER")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="to install first")
    parser.add_argument("--commit", help="for RUNS.md, where there is no repository")
    parser.add_argument("--list", action="store_true", help="print the commands, run none")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sitting-") as held:
        work, cache = Path(held, "sitting"), Path(held, "cache")
        work.mkdir()
        every = steps(work, options.zoo.resolve())
        names = [name for name in options.only.split(",") if name]
        if unknown := set(names) - {each.name for each in every}:
            parser.error(f"no step {sorted(unknown)}: there are {[each.name for each in every]}")
        chosen = [each for each in every if each.name in names or not names]
        if options.list:
            sys.stdout.writelines(f"{e.name}, {e.limit_s:g} s: {e.shown}\n" for e in chosen)
            return 0
        # Kernels of one step serve the others; the first to build them builds them cold.
        environment = {"XDG_CACHE_HOME": str(cache)}
        if options.wheels is not None:
            _install(options.wheels, Path(held, "site"))
            environment["PYTHONPATH"] = str(Path(held, "site"))
        outcomes = []
        where = _where(options.commit)
        sitting = Sitting(work, options.seconds, environment)
        for outcome in sitting.run(chosen):
            outcomes.append(outcome)
            step = outcome.step
            sys.stdout.write(f"{step.name}: {outcome.verdict}, {outcome.seconds:.0f} s\n")
            sys.stdout.flush()
            if options.out is not None:  # again each time: a call that is cut off leaves something
                _keep(work, options.out, report(outcomes) + "\n" + runs(outcomes, where))
    sys.stdout.write("\n" + report(outcomes))
    return 0 if all(each.verdict == "ok" for each in outcomes) else 1


def _keep(work: Path, out: Path, text: str) -> None:
    """Write the two files that a sitting leaves."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.txt").write_text(text, encoding="utf-8")
    with tarfile.open(out / "sitting.tar.gz", "w:gz") as archive:
        archive.add(work, arcname=work.name)


def _zoo_folder() -> Path:
    """Return the zoo within the checkout, or the one beside it."""
    within = ROOT / "shared" / "zoo"
    return within if within.exists() else ROOT.parent / "shared" / "zoo"


if __name__ == "__main__":
    sys.exit(main())

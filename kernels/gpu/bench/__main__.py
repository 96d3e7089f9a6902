"""``python -m kernels.gpu.bench BUNDLE|--model NAME``: the executor alone, on this machine's card.

Prints a table for each section, and with ``--json FILE`` writes all of it. Exit status: 0, or 2 for
an error, told in a sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from kernels.bench.models import MODELS
from kernels.compiler import Options
from kernels.errors import KernelsError
from kernels.gpu.bench.compiling import compile_seconds, measure_stall
from kernels.gpu.bench.lengths import measure_lengths
from kernels.gpu.bench.processes import measure_shares, serve_as_child
from kernels.gpu.bench.report import summary, table
from kernels.gpu.bench.subject import Subject, open_subject, subject_of
from kernels.gpu.bench.user_side import measure_user_side
from kernels.gpu.bench.windows import (
    Settings,
    check_scores,
    measure_lanes,
    open_executor,
    requests_of,
)
from kernels.gpu.buckets import bucket_of
from kernels.gpu.device import Device, Isolation
from kernels.nvrtc import Builder, Cache
from kernels.program import Precision

SECTIONS: Final = ("compile", "processes", "windows", "lanes", "stall", "user_side", "lengths")
# Seconds: of each measurement, and after which no further section is begun.
_SECONDS, _QUICK_SECONDS, _QUICK_LIMIT = 2.0, 0.5, 80.0
_MOST_WORKERS: Final = 8
# The same in each of several processes as in one, so that they find their kernels in the cache.
_MAX_REQUESTS: Final = 64
_USER_WIDTH: Final = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with contextlib.ExitStack() as owned:
            cache = options.cache
            if cache is None:
                cache = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="tb-cache-")))
            bench = _Bench.of(options, cache)
            if options.child:
                bench.child()
            else:
                bench.run()
    except (KernelsError, OSError) as error:
        sys.stderr.write(f"kernels.gpu.bench: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kernels.gpu.bench", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE/")
    what.add_argument("--model", choices=[*MODELS], help="instead of a bundle")
    parser.add_argument("--precision", choices=[*Precision], default=Precision.FP16)
    parser.add_argument("--input-dtype", choices=["float16", "float32"], default="float32")
    parser.add_argument("--only", type=_sections, default=SECTIONS, metavar=",".join(SECTIONS))
    parser.add_argument("--lanes", type=_counts, default=(1, 2, 4, 8), metavar="1,2,4,8")
    parser.add_argument(
        "--modes", type=_modes, default=tuple(Isolation), metavar=",".join(Isolation)
    )
    parser.add_argument("--processes", type=_counts, metavar="2,4", help="default: 2,4; quick: 4")
    parser.add_argument("--clients", type=int, default=64, help="concurrent requests (64)")
    parser.add_argument("--max-rows", type=int, default=2048, help="of a launch (2048)")
    parser.add_argument("--seconds", type=float, help=f"of each measurement ({_SECONDS:g})")
    parser.add_argument("--limit-s", type=float, help="begin no section after so many seconds")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_SECONDS:g} s each")
    parser.add_argument("--all-models", action="store_true", help="compile all six models, too")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="default: an empty one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _counts(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"want numbers such as 1,2,4, got {text!r}")
    return tuple(int(part) for part in text.split(","))


def _modes(text: str) -> tuple[Isolation, ...]:
    if not set(text.split(",")) <= set(Isolation):
        raise argparse.ArgumentTypeError(f"want some of {','.join(Isolation)}, got {text!r}")
    return tuple(Isolation(part) for part in text.split(","))


def _sections(text: str) -> tuple[str, ...]:
    if not set(text.split(",")) <= set(SECTIONS):
        raise argparse.ArgumentTypeError(f"want some of {','.join(SECTIONS)}, got {text!r}")
    return tuple(part for part in SECTIONS if part in text.split(","))


@attrs.define(eq=False)
class _Bench:
    """One run of the benchmark."""

    options: argparse.Namespace
    subject: Subject
    settings: Settings
    cache: Path
    n_workers: int
    sections: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, options: argparse.Namespace, cache: Path) -> _Bench:
        """Read what is to be served."""
        chosen = Options(precision=Precision(options.precision), input_dtype=options.input_dtype)
        seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS)
        return cls(
            options=options,
            subject=open_subject(options.bundle, options.model, chosen),
            settings=Settings(
                max_rows=options.max_rows,
                max_requests=max(options.clients, _MAX_REQUESTS),
                n_clients=options.clients,
                seconds=seconds,
            ),
            cache=cache,
            n_workers=min(max((os.cpu_count() or 2) // 2, 1), _MOST_WORKERS),
        )

    def builder(self) -> Builder:
        """Make a builder whose cache is warm once something was compiled."""
        return Builder(Cache(self.cache), self.n_workers, niceness=0)

    def child(self) -> None:
        """Serve as one of several processes, on one lane."""
        executor = open_executor(self.subject, self.settings, self.builder(), 1, Isolation.STREAMS)
        try:
            requests = requests_of(self.subject, self.settings)
            settings = self.settings
            serve_as_child(
                executor, requests, settings.n_clients, settings.seconds, sys.stdin, sys.stdout
            )
        finally:
            executor.close()

    def run(self) -> None:
        """Measure the sections; print each when it is done."""
        start = time.monotonic()
        options = self.options
        limit = options.limit_s or (_QUICK_LIMIT if options.quick else float("inf"))
        device = Device.open()
        head = {
            "model": self.subject.name,
            "device": device.name,
            "sms": device.n_sms,
            "precision": str(options.precision),
            "clients": self.settings.n_clients,
            "max_rows": self.settings.max_rows,
            "seconds": self.settings.seconds,
        }
        sys.stdout.write(" ".join(f"{key}={value}" for key, value in head.items()) + "\n")
        measures: dict[str, Callable[[Device], list[dict[str, Any]]]] = {
            "compile": self._compile,
            "processes": self._processes,
            "windows": self._windows,
            "lanes": self._lanes,
            "stall": self._stall,
            "user_side": self._user_side,
            "lengths": self._lengths,
        }
        texts = []
        for name in options.only:
            if time.monotonic() - start > limit:
                texts.append(f"{name}: not measured, {limit:g} s are over\n")
                continue
            self.sections[name] = lines = measures[name](device)
            texts.append(table(name, lines))
            sys.stdout.write(f"{name}: {time.monotonic() - start:.1f} s\n")
            sys.stdout.flush()
            if options.json is not None:  # again each time: a run that is cut off leaves something
                whole = {**head, "sections": self.sections, "summary": [*summary(self.sections)]}
                options.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(
            "\n" + "\n".join(texts) + "".join(f"{x}\n" for x in summary(self.sections))
        )

    def _compile(self, device: Device) -> list[dict[str, Any]]:
        subjects = [self.subject]
        if self.options.all_models:
            others = [name for name in MODELS if name != self.options.model]
            subjects += [open_subject(None, name, self.subject.options) for name in others]
        return [
            compile_seconds(each, self.settings, device.target(), self.n_workers)
            for each in subjects
        ]

    def _processes(self, device: Device) -> list[dict[str, Any]]:
        options, settings = self.options, self.settings
        # Built ahead: children are to meet a warm cache.
        with self.builder() as builder:
            for rows in settings.buckets:
                bucket = bucket_of(rows, settings.max_requests)
                builder.build_all(self.subject.compile(bucket, device.target()).sources)
        counts = options.processes or ((4,) if options.quick else (2, 4))
        lines = []
        for n in counts:
            lines += measure_shares(self._command(max(settings.n_clients // n, 1)), (n,))
        return lines

    def _command(self, n_clients: int) -> list[str]:
        options = self.options
        what = [str(options.bundle)] if options.bundle else ["--model", options.model]
        return [
            *("-m", "kernels.gpu.bench", *what, "--child", "--cache", str(self.cache)),
            *("--precision", str(options.precision), "--input-dtype", options.input_dtype),
            *("--clients", str(n_clients), "--max-rows", str(options.max_rows)),
            *("--seconds", str(self.settings.seconds)),
        ]

    def _windows(self, device: Device) -> list[dict[str, Any]]:
        del device
        error = check_scores(self.subject, self.settings, self.builder)
        sys.stdout.write(f"largest error of a score: {error:.2g}\n")
        lanes = tuple(n for n in (1, 4) if n in self.options.lanes) or self.options.lanes[:1]
        return measure_lanes(
            self.subject, self.settings, self.builder, lanes, [Isolation.STREAMS], [False, True]
        )

    def _lanes(self, device: Device) -> list[dict[str, Any]]:
        del device
        options = self.options
        return measure_lanes(
            self.subject, self.settings, self.builder, options.lanes, options.modes, [True]
        )

    def _stall(self, device: Device) -> list[dict[str, Any]]:
        del device
        with tempfile.TemporaryDirectory(prefix="tb-cubins-") as folder:
            cache = Cache(Path(folder))
            return measure_stall(
                subject_of(self.subject.graph, self.subject.options),
                self.settings,
                lambda: Builder(cache, self.n_workers),
                min(max(self.options.lanes), 4),
            )

    def _user_side(self, device: Device) -> list[dict[str, Any]]:
        with self.builder() as builder:
            return measure_user_side(device, builder, _USER_WIDTH, (1, 8))

    def _lengths(self, device: Device) -> list[dict[str, Any]]:
        del device
        return measure_lengths(self.subject, self.builder())


if __name__ == "__main__":
    sys.exit(main())

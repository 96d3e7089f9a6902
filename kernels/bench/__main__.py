"""``python -m kernels.bench``: our kernels beside torch and XLA on six models.

Prints a table, and with ``--json FILE`` writes all of it. Exit status 1: a result of ours is
missing or wrong; 2: nothing can be measured here. With ``--dry-run`` it needs no card: everything
is compiled and built, and what each kernel takes is printed; 1 then means a fault, such as a spill.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kernels.bench.contender import Contender, Stopwatch
from kernels.bench.dry_run import dry_run
from kernels.bench.models import MODELS
from kernels.bench.ours import Ours, Prepared, prepare
from kernels.bench.report import Ceilings, Line, line_of, table, to_json
from kernels.bench.session import Reference, Result, make_case, run_case
from kernels.errors import DeviceLost, KernelsError
from kernels.fp8 import Scales
from kernels.gpu.device import Context, Device
from kernels.nvrtc import Builder, Cache, default_folder
from kernels.program import TARGETS, Precision, Target

PEERS: Final = {"eager": "torch", "compile": "torch", "xla": "jax"}
"""Peers, and the package that each needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text for the exit status."""
    options = _parser().parse_args(arguments)
    cache = Cache(options.cache) if options.cache is not None else None
    try:
        with Builder(cache, options.workers, niceness=0) as builder:
            if options.dry_run:
                return _dry_run(options, builder)
            return _measure(options, builder)
    except (KernelsError, OSError) as error:
        sys.stderr.write(f"kernels.bench: {error}\n")
        return 2


def _dry_run(options: argparse.Namespace, builder: Builder) -> int:
    text, problems = dry_run(
        [MODELS[name] for name in options.models],
        options.rows,
        TARGETS[options.arch],
        options.precision,
        builder,
        _ceilings(options),
        options.seed,
        options.fp8,
    )
    sys.stdout.write("\n".join([text, *problems]) + "\n")
    return 1 if problems else 0


def _measure(options: argparse.Namespace, builder: Builder) -> int:
    start = time.monotonic()
    device = Device.open()
    reference = _reference()
    context = Context(device)
    lines: list[Line] = []
    lost: DeviceLost | None = None
    try:
        stopwatch = Stopwatch(context, options.reps)
        prepared = _prepare(options, device.target(), builder)
        contenders = [Ours(stopwatch, prepared), *_peers(options.peers, stopwatch)]
        for name in options.models:
            for rows in options.rows:
                case = make_case(
                    MODELS[name],
                    rows,
                    options.precision,
                    reference,
                    seed=options.seed,
                    n_draws=options.checks,
                )
                ends = start + options.budget_s
                results = run_case(case, contenders, _progress, ends=ends)
                lines.append(
                    line_of(
                        results,
                        _ceilings(options),
                        options.precision,
                        fp8=options.fp8 is not None,
                    )
                )
                _write(options, device, lines)  # a run that is cut off leaves what it has
        stopwatch.close()
        context.close()
    except DeviceLost as error:  # what was measured before is printed all the same
        lost = error
    missing = [name for name in options.peers if not _installed(name)]
    notes = [f"{name} was not measured: {PEERS[name]} is not installed" for name in missing]
    fp8 = f" with fp8, a scale a {options.fp8}" if options.fp8 is not None else ""
    head = f"{device.name}, {options.precision}{fp8}; times in us, without copies to the card"
    if lines:
        sys.stdout.write("\n".join([head, table(lines), *notes]) + "\n")
    if lost is not None:
        raise lost
    return 1 if any(line.problem is not None for line in lines) else 0


def _write(options: argparse.Namespace, device: Device, lines: Sequence[Line]) -> None:
    if options.json is not None:
        document = {"run": _about(options, device), "results": to_json(lines)}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _prepare(
    options: argparse.Namespace, target: Target, builder: Builder
) -> dict[tuple[str, int], Prepared | KernelsError]:
    """Compile everything, so that all sources are built at once."""
    prepared: dict[tuple[str, int], Prepared | KernelsError] = {}
    for name in options.models:
        parameters = MODELS[name].draw_parameters(options.seed)
        for rows in options.rows:
            try:
                prepared[name, rows] = prepare(
                    MODELS[name], rows, parameters, target, options.precision, builder, options.fp8
                )
            except KernelsError as error:  # stands in this case's result
                prepared[name, rows] = error
    return prepared


def _installed(peer: str) -> bool:
    return importlib.util.find_spec(PEERS[peer]) is not None


def _peers(names: Sequence[str], stopwatch: Stopwatch) -> list[Contender]:
    """Open the peers that are installed; torch and jax are imported only for them."""
    peers: list[Contender] = []
    for name in filter(_installed, names):
        if name == "xla":
            from kernels.bench.peer_xla import XlaPeer

            peers.append(XlaPeer(_kernel_counter()))
        else:
            from kernels.bench.peer_torch import TorchPeer

            peers.append(TorchPeer(stopwatch, compiled=name == "compile"))
    return peers


def _torch_has_card() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _kernel_counter() -> Callable[[Callable[[], object]], tuple[int, float]] | None:
    if not _torch_has_card():
        return None
    from kernels.bench.peer_torch import kernels_of

    return kernels_of


def _reference() -> Reference:
    """Float64 by torch on the card, which takes milliseconds; without torch by numpy."""
    if _torch_has_card():
        from kernels.bench.peer_torch import expected_scores

        return functools.partial(expected_scores, "cuda")
    from kernels.bench.graphs import expected_scores as by_numpy

    return by_numpy


def _progress(result: Result) -> None:
    said = result.error or (f"{result.timing.us:.1f} us" if result.timing else "")
    sys.stderr.write(f"{result.model} {result.rows} {result.contender}: {said}\n")


def _ceilings(options: argparse.Namespace) -> Ceilings:
    return Ceilings(options.bytes_s, options.flops_s)


def _about(options: argparse.Namespace, device: Device) -> dict[str, object]:
    """Return what somebody needs to run it again."""
    versions = {}
    for package in ("torch", "jax", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device.name,
        "n_sms": device.n_sms,
        "precision": options.precision.value,
        "fp8": options.fp8,
        "reps": options.reps,
        "checks": options.checks,
        "seed": options.seed,
        "bytes_s": options.bytes_s,
        "flops_s": options.flops_s,
        "versions": versions,
    }


def _names(kind: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {kind} {name!r}: have {', '.join(known)}")
        return names

    return parse


def _sizes(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError("rows are 1 or more")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench",
        description="Measure our kernels beside torch and XLA on six models.",
    )
    what = parser.add_argument_group("what is measured")
    models, peers = _names("model", list(MODELS)), _names("peer", list(PEERS))
    what.add_argument(
        "--models", type=models, default=list(MODELS), metavar="NAMES", help=",".join(MODELS)
    )
    what.add_argument(
        "--rows", type=_sizes, default=[64, 512, 4096], metavar="SIZES", help="64,512,4096"
    )
    what.add_argument("--precision", type=Precision, choices=list(Precision), default="fp16")
    what.add_argument(
        "--fp8",
        type=Scales,
        choices=list(Scales),
        metavar="SCALES",
        help="wide Linears of ours over floats of eight bits; a scale a row or a tensor of weights",
    )
    what.add_argument(
        "--peers", type=peers, default=list(PEERS), metavar="NAMES", help=",".join(PEERS)
    )
    what.add_argument("--checks", type=int, default=2, help="draws of inputs to check on (2)")
    what.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("how")
    how.add_argument("--reps", type=int, default=100, help="measurements of a median (100)")
    how.add_argument(
        "--budget-s", type=float, default=float("inf"), help="start no peer after so many seconds"
    )
    how.add_argument("--bytes-s", type=float, default=4.3e12, help="memory's ceiling (4.3e12)")
    how.add_argument("--flops-s", type=float, default=8e14, help="tensor cores' ceiling (8e14)")
    how.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="that compile")
    how.add_argument(
        "--cache", type=Path, default=default_folder(), metavar="FOLDER", help="of cubins"
    )
    how.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    dry = parser.add_argument_group("without a card")
    dry.add_argument("--dry-run", action="store_true", help="only compile, and print resources")
    dry.add_argument("--arch", choices=list(TARGETS), default="sm_90a", help="to compile for")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""``python -m kernels.bundle plan`` and ``count``: planning from the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from kernels.bundle.load import PLACEMENT_FILE, Bundle, load_bundle
from kernels.bundle.recorded import read_cases
from kernels.features.spec import load_spec
from kernels.placement.file import write_placement
from kernels.placement.placement import DEFAULT_STALE_S
from kernels.placement.planner import Budget, plan
from kernels.placement.report import describe, size_text, summary
from kernels.placement.trace import count_cases, read_traffic
from kernels.placement.traffic import (
    ROWS_PER_REQUEST,
    SKEW,
    Traffic,
    assume_traffic,
    write_counts,
)

_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_ITEM_BYTES: Final = {"fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4}


def add_plan(commands: Any) -> None:  # noqa: ANN401 - argparse has no public type for it
    """Add the commands to those of ``kernels.bundle``."""
    command = commands.add_parser(
        "plan", help="decide where a bundle's tables lie, and write placement.toml"
    )
    command.add_argument("bundle", type=Path, metavar="BUNDLE/")
    command.add_argument(
        "--shards",
        type=_at_least_one,
        required=True,
        metavar="N",
        help="groups to divide tables over; each has as many shard actors as replicas",
    )
    command.add_argument("--replicas", type=_at_least_one, default=1, metavar="R")
    command.add_argument(
        "--gpu-memory",
        type=_size,
        default=0.0,
        metavar="40GB",
        help="of each executor's card, for whole tables (default: no tables there)",
    )
    command.add_argument(
        "--gpu-precision",
        choices=sorted(_ITEM_BYTES),
        default="fp16",
        help="as the executors' option gpu.precision (default: fp16)",
    )
    command.add_argument(
        "--cache-memory",
        type=_size,
        default=0.0,
        metavar="4GB",
        help="of each executor's card, or of its host without one, for hot rows (default: none)",
    )
    command.add_argument(
        "--stale",
        type=float,
        default=DEFAULT_STALE_S,
        metavar="SECONDS",
        help="for which a cached row may be used after an update (default: %(default)s)",
    )
    command.add_argument(
        "--traffic",
        type=Path,
        metavar="TRACE.npz",
        help="recorded inputs as verify reads them, or counts of keys (see count)",
    )
    command.add_argument(
        "--skew",
        type=float,
        default=SKEW,
        help="without a trace: exponent of the power law of keys (default: %(default)s)",
    )
    command.add_argument(
        "--rows",
        type=float,
        default=ROWS_PER_REQUEST,
        help="candidates of a request, where no trace says (default: %(default)s)",
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="PLACEMENT.toml", help="default: in the bundle"
    )
    command.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    command.set_defaults(run=_plan)

    count = commands.add_parser("count", help="count the keys of recorded inputs, for plan")
    count.add_argument("bundle", type=Path, metavar="BUNDLE/")
    count.add_argument("--io", type=Path, required=True, metavar="PAIRS.npz")
    count.add_argument("-o", "--output", type=Path, required=True, metavar="COUNTS.npz")
    count.set_defaults(run=_count)


def _plan(options: argparse.Namespace) -> int:
    bundle = load_bundle(options.bundle)
    budget = Budget(
        n_groups=options.shards,
        replicas=options.replicas,
        gpu_bytes=options.gpu_memory,
        device_item_bytes=_ITEM_BYTES[options.gpu_precision],
        cache_bytes=options.cache_memory,
        stale_s=options.stale,
    )
    found = plan(bundle.manifest, _traffic(bundle, options), budget)
    sys.stdout.write(describe(found))
    if not options.dry_run:
        output = options.output or options.bundle / PLACEMENT_FILE
        write_placement(found.placement, output, summary(found))
        sys.stdout.write(f"\nwritten to {output}\n")
    return 0


def _traffic(bundle: Bundle, options: argparse.Namespace) -> Traffic:
    if options.traffic is not None:
        return read_traffic(bundle, options.traffic, rows_per_request=options.rows)
    spec = load_spec(bundle.spec_path, tables=False)
    return assume_traffic(bundle.manifest, spec, rows_per_request=options.rows, skew=options.skew)


def _count(options: argparse.Namespace) -> int:
    counts = count_cases(load_bundle(options.bundle), read_cases(options.io))
    write_counts(counts, options.output)
    lookups = sum(int(found.sum()) for _, found in counts.tables.values())
    sys.stdout.write(
        f"{options.output}: {lookups:,} lookups of {len(counts.tables)} tables in "
        f"{counts.n_requests:g} requests, {size_text(options.output.stat().st_size)}\n"
    )
    return 0


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"want at least 1, got {text}")
    return number


def _size(text: str) -> float:
    """Read ``40GB``, ``512MiB`` or a number of bytes."""
    lower = text.lower().removesuffix("b")
    number = lower.rstrip("kmgti")
    unit = lower[len(number) :]
    factor = _UNITS.get(unit, _BINARY_UNITS.get(unit))
    try:
        size = float(number) * (factor or float("nan"))
    except ValueError:
        size = float("nan")
    if not 0 <= size < float("inf"):
        raise argparse.ArgumentTypeError(f"want bytes such as 40GB or 512MiB, got {text!r}")
    return size

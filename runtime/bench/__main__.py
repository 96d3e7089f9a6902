"""``python -m runtime.bench``: how many requests a second, how fast, at what cost.

One of::

    python -m runtime.bench --bundle BUNDLE                     # starts the nodes itself
    python -m runtime.bench --onnx MODEL.onnx --user-columns 23 # builds a bundle first
    python -m runtime.bench --connect tcp://HOST:PORT --model NAME

and, for the load, one of ``--rate R`` (open loop), ``--clients C`` (closed loop) and
``--find-rate`` (the default: the highest rate with p99 within ``--p99-ms`` and fewer than 0.1 %
failures). Prints one JSON line; ``--plot FILE.svg`` draws the latencies.

``--device cuda --lanes 1,2,4,8 --modes streams,green --windows on,off`` measures every combination
in turn, and prints a table (to stderr) besides; so do ``--executors`` and ``--mps``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from kernels.errors import KernelsError
from runtime.bench.session import PEERS, Session, Settings
from runtime.bench.sweep import run_sweep, table
from runtime.bench.topologies import DEVICES, MODES, TOPOLOGIES, Deployment, deployments
from runtime.bench.traffic import parse_sizes
from transport.errors import TransportError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; 2 if it could not be run, 1 if it has lost or wrong answers."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options)
        compared = _deployments(options)
        if len(compared) > 1:
            return _compare(settings, compared, options)
        result = Session(attrs.evolve(settings, deployment=compared[0])).run()
    except (KernelsError, TransportError, ValueError, OSError) as error:
        sys.stderr.write(f"runtime.bench: {error}\n")
        return 2
    sys.stdout.write(json.dumps(result.line) + "\n")
    if options.plot is not None:
        options.plot.write_text(result.plot, encoding="utf-8")
    return 0 if result.in_order else 1


def _compare(settings: Settings, compared: list[Deployment], options: argparse.Namespace) -> int:
    if settings.connect is not None or settings.peers or options.plot is not None:
        raise ValueError("several deployments are measured without --connect, --peers and --plot")
    sweep = run_sweep(settings, compared)
    sys.stderr.write(table(sweep.lines))
    sys.stdout.write(json.dumps({"sweep": sweep.lines}) + "\n")
    return 0 if sweep.in_order else 1


def _deployments(options: argparse.Namespace) -> list[Deployment]:
    first = Deployment(
        device=options.device,
        precision=options.precision,
        max_rows=options.max_rows,
        cache=options.cache,
    )
    return deployments(
        first,
        lanes=options.lanes,
        modes=options.modes,
        windows=options.windows,
        executors=options.executors,
        mps=options.mps,
    )


def _settings(options: argparse.Namespace) -> Settings:
    find_rate = options.find_rate or (options.rate is None and options.clients is None)
    return Settings(
        bundle=options.bundle,
        onnx=options.onnx,
        user_columns=options.user_columns,
        connect=options.connect,
        model=options.model,
        topology=options.topology,
        n_shards=options.shards,
        rate=options.rate,
        n_clients=options.clients or 64,
        find_rate=find_rate,
        p99_ms=options.p99_ms,
        budget_ms=options.budget_ms,
        duration_s=options.duration,
        warmup_s=options.warmup,
        sizes=parse_sizes(options.sizes),
        skew=options.skew,
        n_distinct=options.distinct,
        tick_us=options.tick_us,
        seed=options.seed,
        peers=tuple(options.peers.split(",")) if options.peers else (),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench",
        description="Measure a TensorBatch cluster under load, and its peers under the same.",
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--bundle", type=Path, help="start a cluster that serves this bundle")
    what.add_argument("--onnx", type=Path, help="the whole model: scores are compared with its own")
    what.add_argument(
        "--user-columns",
        type=int,
        metavar="N",
        help="build a bundle of --onnx with inferred features, the first N of them the user's",
    )
    what.add_argument("--connect", metavar="ADDRESS", help="a running cluster's gateway")
    what.add_argument("--model", help="its model, if it serves several")
    what.add_argument("--topology", choices=TOPOLOGIES, default=TOPOLOGIES[0])
    what.add_argument("--shards", type=int, default=2, help="of a spread topology (2)")
    what.add_argument(
        "--peers",
        nargs="?",
        const=",".join(PEERS),
        metavar="NAMES",
        help=f"measure peers too: some of {','.join(PEERS)} (all); wants --onnx",
    )
    _add_deployment(parser.add_argument_group("how executors run; lists are compared"))
    load = parser.add_argument_group("load")
    kind = load.add_mutually_exclusive_group()
    kind.add_argument("--rate", type=float, help="open loop: Poisson arrivals, requests a second")
    kind.add_argument("--clients", type=int, help="closed loop: so many requests under way")
    kind.add_argument("--find-rate", action="store_true", help="search the highest rate (default)")
    load.add_argument("--p99-ms", type=float, default=50.0, help="for --find-rate (50)")
    load.add_argument("--budget-ms", type=float, default=100.0, help="of each request (100)")
    load.add_argument("--duration", type=float, default=10.0, help="seconds (10)")
    load.add_argument("--warmup", type=float, default=2.0, help="seconds, not counted (2)")
    load.add_argument(
        "--sizes",
        default="lognormal:32,1,512",
        help="candidates a request: mlperf, lognormal:MEDIAN,SIGMA,MAX or a number "
        "(lognormal:32,1,512)",
    )
    load.add_argument(
        "--skew", type=float, default=1.05, help="of ids, a power law; 0: uniform (1.05)"
    )
    load.add_argument("--distinct", type=int, default=512, help="distinct requests (512)")
    load.add_argument(
        "--tick-us", type=int, default=250, help="the generator's shortest sleep (250)"
    )
    load.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the latencies")
    return parser


def _add_deployment(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", choices=DEVICES, default=DEVICES[0])
    group.add_argument("--lanes", type=_numbers, default=[None], metavar="1,2,4,8")
    group.add_argument("--modes", type=_modes, default=[None], metavar=",".join(MODES))
    group.add_argument("--windows", type=_switches, default=[True], metavar="on,off")
    group.add_argument("--executors", type=_numbers, default=[1], metavar="1,2,4")
    group.add_argument(
        "--mps", type=_percents, default=[None], metavar="off,100,50", help="of a card, each"
    )
    group.add_argument("--precision", choices=["fp16", "bf16", "tf32", "fp32"])
    group.add_argument("--max-rows", type=int, metavar="N", help="of a launch")
    group.add_argument("--cache", type=Path, metavar="FOLDER", help="of compiled kernels")


def _numbers(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"want numbers such as 1,2,4, got {text!r}")
    return [int(part) for part in text.split(",")]


def _modes(text: str) -> list[str]:
    if not set(text.split(",")) <= set(MODES):
        raise argparse.ArgumentTypeError(f"want some of {','.join(MODES)}, got {text!r}")
    return text.split(",")


def _switches(text: str) -> list[bool]:
    if not set(text.split(",")) <= {"on", "off"}:
        raise argparse.ArgumentTypeError(f"want on, off or both, got {text!r}")
    return [part == "on" for part in text.split(",")]


def _percents(text: str) -> list[int | None]:
    parts = text.split(",")
    if not all(part == "off" or (part.isdecimal() and 0 < int(part) <= 100) for part in parts):
        raise argparse.ArgumentTypeError(f"want off or 1 to 100 percent, got {text!r}")
    return [None if part == "off" else int(part) for part in parts]


if __name__ == "__main__":
    sys.exit(main())

"""``python -m kernels.show BUNDLE/ --bucket 512``: print a bundle's plan and draw it.

Needs no card: the bundle is compiled for ``--arch``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from kernels.bundle.load import load_bundle
from kernels.compiler import Options, compile_graph
from kernels.errors import GraphError, KernelsError
from kernels.gpu.buckets import bucket_of
from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import flops
from kernels.lengths.bind import bind
from kernels.lengths.find import find_sequences
from kernels.lengths.side import input_facts
from kernels.nvrtc import Cache, Cubin, default_folder, unit_of
from kernels.passes import optimise
from kernels.program import TARGETS, Bucket, Precision, Source
from kernels.show.graphs import passes_lines
from kernels.show.picture import draw
from kernels.show.plan import Bound, plan_of
from kernels.show.text import describe

# As executors have it unless told otherwise.
_MOST_REQUESTS = 256
# Offsets into a lane's buffers are 32-bit in kernels; a bucket of so many rows is no batch.
_MOST_ROWS = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Show one plan; return the exit status: 0, or 2 for an error, told in a sentence."""
    options = _parser().parse_args(arguments)
    try:
        _show(options)
    except (KernelsError, OSError) as error:
        sys.stderr.write(f"kernels.show: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kernels.show", description="Print the plan of a bundle's dense graph, and draw it."
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE/")
    parser.add_argument("--bucket", type=_rows, default=512, metavar="ROWS")
    parser.add_argument(
        "--requests",
        type=_rows,
        metavar="N",
        help=f"of the bucket (default: as many as rows, {_MOST_REQUESTS} at most)",
    )
    parser.add_argument(
        "--length",
        type=_rows,
        default=0,
        metavar="STEPS",
        help="of sequences that may be shorter (default: all steps)",
    )
    parser.add_argument("--arch", choices=sorted(TARGETS), default="sm_90a")
    parser.add_argument("--n-sms", type=_rows, metavar="N", help="default: the whole card's")
    parser.add_argument("--precision", choices=[*Precision], default=Precision.FP16)
    parser.add_argument("--input-dtype", choices=["float16", "float32"], default="float32")
    parser.add_argument("--no-user-once", action="store_true", help="repeat the user's side a row")
    parser.add_argument("--no-wide", action="store_true", help="no launches for large Linears")
    parser.add_argument("--graph", action="store_true", help="before and after the passes, too")
    parser.add_argument("--no-compile", action="store_true", help="no registers and spills")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="of compiled kernels")
    parser.add_argument(
        "--tb-per-s", type=_rate, default=4.3, metavar="X", help="memory's rate (default: 4.3)"
    )
    parser.add_argument(
        "--tflops", type=_rate, default=800.0, metavar="X", help="tensor cores' (default: 800)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.svg",
        help="default: BUNDLE-plan-ROWS.svg beside the bundle",
    )
    return parser


def _rows(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_ROWS:
        raise argparse.ArgumentTypeError(f"want 1 to {_MOST_ROWS}, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"want a positive number, got {text!r}")
    return value


def _show(options: argparse.Namespace) -> None:
    bundle = load_bundle(options.bundle)
    found = find_sequences(
        _imported(bundle.dense_model(), bundle.manifest.model),
        input_facts(bundle.manifest, bundle.spec_text),
    )
    graph, length = found.graph, options.length
    if length and found.shortened is None:
        raise GraphError(f"{graph.model}: has no sequences that may be shorter")
    target = TARGETS[options.arch]
    if options.n_sms is not None:
        target = attrs.evolve(target, n_sms=options.n_sms)
    rows, requests = options.bucket, options.requests
    if found.shortened is not None:
        length = min(length or found.shortened.most, found.shortened.most)
        graph = bind(graph, length)
    requests = bucket_of(rows, _MOST_REQUESTS).requests if requests is None else requests
    bucket = Bucket(rows, requests, length)
    chosen = Options(
        precision=Precision(options.precision),
        input_dtype=options.input_dtype,
        user_once=not options.no_user_once,
        wide=not options.no_wide,
    )
    if options.graph:
        lines = passes_lines(graph, user_once=chosen.user_once)
        sys.stdout.write("\n".join(lines) + "\n")
    cache = Cache(options.cache or default_folder())

    def compiled(source: Source) -> Cubin:
        return cache.get_or_compile(unit_of(source))

    plan = plan_of(
        bundle.manifest.model,
        compile_graph(graph, bucket, target, chosen),
        target,
        Bound(options.tb_per_s * 1e12, options.tflops * 1e12),
        None if options.no_compile else compiled,
        _flops_each_row(graph) * bucket.rows,
        found,
    )
    sys.stdout.write(describe(plan))
    folder = options.bundle.resolve()
    picture = options.picture or folder.with_name(f"{folder.name}-plan-{rows}.svg")
    picture.write_text(draw(plan), encoding="utf-8")
    sys.stdout.write(f"\npicture   {picture}\n")


def _flops_each_row(graph: Graph) -> int:
    """Return what a row takes where nothing is shared with the rows of its request."""
    work = flops(optimise(graph, user_once=False))
    return work.row + work.request


def _imported(dense: bytes, model: str) -> Graph:
    try:
        return import_dense(dense, model)
    except GraphError as error:
        raise GraphError(f"{error}; only the host executor can run this model") from error


if __name__ == "__main__":
    sys.exit(main())

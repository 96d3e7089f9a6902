"""``python -m kernels.bundle build|show|verify|plan|count``: see ``--help`` of each."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.executors import EXECUTORS, TOLERANCES, ExecutorName
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.picture import draw
from kernels.bundle.recorded import read_cases, row_shapes
from kernels.bundle.show import describe, executors_of
from kernels.bundle.verify import verify
from kernels.errors import KernelsError
from kernels.placement.command import add_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 1 (beyond the tolerance) or 2 (an error)."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (KernelsError, OSError) as error:
        text = " ".join(str(error).split())
        sys.stderr.write(f"kernels.bundle {options.command}: {text}\n")
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kernels.bundle", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="turn an ONNX model into a bundle")
    build.add_argument("model", type=Path, metavar="MODEL.onnx")
    build.add_argument("--features", type=Path, metavar="FEATURES.toml")
    build.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE/")
    build.add_argument("--force", action="store_true", help="replace a bundle that is there")
    build.add_argument(
        "--no-check", action="store_true", help="skip running the cut against the whole model"
    )
    build.add_argument(
        "--table",
        action="append",
        default=[],
        type=_table,
        metavar="NAME=TABLE/",
        help="a table made by kernels.store, in place of the initializer NAME; may be repeated. "
        "Its files are linked into the bundle, or copied from another file system",
    )
    _add_inference(build)
    build.set_defaults(run=_build)

    show = commands.add_parser("show", help="print a bundle's cut, and draw it")
    show.add_argument("bundle", type=Path, metavar="BUNDLE/")
    show.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="default: BUNDLE.svg beside the bundle"
    )
    show.set_defaults(run=_show)

    check = commands.add_parser("verify", help="run recorded inputs through a model or bundle")
    check.add_argument("path", type=Path, metavar="MODEL.onnx|BUNDLE/")
    check.add_argument("--io", type=Path, required=True, metavar="PAIRS.npz")
    check.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="host",
        help="reference: numpy in float64; cuda: kernels, in fp16 unless said (default: host)",
    )
    check.add_argument("--features", type=Path, metavar="FEATURES.toml", help="for a model")
    check.add_argument("--rtol", type=float, default=1e-3)
    check.add_argument("--atol", type=float, help="default: the executor's")
    _add_inference(check)
    check.set_defaults(run=_verify)

    add_plan(commands)
    return parser


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--infer-features",
        action="store_true",
        help="derive identity features for the inputs that no spec describes",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        metavar="INPUT=30",
        help="one row's shape (30 or 5x16) of an input that leaves it open; may be repeated",
    )


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition("=")
    if not name or not all(part.isdecimal() for part in dims.split("x")):
        raise argparse.ArgumentTypeError(f"want INPUT=30 or INPUT=5x16, got {text!r}")
    return name, tuple(int(part) for part in dims.split("x"))


def _table(text: str) -> tuple[str, Path]:
    name, _, folder = text.rpartition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"want NAME=TABLE/, got {text!r}")
    return name, Path(folder)


def _build(options: argparse.Namespace) -> int:
    manifest = build_bundle(
        options.model,
        options.features,
        options.output,
        BuildOptions(
            infer=options.infer_features,
            check=not options.no_check,
            force=options.force,
            shapes=dict(options.shape),
            tables=dict(options.table),
        ),
        tell=lambda text: sys.stdout.write(f"{text}\n"),
    )
    left = sum(not kept.positional for kept in manifest.kept)
    sys.stdout.write(
        f"{options.output}: {len(manifest.tables)} tables cut, {left} left, "
        f"version {manifest.version[:12]}\n"
        f"executors: {executors_of(manifest)}\n"
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    bundle = load_bundle(options.bundle)
    sys.stdout.write(describe(bundle))
    folder = options.bundle.resolve()
    picture = options.picture or folder.with_name(folder.name + ".svg")
    picture.write_text(draw(bundle), encoding="utf-8")
    sys.stdout.write(f"picture   {picture}\n")
    return 0


def _verify(options: argparse.Namespace) -> int:
    cases = read_cases(options.io)

    def run(bundle: Bundle) -> int:
        name: ExecutorName = options.executor
        atol = TOLERANCES[name] if options.atol is None else options.atol
        verdict = verify(bundle, cases, rtol=options.rtol, atol=atol, executor=name)
        fields = attrs.asdict(verdict)
        ok = fields.pop("ok")
        sys.stdout.write(json.dumps(fields) + "\n")
        return 0 if ok else 1

    if options.path.is_dir():
        return run(load_bundle(options.path))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "bundle"
        build = BuildOptions(
            infer=options.infer_features or options.features is None,
            shapes={**row_shapes(cases), **dict(options.shape)},
        )
        build_bundle(options.path, options.features, target, build)
        return run(load_bundle(target))


if __name__ == "__main__":
    sys.exit(main())

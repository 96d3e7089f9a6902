"""Every model of a zoo through the product: ``python -m tests.zoo [FOLDER] [--only REGEX]``.

A zoo is a folder with ``MANIFEST.json``, ``models/`` and ``io/`` (see its README). Each model is
built into a bundle with inferred features and served by a node process, of which a client asks the
scores of the recorded inputs, as columns of raw features. With ``--in-process``, parser, lookups
and executor are called here instead; so they are with ``--executor reference`` (the compiler's
oracle, float64) and ``--executor cuda`` or ``cuda-fp32``. A model that only the host executor can
run is reported as such, and is no failure. ``--rows 1,37,64`` also runs random inputs of so many
rows and compares with the oracle (``zoo_rows.py``). Prints a table; exits with 1 if any model
fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.executors import EXECUTORS, TOLERANCES, ExecutorName, open_executor
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.manifest import KeptTable, Manifest
from kernels.bundle.recorded import Case, read_cases, row_shapes
from kernels.features.blocks import RawRequest, SideMatrices
from kernels.features.feature import Feature
from kernels.features.parser import Parser
from kernels.features.spec import load_spec
from kernels.lookup import PooledLookup, shard_layout
from tests import zoo_rows
from tests.system.cluster_help import NotReady, serving
from transport.blocking import BlockingClient
from transport.columns import blocks_from_columns
from transport.messages import CANDIDATE

ZOO = Path(__file__).parents[1].parent / "shared" / "zoo"
F32 = NDArray[np.float32]

# Models of one node: all of the zoo start within seconds, and a larger zoo in several goes.
TOGETHER = 48
# Seconds for one request, on a machine that does much else.
BUDGET_S = 30.0

Columns: TypeAlias = Mapping[str, NDArray[Any]]
Scorer: TypeAlias = Callable[[str, Columns, int], Mapping[str, F32]]
"""Takes a model's name, candidate columns and their number; returns outputs ``[n]`` or ``[n, w]``.
"""
Serve: TypeAlias = Callable[[Mapping[str, Path]], AbstractContextManager[Scorer]]
"""Serves bundles, known by names. Raises ``NotReady`` if they cannot be served together."""


@attrs.frozen(kw_only=True)
class Model:
    """One exported model of a zoo."""

    name: str
    file: Path
    io: Path
    rtol: float
    atol: float


@attrs.frozen(kw_only=True)
class Result:
    """How a model did. Errors are by batch size, the largest over its cases.

    Attributes:
        random: Errors on random inputs, by rows; see ``zoo_rows``.
        host_only: Why no other executor can run it, where that was asked for.
    """

    name: str
    cases: int = 0
    max_abs: Mapping[int, float] = attrs.field(factory=dict)
    max_rel: Mapping[int, float] = attrs.field(factory=dict)
    tables_cut: int = 0
    kept: tuple[KeptTable, ...] = ()
    seconds: float = 0.0
    problem: str = ""
    random: Mapping[int, float] = attrs.field(factory=dict)
    host_only: str = ""

    @property
    def left(self) -> list[KeptTable]:
        """Tables that should have been cut and were not."""
        return [kept for kept in self.kept if not kept.positional]

    @property
    def skipped(self) -> bool:
        """Whether it was not scored, as it is for the host executor."""
        return bool(self.host_only) and not self.max_abs

    @property
    def ok(self) -> bool:
        """Whether all went as it should."""
        return not self.problem and not self.left


def models(folder: Path, only: str = "") -> list[Model]:
    """Read a zoo's manifest: the models whose files are there."""
    manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    found = []
    for entry in manifest["entries"]:
        for export in entry.get("exports", []):
            name = f"{entry['name']}.{export['exporter']}"
            if export.get("status") == "ok" and export.get("file") and re.search(only, name):
                found.append(
                    Model(
                        name=name,
                        file=folder / export["file"],
                        io=folder / "io" / f"{entry['name']}.npz",
                        rtol=manifest["tolerance"]["rtol"],
                        atol=manifest["tolerance"]["atol"],
                    )
                )
    return found


@attrs.frozen(kw_only=True, eq=False)
class Built:
    """A model whose bundle was built."""

    model: Model
    path: Path
    manifest: Manifest
    features: Sequence[Feature]
    cases: Mapping[str, Case]
    result: Result


class InProcess:
    """Runs parser, lookups and executor of one bundle by plain calls."""

    def __init__(self, bundle: Bundle, executor: ExecutorName = "host") -> None:
        manifest = bundle.manifest
        tables = {table.name: bundle.table(table.name) for table in manifest.tables}
        self._outputs = manifest.outputs
        self._parser = Parser.for_bundle(bundle)
        self._user = PooledLookup(tables, shard_layout(manifest.user, tables))
        self._candidate = PooledLookup(tables, shard_layout(manifest.candidate, tables))
        self._executor = open_executor(executor, bundle, max_rows=256, max_requests=4)

    def score(self, columns: Columns, n: int) -> Mapping[str, F32]:
        """See ``Scorer``; raises the request's ``FeatureError``."""
        self.stage(columns, n)
        scores = self._executor.run(0, 1, n)
        return {
            output.name: scores[:, output.offset : output.offset + output.width]
            for output in self._outputs
        }

    def stage(self, columns: Columns, n: int) -> tuple[F32, F32]:
        """Lay out one request of ``n`` candidates; return its blocks, good until the next."""
        request = RawRequest(n, blocks_from_columns(CANDIDATE, columns, n))
        parsed = self._parser.parse([request])
        if parsed.failed:
            raise parsed.failed[0]
        staging = self._executor.staging(0)
        self._stage(self._user, parsed.user, staging.user[:1])
        self._stage(self._candidate, parsed.candidate, staging.candidate[:n])
        staging.request_of_row[:n] = 0
        return staging.user[:1], staging.candidate[:n]

    def close(self) -> None:
        """Stop serving."""
        self._executor.close()

    def _stage(self, lookup: PooledLookup, matrices: SideMatrices, block: F32) -> None:
        width = block.shape[1] - matrices.values.shape[1]
        if width:
            ids = np.ascontiguousarray(matrices.ids)
            block[:, :width] = lookup.run(ids, np.ascontiguousarray(matrices.weights))
        block[:, width:] = matrices.values


def in_process_on(executor: ExecutorName) -> Serve:
    """Serve by calls in this process, each model opened for as long as it is asked."""

    @contextmanager
    def serve(bundles: Mapping[str, Path]) -> Iterator[Scorer]:
        def score(name: str, columns: Columns, n: int) -> Mapping[str, F32]:
            with closing(InProcess(load_bundle(bundles[name]), executor)) as scorer:
                return scorer.score(columns, n)

        yield score

    return serve


in_process = in_process_on("host")


@contextmanager
def served(bundles: Mapping[str, Path]) -> Iterator[Scorer]:
    """Serve by a node process with all the models, over tcp."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(bundles, Path(folder), executor={"max_rows": 256, "max_requests": 4}) as node,
        BlockingClient(node.address) as client,
    ):

        def score(name: str, columns: Columns, n: int) -> Mapping[str, F32]:
            del n  # the columns tell
            return client.score(model=name, user={}, candidates=columns, budget=BUDGET_S).outputs

        yield score


def columns_of(features: Sequence[Feature], inputs: Columns) -> dict[str, NDArray[Any]]:
    """Turn a model's recorded inputs into what a client would send: ``[n]`` or ``[n, width]``."""
    columns = {}
    for feature in features:
        array = inputs[feature.input]
        flat = array.reshape(len(array), -1)
        values = flat[:, feature.column : feature.column + feature.width]
        if feature.dtype == "int64":
            values = values.astype(np.int64)
        columns[feature.name] = np.ascontiguousarray(values[:, 0] if feature.width == 1 else values)
    return columns


def check(
    chosen: Sequence[Model],
    serve: Serve,
    progress: Callable[[str], None] = lambda _: None,
    *,
    executor: ExecutorName = "host",
    rows: Sequence[int] = (),
) -> list[Result]:
    """Build models and score their recorded inputs; return the results in the models' order.

    Args:
        chosen: Models.
        serve: How they are served.
        progress: Told what is being done.
        executor: What ``serve`` runs; decides which models are left out.
        rows: Numbers of rows of random inputs to compare with the oracle.
    """
    results: dict[str, Result] = {}
    for first in range(0, len(chosen), TOGETHER):
        with tempfile.TemporaryDirectory() as folder:
            built = []
            for i, model in enumerate(chosen[first : first + TOGETHER]):
                progress(f"{first + i + 1}/{len(chosen)} {model.name}")
                made = build(model, Path(folder, f"m{i}"))
                if isinstance(made, Result):
                    results[model.name] = made
                elif executor != "host" and not made.manifest.gpu.supported:
                    reason = made.manifest.gpu.reason
                    results[model.name] = attrs.evolve(made.result, host_only=reason)
                else:
                    built.append(_with_random(made, executor, rows) if rows else made)
            progress(f"scoring {len(built)} models")
            results |= {result.name: result for result in _score(built, serve)}
    return [results[model.name] for model in chosen]


def build(model: Model, path: Path) -> Built | Result:
    """Build a model's bundle at ``path``; what went wrong is told by the result."""
    start = time.perf_counter()
    try:
        options = BuildOptions(infer=True, shapes=row_shapes(read_cases(model.io)))
        build_bundle(model.file, None, path, options)
        built = open_built(model, path)
    except Exception as error:  # a model's failure is reported, and the others run
        seconds = time.perf_counter() - start
        return Result(name=model.name, seconds=seconds, problem=_describe(error))
    seconds = time.perf_counter() - start
    return attrs.evolve(built, result=attrs.evolve(built.result, seconds=seconds))


def open_built(model: Model, path: Path) -> Built:
    """Open a model's bundle that was built at ``path`` before."""
    bundle, cases = load_bundle(path), read_cases(model.io)
    manifest = bundle.manifest
    return Built(
        model=model,
        path=path,
        manifest=manifest,
        features=load_spec(bundle.spec_path, tables=False).features,
        cases=cases,
        result=Result(
            name=model.name,
            tables_cut=len(manifest.tables),
            kept=manifest.kept,
            cases=len(cases),
        ),
    )


def _with_random(built: Built, executor: ExecutorName, rows: Sequence[int]) -> Built:
    """Compare random inputs with the oracle, and note the errors in the result."""
    start = time.perf_counter()
    gpu = built.manifest.gpu
    if not gpu.supported:
        return attrs.evolve(built, result=attrs.evolve(built.result, host_only=gpu.reason))
    found: Mapping[int, float] = {}
    problem = ""
    try:
        bundle = load_bundle(built.path)
        found = zoo_rows.errors(bundle, executor, recorded_blocks(bundle, built), rows)
        if beyond := [n for n, each in found.items() if each > zoo_rows.TOLERANCES[executor]]:
            problem = f"random inputs: differs at {beyond} rows, by up to {max(found.values()):.3g}"
    except Exception as error:  # a model's failure is reported, and the others run
        problem = _describe(error)
    result = attrs.evolve(
        built.result,
        random=found,
        problem=problem,
        seconds=built.result.seconds + time.perf_counter() - start,
    )
    return attrs.evolve(built, result=result)


def recorded_blocks(bundle: Bundle, built: Built) -> tuple[F32, F32]:
    """Return the blocks of all recorded inputs, below each other."""
    user, candidate = [], []
    with closing(InProcess(bundle)) as scorer:
        for case in built.cases.values():
            columns = columns_of(built.features, case.inputs)
            n = {len(column) for column in columns.values()}.pop()
            blocks = scorer.stage(columns, n)
            user.append(blocks[0].copy())
            candidate.append(blocks[1].copy())
    return np.concatenate(user), np.concatenate(candidate)


def _score(built: Sequence[Built], serve: Serve) -> list[Result]:
    """Score models that are served together; where that fails, find out which are to blame."""
    if not built:
        return []
    try:
        with serve({each.path.name: each.path for each in built}) as score:
            return [_compare(each, score) for each in built]
    except NotReady as error:
        blamed = [each for each in built if f"executor-{each.path.name}" in error.died]
        if len(built) == 1:
            blamed = list(built)
        results = [attrs.evolve(each.result, problem=_describe(error)) for each in blamed]
    others = [each for each in built if each not in blamed]
    if blamed:
        return [*results, *_score(others, serve)]
    half = len(built) // 2
    return [*_score(built[:half], serve), *_score(built[half:], serve)]


def _compare(built: Built, score: Scorer) -> Result:
    start = time.perf_counter()
    model = built.model
    max_abs: dict[int, float] = {}
    max_rel: dict[int, float] = {}
    problem = built.result.problem
    try:
        for name, case in built.cases.items():
            columns = columns_of(built.features, case.inputs)
            n = {len(column) for column in columns.values()}.pop()
            scores = score(built.path.name, columns, n)
            for output in built.manifest.outputs:
                want = case.outputs[output.name].astype(np.float64)
                if want.shape != (n, *output.shape):
                    problem = f"{name}: {output.name} is {want.shape}, not {(n, *output.shape)}"
                    continue
                got = scores[output.name].reshape(want.shape)
                difference = np.abs(got - want)
                if not np.allclose(got, want, rtol=model.rtol, atol=model.atol, equal_nan=True):
                    problem = f"{name}: {output.name} differs by {difference.max():.3g}"
                max_abs[n] = max(max_abs.get(n, 0.0), float(difference.max(initial=0.0)))
                relative = difference / np.maximum(np.abs(want), model.atol)
                max_rel[n] = max(max_rel.get(n, 0.0), float(relative.max(initial=0.0)))
    except Exception as error:  # a model's failure is reported, and the others run
        problem = _describe(error)
    return attrs.evolve(
        built.result,
        max_abs=max_abs,
        max_rel=max_rel,
        problem=problem,
        seconds=built.result.seconds + time.perf_counter() - start,
    )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def table(results: Sequence[Result]) -> Iterator[str]:
    """Return the lines of the table of results."""
    sizes = sorted({n for result in results for n in result.max_abs})
    heads = ["model", "cases"]
    heads += [f"{kind} b{n}" for n in sizes for kind in ("max abs", "max rel")]
    drawn = sorted({n for result in results for n in result.random})
    heads += [f"random {n}" for n in drawn]
    rows = [[*heads, "cut", "left", "seconds", ""]]
    for result in results:
        errors = [
            f"{each[n]:.1e}" if n in each else "-"
            for n in sizes
            for each in (result.max_abs, result.max_rel)
        ]
        errors += [f"{result.random[n]:.1e}" if n in result.random else "-" for n in drawn]
        cells = [str(result.tables_cut), str(len(result.left)), f"{result.seconds:.1f}"]
        verdict = "host only" if result.ok and result.skipped else "pass" if result.ok else "FAIL"
        rows.append([result.name, str(result.cases), *errors, *cells, verdict])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for result in results:
        if result.problem:
            yield f"{result.name}: {result.problem}"
        if result.host_only:
            yield f"{result.name}: host only: {result.host_only}"
        for kept in result.kept:
            what = "stays" if kept.positional else "LEFT"
            yield f"{result.name}: {what}: {kept.name} {list(kept.shape)}: {kept.reason}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(prog="tests.zoo", description=__doc__)
    made.add_argument("folder", nargs="?", type=Path, default=ZOO)
    made.add_argument("--only", default="", metavar="REGEX")
    made.add_argument("--in-process", action="store_true", help="without a node and a client")
    made.add_argument(
        "--executor", choices=EXECUTORS, default="host", help="other than host: in process"
    )
    made.add_argument(
        "--rows", type=_numbers, default=(), metavar="1,37,64", help="random inputs, in process"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a whole zoo; return the exit status."""
    options = parser().parse_args(arguments)
    executor: ExecutorName = options.executor
    try:
        chosen = models(options.folder, options.only)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"tests.zoo: {options.folder} is not a zoo: {error!r}\n")
        return 2
    least = TOLERANCES[executor]
    chosen = [attrs.evolve(model, atol=max(model.atol, least)) for model in chosen]
    in_here = options.in_process or executor != "host" or options.rows
    serve = in_process_on(executor) if in_here else served
    results = check(chosen, serve, _progress, executor=executor, rows=options.rows)
    _progress("")
    passed = sum(result.ok for result in results)
    host_only = sum(result.ok and result.skipped for result in results)
    last = f"{passed} of {len(results)} pass"
    if host_only:
        last = f"{passed - host_only} of {len(results)} pass, {host_only} for the host alone"
    sys.stdout.write("\n".join([*table(results), last]) + "\n")
    return 0 if results and passed == len(results) else 1


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(each) for each in text.split(",") if each.isdecimal())
    if not numbers or min(numbers) < 1 or len(numbers) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"want numbers of rows, 1,37,64, got {text!r}")
    return numbers


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

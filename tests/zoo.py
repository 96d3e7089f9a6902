"""Every model of a zoo through the product: ``python -m tests.zoo [FOLDER] [--only REGEX]``.

A zoo is a folder with ``MANIFEST.json``, ``models/`` and ``io/`` (see its README). Each model is
built into a bundle with inferred features and served by a node process, of which a client asks the
scores of the recorded inputs, as columns of raw features. With ``--in-process``, parser, lookups
and executor are called here instead (``zoo_here.py``); so they are with ``--executor reference``
(the compiler's oracle, float64), ``--executor cuda``, ``cuda-tf32`` or ``cuda-fp32``. A model that
only the host executor can run is reported as such, and is no failure. ``--rows 1,37,64`` also runs
random inputs of so many rows and compares with the oracle (``zoo_rows.py``). ``--processes 8``
scores so many models at a time, each in a process of its own. Prints a line for each model as it is
done; exits with 1 if any fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.executors import EXECUTORS, TOLERANCES, ExecutorName
from kernels.bundle.load import load_bundle
from kernels.bundle.manifest import Manifest
from kernels.bundle.recorded import Case, read_cases, row_shapes
from kernels.features.feature import Feature
from kernels.features.spec import load_spec
from tests import zoo_rows
from tests.system.cluster_help import NotReady, serving
from tests.zoo_here import F32, Columns, InProcess
from tests.zoo_table import Result, Table
from transport.blocking import BlockingClient

ZOO = Path(__file__).parents[1].parent / "shared" / "zoo"

# Models of one node: all of the zoo start within seconds, and a larger zoo in several goes.
TOGETHER = 48
# Seconds for one request, on a machine that does much else.
BUDGET_S = 30.0

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
    chosen: Sequence[Model], serve: Serve, done: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """Build models and score their recorded inputs; return the results in the models' order.

    Args:
        chosen: Models.
        serve: How they are served.
        done: Told of each result as soon as there is one.
    """
    results: dict[str, Result] = {}

    def keep(result: Result) -> None:
        results[result.name] = result
        done(result)

    for first in range(0, len(chosen), TOGETHER):
        with tempfile.TemporaryDirectory() as folder:
            built = []
            for i, model in enumerate(chosen[first : first + TOGETHER]):
                made = build(model, Path(folder, f"m{i}"))
                if isinstance(made, Result):
                    keep(made)
                else:
                    built.append(made)
            _score(built, serve, keep)
    return [results[model.name] for model in chosen]


def check_here(model: Model, executor: ExecutorName = "host", rows: Sequence[int] = ()) -> Result:
    """Build a model and score it in this process, on an executor that is opened once.

    Args:
        model: The model.
        executor: What runs it.
        rows: Numbers of rows of random inputs to compare with the oracle, beside the recorded ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        built = build(model, Path(folder, "bundle"))
        if isinstance(built, Result):
            return built
        gpu = built.manifest.gpu
        if not gpu.supported and (executor != "host" or rows):
            built = attrs.evolve(built, result=attrs.evolve(built.result, host_only=gpu.reason))
            if executor != "host":
                return built.result
            rows = ()
        start = time.perf_counter()
        try:
            with closing(InProcess(load_bundle(built.path), executor, rows)) as scorer:
                if rows:
                    built = _with_random(built, scorer, executor, rows)
                result = _compare(built, lambda name, columns, n: scorer.score(columns, n))
        except Exception as error:  # a model's failure is reported, and the others run
            result = attrs.evolve(built.result, problem=_describe(error))
        seconds = built.result.seconds + time.perf_counter() - start
        return attrs.evolve(result, seconds=seconds)


def check_apart(
    chosen: Sequence[Model],
    executor: ExecutorName,
    rows: Sequence[int],
    processes: int,
    done: Callable[[Result], None],
) -> list[Result]:
    """As ``check_here``, of many models, each in a process of its own; so many at a time.

    What breaks a process, or takes it the card, costs no other model.
    """
    # Each process would take all cores for the oracle's products.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(_in_child, model, executor, rows) for model in chosen]
        try:
            for future in as_completed(futures):
                done(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _in_child(model: Model, executor: ExecutorName, rows: Sequence[int]) -> Result:
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_send, args=(theirs, model, executor, rows))
    with ours:
        process.start()
        theirs.close()
        try:
            result: Result = ours.recv()
        except EOFError:
            result = Result(name=model.name)
        process.join()
    if process.exitcode != 0:
        problem = f"its process ended with status {process.exitcode}"
        return attrs.evolve(result, problem=result.problem or problem)
    return result


def _send(to: Connection, model: Model, executor: ExecutorName, rows: Sequence[int]) -> None:
    to.send(check_here(model, executor, rows))


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


def _with_random(
    built: Built, scorer: InProcess, executor: ExecutorName, rows: Sequence[int]
) -> Built:
    """Compare random inputs with the oracle, and note the errors in the result."""
    found: Mapping[int, float] = {}
    problem = ""
    try:
        found = zoo_rows.errors(scorer, recorded_blocks(scorer, built), rows)
        if beyond := [n for n, each in found.items() if each > zoo_rows.TOLERANCES[executor]]:
            problem = f"random inputs: differs at {beyond} rows, by up to {max(found.values()):.3g}"
    except Exception as error:  # a model's failure is reported, and the others run
        problem = _describe(error)
    return attrs.evolve(built, result=attrs.evolve(built.result, random=found, problem=problem))


def recorded_blocks(scorer: InProcess, built: Built) -> tuple[F32, F32]:
    """Return the blocks of all recorded inputs, below each other."""
    user, candidate = [], []
    for case in built.cases.values():
        columns = columns_of(built.features, case.inputs)
        n = {len(column) for column in columns.values()}.pop()
        blocks = scorer.stage(columns, n)
        user.append(blocks[0].copy())
        candidate.append(blocks[1].copy())
    return np.concatenate(user), np.concatenate(candidate)


def _score(built: Sequence[Built], serve: Serve, done: Callable[[Result], None]) -> None:
    """Score models that are served together; where that fails, find out which are to blame."""
    if not built:
        return
    try:
        with serve({each.path.name: each.path for each in built}) as score:
            for each in built:
                done(_compare(each, score))
            return
    except NotReady as error:
        blamed = [each for each in built if f"executor-{each.path.name}" in error.died]
        if len(built) == 1:
            blamed = list(built)
        for each in blamed:
            done(attrs.evolve(each.result, problem=_describe(error)))
    others = [each for each in built if each not in blamed]
    if blamed:
        _score(others, serve, done)
        return
    half = len(built) // 2
    _score(built[:half], serve, done)
    _score(built[half:], serve, done)


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
    made.add_argument(
        "--processes", type=int, default=1, metavar="N", help="more than 1: so many at a time"
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
    table = Table([model.name for model in chosen], options.rows)
    sys.stdout.write(table.head() + "\n")

    def done(result: Result) -> None:
        sys.stdout.writelines(f"{line}\n" for line in table.lines(result))
        sys.stdout.flush()  # a run that is cut off has told of what was done

    if options.processes > 1:
        results = check_apart(chosen, executor, options.rows, options.processes, done)
    elif options.in_process or executor != "host" or options.rows:
        results = []
        for model in chosen:
            results.append(check_here(model, executor, options.rows))
            done(results[-1])
    else:
        results = check(chosen, served, done)
    passed = sum(result.ok for result in results)
    host_only = sum(result.ok and result.skipped for result in results)
    last = f"{passed} of {len(results)} pass"
    if host_only:
        last = f"{passed - host_only} of {len(results)} pass, {host_only} for the host alone"
    sys.stdout.write(last + "\n")
    return 0 if results and passed == len(results) else 1


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(each) for each in text.split(",") if each.isdecimal())
    if not numbers or min(numbers) < 1 or len(numbers) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"want numbers of rows, 1,37,64, got {text!r}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())

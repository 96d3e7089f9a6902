"""Every model of a zoo through the product: ``python -m tests.zoo [FOLDER] [--only REGEX]``.

A zoo is a folder with ``MANIFEST.json``, ``models/`` and ``io/`` (see its README). Each model is
built into a bundle with inferred features, and its recorded inputs are scored as a client would
have them scored: as raw features, through parser, lookups and executor. Prints a table; exits with
1 if any model fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.manifest import KeptTable, Manifest
from kernels.bundle.verify import Case, read_cases, row_shapes
from kernels.features.blocks import RawRequest, SideMatrices
from kernels.features.feature import Feature
from kernels.features.parser import Parser
from kernels.features.spec import load_spec
from kernels.host import HostExecutor
from kernels.lookup import PooledLookup, shard_layout
from transport.messages import CANDIDATE, Block

ZOO = Path(__file__).parents[1].parent / "shared" / "zoo"
F32 = NDArray[np.float32]


class Scorer(Protocol):
    """Serves one bundle."""

    def scores(self, request: RawRequest) -> F32:
        """Return float32 ``[n_candidates, n_outputs]``."""

    def close(self) -> None:
        """Stop serving."""


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
    """How a model did. Errors are by batch size, the largest over its cases."""

    name: str
    cases: int = 0
    max_abs: Mapping[int, float] = attrs.field(factory=dict)
    max_rel: Mapping[int, float] = attrs.field(factory=dict)
    tables_cut: int = 0
    kept: tuple[KeptTable, ...] = ()
    seconds: float = 0.0
    problem: str = ""

    @property
    def left(self) -> list[KeptTable]:
        """Tables that should have been cut and were not."""
        return [kept for kept in self.kept if not kept.positional]

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


class InProcess:
    """A ``Scorer`` that runs parser, lookups and executor by plain calls."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        tables = {table.name: bundle.table(table.name) for table in manifest.tables}
        self._manifest = manifest
        self._parser = Parser.for_bundle(bundle)
        self._user = PooledLookup(tables, shard_layout(manifest.user, tables))
        self._candidate = PooledLookup(tables, shard_layout(manifest.candidate, tables))
        self._executor = HostExecutor(bundle, max_rows=256, max_requests=4)

    def scores(self, request: RawRequest) -> F32:
        """See ``Scorer``; raises the request's ``FeatureError``."""
        parsed = self._parser.parse([request])
        if parsed.failed:
            raise parsed.failed[0]
        staging = self._executor.staging(0)
        n = request.n_candidates
        self._stage(self._user, parsed.user, staging.user[:1])
        self._stage(self._candidate, parsed.candidate, staging.candidate[:n])
        staging.request_of_row[:n] = 0
        return self._executor.run(0, 1, n)

    def close(self) -> None:
        """See ``Scorer``."""
        self._executor.close()

    def _stage(self, lookup: PooledLookup, matrices: SideMatrices, block: F32) -> None:
        width = block.shape[1] - matrices.values.shape[1]
        if width:
            ids = np.ascontiguousarray(matrices.ids)
            block[:, :width] = lookup.run(ids, np.ascontiguousarray(matrices.weights))
        block[:, width:] = matrices.values


def in_process(path: Path) -> Scorer:
    """Open a bundle for calls in this process."""
    return InProcess(load_bundle(path))


def raw_request(features: Sequence[Feature], inputs: Mapping[str, NDArray[Any]]) -> RawRequest:
    """Make the request that a client would send for a model's recorded inputs."""
    blocks = []
    n = {len(array) for array in inputs.values()}.pop()
    for feature in features:
        flat = inputs[feature.input].reshape(n, -1)
        columns = flat[:, feature.column : feature.column + feature.width]
        if feature.dtype == "int64":
            columns = columns.astype(np.int64)
        values = np.ascontiguousarray(columns)[None]
        if feature.width == 1:
            values = values[:, :, 0]
        blocks.append(Block(side=CANDIDATE, names=(feature.name,), values=values))
    return RawRequest(n_candidates=n, blocks=blocks)


def check(model: Model, serve: Callable[[Path], Scorer]) -> Result:
    """Build one model and score its recorded inputs."""
    start = time.perf_counter()
    result = Result(name=model.name)
    try:
        cases = read_cases(model.io)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bundle"
            options = BuildOptions(infer=True, shapes=row_shapes(cases))
            manifest = build_bundle(model.file, None, path, options)
            result = attrs.evolve(
                result, tables_cut=len(manifest.tables), kept=manifest.kept, cases=len(cases)
            )
            scorer = serve(path)
            try:
                result = _compare(model, manifest, load_bundle(path), cases, scorer, result)
            finally:
                scorer.close()
    except Exception as error:  # a model's failure is reported, and the others run
        result = attrs.evolve(result, problem=f"{type(error).__name__}: {error}")
    return attrs.evolve(result, seconds=time.perf_counter() - start)


def _compare(
    model: Model,
    manifest: Manifest,
    bundle: Bundle,
    cases: Mapping[str, Case],
    scorer: Scorer,
    result: Result,
) -> Result:
    features = load_spec(bundle.spec_path, tables=False).features
    max_abs: dict[int, float] = {}
    max_rel: dict[int, float] = {}
    problem = ""
    for name, case in cases.items():
        request = raw_request(features, case.inputs)
        scores = scorer.scores(request)
        n = request.n_candidates
        for output in manifest.outputs:
            want = case.outputs[output.name].astype(np.float64)
            got = scores[:, output.offset : output.offset + output.width]
            if want.shape != (n, *output.shape):
                problem = f"{name}: {output.name} is {want.shape}, not {(n, *output.shape)}"
                continue
            got = got.reshape(want.shape)
            difference = np.abs(got - want)
            if not np.allclose(got, want, rtol=model.rtol, atol=model.atol, equal_nan=True):
                problem = f"{name}: {output.name} differs by {difference.max():.3g}"
            max_abs[n] = max(max_abs.get(n, 0.0), float(difference.max(initial=0.0)))
            relative = difference / np.maximum(np.abs(want), model.atol)
            max_rel[n] = max(max_rel.get(n, 0.0), float(relative.max(initial=0.0)))
    return attrs.evolve(result, max_abs=max_abs, max_rel=max_rel, problem=problem)


def table(results: Sequence[Result]) -> Iterator[str]:
    """Return the lines of the table of results."""
    sizes = sorted({n for result in results for n in result.max_abs})
    heads = ["model", "cases"]
    heads += [f"{kind} b{n}" for n in sizes for kind in ("max abs", "max rel")]
    rows = [[*heads, "cut", "left", "seconds", ""]]
    for result in results:
        errors = [
            f"{each[n]:.1e}" if n in each else "-"
            for n in sizes
            for each in (result.max_abs, result.max_rel)
        ]
        cells = [str(result.tables_cut), str(len(result.left)), f"{result.seconds:.1f}"]
        verdict = "pass" if result.ok else "FAIL"
        rows.append([result.name, str(result.cases), *errors, *cells, verdict])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for result in results:
        if result.problem:
            yield f"{result.name}: {result.problem}"
        for kept in result.kept:
            what = "stays" if kept.positional else "LEFT"
            yield f"{result.name}: {what}: {kept.name} {list(kept.shape)}: {kept.reason}"


def main(
    arguments: Sequence[str] | None = None, serve: Callable[[Path], Scorer] = in_process
) -> int:
    """Run a whole zoo; return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.zoo", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ZOO)
    parser.add_argument("--only", default="", metavar="REGEX")
    options = parser.parse_args(arguments)
    try:
        chosen = models(options.folder, options.only)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"tests.zoo: {options.folder} is not a zoo: {error!r}\n")
        return 2
    results = []
    for i, model in enumerate(chosen):
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{i + 1}/{len(chosen)} {model.name}")
        results.append(check(model, serve))
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    passed = sum(result.ok for result in results)
    sys.stdout.write("\n".join([*table(results), f"{passed} of {len(results)} pass"]) + "\n")
    return 0 if results and passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())

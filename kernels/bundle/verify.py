"""Verifying a bundle: recorded inputs through lookups and executor, against recorded outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import onnx

from kernels.bundle.executors import ExecutorName, open_executor
from kernels.bundle.inputs import width
from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.manifest import SideLayout, SideName
from kernels.bundle.reference import F32, SparseSide, open_program
from kernels.errors import BundleError
from kernels.executor import DenseExecutor
from kernels.features.blocks import SideMatrices
from kernels.features.spec import Feature, load_spec
from kernels.graph.model import Array
from kernels.lookup import PooledLookup, shard_layout

Cases = Mapping[str, "Case"]


@attrs.frozen(eq=False)
class Case:
    """One recorded call of a model: arrays by the names of its inputs and outputs."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@attrs.frozen(kw_only=True)
class Verdict:
    """How a bundle did.

    Attributes:
        max_rel_error: Largest difference over the recorded value's size; differences of at most
            ``atol`` count for nothing.
        tables_left: Constant tables in the dense graph that rows are looked up in by ids.
    """

    cases: int
    max_abs_error: float
    max_rel_error: float
    tables_cut: int
    tables_left: int
    seconds: float
    ok: bool


def read_cases(file: Path) -> dict[str, Case]:
    """Read recorded pairs: an ``.npz`` with keys ``CASE/in/NAME`` and ``CASE/out/NAME``.

    Raises:
        BundleError: It cannot be read, or has other keys.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not an .npz of arrays: {error}") from error
    found: dict[str, Case] = {}
    for key, array in arrays.items():
        case, _, rest = key.partition("/")
        way, _, name = rest.partition("/")
        if way not in ("in", "out") or not case or not name:
            raise BundleError(f"{file}: key {key!r} is neither CASE/in/NAME nor CASE/out/NAME")
        pair = found.setdefault(case, Case({}, {}))
        found[case] = (
            attrs.evolve(pair, inputs={**pair.inputs, name: array})
            if way == "in"
            else attrs.evolve(pair, outputs={**pair.outputs, name: array})
        )
    if not found:
        raise BundleError(f"{file}: holds no cases")
    return found


def row_shapes(cases: Cases) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of each input, where all cases agree."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for case in cases.values():
        for name, array in case.inputs.items():
            shapes.setdefault(name, set()).add(array.shape[1:])
    return {name: found.pop() for name, found in shapes.items() if len(found) == 1}


def verify(
    bundle: Bundle, cases: Cases, *, rtol: float, atol: float, executor: ExecutorName = "host"
) -> Verdict:
    """Run all cases on an executor.

    Raises:
        BundleError: A case lacks an input or output that the bundle has, or its shape is wrong.
        GraphError: The bundle's graph is for the host executor alone, and another is asked for.
    """
    start = time.perf_counter()
    max_rows = max(_n_rows(case) for case in cases.values())
    opened = open_executor(executor, bundle, max_rows=max_rows, max_requests=max_rows)
    runner = Runner(bundle, opened)
    largest, relative, ok = 0.0, 0.0, True
    for name, case in sorted(cases.items()):
        scores = runner.scores(name, case.inputs)
        for output in bundle.manifest.outputs:
            if output.name not in case.outputs:
                raise BundleError(f"{name}/out/{output.name} is missing")
            want = case.outputs[output.name].astype(np.float64)
            if want.shape != (len(scores), *output.shape):
                raise BundleError(
                    f"{name}/out/{output.name}: {list(want.shape)} was recorded; the model gives "
                    f"{[len(scores), *output.shape]}"
                )
            got = scores[:, output.offset : output.offset + output.width].reshape(want.shape)
            difference = np.nan_to_num(np.abs(got - want))
            ok = ok and bool(np.allclose(got, want, rtol=rtol, atol=atol, equal_nan=True))
            largest = max(largest, float(difference.max(initial=0.0)))
            beyond = np.where(difference > atol, difference, 0.0)
            size = np.maximum(np.abs(np.nan_to_num(want)), np.finfo(np.float32).tiny)
            relative = max(relative, float((beyond / size).max(initial=0.0)))
    runner.close()
    return Verdict(
        cases=len(cases),
        max_abs_error=largest,
        max_rel_error=relative,
        tables_cut=len(bundle.manifest.tables),
        tables_left=sum(not kept.positional for kept in bundle.manifest.kept),
        seconds=round(time.perf_counter() - start, 3),
        ok=ok,
    )


def _n_rows(case: Case) -> int:
    return max((len(array) for array in case.inputs.values() if array.ndim), default=1)


class Runner:
    """Scores recorded graph inputs: encoded features to matrices, lookups, executor.

    Rows that agree in all that the user side has are one request.

    Args:
        bundle: What runs.
        executor: Of this bundle; closed with the runner.
    """

    def __init__(self, bundle: Bundle, executor: DenseExecutor) -> None:
        self._bundle = bundle
        spec = load_spec(bundle.spec_path, tables=False)
        manifest = bundle.manifest
        tables = {table.name: bundle.table(table.name) for table in manifest.tables}
        self._features: dict[SideName, list[Feature]] = {}
        self._sparse: dict[SideName, SparseSide] = {}
        self._lookups: dict[SideName, PooledLookup] = {}
        for side in SIDES:
            layout, program = manifest.side(side), bundle.program(side)
            self._features[side] = [spec.by_name[name] for name in _needs(layout, program)]
            self._sparse[side] = SparseSide(layout, spec, open_program(program))
            self._lookups[side] = PooledLookup(tables, shard_layout(layout, tables))
        self._executor = executor

    def scores(self, case: str, feeds: Mapping[str, Array]) -> F32:
        """Return float32 ``[n, n_outputs]``."""
        user = _columns(case, feeds, self._features["user"])
        candidate = _columns(case, feeds, self._features["candidate"])
        n = {len(array) for array in (*user.values(), *candidate.values())}
        if len(n) != 1:
            raise BundleError(f"{case}: its inputs have {sorted(n)} rows; want one number")
        (n_rows,) = n
        first, request_of_row = _requests(user, self._bundle.manifest.user, n_rows)
        user = {name: array[first] for name, array in user.items()}
        staging = self._executor.staging(0)
        n_requests = len(first)
        staging.user[:n_requests] = self._block("user", user, n_requests)
        staging.candidate[:n_rows] = self._block("candidate", candidate, n_rows)
        staging.request_of_row[:n_rows] = request_of_row
        return self._executor.run(0, n_requests, n_rows)

    def close(self) -> None:
        """Close the executor."""
        self._executor.close()

    def _block(self, side: SideName, columns: Mapping[str, Array], n: int) -> F32:
        layout = self._bundle.manifest.side(side)
        matrices: SideMatrices = self._sparse[side].matrices(columns, n)
        block = np.empty((n, layout.width), np.float32)
        width = layout.width - len(layout.values)
        if width:
            self._lookups[side].run(matrices.ids, matrices.weights, block[:, :width])
        block[:, width:] = matrices.values
        return block


def _needs(layout: SideLayout, program: bytes | None) -> list[str]:
    """Return the features that a side's matrices are made from."""
    sources = (*layout.ids, *layout.weights, *layout.values)
    names = [source.feature for source in sources if not source.program]
    if program is not None:
        names += [each.name for each in onnx.load_from_string(program).graph.input]
    return list(dict.fromkeys(names))


def _columns(case: str, feeds: Mapping[str, Array], features: list[Feature]) -> dict[str, Array]:
    """Take recorded graph inputs apart into the columns of features."""
    columns = {}
    for feature in features:
        if feature.table is not None or feature.kind == "weight":
            raise BundleError(
                f"feature {feature.name!r} has its own table: recorded inputs hold its rows, and "
                "not the ids that they came from"
            )
        if feature.input not in feeds:
            raise BundleError(f"{case}/in/{feature.input} is missing")
        array = feeds[feature.input]
        flat = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
        end = feature.column + width(feature)
        if flat.shape[1] < end:
            raise BundleError(
                f"{case}/in/{feature.input}: rows of {flat.shape[1]} numbers; feature "
                f"{feature.name!r} fills columns {feature.column} to {end - 1}"
            )
        columns[feature.name] = flat[:, feature.column : end]
    return columns


def _requests(user: Mapping[str, Array], layout: SideLayout, n_rows: int) -> tuple[Array, Array]:
    """Return the first row of each request, and the request of each row."""
    if not layout.width or not user:
        return np.zeros(1, np.intp), np.zeros(n_rows, np.int64)
    joined = np.concatenate([np.asarray(array, np.float64) for array in user.values()], axis=1)
    _, first, request_of_row = np.unique(joined, axis=0, return_index=True, return_inverse=True)
    return first, request_of_row.reshape(n_rows)

"""The check that every build does: the cut parts against the whole model, on random inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np

from kernels.bundle.cut import Cut
from kernels.bundle.inputs import Inputs
from kernels.bundle.manifest import Output
from kernels.bundle.planned import Plan
from kernels.bundle.reference import F32, SparseSide, block, open_program, pool
from kernels.bundle.samples import TRIALS, Sampler, ids_of
from kernels.bundle.stores import I64, open_rows, sample_keys, whole_model
from kernels.errors import GraphError
from kernels.features.blocks import SideMatrices
from kernels.features.spec import FeatureSpec
from kernels.graph.model import Array
from kernels.graph.probe import open_file, run_session, session
from kernels.store.table import StoredTable

# Requests of so many rows each; two sizes of batch, and users with one, several and all rows.
_BATCHES = ((1,), (3, 1, 3))
# Sums in another order come to this much in float32 and in float16; a wrong cut to far more. The
# absolute part is of the largest score.
_TOLERANCE = {np.dtype(np.float32): (1e-3, 1e-5), np.dtype(np.float16): (2e-2, 5e-3)}
_SEED = 37


@attrs.frozen(eq=False)
class Checked:
    """What a check found.

    Attributes:
        largest: The largest difference of any score.
        user: float32 ``[1, user width]``: of a row that the dense graph runs on.
        candidate: float32 ``[1, candidate width]``: of the same row.
    """

    largest: float
    user: F32
    candidate: F32


def check_cut(model: Path, cut: Cut, inputs: Inputs, spec: FeatureSpec, plan: Plan) -> Checked:
    """Run model and cut on random rows and compare.

    Where tables of the store take the place of the model's, the whole model is given those of their
    rows that are looked up.

    Raises:
        GraphError: They differ (names the output), or the model ran on none of the inputs.
    """
    dense = session(cut.dense.SerializeToString(), optimise=True)
    programs = {name: each.SerializeToString() for name, each in cut.programs.items()}
    sides = [
        SparseSide(layout, spec, open_program(programs.get(layout.program or "")))
        for layout in (cut.user, cut.candidate)
    ]
    half = any(a.dtype == np.float16 for a in inputs.graph.constants.values())
    tolerance = _TOLERANCE[np.dtype(np.float16 if half else np.float32)]
    largest, problem = 0.0, None
    checked: Checked | None = None
    trials = [
        _draw(sizes, trial, inputs, spec, _sampler(plan))
        for sizes in _BATCHES
        for trial in range(TRIALS)
    ]
    found = [
        [
            side.matrices(rows, n)
            for side, rows, n in zip(
                sides,
                (trial.users, trial.columns),
                (len(trial.sizes), len(trial.request_of_row)),
                strict=True,
            )
        ]
        for trial in trials
    ]
    if plan.stores:
        keys = {name: _keys_of(name, plan, cut, found) for name in plan.stores}
        whole = session(whole_model(model, plan.stores, keys), optimise=True)
    else:
        whole = open_file(model)
    for trial, matrices in zip(trials, found, strict=True):
        columns, request_of_row = trial.columns, trial.request_of_row
        blocks = [
            block(side.layout, each, cut.arrays) for side, each in zip(sides, matrices, strict=True)
        ]
        feeds = inputs.assemble(columns | _table_rows(inputs, spec, columns))
        try:
            want = run_session(whole, list(inputs.graph.outputs), feeds)
        except GraphError as error:
            problem = error  # not the cut's fault; the inputs of another trial may suit the model
            continue
        rows: dict[str, Array] = {
            "user": blocks[0],
            "candidate": blocks[1],
            "request_of_row": request_of_row,
        }
        used = {each.name for each in dense.get_inputs()}
        (scores,) = run_session(dense, None, {k: v for k, v in rows.items() if k in used})
        for output, array in zip(cut.outputs, want, strict=True):
            largest = max(largest, _compare(model, output, scores, array, tolerance))
        if checked is None:
            checked = Checked(0.0, blocks[0][:1], blocks[1][:1])
    if checked is None:
        raise GraphError(f"{model}: does not run on random inputs: {problem}")
    return attrs.evolve(checked, largest=largest)


@attrs.frozen(eq=False)
class _Trial:
    """Features' columns: of requests, and of their rows, user features repeated."""

    sizes: tuple[int, ...]
    request_of_row: Array
    users: dict[str, Array]
    columns: dict[str, Array]


def _draw(
    sizes: tuple[int, ...], trial: int, inputs: Inputs, spec: FeatureSpec, sampler: Sampler
) -> _Trial:
    n, n_requests = sum(sizes), len(sizes)
    request_of_row = np.repeat(np.arange(n_requests), sizes)
    columns = sampler.draw(n, trial) | _table_ids(inputs, spec, n, trial)
    users = {name: array[:n_requests] for name, array in columns.items()}
    for name, array in users.items():
        if spec.by_name[name].side == "user":
            columns[name] = array[request_of_row]
    return _Trial(sizes, request_of_row, users, columns)


def _sampler(plan: Plan) -> Sampler:
    """Return a sampler of all ids that stored tables have, where the graph's own had few."""
    keys: dict[str, list[I64]] = {}
    for name, features in plan.looked_up.items():
        sample = sample_keys(plan.stores[name])
        for feature in features:
            keys.setdefault(feature, []).append(sample)
    joined = {feature: np.concatenate(samples) for feature, samples in keys.items()}
    return attrs.evolve(plan.sampler, bounds={}, keys=joined)


def _keys_of(name: str, plan: Plan, cut: Cut, found: list[list[SideMatrices]]) -> I64:
    """Return the ids that are looked up in a table, ascending."""
    (table,) = {table.name for table in cut.tables if cut.arrays[table.name] is plan.stores[name]}
    ids = [np.zeros(1, np.int64)]
    for matrices in found:
        for side, layout in zip(matrices, (cut.user, cut.candidate), strict=True):
            for lookup in layout.lookups:
                if lookup.table == table:
                    rows = side.ids[lookup.first_id : lookup.first_id + lookup.n_ids]
                    ids.append(rows.reshape(-1))
    return np.unique(np.concatenate(ids))


def _table_ids(inputs: Inputs, spec: FeatureSpec, n: int, trial: int) -> dict[str, Array]:
    """Draw ids and weights for the features that bring their own table."""
    random = np.random.default_rng([_SEED, trial])
    columns: dict[str, Array] = {}
    for feature in inputs.features():
        if feature.table is not None:
            table = open_rows(spec.folder / feature.table)
            keys = sample_keys(table) if isinstance(table, StoredTable) else None
            columns[feature.name] = ids_of(feature, (n, feature.width), random, keys=keys)
            if f"{feature.name}.weight" in spec.by_name:
                weights = random.integers(0, 2, (n, feature.width))
                columns[f"{feature.name}.weight"] = weights.astype(np.float32)
    return columns


def _table_rows(
    inputs: Inputs, spec: FeatureSpec, columns: Mapping[str, Array]
) -> dict[str, Array]:
    """Look those up: what the model's own inputs take."""
    rows: dict[str, Array] = {}
    for feature in inputs.features():
        if feature.table is not None:
            table = open_rows(spec.folder / feature.table)
            weights = columns.get(f"{feature.name}.weight")
            pooling = feature.pooling if weights is None else feature.weighted_pooling
            rows[feature.name] = pool(table, columns[feature.name], weights, pooling)
    return rows


def _compare(
    model: Path, output: Output, scores: F32, want: Array, tolerance: tuple[float, float]
) -> float:
    """Return the largest difference of one output's scores."""
    got = scores[:, output.offset : output.offset + output.width].astype(np.float64)
    expected = want.astype(np.float64).reshape(len(want), -1)
    rtol, atol = tolerance
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    difference = float(np.nan_to_num(np.abs(got - expected)).max(initial=0.0))
    if not np.allclose(got, expected, rtol=rtol, atol=atol * scale, equal_nan=True):
        raise GraphError(
            f"{model}: the cut model's output {output.name!r} differs from the whole model's by up "
            f"to {difference:.3g} on random inputs; the model cannot be cut as it is"
        )
    return difference

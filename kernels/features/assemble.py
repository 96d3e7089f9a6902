"""Feature columns to one side's ids, weights and values, as the manifest lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Manifest, SideLayout, SideName, Source
from kernels.errors import BundleError
from kernels.features.blocks import SideMatrices
from kernels.features.compile import Plan
from kernels.features.faults import CANDIDATE, USER, Faults
from kernels.features.feature import Feature, FeatureSpec
from kernels.features.hashing import I64
from kernels.features.layout import SIDES, Columns
from kernels.features.program import Program
from kernels.features.steps import Index, index_of

_EXACT_F32: Final = 1 << 24  # float32 holds every integer up to this one

# A matrix that rows are taken from: an output of the program, or one side's ids or numbers.
Pool: TypeAlias = str | tuple[int, Literal["ids", "numbers"]]


def wanted_features(
    spec: FeatureSpec, manifest: Manifest, programs: Mapping[SideName, Program]
) -> list[str]:
    """Return the features that a bundle reads, each once, in the order in which it does.

    Raises:
        BundleError: It reads one that the spec does not have.
    """
    names: dict[str, None] = {}
    for side in SIDES:
        layout = manifest.side(side)
        for source in (*layout.ids, *layout.weights, *layout.values):
            if not source.program:
                names[source.feature] = None
        if side in programs:
            names.update(dict.fromkeys(programs[side].inputs))
    for name in names:
        if name not in spec.by_name:
            raise BundleError(f"{spec.name} has no feature {name!r}, which the manifest reads")
    return list(names)


@attrs.frozen(eq=False)
class _Take:
    """Rows of one pool that go to rows of a matrix."""

    pool: Pool
    rows: Index
    places: Index


class Assembler:
    """One side's matrices of a bundle.

    Raises:
        BundleError: The spec's ids or types do not fit the tables and matrices.
    """

    def __init__(self, plan: Plan, manifest: Manifest, side: int, program: Program | None) -> None:
        self._plan = plan
        self._side = side
        self._program = program
        layout = manifest.side(SIDES[side])
        self._sizes = (len(layout.ids), len(layout.weights), len(layout.values))
        bounds = _bounds(manifest, layout)
        for source, bound in zip(layout.ids, bounds, strict=True):
            self._check_id(source, bound)
        self._ids = self._takes(layout.ids)
        self._weights = self._takes(layout.weights)
        self._values = self._takes(layout.values)
        add = np.array([source.add for source in layout.ids], np.int64)
        self._add = add[:, None] if add.any() else None
        computed = [k for k, s in enumerate(layout.ids) if s.program and bounds[k] is not None]
        self._computed = index_of(computed) if computed else None
        self._computed_bounds = np.array([bounds[k] for k in computed], np.uint64)[:, None]
        self._computed_names = [layout.ids[k].feature for k in computed]
        self._inputs = (
            () if program is None else tuple(self._input(program, n) for n in program.inputs)
        )

    def _check_id(self, source: Source, bound: int | None) -> None:
        """Ids of features are within their table once and for all; computed ones are not known."""
        where = f"{SIDES[self._side]} ids: {source.feature!r}"
        if source.program:
            if self._program is None or self._program.outputs.get(source.feature) != "int64":
                raise BundleError(f"{where}: want an int64 output of the side's program")
            return
        feature = self._feature(source)
        if feature.ids is None:
            raise BundleError(f"{where} is a number: it cannot be looked up")
        if bound is None:
            return
        low, high = (each + source.add for each in feature.ids)
        if low < 0 or high >= bound:
            raise BundleError(
                f"{where} gives ids {low} to {high}: its table has rows 0 to {bound - 1}"
            )

    def _feature(self, source: Source) -> Feature:
        feature = self._plan.spec.by_name[source.feature]
        if self._side == USER and feature.side == "candidate":
            raise BundleError(f"{source.feature!r} is a candidate feature, read on the user side")
        if not 0 <= source.column < feature.width:
            raise BundleError(f"{source.feature!r} has no column {source.column}")
        return feature

    def _takes(self, sources: Sequence[Source]) -> list[_Take]:
        by_pool: dict[Pool, list[tuple[int, int]]] = {}
        for place, source in enumerate(sources):
            if source.program:
                if self._program is None or source.feature not in self._program.outputs:
                    raise BundleError(f"no program gives {source.feature!r}")
                by_pool.setdefault(source.feature, []).append((source.column, place))
            else:
                feature = self._feature(source)
                row = self._plan.first[source.feature] + source.column
                by_pool.setdefault(_pool(feature), []).append((row, place))
        return [
            _Take(pool, index_of([row for row, _ in taken]), index_of([to for _, to in taken]))
            for pool, taken in by_pool.items()
        ]

    def _input(self, program: Program, name: str) -> tuple[str, _Take]:
        feature = self._feature(Source(feature=name))
        if program.inputs[name] == "int64" and feature.dtype != "int64":
            raise BundleError(f"{program.name}: input {name!r} wants ids, the feature is a number")
        rows = self._plan.rows([feature])
        return program.inputs[name], _Take(_pool(feature), rows, slice(None))

    def outputs(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """Run the side's program, if it has one.

        Returns:
            Its outputs, ``[width, n]``.

        Raises:
            ProgramError: It failed.
        """
        n = self._n(columns)
        if self._program is None or n == 0:
            return {}
        inputs = {
            name: np.ascontiguousarray(_pick(columns, take, self._side).T, dtype)
            for name, (dtype, take) in zip(self._program.inputs, self._inputs, strict=True)
        }
        return {name: value.T for name, value in self._program.run(inputs, n).items()}

    def _n(self, columns: Columns) -> int:
        return columns.user.n if self._side == USER else columns.candidate.n

    def assemble(
        self, columns: Columns, outputs: Mapping[str, NDArray[Any]], faults: Faults
    ) -> SideMatrices:
        """Return the side's matrices; ``faults`` is told of what fits no table or no float32."""
        n = self._n(columns)
        n_ids, n_weights, n_values = self._sizes
        ids = self._fill(np.int64, n_ids, self._ids, columns, outputs, faults)
        if self._add is not None:
            ids = ids + self._add
        if self._computed is not None and n:
            self._check_computed(ids, faults)
        values = self._fill(np.float32, n_values, self._values, columns, outputs, faults)
        return SideMatrices(
            ids=ids,
            weights=self._fill(np.float32, n_weights, self._weights, columns, outputs, faults),
            values=np.ascontiguousarray(values.T),
        )

    def _fill(
        self,
        dtype: type[np.generic],
        size: int,
        takes: Sequence[_Take],
        columns: Columns,
        outputs: Mapping[str, NDArray[Any]],
        faults: Faults,
    ) -> NDArray[Any]:
        """Return one matrix, ``[size, n]``; it may share memory with ``columns``."""
        n = self._n(columns)
        if n == 0 or not takes:
            return np.empty((size, n), dtype)
        matrix = np.empty((0, n), dtype)
        for take in takes:
            rows = self._rows(take, columns, outputs)
            if rows.dtype != dtype:
                self._check_exact(rows, take, faults)
                rows = rows.astype(dtype)
            if len(takes) == 1 and isinstance(take.places, slice):
                return rows
            if not len(matrix):
                matrix = np.empty((size, n), dtype)
            matrix[take.places] = rows
        return matrix

    def _rows(
        self, take: _Take, columns: Columns, outputs: Mapping[str, NDArray[Any]]
    ) -> NDArray[Any]:
        if isinstance(take.pool, str):
            return outputs[take.pool][take.rows]
        return _pick(columns, take, self._side)

    def _check_exact(self, rows: NDArray[Any], take: _Take, faults: Faults) -> None:
        """Integers that become float32 must not be rounded on the way."""
        inexact = (rows > _EXACT_F32) | (rows < -_EXACT_F32)
        if inexact.any():
            fields = self._fields(take, len(rows))
            faults.add_mask(
                self._side,
                inexact,
                fields,
                lambda c, n: f"{rows[c, n]} goes to the model as float32, which would round it",
            )

    def _fields(self, take: _Take, n: int) -> list[str]:
        """Return the feature of each row of a take, for messages."""
        if isinstance(take.pool, str):
            return [take.pool] * n
        owners = {
            self._plan.first[f.name] + column: f.name
            for f in self._plan.wanted
            if _pool(f) == take.pool
            for column in range(f.width)
        }
        return [owners[row] for row in np.arange(len(owners))[take.rows].tolist()]

    def _check_computed(self, ids: I64, faults: Faults) -> None:
        computed = ids[self._computed]
        outside = computed.view(np.uint64) >= self._computed_bounds
        if outside.any():
            faults.add_mask(
                self._side,
                outside,
                self._computed_names,
                lambda c, n: (
                    f"the id {computed[c, n]} that the model computes is outside its table's rows "
                    f"0 to {int(self._computed_bounds[c, 0]) - 1}"
                ),
            )


def _pool(feature: Feature) -> Pool:
    return SIDES.index(feature.side), "ids" if feature.dtype == "int64" else "numbers"


def _pick(columns: Columns, take: _Take, side: int) -> NDArray[Any]:
    """Return some rows of a pool of features; the user's once for each candidate, if need be."""
    assert isinstance(take.pool, tuple)
    owner, kind = take.pool
    source = columns.user if owner == USER else columns.candidate
    rows = (source.ids if kind == "ids" else source.numbers)[take.rows]
    if owner == USER and side == CANDIDATE:
        return np.repeat(rows, columns.n_rows, axis=1)
    return rows


def _bounds(manifest: Manifest, layout: SideLayout) -> list[int | None]:
    """Return the rows of the smallest table that each row of ids is looked up in.

    None where these are tables of keys alone, which take any.
    """
    rows = {table.name: table.rows for table in manifest.tables if not table.keyed}
    bounds: list[int | None] = [None] * len(layout.ids)
    for lookup in layout.lookups:
        if lookup.table not in rows:
            continue
        for place in range(lookup.first_id, lookup.first_id + lookup.n_ids):
            bound = bounds[place]
            bounds[place] = min(rows[lookup.table], rows[lookup.table] if bound is None else bound)
    return bounds

"""Recorded calls of a model: arrays by the names of its inputs and outputs, and what they ask for.

An ``.npz`` file holds them under ``CASE/in/NAME`` and ``CASE/out/NAME``, with rows in dimension 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import onnx

from kernels.bundle.inputs import width
from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.manifest import SideLayout, SideName
from kernels.bundle.reference import SparseSide, open_program
from kernels.errors import BundleError
from kernels.features.blocks import SideMatrices
from kernels.features.spec import Feature, load_spec
from kernels.graph.model import Array

Cases = Mapping[str, "Case"]


@attrs.frozen(eq=False)
class Case:
    """One recorded call of a model: arrays by the names of its inputs and outputs."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


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


@attrs.frozen(eq=False)
class RecordedRows:
    """What the sparse half makes of a recorded call.

    Attributes:
        user: Of each request.
        candidate: Of each row.
        request_of_row: int64 ``[n]``.
    """

    user: SideMatrices
    candidate: SideMatrices
    request_of_row: Array

    @property
    def n_requests(self) -> int:
        """How many requests there are."""
        return len(self.user.values)


class RecordedInputs:
    """Takes recorded graph inputs to ids, weights and values, for any bundle of that graph.

    Rows that agree in all that the user side has are one request.
    """

    def __init__(self, bundle: Bundle) -> None:
        spec = load_spec(bundle.spec_path, tables=False)
        self._manifest = bundle.manifest
        self._features: dict[SideName, list[Feature]] = {}
        self._sparse: dict[SideName, SparseSide] = {}
        for side in SIDES:
            layout, program = self._manifest.side(side), bundle.program(side)
            self._features[side] = [spec.by_name[name] for name in _needs(layout, program)]
            self._sparse[side] = SparseSide(layout, spec, open_program(program))

    def rows(self, case: str, feeds: Mapping[str, Array]) -> RecordedRows:
        """Return what a call asks for.

        Raises:
            BundleError: An input is missing, or is not like the features; names ``case``.
        """
        user = _columns(case, feeds, self._features["user"])
        candidate = _columns(case, feeds, self._features["candidate"])
        n = {len(array) for array in (*user.values(), *candidate.values())}
        if len(n) != 1:
            raise BundleError(f"{case}: its inputs have {sorted(n)} rows; want one number")
        (n_rows,) = n
        first, request_of_row = _requests(user, self._manifest.user, n_rows)
        user = {name: array[first] for name, array in user.items()}
        return RecordedRows(
            self._sparse["user"].matrices(user, len(first)),
            self._sparse["candidate"].matrices(candidate, n_rows),
            request_of_row,
        )


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
    joined = np.concatenate([_bits(array) for array in user.values()], axis=1)
    _, first, request_of_row = np.unique(joined, axis=0, return_index=True, return_inverse=True)
    return first, request_of_row.reshape(n_rows)


def _bits(array: Array) -> Array:
    """Return int64 that differ where numbers do: keys would be rounded as float64."""
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array + 0.0, np.float64).view(np.int64)
    return array.astype(np.int64)

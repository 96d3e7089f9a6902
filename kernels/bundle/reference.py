"""The sparse half in numpy: what the gateway and the shards do, as plainly as it can be written.

Starts from features' encoded columns (ids and numbers), not from raw values: it is the oracle of a
cut, and says nothing of parsing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup, Pooling, SideLayout, Source
from kernels.bundle.stores import fetch_rows
from kernels.features.blocks import SideMatrices
from kernels.features.spec import FeatureSpec
from kernels.graph.model import Array
from kernels.graph.probe import run_session, session
from kernels.store.table import StoredTable

F32 = NDArray[np.float32]
_DTYPES = {"int64": np.int64, "float32": np.float32}


@attrs.frozen(eq=False)
class SparseSide:
    """Takes features' columns of one side to its ids, weights and values.

    Attributes:
        program: Runs the side's program: features' columns in, its outputs out.
    """

    layout: SideLayout
    spec: FeatureSpec
    program: Callable[[Mapping[str, Array]], Mapping[str, Array]]

    def matrices(self, columns: Mapping[str, Array], n: int) -> SideMatrices:
        """Compute the matrices of ``n`` rows; each of ``columns`` is ``[n, width]``."""
        typed = {
            name: np.ascontiguousarray(array, _DTYPES[self.spec.by_name[name].dtype])
            for name, array in columns.items()
        }
        made = self.program(typed)

        def rows(sources: tuple[Source, ...], dtype: Any) -> Array:  # noqa: ANN401 - a dtype
            out = np.empty((len(sources), n), dtype)
            for row, source in zip(out, sources, strict=True):
                matrix = made[source.feature] if source.program else typed[source.feature]
                row[:] = matrix[:, source.column]
                if source.add:
                    row += source.add
            return out

        return SideMatrices(
            ids=rows(self.layout.ids, np.int64),
            weights=rows(self.layout.weights, np.float32),
            values=np.ascontiguousarray(rows(self.layout.values, np.float32).T),
        )


def open_program(model: bytes | None) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """Open a program (None: there is none, and nothing is computed)."""
    if model is None:
        return lambda _: {}
    opened = session(model, optimise=True)
    inputs = [each.name for each in opened.get_inputs()]
    outputs = [each.name for each in opened.get_outputs()]

    def run(columns: Mapping[str, Array]) -> Mapping[str, Array]:
        results = run_session(opened, outputs, {name: columns[name] for name in inputs})
        return dict(zip(outputs, results, strict=True))

    return run


def block(
    layout: SideLayout, matrices: SideMatrices, tables: Mapping[str, StoredTable | Array]
) -> F32:
    """Look everything up: float32 ``[n, layout.width]``."""
    n = matrices.values.shape[0]
    out = np.empty((n, layout.width), np.float32)
    for lookup in layout.lookups:
        end = lookup.offset + lookup.width
        out[:, lookup.offset : end] = look_up(lookup, matrices, tables[lookup.table])
    out[:, layout.width - len(layout.values) :] = matrices.values
    return out


def look_up(lookup: Lookup, matrices: SideMatrices, table: StoredTable | Array) -> F32:
    """Do one lookup, as ``manifest.Lookup`` defines it; ids are within the table."""
    ids = matrices.ids[lookup.first_id : lookup.first_id + lookup.n_ids].T
    weights = None
    if lookup.first_weight is not None:
        first = lookup.first_weight
        weights = matrices.weights[first : first + lookup.n_ids].T
    return pool(table, ids, weights, lookup.pooling)


def pool(table: StoredTable | Array, ids: Array, weights: Array | None, pooling: Pooling) -> F32:
    """Pool the rows of ids ``[n, n_ids]``, with weights of that shape or none."""
    rows = fetch_rows(table, ids)
    if pooling == "none":
        flat: F32 = rows.reshape(len(rows), -1)
        return flat
    each = None if weights is None else weights[:, :, None]
    pooled: F32
    if pooling == "max":
        pooled = (rows if each is None else rows + each).max(axis=1)
        return pooled
    pooled = (rows if each is None else rows * each).sum(axis=1, dtype=np.float32)
    return pooled / np.float32(ids.shape[1]) if pooling == "mean" else pooled

"""Where updates of one version of a model go: which table takes what, and which group has the rows.

Updaters and shards derive the same from the bundle and the topology.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.load import Bundle
from kernels.bundle.manifest import Table
from kernels.errors import LookupFailed
from kernels.placement import Placement, placement_for
from kernels.store.changes import Change
from kernels.store.partition import segment_of
from kernels.store.rows import RowType, encode_rows
from runtime.errors import StartError
from runtime.topology import ModelSpec, Topology

UPDATE_BYTES_MOST: Final = 32 << 20
"""Of one update, which is applied at once: about 10 ms in which a shard answers nobody."""


@attrs.frozen(eq=False)
class Routes:
    """One version of a model, as updates see it.

    Attributes:
        version: The bundle's.
        tables: Of the bundle, by name.
        placement: Where they lie.
        replicas: The shards of each group.
    """

    model: str
    version: str
    tables: Mapping[str, Table]
    placement: Placement
    replicas: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: ModelSpec, bundle: Bundle) -> Routes:
        """Return the routes of a bundle that a model of the topology serves.

        Raises:
            PlacementError: Its placement does not fit it.
        """
        placement = placement_for(bundle, model.n_groups, model.placement)
        return cls(
            model=model.name,
            version=bundle.manifest.version,
            tables={table.name: table for table in bundle.manifest.tables},
            placement=placement,
            replicas=tuple(model.replicas_of(group) for group in range(model.n_groups)),
        )

    def problem_of(
        self, table: str, keys: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> tuple[str, str] | None:
        """Return the field at fault and what is wrong, if these rows cannot be taken."""
        known = self.tables.get(table)
        if known is None:
            names = ", ".join(sorted(self.tables))
            return "table", f"model {self.model} has no table {table!r}; there are {names}"
        if table in self.placement.device:
            return "table", (
                f"table {table} lies on the executors' cards (device): "
                "updates of device tables are not supported"
            )
        if rows.shape[1] != known.dim:
            return "rows", f"rows of {rows.shape[1]} numbers; table {table} has {known.dim}"
        n_bytes = keys.nbytes + len(keys) * known.row_bytes
        if n_bytes > UPDATE_BYTES_MOST:
            most = f"at most {UPDATE_BYTES_MOST} bytes"
            return "rows", f"an update of {n_bytes} bytes; {most}: publish it in parts"
        try:
            self._segments(known, keys)
        except LookupFailed as error:
            return "keys", f"table {table}: {error}"
        if known.dtype == "int8" and not np.isfinite(rows).all():
            return "rows", f"table {table} is int8, which has no NaN and no infinity"
        return None

    def encode(self, table: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return rows as a table stores them, uint8 ``[n, row_bytes]``; NaN as it is."""
        return encode_rows(rows, self.row_type(table))

    def row_type(self, table: str) -> RowType:
        """Return how a table stores its rows."""
        return cast("RowType", self.tables[table].dtype)  # checked by the manifest's reader

    def fits(self, change: Change) -> bool:
        """Return whether a change of another version, or division, is one of this as well."""
        table = self.tables.get(change.table)
        if (
            table is None
            or change.table in self.placement.device
            or change.dtype != table.dtype
            or change.rows.shape[1] != table.row_bytes
        ):
            return False
        try:
            self._segments(table, change.keys)
        except LookupFailed:
            return False
        return True

    def split(self, change: Change) -> dict[int, Change]:
        """Divide a change by group; groups without a row of it have no part."""
        table = self.tables[change.table]
        groups = self.placement.group_of(change.table)[self._segments(table, change.keys)]
        parts: dict[int, Change] = {}
        for group in np.unique(groups).tolist():
            at = np.flatnonzero(groups == group)
            parts[group] = (
                change
                if len(at) == len(groups)
                else attrs.evolve(change, keys=change.keys[at], rows=change.rows[at])
            )
        return parts

    @staticmethod
    def _segments(table: Table, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return segment_of(keys, n_segments=table.segments, rows=table.rows, keyed=table.keyed)


def updater_of(topology: Topology, model: str) -> str | None:
    """Return the actor that numbers a model's updates; None if the model takes none.

    Raises:
        StartError: There are two.
    """
    names = topology.updaters(model)
    if len(names) > 1:
        raise StartError(
            f"model {model}: {' and '.join(names)} are both its updater; the option `models` "
            "of an updater says which models are its own"
        )
    return names[0] if names else None

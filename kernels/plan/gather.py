"""The first step of a tile that makes its rows of a block of ids: ``cuda/gather.cuh`` says how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.ir.node import Lead
from kernels.plan.matrix import ELEMENTS, Matrix
from kernels.program import Pointer, Role

if TYPE_CHECKING:
    from kernels.plan.tile import TileBuilder

INCLUDE: Final = '#include "gather.cuh"\n'
_UNIT_BYTES: Final = 16
# As ``GatherUnit`` of gather.cuh.
_UNIT: Final = np.dtype(
    [
        ("at", "<u8"),
        ("rows", "<i4"),
        ("row_bytes", "<i4"),
        ("id", "<i4"),
        ("n_ids", "<i4"),
        ("weight", "<i4"),
        ("column", "<i4"),
        ("columns", "<i4"),
        ("largest", "<i4"),
        ("divisor", "<f4"),
        ("unused", "<i4"),
    ]
)


@attrs.frozen(eq=False)
class Gather:
    """Makes one block.

    Attributes:
        staged: Its staged rows; a whole row is the matrix's columns.
        block: Where it is made.
    """

    tables: DeviceTables
    side: GatheredSide
    staged: Matrix
    block: Matrix

    @property
    def lead(self) -> Lead:
        """What the block's rows are."""
        return self.block.lead

    def title(self) -> str:
        """Say for people what it does."""
        width = self.side.width - self.side.staged_width
        return f"gather {width} columns of {len(self.side.lookups)} lookups"

    def text(self, b: TileBuilder) -> list[str]:
        """Return statements of a tile's consumers; a barrier must follow."""
        staged, block = b.parameter(self.staged), b.parameter(self.block)
        element, stored = self.block.element, ELEMENTS[self.tables.precision]
        pointer = Pointer(Role.TABLES)
        tables = b.parameter(Matrix(pointer, self.lead, 0, 0, stored))
        single, pooled = self._units()
        units = b.globals.add(np.concatenate([single, pooled]))
        ids = self.side.ids_at * self.staged.element_bytes
        sizes = (len(single), len(pooled), self.block.ld, self.staged.row_bytes)
        lines = [
            f"gather_columns<Cfg, {element}, {stored}, {', '.join(map(str, sizes))}, "
            f"{ids}, {ids + 4 * self.side.n_ids}>"
            f"(tile, {block}, {staged}, {tables}, globals + {units});"
        ]
        lines += [
            f"place_columns<Cfg, {element}, {run.width}, {self.block.ld}, {self.staged.row_bytes}>"
            f"(tile, {block}, {run.block}, {staged}, {run.part});"
            for run in self.side.staged
        ]
        return lines

    def _units(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Return whole units of single ids, then all others."""
        item = self.tables.precision.item_bytes
        single: list[NDArray[np.void]] = []
        pooled: list[NDArray[np.void]] = []
        for lookup in self.side.lookups:
            table = self.tables.table(lookup.table)
            row_bytes = table.dim * item
            bags = [lookup]
            if lookup.pooling == "none":  # bags of one, side by side
                bags = [_alone(lookup, k, table.dim) for k in range(lookup.n_ids)]
            for bag in bags:
                units = self._of_bag(bag, table.offset, table.rows, row_bytes)
                whole = row_bytes % _UNIT_BYTES == 0
                is_row = bag.n_ids == 1 and bag.first_weight is None
                (single if whole and is_row else pooled).append(units)
        empty = np.zeros(0, _UNIT)
        return np.concatenate([empty, *single]), np.concatenate([empty, *pooled])

    def _of_bag(self, bag: Lookup, at: int, rows: int, row_bytes: int) -> NDArray[np.void]:
        item = row_bytes // bag.width
        per = _UNIT_BYTES // item
        units = np.zeros(-(-bag.width // per), _UNIT)
        first = np.arange(len(units)) * per
        units["at"] = at + first * item
        units["rows"], units["row_bytes"] = rows, row_bytes
        units["id"], units["n_ids"] = bag.first_id, bag.n_ids
        units["weight"] = -1 if bag.first_weight is None else bag.first_weight
        units["column"] = bag.offset + first
        units["columns"] = np.minimum(bag.width - first, per)
        units["largest"] = bag.pooling == "max"
        units["divisor"] = bag.n_ids if bag.pooling == "mean" else 1
        return units


def _alone(lookup: Lookup, k: int, dim: int) -> Lookup:
    """Return the lookup of one id of an unpooled one."""
    return attrs.evolve(
        lookup,
        pooling="sum",
        first_id=lookup.first_id + k,
        n_ids=1,
        first_weight=None,
        offset=lookup.offset + k * dim,
        width=dim,
    )

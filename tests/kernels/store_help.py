"""What the tests of durable updates share: changes that show tears, and tables to apply them to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernels.store.changes import Change
from kernels.store.disk import DISK, Disk
from kernels.store.state import ChangingTable, UpdateState

DIM = 4
N_ROWS = 50
STREAM = 7


class Rows:
    """Changed rows in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.rows.values()))

    def put(self, keys: NDArray[np.int64], encoded: NDArray[np.uint8]) -> None:
        for key, row in zip(keys.tolist(), encoded, strict=True):
            self.rows[key] = row.tobytes()

    def copy(self, first: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        items = list(self.rows.items())[first : first + n]
        keys = np.array([key for key, _ in items], np.int64)
        joined = b"".join(row for _, row in items)
        return keys, np.frombuffer(joined, np.uint8).reshape(len(items), 4 * DIM)


def rows_of(value: float, n: int) -> NDArray[np.uint8]:
    """Return encoded rows of one value, so that a torn one is seen."""
    return np.full((n, DIM), value, np.float32).view(np.uint8)


def change(number: int, keys: list[int], *, table: str = "items", stream: int = STREAM) -> Change:
    """Return an update whose rows hold its number in all places."""
    return Change(
        stream=stream,
        number=number,
        at_us=1_000_000 * number,
        table=table,
        dtype="fp32",
        keys=np.array(keys, np.int64),
        rows=rows_of(number, len(keys)),
        source="trainer",
        position=number,
    )


def tables() -> dict[str, ChangingTable]:
    """Return a dense table and a keyed one."""
    return {"items": table(N_ROWS), "users": table(None)}


def table(n_rows: int | None) -> ChangingTable:
    """Return a dense table of so many rows, or one of keys."""
    return ChangingTable(
        dtype="fp32",
        row_bytes=4 * DIM,
        rows=n_rows or 0,
        keyed=n_rows is None,
        n_segments=1,
        segments=range(1),
        changed=Rows(),
    )


def open_state(folder: Path, disk: Disk = DISK, rotate_bytes: int = 1500) -> UpdateState:
    """Open the state of these tables."""
    return UpdateState(folder, tables(), rotate_bytes=rotate_bytes, disk=disk)


def contents(state: UpdateState) -> dict[tuple[str, int], bytes]:
    """Return all changed rows."""
    found: dict[tuple[str, int], bytes] = {}
    for name, table in state.tables.items():
        assert isinstance(table.changed, Rows)
        found.update({(name, key): row for key, row in table.changed.rows.items()})
    return found

"""Fills Redis with the rows of a bundle's table, and compares them.

In steps of a few thousand rows, so that a table of any size takes little memory; after each, the
table's ``About`` says how far it has come, and a load that was stopped goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.redis.client import Client
from actors.redis.errors import BadRow
from actors.redis.keys import get, put
from actors.redis.rows import About, RedisTable
from kernels.bundle.load import Bundle

# Rows sent together: 4 MB of 1 KB rows.
STEP: Final = 4096


class Step(NamedTuple):
    """Some rows of a table: int64 ``[n]`` keys or numbers, uint8 ``[n, row_bytes]`` as stored."""

    keys: NDArray[np.int64]
    rows: NDArray[np.uint8]


@attrs.define
class Compared:
    """How Redis differs from a bundle.

    Attributes:
        rows: That were compared.
        missing: Of these, how many are not there.
        different: How many are there and have other bytes.
        first: The key of the first that is missing or different.
    """

    rows: int = 0
    missing: int = 0
    different: int = 0
    first: str = ""

    @property
    def is_same(self) -> bool:
        """Whether nothing is missing or different."""
        return not self.missing and not self.different


async def fill(
    client: Client,
    table: RedisTable,
    bundle: Bundle,
    progress: Callable[[int], None],
    *,
    again: bool = False,
) -> int:
    """Set all rows of a table, from where the last call for this version stopped.

    Args:
        client: Running.
        table: Which, and where to.
        bundle: Where from.
        progress: Told how many rows are there, after each step.
        again: From the first row on, whatever is there.

    Returns:
        How many rows were there before.

    Raises:
        BadRow: Another table is there, or something else.
        RedisError: Redis does not do it.
    """
    about = await begun(client, table, bundle)
    if again:
        about = attrs.evolve(about, done=0)
    start = about.done
    for step in steps_of(bundle, table.table.name, start):
        rows = [row.tobytes() for row in step.rows]
        await put(client, table.keys_of(step.keys), rows)
        about = attrs.evolve(about, done=about.done + len(rows))
        if about.done == about.rows:
            about = attrs.evolve(about, whole=True)
        await client.ask(table.about, b"HSET", table.about, *about.words())
        progress(about.done)
    return start


async def begun(client: Client, table: RedisTable, bundle: Bundle) -> About:
    """Return how far a table's load has come; notes it where it has not begun.

    Raises:
        BadRow: Another table is there, or something else.
    """
    of = table.table
    version = of.version or bundle.manifest.version
    about = About(
        dtype=of.dtype,
        dim=of.dim,
        keyed=of.keyed,
        rows=of.rows,
        version=version,
        whole=of.rows == 0,
    )
    there = await read_about(client, table)
    if there is not None:
        wrong = there.problem(of) if there.whole else attrs.evolve(there, whole=True).problem(of)
        if wrong:
            raise BadRow(f"key {table.about.decode()!r}: {wrong}; choose another prefix")
        if there.version == version:
            return there
        about = attrs.evolve(about, whole=there.whole)
    await client.ask(table.about, b"HSET", table.about, *about.words())
    return about


async def read_about(client: Client, table: RedisTable) -> About | None:
    """Return what a table says about itself, if it does.

    Raises:
        RedisError: Redis cannot be asked, or something else is there.
    """
    return About.read(await client.ask(table.about, b"HGETALL", table.about), table.about)


async def compare(
    client: Client, table: RedisTable, bundle: Bundle, progress: Callable[[int], None]
) -> Compared:
    """Compare all rows of a table with those in a bundle.

    Raises:
        RedisError: Redis cannot be asked.
    """
    found = Compared()
    for step in steps_of(bundle, table.table.name, 0):
        names = table.keys_of(step.keys)
        values = await get(client, names)
        for name, row, value in zip(names, step.rows, values, strict=True):
            if value != row.tobytes():
                found.missing += value is None
                found.different += value is not None
                found.first = found.first or name.decode()
        found.rows += len(names)
        progress(found.rows)
    return found


def steps_of(bundle: Bundle, name: str, start: int) -> Iterator[Step]:
    """Yield the rows of a table from the ``start``-th on, in an order that is always the same."""
    table = bundle.open_table(name)
    for segment in table.segments:
        n = table.header.segments[segment].rows
        if start < n:
            keys, rows = table.keys_of(segment), table.rows_of(segment)
            for first in range(start, n, STEP):
                yield Step(keys[first : first + STEP], rows[first : first + STEP])
        start = max(start - n, 0)

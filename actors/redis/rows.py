"""A table's keys and rows as Redis holds them.

Row ``k`` of a table, ``k`` being its 64-bit key, or its number in a table without keys, is a string
under ``<prefix><k>``, ``k`` in decimal with its sign. The prefix is ``<table>:`` unless the shard's
options say otherwise. The string is the row as the store has it (``kernels.store.rows``), of
exactly ``row_bytes`` bytes; so whoever writes rows there with ``SET`` or ``MSET`` updates the
table at once.

What ``python -m actors.redis load`` fills has a hash under ``<prefix>about`` as well (``About``),
by which a shard notices that it would misread the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import Final, cast

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.redis.errors import BadRow
from actors.redis.wire import Reply
from kernels.bundle.load import Bundle
from kernels.bundle.manifest import Table
from kernels.store.rows import encode_rows

PREFIX: Final = "{table}:"
_PLACES: Final = ("table", "model", "version")
_VERSION_DIGITS: Final = 12


def prefix_of(template: str, *, table: str, model: str, version: str) -> bytes:
    """Return a table's prefix.

    Args:
        template: With ``{table}``, and perhaps ``{model}`` and ``{version}``: twelve digits of the
            bundle's, so that versions lie side by side.
        table: The table's name.
        model: The model's, in the topology.
        version: The bundle's.

    Raises:
        ValueError: The template names something else, or not the table.
    """
    try:
        places = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"prefix {template!r}: {error}") from error
    if "table" not in places or not places <= set(_PLACES):
        raise ValueError(
            f"prefix {template!r}: want {{table}} in it, and of others only {{model}}, {{version}}"
        )
    return template.format(table=table, model=model, version=version[:_VERSION_DIGITS]).encode()


@attrs.frozen(kw_only=True, eq=False)
class RedisTable:
    """One table.

    Attributes:
        prefix: What its keys begin with.
        default: The row of keys that are missing, of a table with keys, as it is stored.
    """

    table: Table
    prefix: bytes
    default: bytes

    @classmethod
    def of(cls, bundle: Bundle, name: str, prefix: bytes) -> RedisTable:
        """Return a table of a bundle; of its files, no more than what describes it is read.

        Raises:
            BundleError: There is no such table, or it is damaged.
        """
        (table,) = [each for each in bundle.manifest.tables if each.name == name]
        default = bundle.open_table(name, range(0)).default_row
        encoded = encode_rows(default[np.newaxis], table.row_type)
        return cls(table=table, prefix=prefix, default=encoded.tobytes())

    @property
    def about(self) -> bytes:
        """The key of what it says about itself."""
        return self.prefix + b"about"

    def keys_of(self, keys: NDArray[np.int64]) -> list[bytes]:
        """Return the names in Redis of some keys (row numbers): int64 ``[n]``."""
        name = self.prefix.replace(b"%", b"%%") + b"%d"
        return [name % key for key in keys.tolist()]

    def rows_of(self, keys: NDArray[np.int64], values: Sequence[bytes | None]) -> bytes:
        """Return what Redis holds for some keys as rows, one after the other, as they are stored.

        Args:
            keys: int64 ``[n]``.
            values: What each holds, or None.

        Raises:
            BadRow: A row is missing, in a table without keys, or has another size; names the key.
        """
        if None in values:
            if not self.table.keyed:
                at = values.index(None)
                raise BadRow(
                    f"key {self._name(keys[at])}: missing, or no string; "
                    f"table {self.table.name} has {self.table.rows} rows"
                )
            values = [self.default if value is None else value for value in values]
        whole = cast("Sequence[bytes]", values)
        size = self.table.row_bytes
        if set(map(len, whole)) - {size}:
            at = next(i for i, value in enumerate(whole) if len(value) != size)
            raise BadRow(
                f"key {self._name(keys[at])}: {len(whole[at])} bytes; rows of table "
                f"{self.table.name} ({self.table.dtype}, dim {self.table.dim}) have {size}"
            )
        return b"".join(whole)

    def _name(self, key: int) -> str:
        return repr(self.keys_of(np.array([key]))[0])[1:]


@attrs.frozen(kw_only=True)
class About:
    """What a table in Redis says about itself.

    Attributes:
        version: Of the table that it is filled from.
        done: Rows of that which are there, in its order.
        whole: Whether it has been filled at least once, by this version or another.
    """

    dtype: str
    dim: int
    keyed: bool
    rows: int
    version: str
    done: int = 0
    whole: bool = False

    def words(self) -> list[bytes]:
        """Return its fields and values, for ``HSET``."""
        words: list[bytes] = []
        for name, value in attrs.asdict(self).items():
            if isinstance(value, bool):
                value = int(value)
            words += (name.encode(), str(value).encode())
        return words

    @classmethod
    def read(cls, reply: Reply, key: bytes) -> About | None:
        """Read the reply to ``HGETALL``; None where there is no such key.

        Raises:
            BadRow: It is something else.
        """
        if reply == []:
            return None
        try:
            words = cast("list[bytes]", reply)
            raw = {
                name.decode(): value for name, value in zip(words[::2], words[1::2], strict=True)
            }
            return cls(
                dtype=raw["dtype"].decode(),
                dim=int(raw["dim"]),
                keyed=raw["keyed"] == b"1",
                rows=int(raw["rows"]),
                version=raw["version"].decode(),
                done=int(raw["done"]),
                whole=raw["whole"] == b"1",
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRow(f"key {key!r}: not what describes a table: {error!r}") from error

    def problem(self, table: Table) -> str | None:
        """Say why rows of a bundle's table cannot be read from here, if they cannot."""
        want = (table.dtype, table.dim, table.keyed)
        if want != (self.dtype, self.dim, self.keyed):
            return f"Redis has {_form(self.dtype, self.dim, self.keyed)}, the bundle {_form(*want)}"
        if not self.whole:
            return f"loading it has not ended: {self.done} of {self.rows} rows are there"
        return None


def _form(dtype: str, dim: int, keyed: bool) -> str:
    return f"{'keyed' if keyed else 'dense'} rows of {dim} {dtype}"

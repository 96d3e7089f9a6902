"""Which keys are being fetched, and by which fetch, so that nobody fetches them again meanwhile."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels._native import Native
from kernels.hot._c import hot

I64 = NDArray[np.int64]

_CELLS_FIRST: Final = 1 << 12
_CELL: Final = np.dtype([("key", "<i8"), ("number", "<i8"), ("table", "<i8")])


class Claims:
    """Keys of tables, each claimed by a number. Not to be used from two threads at once.

    Numbers ascend: those that a call gives follow each other, and those of the calls before. So
    whoever fetches keys together finds each in its place by a subtraction.

    Args:
        native: False to use Python even where C is there.
    """

    def __init__(self, *, native: bool = True) -> None:
        library = hot() if native else None
        self._claims = _PlainClaims() if library is None else _NativeClaims(library)
        self._next = 0

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def next_number(self) -> int:
        """The first number that no claim has had yet."""
        return self._next

    def take(self, tables: I64, keys: I64, oldest: int) -> I64:
        """Claim keys, but for those that are claimed already.

        Args:
            tables: int64 ``[n]``, the table of each key.
            keys: int64 ``[n]``.
            oldest: Claims of a lower number do not count any more.

        Returns:
            int64 ``[n]``, the number of each key's claim: from ``next_number`` on, ascending, where
            it is a new one.
        """
        numbers, self._next = self._claims.take(tables, keys, oldest, self._next)
        return numbers

    def drop(self, tables: I64, keys: I64, first: int = 0, last: int | None = None) -> I64:
        """Give up those claims of keys whose numbers are from ``first`` on, and below ``last``.

        Returns:
            int64 ``[n]``, the numbers of the claims that were given up; -1 where there was none.
        """
        return self._claims.drop(tables, keys, first, self._next if last is None else last)


class _NativeClaims:
    """The same in C, in cells that are probed one after the other."""

    def __init__(self, native: Native) -> None:
        self._native = native
        # Keys come from clients, who must not know which of them collide.
        self._seed = int.from_bytes(os.urandom(8))
        self._cells, self._state = self._make(_CELLS_FIRST)

    def __len__(self) -> int:
        return int(self._state.n_used)

    def take(self, tables: I64, keys: I64, oldest: int, next_number: int) -> tuple[I64, int]:
        n = len(keys)
        n_cells = self._state.n_cells
        while 2 * (self._state.n_used + n) >= n_cells:
            n_cells *= 2
        if n_cells > self._state.n_cells:
            cells, state = self._make(n_cells)
            self._native.lib.tb_claims_move(state, self._state)
            self._cells, self._state = cells, state
        numbers = np.empty(n, np.int64)
        array = self._array
        next_number = self._native.lib.tb_claims_take(
            self._state, array(tables), array(keys), n, oldest, next_number, array(numbers)
        )
        return numbers, next_number

    def drop(self, tables: I64, keys: I64, first: int, last: int) -> I64:
        numbers = np.empty(len(keys), np.int64)
        array = self._array
        self._native.lib.tb_claims_drop(
            self._state, array(tables), array(keys), len(keys), first, last, array(numbers)
        )
        return numbers

    def _array(self, values: I64) -> Any:  # noqa: ANN401 - cffi is untyped
        return self._native.ffi.from_buffer("int64_t[]", values)

    def _make(self, n_cells: int) -> tuple[NDArray[Any], Any]:
        cells = np.zeros(n_cells, _CELL)
        state = self._native.ffi.new("claims *")
        state.cells = cells.__array_interface__["data"][0]
        state.n_cells = n_cells
        state.seed = self._seed
        return cells, state


class _PlainClaims:
    """The same with a dictionary: the oracle of the tests, and where there is no C compiler."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, tables: I64, keys: I64, oldest: int, next_number: int) -> tuple[I64, int]:
        numbers = []
        for pair in zip(tables.tolist(), keys.tolist(), strict=True):
            number = self._numbers.get(pair, -1)
            if number < oldest:
                number = self._numbers[pair] = next_number
                next_number += 1
            numbers.append(number)
        return np.array(numbers, np.int64), next_number

    def drop(self, tables: I64, keys: I64, first: int, last: int) -> I64:
        numbers = []
        for pair in zip(tables.tolist(), keys.tolist(), strict=True):
            number = self._numbers.get(pair, -1)
            if first <= number < last:
                del self._numbers[pair]
            else:
                number = -1
            numbers.append(number)
        return np.array(numbers, np.int64)

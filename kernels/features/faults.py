"""Which requests of a batch are wrong, and why: the first problem of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.errors import FeatureError
from kernels.features.hashing import I64

USER: Final = 0
CANDIDATE: Final = 1

Mask = NDArray[np.bool_]


class Faults:
    """Problems of a batch of requests that share a layout.

    Attributes:
        errors: Position of a request to its first problem.
    """

    def __init__(self, n_rows: I64) -> None:
        self._ends = np.cumsum(n_rows)
        self._n_rows = n_rows
        self.errors: dict[int, FeatureError] = {}

    def add(self, request: int, field: str, problem: str) -> None:
        """Note a problem of one request, unless it has one already."""
        if request not in self.errors:
            self.errors[request] = FeatureError(field, problem)

    def add_mask(
        self,
        side: int,
        wrong: Mask,
        fields: Sequence[str],
        problem: Callable[[int, int], str],
        rows: I64 | None = None,
    ) -> None:
        """Note a problem for each request that has a wrong value.

        Args:
            side: ``USER`` or ``CANDIDATE``.
            wrong: bool ``[n_columns, n]``.
            fields: The feature of each column.
            problem: Says what is wrong with the value at (column, position).
            rows: int64 ``[n]``, the side's row of each position; by default they are the rows.
        """
        for column in np.flatnonzero(wrong.any(axis=1)).tolist():
            positions = np.flatnonzero(wrong[column])
            at = positions if rows is None else rows[positions]
            requests = at if side == USER else np.searchsorted(self._ends, at, side="right")
            found, first = np.unique(requests, return_index=True)
            for request, k in zip(found.tolist(), first.tolist(), strict=True):
                if request not in self.errors:
                    text = problem(column, int(positions[k]))
                    if side == CANDIDATE:
                        start = int(self._ends[request] - self._n_rows[request])
                        text += f" (candidate {int(at[k]) - start})"
                    self.errors[request] = FeatureError(fields[column], text)

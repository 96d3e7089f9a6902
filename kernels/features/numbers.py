"""Numbers to float32, for many columns at once; and to buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.features.encode import Report
from kernels.features.feature import Numeric
from kernels.features.hashing import I64

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Numbers:
    """The transforms of some columns, all of one kind: the formulas are ``feature.Numeric``'s."""

    def __init__(self, numerics: Sequence[Numeric]) -> None:
        self._transform = numerics[0].transform
        self._missing = _column([np.nan if n.missing is None else n.missing for n in numerics])
        self._mean = _column([n.mean for n in numerics])
        self._std = _column([n.std for n in numerics])
        self._boundaries = [np.array(n.boundaries) for n in numerics]
        self._first = np.array([n.first_id for n in numerics], np.int64).reshape(-1, 1)

    def floats(self, raw: NDArray[Any], report: Report) -> F32:
        """Transform ``raw [n_columns, n]`` of any integer, float or bool type.

        ``report`` is told of wrong values, whose results are then 0.
        """
        if self._transform == "raw":
            values = raw.astype(np.float32, copy=False)
            if np.isfinite(values).all():
                return values
        numbers = self._fill(raw, report)
        values = self._apply(numbers).astype(np.float32)
        huge = ~np.isfinite(values)
        if huge.any():
            report(huge, lambda c, n: f"{raw[c, n]} is beyond float32")
            values[huge] = 0
        return values

    def buckets(self, raw: NDArray[Any], report: Report) -> I64:
        """Return ids of buckets: int64 ``[n_columns, n]``."""
        numbers = self._fill(raw, report)
        ids = np.empty(numbers.shape, np.int64)
        for column, boundaries in enumerate(self._boundaries):
            ids[column] = np.searchsorted(boundaries, numbers[column], side="right")
        ids += self._first
        return ids

    def _fill(self, raw: NDArray[Any], report: Report) -> F64:
        """Put the defaults in; what is missing without one, or infinite, is reported and 0."""
        numbers = raw.astype(np.float64)
        if np.isfinite(numbers).all():
            return numbers
        numbers = np.where(np.isnan(numbers), self._missing, numbers)
        if np.isfinite(numbers).all():
            return numbers
        missing = np.isnan(numbers)
        if missing.any():
            report(missing, lambda c, n: "is missing, and has no default")
        infinite = np.isinf(numbers)
        if infinite.any():
            report(infinite, lambda c, n: f"{raw[c, n]} is not finite")
        numbers[missing | infinite] = 0
        return numbers

    def _apply(self, x: F64) -> F64:
        if self._transform == "log":
            return np.log1p(np.maximum(x, 0))
        if self._transform == "log_squared":
            return np.where(x > 2, np.floor(np.log(np.maximum(x, 1)) ** 2), x)
        if self._transform == "standardise":
            return (x - self._mean) / self._std
        return x


def _column(values: Sequence[float]) -> F64:
    return np.array(values, np.float64).reshape(-1, 1)

"""Keys drawn by a power law: how much of the traffic the hottest have, how many are distinct.

Rank ``k`` of ``n`` keys is drawn with probability ``k**-s / H(n, s)``, ``H`` being the generalised
harmonic number: Zipf's law, by which recommenders' ids are usually described, with ``s`` of 1.05 to
1.2. Sums over ranks are exact for the first few thousand and integrals from there on, so that a
table of 100 billion rows costs what a small one does.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

# Ranks that are summed one by one. From there on the midpoint rule is right to 1e-8 of a term.
_EXACT: Final = 4096
# Bins of equal ratio for the ranks beyond: the probability changes by 4 % within one of 2**36.
_BINS: Final = 512
# Chances from here on count as certainty, whose logarithm there is not.
_SURE: Final = 1 - 1e-15


@attrs.frozen
class Zipf:
    """A power law over the ranks of a table's rows.

    Attributes:
        n: How many keys there are; without any there is no traffic.
        s: The exponent; 0 for keys that are all alike.
    """

    n: int
    s: float

    def head(self, k: ArrayLike) -> F64:
        """Return what share of draws falls on the ``k`` hottest keys, for each ``k``."""
        if not self.n:
            return np.zeros(np.shape(k))
        hottest = np.clip(np.asarray(k, np.float64), 0, self.n)
        return self._harmonic(hottest) / self._total

    def hotter_than(self, p: ArrayLike) -> F64:
        """Return how many keys are drawn with a probability of at least ``p``, for each ``p``."""
        chance = np.maximum(np.asarray(p, np.float64), 1e-300)
        if self.s == 0:
            return np.where(chance * self.n <= 1, float(self.n), 0.0)
        log_rank = -np.log(chance * self._total) / self.s
        return np.floor(np.exp(np.minimum(log_rank, np.log(max(self.n, 1) + 0.5))))

    def distinct(self, draws: float, k: float | None = None) -> float:
        """Return how many distinct keys so many draws give, on average.

        Args:
            draws: How many.
            k: Count only keys among the ``k`` hottest; all by default.
        """
        most = self.n if k is None else min(k, self.n)
        ranks, counts = self._bins
        inside = np.clip(most - (ranks - counts), 0, counts)
        middle = np.maximum(ranks - (counts - 1) / 2, 1)
        chance = middle**-self.s / self._total
        if draws < 1:
            seen = draws * chance
        else:
            seen = -np.expm1(draws * np.log1p(-np.minimum(chance, _SURE)))
        return float((inside * seen).sum())

    def draw(self, n_draws: int, random: np.random.Generator) -> NDArray[np.int64]:
        """Draw ranks from 0, the hottest, on: int64 ``[n_draws]``."""
        last, counts = self._bins
        wanted = random.random(n_draws)
        found = np.searchsorted(self.head(last), wanted, side="right")
        found = np.minimum(found, len(last) - 1)
        inside = np.floor(random.random(n_draws) * counts[found])  # alike within 4 %
        return np.asarray(last[found] - counts[found] + inside, np.int64)

    @cached_property
    def _sums(self) -> F64:
        """Sums of the first terms: ``_sums[k] == H(k, s)``."""
        terms = np.arange(1, min(self.n, _EXACT) + 1, dtype=np.float64) ** -self.s
        return np.concatenate([[0.0], np.cumsum(terms)])

    @cached_property
    def _total(self) -> float:
        return float(self._harmonic(np.asarray(float(self.n)))) if self.n else 1.0

    def _harmonic(self, k: F64) -> F64:
        exact = self._sums[np.minimum(k, len(self._sums) - 1).astype(np.int64)]
        a, b = _EXACT + 0.5, np.maximum(k, _EXACT) + 0.5
        if abs(self.s - 1) < 1e-9:
            rest = np.log(b / a)
        else:
            rest = (b ** (1 - self.s) - a ** (1 - self.s)) / (1 - self.s)
        result: Any = exact + np.where(k > _EXACT, rest, 0.0)
        return np.asarray(result, np.float64)

    @cached_property
    def _bins(self) -> tuple[F64, F64]:
        """Last rank of each bin, and ranks in it."""
        last = np.arange(1, min(self.n, _EXACT) + 1, dtype=np.float64)
        if self.n > _EXACT:
            beyond = np.unique(np.floor(np.geomspace(_EXACT, self.n, _BINS)))[1:]
            last = np.concatenate([last, beyond])
        return last, np.diff(last, prepend=0.0)


def fit_exponent(counts: NDArray[np.int64], n: int) -> float:
    """Return the exponent by which the counts of some keys are likeliest.

    By maximum likelihood on ranks (Clauset, Shalizi and Newman, "Power-law distributions in
    empirical data", SIAM Review 2009, equation 3.5, for ranks in place of sizes).

    Args:
        counts: How often each key was seen, descending, each at least 1.
        n: Of how many keys.
    """
    total = float(counts.sum())
    mean_log = float((counts * np.log(np.arange(1, len(counts) + 1))).sum()) / total
    tried = np.arange(0.0, 2.501, 0.01)
    likelihood = [-s * mean_log - np.log(Zipf(n, float(s))._total) for s in tried]
    return float(tried[int(np.argmax(likelihood))])

"""What arrives and when: request sizes, arrival times, key skew. Pure, and repeatable by seed."""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

# MLPerf Inference, DLRM-DCNv2: candidates a request, equally likely.
MLPERF_SIZES: Final = (100,) * 2 + (200,) * 12 + (300,) * 2 + (400, 500, 600, 700)


@attrs.frozen
class Sizes:
    """A distribution of request sizes, in candidates.

    Attributes:
        text: As the user wrote it: ``mlperf``, ``lognormal:MEDIAN,SIGMA,MAX`` or a number.
        choices: Equally likely sizes, or empty for a lognormal one.
    """

    text: str
    choices: tuple[int, ...] = ()
    median: float = 0.0
    sigma: float = 0.0
    largest: int = 0

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return ``n`` sizes, int64, each at least 1.

        They are drawn at evenly spaced quantiles and shuffled, so that a pool of a few hundred
        requests has the distribution's own mean and tail, and not one that depends on the seed.
        """
        if self.choices:
            sizes = np.resize(np.array(self.choices, dtype=np.int64), n)
        else:
            normal = NormalDist()
            many = np.array([normal.inv_cdf((k + 0.5) / n) for k in range(n)])
            sizes = np.rint(np.exp(np.log(self.median) + self.sigma * many)).astype(np.int64)
            sizes = np.clip(sizes, 1, self.largest)
        rng.shuffle(sizes)
        return sizes


def parse_sizes(text: str) -> Sizes:
    """Read ``mlperf``, ``lognormal:MEDIAN,SIGMA,MAX`` or a fixed number of candidates.

    Raises:
        ValueError: It is none of these; says which part is wrong.
    """
    if text == "mlperf":
        return Sizes(text, choices=MLPERF_SIZES)
    kind, _, rest = text.partition(":")
    if kind == "lognormal":
        try:
            median, sigma, largest = (float(part) for part in rest.split(","))
        except ValueError:
            raise ValueError(f"sizes: want lognormal:MEDIAN,SIGMA,MAX, got {text!r}") from None
        if median < 1 or sigma < 0 or largest < median or largest != int(largest):
            raise ValueError(f"sizes: want 1 <= MEDIAN <= MAX and SIGMA >= 0, got {text!r}")
        return Sizes(text, median=median, sigma=sigma, largest=int(largest))
    if text.isdecimal() and int(text) > 0:
        return Sizes(text, choices=(int(text),))
    raise ValueError(f"sizes: want mlperf, lognormal:MEDIAN,SIGMA,MAX or a number, got {text!r}")


def poisson_arrivals(
    rate: float, duration_s: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the times, in seconds from the start, of arrivals with exponential gaps.

    Args:
        rate: Mean arrivals a second.
        duration_s: No arrival is at or after this.
        rng: Makes it repeatable.
    """
    mean = rate * duration_s
    # Six standard deviations over the mean are too few once in 10^9 schedules: then top up.
    gaps = rng.exponential(1 / rate, size=int(mean + 6 * np.sqrt(mean) + 10))
    times = np.cumsum(gaps)
    while times[-1] < duration_s:
        more = np.cumsum(rng.exponential(1 / rate, size=len(times))) + times[-1]
        times = np.concatenate([times, more])
    return times[: np.searchsorted(times, duration_s)]


def skewed_ids(
    n_ids: int, shape: tuple[int, ...], skew: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return ids in ``[0, n_ids)``: uniform for ``skew`` 0, else a power law.

    Id ``k`` is drawn in proportion to ``(k + 1) ** -skew``, by inverting the integral of the
    density over ``[1, n_ids + 1)``; recommender keys are reported at exponents of 1.05 to 1.2.
    """
    u = rng.random(shape)
    if skew == 0:
        ids = u * n_ids
    elif skew == 1:
        ids = (n_ids + 1.0) ** u - 1
    else:
        power = 1 - skew
        ids = (1 + u * ((n_ids + 1.0) ** power - 1)) ** (1 / power) - 1
    return np.minimum(ids.astype(np.int64), n_ids - 1)

"""A whole run: each contender on each case, checked and timed, one case after the other.

Contenders of one case follow each other at once, so that the card's clocks are alike for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bench.contender import Case, Contender, Timing, Work
from kernels.bench.models import Inputs, Model, Parameters
from kernels.errors import DeviceLost
from kernels.program import Precision

Reference = Callable[[Model, Parameters, Inputs], NDArray[np.float64]]
"""Scores in float64."""


@attrs.frozen(kw_only=True)
class Result:
    """One contender on one case. What is None was not found out.

    Attributes:
        max_abs_error: Of scores against float64, over all draws.
        score_spread: Standard deviation of the expected scores: errors far below it mean something.
        error: Why there is no result, or that scores are not numbers.
    """

    model: str
    rows: int
    contender: str
    timing: Timing | None = None
    launches: int | None = None
    compile_s: float | None = None
    work: Work | None = None
    max_abs_error: float | None = None
    score_spread: float | None = None
    error: str | None = None


def make_case(
    model: Model,
    rows: int,
    precision: Precision,
    reference: Reference,
    *,
    seed: int,
    n_draws: int,
) -> Case:
    """Draw a case's parameters and inputs, and compute what is expected of them."""
    parameters = model.draw_parameters(seed)
    drawn = [model.draw_inputs(rows, seed + 1 + index, precision) for index in range(n_draws)]
    draws = tuple((inputs, reference(model, parameters, inputs)) for inputs in drawn)
    return Case(model, rows, precision, parameters, draws)


def run_case(
    case: Case,
    contenders: Sequence[Contender],
    report: Callable[[Result], None],
    *,
    ends: float = float("inf"),
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Run all contenders on a case; the first is always run, others not once ``clock`` is at ends.

    Raises:
        DeviceLost: Nothing can be measured in this process any more.
    """
    results = []
    for index, contender in enumerate(contenders):
        if index and clock() >= ends:
            result = _result(case, contender, error="skipped: the time budget is spent")
        else:
            result = run_contender(case, contender)
        report(result)
        results.append(result)
    return results


def run_contender(case: Case, contender: Contender) -> Result:
    """Open, check on every draw, and time; whatever a contender raises becomes its result.

    Raises:
        DeviceLost: Nothing can be measured in this process any more.
    """
    try:
        running = contender.open(case)
        try:
            worst = 0.0
            for inputs, expected in case.draws:
                scores = running.scores(inputs)
                if scores.shape != expected.shape:
                    problem = f"scores are {list(scores.shape)}, want {list(expected.shape)}"
                    return _result(case, contender, error=problem)
                if not np.isfinite(scores).all():
                    n_bad = int((~np.isfinite(scores)).sum())
                    problem = f"{n_bad} of {scores.size} scores are not numbers"
                    return _result(case, contender, error=problem)
                worst = max(worst, float(np.abs(scores - expected).max()))
            return _result(
                case,
                contender,
                timing=running.timing(),
                launches=running.launches,
                compile_s=running.compile_s,
                work=running.work,
                max_abs_error=worst,
                score_spread=float(np.std(case.draws[-1][1])),
            )
        finally:
            running.close()
    except DeviceLost:
        raise
    except Exception as error:  # a peer's own: it stands in the report, and the run goes on
        lines = str(error).strip().splitlines() or [""]
        return _result(case, contender, error=f"{type(error).__name__}: {lines[0]}")


def _result(case: Case, contender: Contender, **found: object) -> Result:
    fields: dict[str, object] = {
        "model": case.model.name,
        "rows": case.rows,
        "contender": contender.name,
    }
    return Result(**(fields | found))  # type: ignore[arg-type]

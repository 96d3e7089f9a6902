"""Results as a table and as JSON: ratio to the best peer, and the share of the card's bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from kernels.bench.contender import Work
from kernels.bench.ours import NAME as OURS
from kernels.bench.session import Result
from kernels.program import Precision

TOLERANCES: Final[Mapping[Precision, float]] = {
    Precision.FP16: 2e-3,
    Precision.BF16: 1.6e-2,  # three bits less than fp16
    Precision.TF32: 2e-3,  # factors have as many bits as fp16's
    Precision.FP32: 1e-5,
}
"""Largest error of a probability against float64 that passes."""

FP8_TOLERANCE: Final = 5e-2
"""The same of floats of eight bits: e4m3 keeps 3 bits where fp16 keeps 10."""


@attrs.frozen
class Ceilings:
    """What the card does at best.

    Attributes:
        bytes_s: Bytes a second through device memory.
        flops_s: Operations a second in the tensor cores.
    """

    bytes_s: float
    flops_s: float

    def bound_us(self, work: Work) -> float:
        """Return the least time that some work takes, in microseconds."""
        return max(work.bytes_moved / self.bytes_s, work.flops / self.flops_s) * 1e6


@attrs.frozen
class Line:
    """One model at one size: ours beside the peers.

    Attributes:
        peers: By name; those that gave no time are among them.
        ratio: Our time by the best peer's, of a batch alone.
        ratio_in_a_row: The same of batches in a row.
        fraction: The bound by our time.
        problem: Why ours did not pass, or None.
    """

    ours: Result
    peers: Mapping[str, Result]
    best_peer: str | None
    ratio: float | None
    ratio_in_a_row: float | None
    bound_us: float | None
    fraction: float | None
    problem: str | None


def line_of(
    results: Sequence[Result], ceilings: Ceilings, precision: Precision, *, fp8: bool = False
) -> Line:
    """Compare the results of one case; ours comes first."""
    ours, *others = results
    peers = {result.contender: result for result in others}
    times = {name: peer.timing.us for name, peer in peers.items() if peer.timing is not None}
    best = min(times, key=times.__getitem__) if times else None
    ratio = in_a_row = bound = fraction = None
    if ours.timing is not None:
        if best is not None:
            ratio = ours.timing.us / times[best]
            fastest = min(p.timing.back_to_back_us for p in others if p.timing is not None)
            in_a_row = ours.timing.back_to_back_us / fastest
        if ours.work is not None:
            bound = ceilings.bound_us(ours.work)
            fraction = bound / ours.timing.us
    allowed = FP8_TOLERANCE if fp8 else TOLERANCES[precision]
    return Line(ours, peers, best, ratio, in_a_row, bound, fraction, _problem(ours, allowed))


def _problem(ours: Result, allowed: float) -> str | None:
    if ours.error is not None:
        return ours.error
    if ours.max_abs_error is None or not ours.max_abs_error <= allowed:
        return f"the largest error is {ours.max_abs_error}, at most {allowed:g} is allowed"
    return None


def to_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return what ``json.dumps`` takes, times in microseconds."""
    return [
        {
            "model": line.ours.model,
            "rows": line.ours.rows,
            "ours": _fields(line.ours),
            "peers": {name: _fields(peer) for name, peer in line.peers.items()},
            "best_peer": line.best_peer,
            "ratio": _rounded(line.ratio),
            "ratio_in_a_row": _rounded(line.ratio_in_a_row),
            "bound_us": _rounded(line.bound_us),
            "fraction_of_bound": _rounded(line.fraction),
            "problem": line.problem,
        }
        for line in lines
    ]


def _fields(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {
        "us": None if result.timing is None else _rounded(result.timing.us),
        "back_to_back_us": None
        if result.timing is None
        else _rounded(result.timing.back_to_back_us),
        "launches": result.launches,
        "compile_s": _rounded(result.compile_s),
        "max_abs_error": _rounded(result.max_abs_error),
        "score_spread": _rounded(result.score_spread),
        "error": result.error,
    }
    if result.work is not None:
        found |= attrs.asdict(result.work)
    return found


def _rounded(value: float | None) -> float | None:
    """Keep four digits; NaN, which JSON has not, becomes None."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def table(lines: Sequence[Line]) -> str:
    """Return the results as text, one row a model and size, and below it what went wrong."""
    peers = list(dict.fromkeys(name for line in lines for name in line.peers))
    head = ["model", "rows", OURS, *peers, "ratio", "in a row: " + OURS, *peers, "ratio"]
    rows = [[*head, "launches", "bound", "share", "error", "spread", "compile s"]]
    notes = []
    for line in lines:
        ours = line.ours
        results = [ours, *(line.peers[name] for name in peers if name in line.peers)]
        rows.append(
            [
                ours.model,
                str(ours.rows),
                _us(ours),
                *(_us(line.peers.get(name)) for name in peers),
                _number(line.ratio, ".2f"),
                _in_a_row(ours),
                *(_in_a_row(line.peers.get(name)) for name in peers),
                _number(line.ratio_in_a_row, ".2f"),
                " / ".join("-" if r.launches is None else str(r.launches) for r in results),
                _number(line.bound_us, ".1f"),
                _number(line.fraction, ".2f"),
                _number(ours.max_abs_error, ".1e"),
                _number(ours.score_spread, ".2f"),
                " / ".join(_number(r.compile_s, ".1f") for r in results),
            ]
        )
        what = f"{ours.model}, {ours.rows} rows"
        if line.problem is not None:
            notes.append(f"{what}: {OURS}: {line.problem}")
        notes += [
            f"{what}: {name}: {peer.error}" for name, peer in line.peers.items() if peer.error
        ]
    return "\n".join([*columns(rows), *notes])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad cells to columns, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _us(result: Result | None) -> str:
    return _number(None if result is None or result.timing is None else result.timing.us, ".1f")


def _in_a_row(result: Result | None) -> str:
    timing = None if result is None else result.timing
    return _number(None if timing is None else timing.back_to_back_us, ".1f")


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)

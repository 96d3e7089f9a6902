"""The latency plot: an SVG of two panels that share a logarithmic axis of milliseconds.

Left, each contender's latency by percentile, the axis stretched towards the tail so that 99 % and
99.9 % are as far apart as 90 % and 99 %. Right, the first contender over time: its requests as
dots, with the median and p99 of each slice of time. No library: a few marks and a style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

import attrs
import numpy as np
from numpy.typing import NDArray

from runtime.bench.report import percentile

_WIDTH: Final = 1000
_HEIGHT: Final = 536
_TOP: Final = 144
_BOTTOM: Final = 464
_LEGEND_COLUMNS: Final = 3
_LEGEND_WIDTH: Final = 320
_LEFT: Final = (64, 484)
_RIGHT: Final = (556, 976)
_N_DOTS: Final = 1500
_N_SLICES: Final = 40
_LADDER: Final = tuple(m * 10.0**power for power in range(-2, 6) for m in (1, 2, 5))
_MOST_TICKS: Final = 11
_PERCENTILES: Final = (0, 50, 90, 99, 99.9, 99.99)
_SERIES: Final = 5
_STYLE: Final = """
  svg { --paper: #ffffff; --ink: #1f2430; --soft: #667085; --grid: #e7eaf0; --late: #c2410c;
        --s0: #1d4ed8; --s1: #e08700; --s2: #0f9d8a; --s3: #b0439f; --s4: #7b8794; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #12151c; --ink: #e8ebf1; --soft: #98a2b3; --grid: #262c38; --late: #fb923c;
          --s0: #6ea8fe; --s1: #f5b13d; --s2: #43d1bd; --s3: #e58ad6; --s4: #a5afbc; } }
  text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
         fill: var(--soft); font-variant-numeric: tabular-nums; }
  .title { font-size: 19px; font-weight: 650; fill: var(--ink); }
  .panel { font-size: 13px; font-weight: 600; fill: var(--ink); }
  .name { fill: var(--ink); font-weight: 600; }
  .halo { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--paper);
          stroke-width: 4; stroke-linejoin: round; }
  .end { text-anchor: end; } .middle { text-anchor: middle; }
  .paper { fill: var(--paper); } .grid { stroke: var(--grid); stroke-width: 1; }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
  .late { stroke: var(--late); stroke-width: 1.25; stroke-dasharray: 5 4; }
  .late-text { fill: var(--late); }
"""


@attrs.frozen(eq=False)
class Series:
    """One contender's run.

    Attributes:
        name: Of the contender.
        note: A few words on its figures, after the name.
        due_s: float64 ``[n]``, when each request that got scores was due; ``latency_ms`` likewise.
    """

    name: str
    note: str
    due_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]


def draw(title: str, subtitle: str, series: Sequence[Series], budget_ms: float) -> str:
    """Return the plot as SVG text.

    Args:
        title: One line.
        subtitle: One line under it: load, sizes, machine.
        series: Up to five contenders, ours first; those without answers are named, not drawn.
        budget_ms: Drawn as a line.
    """
    shown = [one for one in series[:_SERIES] if len(one.latency_ms)]
    low, high = _range(shown, budget_ms)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(title, _QUOTE)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" rx="10"/>',
        _text(_LEFT[0] - 40, 36, title, "title"),
        _text(_LEFT[0] - 40, 58, subtitle),
        *_legend(series[:_SERIES]),
        *_frame(_LEFT, "Latency by percentile", low, high),
        *_frame(_RIGHT, f"{series[0].name}, over time" if series else "Over time", low, high),
        *_percentile_axis(),
        *_budget(budget_ms, low, high),
    ]
    for k, one in enumerate(series[:_SERIES]):
        if len(one.latency_ms):
            parts.append(_percentile_line(one, k, low, high))
    if series and len(series[0].latency_ms):
        parts += _over_time(series[0], low, high)
    return "\n".join([*parts, "</svg>\n"])


_QUOTE: Final = {'"': "&quot;"}


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(text)}</text>'


def _range(shown: Sequence[Series], budget_ms: float) -> tuple[float, float]:
    """Return the 1, 2 or 5 times powers of ten that enclose all but the fastest few latencies."""
    least = min((percentile(one.latency_ms, 0.5) for one in shown), default=1.0)
    most = max((float(one.latency_ms.max()) for one in shown), default=10.0)
    low = max(value for value in _LADDER if value <= max(least, _LADDER[0]))
    return low, min(value for value in _LADDER if value >= max(most, 1.3 * budget_ms, 10 * low))


def _y(ms: float, low: float, high: float) -> float:
    share = math.log(min(max(ms, low), high) / low) / math.log(high / low)
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _legend(series: Sequence[Series]) -> list[str]:
    parts = []
    for k, one in enumerate(series):
        x = _LEFT[0] - 40 + _LEGEND_WIDTH * (k % _LEGEND_COLUMNS)
        y = 80 + 18 * (k // _LEGEND_COLUMNS)
        parts.append(f'<rect x="{x}" y="{y - 6}" width="14" height="4" rx="2" fill="var(--s{k})"/>')
        parts.append(
            f'<text x="{x + 20}" y="{y}"><tspan class="name">{escape(one.name)}</tspan> '
            f"{escape(one.note)}</text>"
        )
    return parts


def _frame(panel: tuple[int, int], title: str, low: float, high: float) -> list[str]:
    left, right = panel
    parts = [_text(left, _TOP - 14, title, "panel")]
    ticks = [value for value in _LADDER if low <= value <= high]
    if len(ticks) > _MOST_TICKS:
        ticks = [value for value in ticks if f"{value:e}".startswith("1")]
    for value in ticks:
        y = _y(value, low, high)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        unit = " ms" if value == ticks[-1] else ""
        parts.append(_text(left - 8, y + 4, f"{value:g}{unit}", "end"))
    return parts


def _percentile_x(p: float) -> float:
    """Stretch the tail: linear in the logarithm of the share of requests that are slower."""
    left, right = _LEFT
    depth = -math.log10(max(1 - p / 100, 1e-4)) / 4
    return left + depth * (right - left)


def _percentile_axis() -> list[str]:
    parts = []
    for p in _PERCENTILES:
        x = _percentile_x(p)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        parts.append(_text(x, _BOTTOM + 20, f"{p:g}" if p == 0 else f"{p:g} %", "middle"))
    middle = sum(_LEFT) / 2
    parts.append(
        _text(middle, _BOTTOM + 44, "share of requests answered at least as fast", "middle")
    )
    return parts


def _percentile_line(one: Series, k: int, low: float, high: float) -> str:
    latency = np.sort(one.latency_ms)
    n = len(latency)
    deepest = min(4.0, math.log10(n))  # the slowest request is the 1 - 1/n quantile, and no more
    points = []
    for depth in np.linspace(0, deepest, 121):
        share = 1 - 10.0**-depth
        rank = min(n - 1, max(0, math.ceil(share * n - 1e-9) - 1))
        points.append((_percentile_x(100 * share), _y(float(latency[rank]), low, high)))
    return _polyline(points, f"var(--s{k})")


def _polyline(points: Sequence[tuple[float, float]], colour: str, width: float = 2) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="line" points="{path}" style="stroke:{colour};stroke-width:{width}"/>'


def _budget(budget_ms: float, low: float, high: float) -> list[str]:
    y = _y(budget_ms, low, high)
    parts = [
        f'<line class="late" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for left, right in (_LEFT, _RIGHT)
    ]
    parts.append(_text(_LEFT[0] + 8, y - 6, f"budget {budget_ms:g} ms", "late-text"))
    return parts


def _over_time(one: Series, low: float, high: float) -> list[str]:
    left, right = _RIGHT
    end = float(one.due_s.max()) or 1.0

    def x(seconds: float) -> float:
        return left + seconds / end * (right - left)

    step = max(1, -(-len(one.due_s) // _N_DOTS))
    dots = "".join(
        f"M{x(s):.1f},{_y(ms, low, high):.1f}h0"
        for s, ms in zip(one.due_s[::step].tolist(), one.latency_ms[::step].tolist(), strict=True)
    )
    parts = [
        f'<path d="{dots}" style="stroke:var(--s0);stroke-opacity:.25;stroke-width:3;'
        'stroke-linecap:round;fill:none"/>'
    ]
    parts += _time_axis(end, x(0), right)
    n_slices = max(2, min(_N_SLICES, len(one.due_s) // 100))
    which = np.minimum((one.due_s / end * n_slices).astype(int), n_slices - 1)
    for p, label in ((50, "median"), (99, "p99")):
        points = [
            (x((k + 0.5) * end / n_slices), _y(percentile(of_slice, p), low, high))
            for k in range(n_slices)
            if len(of_slice := one.latency_ms[which == k])
        ]
        parts.append(_polyline(points, "var(--paper)", 5))
        parts.append(_polyline(points, "var(--ink)", 1.75))
        parts.append(_text(right, min(y for _, y in points[-4:]) - 8, label, "end halo"))
    return parts


def _time_axis(end: float, left: float, right: float) -> list[str]:
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 60, 120, 600, 3600) if end / s <= 8 or s == 3600)
    parts = []
    for k in range(int(end / step) + 1):
        at = left + k * step / end * (right - left)
        parts.append(_text(at, _BOTTOM + 20, f"{k * step:g}", "middle"))
    parts.append(_text((left + right) / 2, _BOTTOM + 44, "seconds into the run", "middle"))
    return parts

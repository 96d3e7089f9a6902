"""A picture of a plan, as SVG: values in memory left, launches with their steps in the middle.

On the right is a map of a block's shared memory, for each launch of tiles: from left to right the
addresses, from top to bottom the steps; a box is a value from its first step to its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import attrs

from kernels.program import Crossing, Pointer
from kernels.show.plan import Plan, Stage
from kernels.show.text import crossing_text

_LINE, _TOP, _GAP, _HEAD = 18, 76, 34, 42
_MEMORY_X, _MEMORY_W, _MEMORY_H = 20, 270, 34
_LAUNCH_X, _LAUNCH_W = 380, 360
_MAP_X, _MAP_W = 790, 420
_COLOURS = {"tile": "#e2f2dc", "wide": "#fde3cf", "attention": "#ece4f7", "encoder": "#ece4f7"}
_MEMORY, _FIXED, _RING, _VALUE = "#d7e8fa", "#dddddd", "#fbeeb8", "#cfe3c6"
_STYLE = (
    "<style>.title{font-size:15px;font-weight:bold}.head{font-weight:bold}.note{fill:#555}"
    "path{fill:none;stroke-opacity:.7}.reads{stroke:#3c78b4}.writes{stroke:#b4642d}</style>"
    '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M0 0L8 4L0 8" stroke="#666"/></marker></defs>'
)


@attrs.define
class _Memory:
    """Values that lie in device memory, each a box in the left column, from the top down."""

    free: float = _TOP
    places: dict[Pointer, float] = attrs.field(factory=dict)
    lines: list[str] = attrs.field(factory=list)

    def place(self, crossing: Crossing, near: float) -> float:
        """Draw a value, unless it is there; return the middle of its box."""
        found = self.places.get(crossing.pointer)
        if found is None:
            y = max(self.free, near)
            self.free = y + _MEMORY_H + 8
            found = self.places[crossing.pointer] = y + _MEMORY_H / 2
            self.lines += [
                _box(_MEMORY_X, y, _MEMORY_W, _MEMORY_H, _MEMORY, crossing_text(crossing)),
                _text(_MEMORY_X + 6, y + 14, _short(crossing_text(crossing), 44)),
                _text(_MEMORY_X + 6, y + 28, f"{crossing.size_bytes:,} bytes", "note"),
            ]
        return found


def draw(plan: Plan) -> str:
    """Return the picture of a plan as the text of an SVG file."""
    memory = _Memory()
    lines: list[str] = []
    y = float(_TOP)
    for index, stage in enumerate(plan.stages):
        height = _HEAD + _LINE * max(len(stage.facts.items), 2) + 8
        lines += _launch(stage, index, y, height)
        lines += _map(stage, y)
        for crossing in stage.facts.reads:
            at = memory.place(crossing, y)
            lines.append(_arrow(_MEMORY_X + _MEMORY_W, at, _LAUNCH_X, y + 20, "reads"))
        for crossing in stage.facts.writes:
            at = memory.place(crossing, y + height - _MEMORY_H)
            lines.append(_arrow(_LAUNCH_X, y + height - 12, _MEMORY_X + _MEMORY_W, at, "writes"))
        y += height + _GAP
    total = max(y, memory.free) + 4
    width = _MAP_X + _MAP_W + 24
    program = plan.program
    least = plan.bound.seconds(program.bytes_moved, program.flops) * 1e6
    n_launches = len(plan.stages)
    title = (
        f"{plan.model}: {program.bucket} in {n_launches} "
        f"launch{'es' if n_launches > 1 else ''}, {plan.target.arch}, {program.precision}, "
        f"at best {least:.2f} us"
    )
    heads = [
        _text(_MEMORY_X, 56, "device memory", "head"),
        _text(_LAUNCH_X, 56, "launches", "head"),
        _text(_MAP_X, 56, "shared memory of a block, step by step", "head"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total:g}" '
        f'viewBox="0 0 {width} {total:g}" font-family="sans-serif" font-size="11">\n{_STYLE}\n'
        f'<rect width="{width}" height="{total:g}" fill="white"/>\n'
        + _text(_MEMORY_X, 26, title, "title")
        + "\n".join([*heads, *lines, *memory.lines])
        + "\n</svg>\n"
    )


def _launch(stage: Stage, index: int, y: float, height: float) -> Iterator[str]:
    launch, facts, taken = stage.launch, stage.facts, stage.resources
    yield _box(_LAUNCH_X, y, _LAUNCH_W, height, _COLOURS[facts.kind], launch.entry)
    clusters = f", clusters of {launch.cluster}" if launch.cluster > 1 else ""
    yield _text(
        _LAUNCH_X + 8,
        y + 16,
        f"{index}: {facts.kind}, {stage.n_blocks} x {launch.block} threads{clusters}",
        "head",
    )
    registers = "" if taken is None else f"{taken.registers} registers, "
    spilled = 0 if taken is None else taken.spill_store_bytes
    yield _text(
        _LAUNCH_X + 8,
        y + 31,
        f"{registers}{f'{spilled} bytes spilled, ' if spilled else ''}"
        f"{facts.weights_bytes:,} bytes of weights, {facts.flops / 1e6:,.1f} MFLOP",
        "note",
    )
    for number, item in enumerate(facts.items):
        at = y + _HEAD + _LINE * number + 13
        yield _text(_LAUNCH_X + 8, at, f"{number}  {_short(item.title, 44)}")
        if item.flops:
            yield _text(_LAUNCH_X + _LAUNCH_W - 8, at, f"{item.flops:,}", "note", "end")


def _map(stage: Stage, y: float) -> Iterator[str]:
    """Draw what lies where in shared memory at each step."""
    total = stage.launch.shared_bytes
    n_steps = max(len(stage.facts.items), 2)
    top = y + _HEAD
    yield _box(_MAP_X, top, _MAP_W, _LINE * n_steps, "none", "shared memory")
    yield _text(_MAP_X, top - 6, f"{total:,} bytes", "note")
    for held in stage.facts.held:
        x = _MAP_X + _MAP_W * held.offset / max(total, 1)
        width = _MAP_W * held.size_bytes / max(total, 1)
        first, n = top + _LINE * held.first, held.last - held.first + 1
        colour = _VALUE if held.width else (_RING if held.name.startswith("stage") else _FIXED)
        columns = f", {held.width} columns" if held.width else ""
        title = f"{held.name}{columns}: {held.size_bytes:,} bytes from {held.offset:,}"
        yield _box(x, first, width, _LINE * n, colour, title)
        name = held.name.removeprefix("value")
        if width > 7 * len(name):
            yield _text(x + 2, first + 13, name, "note")


def _arrow(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    bend = (x1 + x2) / 2
    return (
        f'<path class="{kind}" marker-end="url(#tip)" '
        f'd="M{x1:g} {y1:g}C{bend:g} {y1:g} {bend:g} {y2:g} {x2:g} {y2:g}"/>'
    )


def _box(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" '
        f'fill="{colour}" stroke="#888"><title>{escape(title)}</title></rect>'
    )


def _short(text: str, n: int) -> str:
    """Shorten at the end: titles begin with what is done."""
    return text if len(text) <= n else text[: n - 3] + "..."


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
    )

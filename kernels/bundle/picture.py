"""A picture of the cut, as SVG: features on the left, lookups in the middle, dense ops right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from html import escape

import attrs
import onnx

from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.manifest import SideLayout, SideName
from kernels.bundle.show import pooling_of

_ROW, _BOX, _TOP = 26, 20, 64
_FEATURE_X, _FEATURE_W = 20, 190
_LOOKUP_X, _LOOKUP_W = 330, 330
_DENSE_X, _DENSE_W = 800, 230
_MOST_OPS = 60
_COLOURS = {"user": "#d7e8fa", "candidate": "#fde3cf", "dense": "#e2f2dc", "program": "#ece4f7"}


@attrs.frozen
class _Box:
    """A labelled box; ``y`` is its top."""

    x: float
    y: float
    width: float
    text: str
    colour: str
    note: str = ""

    @property
    def middle(self) -> float:
        return self.y + _BOX / 2


def draw(bundle: Bundle) -> str:
    """Return the picture of a bundle as the text of an SVG file."""
    features = _features(bundle)
    lookups, edges = _lookups(bundle, features)
    dense = _dense(bundle)
    height = _TOP + _ROW * (1 + max(len(features), len(lookups), len(dense)))
    lines = [_edge(left, right) for left, right in edges]
    panel = height - _TOP - 6
    lines += [
        f'<rect x="{_DENSE_X - 12}" y="{_TOP - 8}" width="{_DENSE_W + 24}" height="{panel}" '
        'rx="8" fill="none" stroke="#7a9f6a" stroke-dasharray="4 3"/>'
    ]
    for box in lookups:
        y = min(max(box.middle, _TOP), height - 16)
        lines.append(_line(box.x + box.width, box.middle, _DENSE_X - 12, y))
    lines += [_draw(box) for box in (*features.values(), *lookups, *dense)]
    manifest = bundle.manifest
    size = sum(4 * table.rows * table.dim for table in manifest.tables)
    title = f"{manifest.model}: {len(manifest.tables)} tables ({size:,} bytes) cut"
    heads = [
        _text(_FEATURE_X, 48, "features", "head"),
        _text(_LOOKUP_X, 48, "lookups and values", "head"),
        _text(_DENSE_X, 48, "dense graph", "head"),
    ]
    width = _DENSE_X + _DENSE_W + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        "<style>.title{font-size:15px;font-weight:bold}.head{font-weight:bold}"
        ".note{fill:#555}path{fill:none;stroke:#999;stroke-opacity:.55}</style>\n"
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + _text(_FEATURE_X, 24, title, "title")
        + "\n".join([*heads, *lines])
        + "\n</svg>\n"
    )


def _features(bundle: Bundle) -> dict[tuple[SideName, str, bool], _Box]:
    """Place the features and program outputs of both sides, in the order of their use."""
    boxes: dict[tuple[SideName, str, bool], _Box] = {}
    for side in SIDES:
        layout = bundle.manifest.side(side)
        for source in (*layout.ids, *layout.weights, *layout.values):
            key = (side, source.feature, source.program)
            if key not in boxes:
                boxes[key] = _Box(
                    x=_FEATURE_X,
                    y=_TOP + _ROW * len(boxes),
                    width=_FEATURE_W,
                    text=source.feature,
                    colour=_COLOURS["program" if source.program else side],
                    note=f"{side}: computed" if source.program else side,
                )
    return boxes


def _lookups(
    bundle: Bundle, features: dict[tuple[SideName, str, bool], _Box]
) -> tuple[list[_Box], list[tuple[_Box, _Box]]]:
    boxes: list[_Box] = []
    edges: list[tuple[_Box, _Box]] = []
    shapes = {table.name: f"[{table.rows:,}, {table.dim}]" for table in bundle.manifest.tables}

    def add(side: SideName, text: str, note: str, keys: set[tuple[SideName, str, bool]]) -> None:
        y = _TOP + _ROW * len(boxes)
        box = _Box(_LOOKUP_X, y, _LOOKUP_W, text, _COLOURS[side], note)
        boxes.append(box)
        edges.extend((features[key], box) for key in sorted(keys))

    for side in SIDES:
        layout: SideLayout = bundle.manifest.side(side)
        for lookup in layout.lookups:
            sources = list(layout.ids[lookup.first_id : lookup.first_id + lookup.n_ids])
            if lookup.first_weight is not None:
                first = lookup.first_weight
                sources += layout.weights[first : first + lookup.n_ids]
            keys = {(side, source.feature, source.program) for source in sources}
            pooling = pooling_of(lookup, layout)
            note = shapes[lookup.table] + ("" if pooling == "none" else f" {pooling}")
            add(side, lookup.table, note, keys)
        if layout.values:
            keys = {(side, source.feature, source.program) for source in layout.values}
            add(side, f"{len(layout.values)} values", "as they are", keys)
    return boxes, edges


def _dense(bundle: Bundle) -> list[_Box]:
    """List the dense graph's operators in order, repeated ones once with their number."""
    nodes = onnx.load_from_string(bundle.dense_model()).graph.node
    runs = [(op, len(list(group))) for op, group in itertools.groupby(n.op_type for n in nodes)]
    texts = [op if n == 1 else f"{op} x {n}" for op, n in runs]
    if len(texts) > _MOST_OPS:
        texts = [*texts[: _MOST_OPS - 1], f"... {len(texts) - _MOST_OPS + 1} more"]
    texts += [f"{output.name}: {output.width} a row" for output in bundle.manifest.outputs]
    return [
        _Box(_DENSE_X, _TOP + _ROW * i, _DENSE_W, text, _COLOURS["dense"])
        for i, text in enumerate(texts)
    ]


def _edge(left: _Box, right: _Box) -> str:
    return _line(left.x + left.width, left.middle, right.x, right.middle)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (x1 + x2) / 2
    return f'<path d="M{x1} {y1}C{bend} {y1} {bend} {y2} {x2} {y2}"/>'


def _draw(box: _Box) -> str:
    notes = "".join(_notes(box))
    n = int((box.width - 10 - 6 * len(box.note[:36])) / 6.2)
    return (
        f'<g><title>{escape(box.text)} {escape(box.note)}</title><rect x="{box.x}" y="{box.y}" '
        f'width="{box.width}" height="{_BOX}" rx="4" fill="{box.colour}" stroke="#888"/>'
        + _text(box.x + 6, box.y + 14, _short(box.text, n))
        + notes
        + "</g>"
    )


def _notes(box: _Box) -> Iterator[str]:
    if box.note:
        yield (
            f'<text class="note" text-anchor="end" x="{box.x + box.width - 6}" '
            f'y="{box.y + 14}">{escape(_short(box.note, 36))}</text>'
        )


def _short(text: str, n: int) -> str:
    """Shorten from the front: names of tensors differ at their ends."""
    return text if len(text) <= n else "..." + text[-max(n - 3, 1) :]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>\n'

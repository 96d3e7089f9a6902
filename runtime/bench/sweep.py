"""Several deployments of one model under the same load, one after another, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from kernels.errors import KernelsError
from runtime.bench.session import Result, Session, Settings
from runtime.bench.topologies import Deployment
from transport.errors import TransportError

# Of each column: its head, and how a value is written.
_DEPLOYED: Final = ("executors", "mps", "mode", "lanes", "windows")
_FIGURES: Final = {
    "requests_per_s": ("requests/s", ",.1f"),
    "p50_ms": ("p50 ms", ".2f"),
    "p99_ms": ("p99 ms", ".2f"),
    "launches_per_request": ("launches/request", ".3f"),
    "rows_per_launch": ("rows/launch", ".0f"),
    "padding": ("padding", ".1%"),
    "shed": ("shed", "d"),
    "lost": ("lost", "d"),
}


@attrs.frozen(kw_only=True)
class Sweep:
    """What was measured.

    Attributes:
        lines: One a deployment, as a session prints it; or its deployment and an error.
    """

    lines: list[dict[str, Any]]
    in_order: bool


def run_sweep(
    settings: Settings,
    deployments: Sequence[Deployment],
    run: Callable[[Settings], Result] = lambda settings: Session(settings).run(),
) -> Sweep:
    """Measure each deployment.

    One that cannot be measured, such as more parts than a card has, is reported, and the rest goes
    on; the sweep is then not in order.
    """
    lines = []
    in_order = True
    for deployment in deployments:
        try:
            result = run(attrs.evolve(settings, deployment=deployment))
        except (KernelsError, TransportError, OSError) as error:
            lines.append({"deployment": deployment.figures(), "error": str(error)})
            in_order = False
            continue
        lines.append(result.line)
        in_order = in_order and result.in_order
    return Sweep(lines=lines, in_order=in_order)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a sweep as text; a deployment that failed ends in its error."""
    heads = [*_DEPLOYED, *(head for head, _ in _FIGURES.values())]
    rows = [heads]
    for line in lines:
        deployed = [_text(line["deployment"].get(name)) for name in _DEPLOYED]
        figures = [_text(line.get(key), form) for key, (_, form) in _FIGURES.items()]
        rows.append([*deployed, *figures])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    errors = ["", *(str(line.get("error", "")) for line in lines)]
    return "".join(
        f"{text}  {error}".rstrip() + "\n" for text, error in zip(texts, errors, strict=True)
    )


def _text(value: object, form: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return format(value, form)

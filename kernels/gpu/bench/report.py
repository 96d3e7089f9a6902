"""What was measured, as a short table a section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

# Of each key that a table shows: its head, and how a value is written.
_COLUMNS: Final[Mapping[str, tuple[str, str]]] = {
    "model": ("model", ""),
    "mode": ("mode", ""),
    "lanes": ("lanes", ""),
    "windows": ("windows", ""),
    "processes": ("processes", ""),
    "mps": ("MPS", ""),
    "compiling": ("compiling", ""),
    "requests": ("requests", ""),
    "user_once": ("user once", ""),
    "rows": ("rows", ""),
    "steps": ("steps", ""),
    "staged_kb": ("staged KB", ",.1f"),
    "run_us": ("run us", ",.1f"),
    "launches": ("launches", ""),
    "mflops": ("MFLOP", ",.1f"),
    "device_us": ("device us", ".1f"),
    "buckets": ("buckets", ""),
    "kernels": ("kernels", ""),
    "workers": ("workers", ""),
    "plan_s": ("plan s", ".2f"),
    "cold_s": ("cold s", ".2f"),
    "warm_s": ("warm s", ".3f"),
    "slowest_s": ("slowest s", ".2f"),
    "seconds": ("s", ".2f"),
    "stall_p99_ms": ("stall p99 ms", ".2f"),
    "stall_worst_ms": ("stall worst ms", ".2f"),
    "requests_per_s": ("requests/s", ",.0f"),
    "batches_per_s": ("batches/s", ",.0f"),
    "p50_ms": ("p50 ms", ".2f"),
    "p99_ms": ("p99 ms", ".2f"),
    "launches_per_request": ("launches/request", ".3f"),
    "rows_per_launch": ("rows/launch", ".0f"),
    "padding": ("padding", ".0%"),
}


def table(title: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a section as text; lines that failed end in their error."""
    keys = [key for key in _COLUMNS if any(key in line for line in lines)]
    cells = [[_COLUMNS[key][0] for key in keys]]
    cells += [[_cell(line, key) for key in keys] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    errors = ["", *(str(line["error"]) if "error" in line else "" for line in lines)]
    body = (f"  {text}  {error}".rstrip() for text, error in zip(texts, errors, strict=True))
    return "\n".join([title, *body]) + "\n"


def summary(sections: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ratios that are asked for."""
    for on in sections.get("windows", ()):
        if on.get("windows") is not True:
            continue
        for off in sections["windows"]:
            same = off.get("lanes") == on["lanes"] and off.get("mode") == on["mode"]
            if same and off.get("windows") is False and off["requests_per_s"]:
                gain = on["requests_per_s"] / off["requests_per_s"]
                yield f"windows, {on['lanes']} lanes: {gain:.2f} times the requests/s"
    pairs = sections.get("user_side", ())
    for once in pairs:
        for each in pairs:
            same = once["requests"] == each["requests"]
            if same and once["user_once"] and not each["user_once"]:
                yield (
                    f"user side once, {once['requests']} requests: "
                    f"{once['mflops'] / each['mflops']:.2f} of the FLOPs, "
                    f"{once['device_us'] / each['device_us']:.2f} of the time"
                )


def _cell(line: Mapping[str, Any], key: str) -> str:
    value = line.get(key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return format(value, _COLUMNS[key][1])

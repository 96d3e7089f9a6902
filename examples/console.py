"""What the demo writes to a terminal: headings, wrapped text, a bar while something takes long."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from typing import Final

_MOST_COLUMNS: Final = 100
_BAR: Final = 24
_REDRAW_S: Final = 0.1


def columns() -> int:
    """Return how wide a line may be."""
    return min(shutil.get_terminal_size().columns, _MOST_COLUMNS)


def heading(text: str) -> None:
    """Print a line in bold, or plain where output is not a terminal."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def wrapped(label: str, text: str) -> None:
    """Print text with a label in the margin."""
    print(textwrap.fill(text, columns(), initial_indent=label, subsequent_indent=" " * len(label)))


def fitted(text: str, width: int) -> str:
    """Return text in exactly so many columns, its end cut off with dots if it is longer."""
    return f"{text:{width}}" if len(text) <= width else f"{text[: width - 3]}..."


class Bar:
    """A progress bar on standard error, for as long as ``with``; silent where none can be shown."""

    def __init__(self, what: str, n_steps: int) -> None:
        self._what = what
        self._n_steps = n_steps
        self._n_done = 0
        self._shown = sys.stderr.isatty()
        self._drawn_at = 0.0

    def __enter__(self) -> Bar:
        self._draw("")
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def step(self, note: str = "") -> None:
        """One more step is done; ``note`` says what comes or came."""
        self._n_done += 1
        self._draw(note)

    def _draw(self, note: str) -> None:
        now = time.monotonic()
        if not self._shown or now < self._drawn_at + _REDRAW_S:
            return
        self._drawn_at = now
        n_full = _BAR * min(self._n_done, self._n_steps) // self._n_steps
        bar = "#" * n_full + "-" * (_BAR - n_full)
        line = f"{self._what} [{bar}] {self._n_done}/{self._n_steps} {note}"
        sys.stderr.write(f"\r\033[K{line[: columns() - 1]}")
        sys.stderr.flush()

"""Reading one table of a TOML file with errors that name line and key: ``tomllib`` keeps no lines.

A ``Section`` hands out typed values, collects problems instead of stopping at the first, and
knows at the end which keys nobody asked for.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from kernels.errors import SpecError

_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*[=.]""")


class Lines:
    """Where tables and keys of a TOML text are, 1-based."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        header: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("["):
                header = _header(line) or header
                self._lines.setdefault(header, number)
            elif match := _KEY.match(line):
                (key,) = tomllib.loads(f"{match[1]} = 0")
                self._lines.setdefault((*header, key), number)

    def of(self, *path: str) -> int:
        """Return the line of a table or key; of what holds it, if it has none of its own."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def _header(line: str) -> tuple[str, ...]:
    """Return the path of a table header, or () if the line is the inside of an array."""
    try:
        level: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    path = []
    while isinstance(level, dict) and level:
        ((key, level),) = level.items()
        path.append(key)
    return tuple(path)


class Problems:
    """What is wrong with a file, each with its line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, problem: str) -> None:
        """Note a problem."""
        self._found.append((line, problem))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raise one SpecError that lists them all by line, if there are any.

        Raises:
            SpecError: There are.
        """
        if self._found:
            raise SpecError(
                "\n".join(f"{self.file}:{line}: {text}" for line, text in sorted(self._found))
            )


class Section:
    """One feature's table.

    Every getter returns the value, or the default (or a harmless stand-in) after noting a problem.
    """

    def __init__(
        self, name: str, values: Mapping[str, Any], lines: Lines, problems: Problems
    ) -> None:
        self.name = name
        self.line = lines.of("features", name)
        self._values = values
        self._lines = lines
        self._problems = problems
        self._asked: set[str] = set()

    def problem(self, text: str, key: str = "") -> None:
        """Note a problem with a key, or with the feature as a whole."""
        line = self._lines.of("features", self.name, key) if key else self.line
        self._problems.add(line, f"[features.{self.name}] {key}{': ' if key else ''}{text}")

    def has(self, key: str) -> bool:
        """Return whether the key is there, without reading it."""
        return key in self._values

    def _take(self, key: str, what: str, *, required: bool) -> Any:  # noqa: ANN401 - any TOML value
        self._asked.add(key)
        if key in self._values:
            return self._values[key]
        if required:
            self.problem(f"is missing: want {what}", key)
        return None

    def integer(
        self, key: str, default: int | None = None, *, low: int = 0, high: int = 2**53
    ) -> int:
        """Return an integer in ``low..high``; required if there is no default."""
        value = self._take(key, "an integer", required=default is None)
        fallback = low if default is None else default
        if value is None:
            return fallback
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.problem(f"want an integer of {low} to {high}, got {value!r}", key)
            return fallback
        return value

    def number(self, key: str) -> float | None:
        """Return a finite number, or None if the key is not there."""
        value = self._take(key, "a number", required=False)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            self.problem(f"want a finite number, got {value!r}", key)
            return None
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a required list of finite numbers."""
        value = self._take(key, "a list of numbers", required=True)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
            for v in value
        ):
            self.problem(f"want a list of finite numbers, got {value!r}", key)
            return ()
        return tuple(float(v) for v in value)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that is not empty; required if there is no default."""
        value = self._take(key, "a text", required=default is None)
        if value is None:
            return default or ""
        if not isinstance(value, str) or not value:
            self.problem(f"want a text, got {value!r}", key)
            return default or ""
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a required list of texts."""
        value = self._take(key, "a list of texts", required=True)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.problem(f"want a list of texts, got {value!r}", key)
            return ()
        return tuple(value)

    def word(self, key: str, words: Sequence[str]) -> str | None:
        """Return one of ``words``; None if the key is not there or is for a getter of numbers."""
        value = self._take(key, "", required=False)
        if not isinstance(value, str):
            return None
        if value not in words:
            self.problem(f"want a number or {' or '.join(words)}, got {value!r}", key)
        return value if value in words else words[0]

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of a few words; required if there is no default."""
        what = f"one of {', '.join(filter(None, choices))}"
        value = self._take(key, what, required=default is None)
        fallback = choices[0] if default is None else default
        if value is None:
            return fallback
        if value not in choices or not value:
            self.problem(f"want {what}, got {value!r}{_near(value, choices)}", key)
            return fallback
        return str(value)

    def refuse_others(self) -> None:
        """Note each key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                self.problem(f"unknown key{_near(key, sorted(self._asked))}", key)


def _near(value: object, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""

"""What a node tells whoever started it: reports as lines of JSON, and as lines for a person."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

import attrs

from runtime.supervisor import Phase

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_START: Final = 2  # as argparse's: what was given is wrong, and giving it again is of no use
EXIT_LOST: Final = 3  # what only a new process mends, such as a lost card: start it again

# A line for each fifth of the way is enough for a person, and for a log.
_STEPS: Final = 5


@attrs.frozen
class Report:
    """An actor's phase, and how far its warming up has come, 0 to 1."""

    actor: str
    phase: Phase
    progress: float = 0.0


@attrs.frozen
class Failure:
    """Why a node ends, in one line."""

    message: str


def pack(report: Report | Failure) -> bytes:
    """Return a report as a line."""
    return json.dumps(attrs.asdict(report)).encode() + b"\n"


def unpack(line: bytes) -> Report | Failure:
    """Return the report of a line."""
    fields: dict[str, Any] = json.loads(line)
    return Failure(**fields) if "message" in fields else Report(**fields)


@attrs.define(eq=False)
class Console:
    """Prints a cluster's progress for a person, or for a script that waits for ``ready``."""

    out: TextIO = attrs.field(factory=lambda: sys.stdout)
    _steps: dict[str, int] = attrs.field(factory=dict, init=False)

    def say(self, line: str) -> None:
        """Print a line at once."""
        self.out.write(line + "\n")
        self.out.flush()

    def tell(self, report: Report) -> None:
        """Print what is worth a line: progress by fifths, ready, a restart."""
        step = int(report.progress * _STEPS)
        if report.phase == "ready":
            self._steps.pop(report.actor, None)
            self.say(f"{report.actor}: ready")
        elif report.phase == "starting" and 0 < step > self._steps.get(report.actor, 0):
            self._steps[report.actor] = step
            self.say(f"{report.actor}: loading {report.progress:.0%}")
        elif report.phase == "away":
            self.say(f"{report.actor}: died, is restarted")


def pipe_reporter(fd: int) -> Callable[[Report | Failure], None]:
    """Return a function that writes reports to a pipe.

    Each is far shorter than a pipe's buffer, which the other side empties all the time.
    """

    def tell(report: Report | Failure) -> None:
        os.write(fd, pack(report))

    return tell


def console_reporter(console: Console) -> Callable[[Report | Failure], None]:
    """Return a function that prints reports; failures go to standard error."""

    def tell(report: Report | Failure) -> None:
        if isinstance(report, Failure):
            sys.stderr.write(f"error: {report.message}\n")
        else:
            console.tell(report)

    return tell

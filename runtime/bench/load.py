"""The load generator: sends requests on schedule, notes when each was answered, and how.

*Open loop*: arrivals come when they come, however the server is doing, and latency counts from the
moment at which a request was due. A generator that waits for the server before it sends hides the
very delays that it is there to measure ("coordinated omission", Gil Tene, How NOT to Measure
Latency, 2015). *Closed loop*: a number of clients, each of which sends as soon as it has an answer.

The generator shares the machine with what it measures, so it does little for each request: the
link has the requests encoded beforehand, and nothing here allocates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

# Outcomes: 0 ... 5 are those of ``transport.messages.ERROR_CODES``.
LOST = 255
# An idle generator looks at its clock this often; it sleeps until something is due otherwise.
_MOST_WAIT_S = 0.05


class Link(Protocol):
    """The way to one server, ``index`` being a request's place in the run."""

    def send(self, index: int) -> bool:
        """Send the request; False if it cannot go out now. Never blocks."""

    def receive(self, outcomes: list[tuple[int, int]]) -> None:
        """Append (index, code) of every answer that is at hand. Never blocks."""

    def wait(self, seconds: float) -> None:
        """Return when there may be an answer, or after ``seconds``."""


@attrs.frozen(eq=False)
class Record:
    """What became of each request of a run, in the order of sending.

    Attributes:
        due_s: float64 ``[n]``, when it was due, in seconds from the start of the run.
        sent_s: float64 ``[n]``, when it was sent.
        done_s: float64 ``[n]``, when its answer was read; NaN if there was none.
        codes: uint8 ``[n]``, how it was answered; ``LOST`` if it was not.
        duration_s: From the first due time to the end of the schedule, the drain left out.
    """

    due_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    codes: NDArray[np.uint8]
    duration_s: float


def open_loop(
    link: Link,
    due_s: Sequence[float],
    *,
    duration_s: float,
    drain_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """Send each request when it is due; then wait for answers, at most ``drain_s``."""
    n = len(due_s)
    due = [*due_s, float("inf")]
    book = _Book(n)
    start = clock()
    end = duration_s + drain_s
    sent = 0
    while book.n_open or sent < n:
        now = clock() - start
        held_up = False
        while due[sent] <= now and not held_up:
            if link.send(sent):
                book.sent_s[sent] = now
                book.n_open += 1
                sent += 1
            else:
                held_up = True  # it is late from now on, and its latency says so
        book.read(link, clock, start)
        now = clock() - start
        if now >= end:
            break
        idle_s = _MOST_WAIT_S if held_up else min(due[sent] - now, _MOST_WAIT_S)
        if idle_s > 0:
            link.wait(min(idle_s, end - now))
    return book.record(np.asarray(due_s, dtype=np.float64), sent, duration_s)


def closed_loop(
    link: Link,
    n_clients: int,
    *,
    most: int,
    duration_s: float,
    drain_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """Keep ``n_clients`` requests under way until ``duration_s`` or ``most`` requests are over."""
    book = _Book(most)
    start = clock()
    end = duration_s
    sent = 0
    while True:
        now = clock() - start
        while book.n_open < n_clients and sent < most and now < duration_s and link.send(sent):
            book.sent_s[sent] = now
            book.n_open += 1
            sent += 1
        if not book.n_open and (now >= duration_s or sent == most):
            break
        if now >= duration_s + drain_s:
            break
        link.wait(_MOST_WAIT_S)
        book.read(link, clock, start)
        if sent == most:
            end = min(end, clock() - start)
    return book.record(np.array(book.sent_s[:sent]), sent, end)


class _Book:
    """Times as lists: a list takes an item in a third of an array's time."""

    def __init__(self, n: int) -> None:
        self.sent_s = [float("nan")] * n
        self._done_s = [float("nan")] * n
        self._codes = [LOST] * n
        self._outcomes: list[tuple[int, int]] = []
        self.n_open = 0

    def read(self, link: Link, clock: Callable[[], float], start: float) -> None:
        outcomes = self._outcomes
        link.receive(outcomes)
        if not outcomes:
            return
        now = clock() - start
        for index, code in outcomes:
            if self._codes[index] == LOST:  # a second answer to one request counts for nothing
                self._done_s[index] = now
                self._codes[index] = code
                self.n_open -= 1
        outcomes.clear()

    def record(self, due_s: NDArray[np.float64], sent: int, duration_s: float) -> Record:
        n = len(due_s)
        return Record(
            due_s=due_s,
            sent_s=np.array(self.sent_s[:n]),
            done_s=np.array(self._done_s[:n]),
            codes=np.array(self._codes[:n], dtype=np.uint8),
            duration_s=duration_s,
        )


@attrs.frozen(eq=False)
class Paced:
    """A link whose waits last at least ``tick_s``, so that what comes in it is handled together.

    A generator that wakes for each answer takes a third more of the CPU that the server needs.
    Latencies are up to a tick longer for it, never shorter.
    """

    link: Link
    tick_s: float

    def send(self, index: int) -> bool:
        """As the link."""
        return self.link.send(index)

    def receive(self, outcomes: list[tuple[int, int]]) -> None:
        """As the link."""
        self.link.receive(outcomes)

    def wait(self, seconds: float) -> None:
        """Sleep a tick, then as the link for what is left of ``seconds``."""
        if self.tick_s:
            time.sleep(self.tick_s)
        if seconds > self.tick_s:
            self.link.wait(seconds - self.tick_s)

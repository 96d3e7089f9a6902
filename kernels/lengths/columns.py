"""Which columns of a block are steps, what is left of them at a length, and how long a batch is.

Pure: whoever stages a batch asks here, and so does whoever compiles for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]

_DEAD: Final = (0.0, 1.0)


@attrs.frozen(order=True)
class Stretch:
    """Columns of an input that are the steps of a sequence: ``most`` of ``each``, step by step."""

    input: str
    start: int
    most: int
    each: int

    @property
    def stop(self) -> int:
        """The column behind the last."""
        return self.start + self.most * self.each


@attrs.frozen
class Mark:
    """A mask, one column a step.

    Attributes:
        dead: The number, 0 or 1, that masks a step out; the other one makes it count.
    """

    stretch: Stretch
    dead: float = attrs.field(validator=attrs.validators.in_(_DEAD))


@attrs.frozen(kw_only=True)
class Shortened:
    """The sequences of a dense graph that may be shorter than they are.

    A bucket of length l has l steps of each, or all of one that has fewer.

    Attributes:
        stretches: Their columns, those of marks among them.
        marks: What says how long they are.
        needs_step: Of sequences of so many steps, a row without any step that counts needs all.
    """

    stretches: tuple[Stretch, ...]
    marks: tuple[Mark, ...]
    needs_step: frozenset[int] = frozenset()

    @property
    def most(self) -> int:
        """The length of a bucket that has every step."""
        return max(stretch.most for stretch in self.stretches)

    def of(self, side: str) -> list[Stretch]:
        """Return the stretches of an input, in their order."""
        return sorted(stretch for stretch in self.stretches if stretch.input == side)

    def width(self, side: str, width: int, length: int) -> int:
        """Return the columns of a block at a length, of ``width`` in all."""
        gone = sum(
            (stretch.most - min(stretch.most, length)) * stretch.each for stretch in self.of(side)
        )
        return width - gone

    def kept(self, side: str, width: int, length: int) -> list[tuple[int, int]]:
        """Return the columns of a whole block that are left at a length: from, to (exclusive)."""
        found, at = [], 0
        for stretch in self.of(side):
            found.append((at, stretch.start + min(stretch.most, length) * stretch.each))
            at = stretch.stop
        found.append((at, width))
        return [(start, stop) for start, stop in found if start < stop]

    def lengths(self, side: str, block: NDArray[Any], first: int = 0) -> Lengths | None:
        """Return how long each row's sequences are, by the marks of an input.

        Args:
            side: The input.
            block: ``[n, columns]``, of which the marks' are numbers.
            first: The block's column that the first of ``block`` is.

        Returns:
            int64 ``[n]``, 0 to ``most``; None if the input has no marks.
        """
        marks = [mark for mark in self.marks if mark.stretch.input == side]
        if not marks:
            return None
        found = np.zeros(len(block), np.int64)
        for mark in marks:
            np.maximum(found, _ends(_columns(mark, block, first) != mark.dead), out=found)
        for most in self.needs_step:
            counting = [
                _columns(mark, block, first) == 1 - mark.dead
                for mark in marks
                if mark.stretch.most == most
            ]
            if counting:
                found[~np.logical_and.reduce(counting).any(1)] = self.most
        return found


def _columns(mark: Mark, block: NDArray[Any], first: int) -> NDArray[Any]:
    stretch = mark.stretch
    return block[:, stretch.start - first : stretch.stop - first]


def _ends(alive: NDArray[np.bool_]) -> Lengths:
    """Return one more than the last place that is true of each row; 0 where none is."""
    n_steps = alive.shape[1]
    ends = n_steps - alive[:, ::-1].argmax(1)
    return np.where(alive.any(1), ends, 0)


def longest(lengths: Iterable[int], most: int) -> int:
    """Return the length of a bucket that holds all of these: 1 to ``most``."""
    return min(max(1, *lengths, 1), most)

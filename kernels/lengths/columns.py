"""Which columns of a block are steps, what is left of them at a length, and how long a batch is.

Pure: whoever stages a batch asks here, and so does whoever compiles for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

Lengths: TypeAlias = NDArray[np.int64]
AreAlike: TypeAlias = Callable[[int, NDArray[np.intp]], NDArray[np.bool_]]
"""Takes the steps of sequences and rows ``[n]``; returns of each, ``[n]``, whether it is so."""

_DEAD: Final = (0.0, 1.0)


@attrs.frozen(order=True)
class Stretch:
    """Columns of an input that are the steps of a sequence: ``most`` of ``each``, step by step.

    Attributes:
        last: Whether its last steps stay where it is shorter, as of lists that are padded on the
            left, and not its first.
    """

    input: str
    start: int
    most: int
    each: int
    last: bool = False

    @property
    def stop(self) -> int:
        """The column behind the last."""
        return self.start + self.most * self.each


@attrs.frozen
class Mark:
    """A mask, one column a step: a sequence is as long as reaches past its furthest step.

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
        alike: Of those of so many, it needs none if all its steps are alike: the same padding.
    """

    stretches: tuple[Stretch, ...]
    marks: tuple[Mark, ...]
    needs_step: frozenset[int] = frozenset()
    alike: frozenset[int] = frozenset()

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
            n_kept = min(stretch.most, length) * stretch.each
            if stretch.last:
                found.append((at, stretch.start))
                at = stretch.stop - n_kept
            else:
                found.append((at, stretch.start + n_kept))
                at = stretch.stop
        found.append((at, width))
        return [(start, stop) for start, stop in found if start < stop]

    def lengths(
        self, side: str, block: NDArray[Any], first: int = 0, are_alike: AreAlike | None = None
    ) -> Lengths | None:
        """Return how long each row's sequences are, by the marks of an input.

        Args:
            side: The input.
            block: ``[n, columns]``, of which the marks' are numbers.
            first: The block's column that the first of ``block`` is.
            are_alike: Asked of rows without any step whether their steps are alike; without it,
                none are.

        Returns:
            int64 ``[n]``, 0 to ``most``; None if the input has no marks.

        Raises:
            ValueError: A mark lies before ``first``.
        """
        tests = self._tests.get(side)
        if tests is None:
            return None
        found: Lengths | None = None
        live: dict[int, NDArray[np.bool_]] = {}
        for test in tests:
            if test.start < first:
                raise ValueError(f"{side}: a mask lies in column {test.start}, before {first}")
            values = block[:, test.start - first : test.stop - first]
            ends = ((values != test.dead) * test.places).max(1)
            found = ends if found is None else np.maximum(found, ends)
            if test.most in self.needs_step:
                counts = values == 1 - test.dead
                if test.most in self.alike and are_alike is not None:  # the only mark of these
                    empty = np.flatnonzero(ends == 0)
                    if len(empty):
                        counts[empty, 0] = are_alike(test.most, empty)
                other = live.get(test.most)
                live[test.most] = counts if other is None else counts & other
        assert found is not None
        for counts in live.values():
            found[~counts.any(1)] = self.most
        return found

    def are_alike(self, side: str, block: NDArray[Any], most: int) -> NDArray[np.bool_]:
        """Return whether all steps of a row are alike, of sequences of ``most`` steps.

        Args:
            side: The input.
            block: Whole rows, ``[n, width]``.
            most: Steps of the sequences.

        Returns:
            ``[n]``.
        """
        alike = np.ones(len(block), np.bool_)
        for stretch in self.of(side):
            if stretch.most == most:
                steps = block[:, stretch.start : stretch.stop].reshape(len(block), most, -1)
                alike &= (steps == steps[:, :1]).all((1, 2))
        return alike

    @functools.cached_property
    def _tests(self) -> dict[str, list[_Test]]:
        """The marks by input."""
        found: dict[str, list[_Test]] = {}
        for mark in self.marks:
            found.setdefault(mark.stretch.input, []).append(_Test.of(mark))
        return found


@attrs.frozen(eq=False)
class _Test:
    """A mark as ``Shortened.lengths`` reads it: in 7 us for one request, 12 us for 32.

    Attributes:
        places: int64 ``[most]``: the least length that has each step: 1, 2, ..., or from the last.
    """

    start: int
    stop: int
    dead: float
    most: int
    places: Lengths

    @classmethod
    def of(cls, mark: Mark) -> _Test:
        part = mark.stretch
        places = np.arange(1, part.most + 1)
        return cls(
            part.start, part.stop, mark.dead, part.most, places[::-1] if part.last else places
        )

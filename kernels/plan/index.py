"""Places of elements, as CUDA text that stays simple.

A place that is not a number is a term plus a number, and it is known what the term is a multiple
of: eight neighbours ``c, c + 1, .. c + 7`` then keep one term through divisions and remainders, and
what loads them sees that they lie together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import attrs


@attrs.frozen
class Term:
    """The place ``text + offset``.

    Attributes:
        text: A C++ expression of type int, without side effects; its value is a multiple of
            ``multiple``.
    """

    text: str
    offset: int = 0
    multiple: int = 1

    def __str__(self) -> str:
        if self.offset == 0:
            return self.text
        return f"({self.text} {'+' if self.offset > 0 else '-'} {abs(self.offset)})"


Index: TypeAlias = int | Term


def add(a: Index, b: Index) -> Index:
    """Return ``a + b``."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, int):
        a, b = b, a
    assert isinstance(a, Term)
    if isinstance(b, int):
        return attrs.evolve(a, offset=a.offset + b)
    return Term(f"({a.text} + {b.text})", a.offset + b.offset, math.gcd(a.multiple, b.multiple))


def mul(a: Index, b: int) -> Index:
    """Return ``a * b``."""
    if isinstance(a, int) or b == 0:
        return 0 if b == 0 else a * b  # type: ignore[operator]
    return a if b == 1 else Term(f"({a.text} * {b})", a.offset * b, a.multiple * b)


def div(a: Index, b: int) -> Index:
    """Return ``a / b`` for a non-negative ``a``."""
    if isinstance(a, int):
        return a // b
    if b == 1:
        return a
    if a.multiple % b == 0:
        return Term(f"({a.text} / {b})", a.offset // b, a.multiple // b)
    if _stays_within(a, b):
        return Term(f"({a.text} / {b})")
    return Term(f"({a} / {b})")


def mod(a: Index, b: int) -> Index:
    """Return ``a % b`` for a non-negative ``a``."""
    if isinstance(a, int):
        return a % b
    if a.multiple % b == 0:
        return a.offset % b
    if _stays_within(a, b):
        return Term(f"({a.text} % {b})", a.offset, a.multiple)
    return Term(f"({a} % {b})")


def _stays_within(a: Term, b: int) -> bool:
    """Whether the offset never carries a place from one block of ``b`` into the next."""
    return b % a.multiple == 0 and 0 <= a.offset < a.multiple


def flat(coordinates: Sequence[Index], dims: Sequence[int]) -> Index:
    """Return the place of an element among those of a row, in C order."""
    total: Index = 0
    for position, dim in enumerate(dims):
        stride = math.prod(dims[position + 1 :])
        total = add(total, 0 if dim == 1 else mul(coordinates[position], stride))
    return total


def unflat(index: Index, dims: Sequence[int]) -> tuple[Index, ...]:
    """Return the coordinates of the element at a place: the inverse of ``flat``."""
    found: list[Index] = []
    for position, dim in enumerate(dims):
        if dim == 1:
            found.append(0)
            continue
        quotient = div(index, math.prod(dims[position + 1 :]))
        outermost = math.prod(dims[:position]) == 1
        found.append(quotient if outermost else mod(quotient, dim))
    return tuple(found)

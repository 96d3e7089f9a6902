"""Integer expressions in CUDA text: coordinates of elements, folded where they are numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Index: TypeAlias = int | str
"""A number, or a C++ expression of type int that has no side effect."""


def add(a: Index, b: Index) -> Index:
    """Return ``a + b``."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0:
        return b
    return a if b == 0 else f"({a} + {b})"


def mul(a: Index, b: int) -> Index:
    """Return ``a * b``."""
    if isinstance(a, int):
        return a * b
    if b == 0:
        return 0
    return a if b == 1 else f"{a} * {b}"


def div(a: Index, b: int) -> Index:
    """Return ``a / b`` for a non-negative ``a``."""
    if isinstance(a, int):
        return a // b
    return a if b == 1 else f"({a}) / {b}"


def mod(a: Index, b: int) -> Index:
    """Return ``a % b`` for a non-negative ``a``."""
    if isinstance(a, int):
        return a % b
    return 0 if b == 1 else f"({a}) % {b}"


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
        stride = math.prod(dims[position + 1 :])
        if dim == 1:
            found.append(0)
            continue
        quotient = div(index, stride)
        outermost = math.prod(dims[:position]) == 1
        found.append(quotient if outermost else mod(quotient, dim))
    return tuple(found)

"""What is known of an element past a batch's length: a number, or what sort of number it is."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np

from kernels.ir.build import fold, make
from kernels.ir.node import DType, Node, Op, const

MOST: Final = 4e3
"""What no mask has entered is taken to lie within this."""
MASK: Final = -1e4
"""A number as low masks a score out: BERT's, which is the highest in use. Added to a score within
``MOST`` it is still 2,000 below any other, of which the exponential is 0 in float64, too."""


class Sort(enum.Enum):
    """Of numbers that are not known."""

    PLAIN = "plain"  # within MOST
    LOW = "low"  # a score that was masked out
    SHARE = "share"  # of a row without steps that count: one n-th of a plain number, of n steps
    ANY = "any"  # and what is no number


PLAIN, LOW, SHARE, ANY = Sort.PLAIN, Sort.LOW, Sort.SHARE, Sort.ANY
Kind: TypeAlias = float | Sort

_BOUNDED: Final = frozenset({Op.SIGMOID, Op.TANH, Op.SIN, Op.COS, Op.ERF, Op.SIGN})
_NUMPY: Final = {DType.FLOAT: np.float32, DType.INT: np.int64, DType.BOOL: np.bool_}


def is_plain(kind: Kind) -> bool:
    """Whether it is within ``MOST``."""
    return kind is PLAIN or (isinstance(kind, float) and abs(kind) <= MOST)


def is_low(kind: Kind) -> bool:
    """Whether it is a score that counts for nothing beside any plain one."""
    return kind is LOW or (isinstance(kind, float) and kind <= MASK)


def number(value: float) -> Kind:
    """Return the kind of a known number."""
    return float(value) if math.isfinite(value) or value == -math.inf else ANY


def joined(kinds: Sequence[Kind]) -> Kind:
    """Return what holds of each of several."""
    first = kinds[0]
    if all(kind == first for kind in kinds):
        return first
    if all(map(is_plain, kinds)):
        return PLAIN
    return LOW if all(map(is_low, kinds)) else ANY


def mixed(kinds: Sequence[Kind]) -> Kind:
    """Return what products and sums of several come to."""
    return PLAIN if all(map(is_plain, kinds)) else ANY


def is_alike(kind: Kind) -> bool:
    """Whether elements of this kind are the same at each step, where ``elementwise`` says so."""
    return kind is not ANY and kind is not SHARE


def elementwise(node: Node, kinds: Sequence[Kind], *, alike: bool = False) -> Kind:
    """Return the kind of an elementwise op's element, of its sources'.

    Args:
        node: The op.
        kinds: Of its sources.
        alike: Whether kinds but ANY and SHARE say, too, that elements are the same at each step.
    """
    numbers = [kind for kind in kinds if isinstance(kind, float)]
    if len(numbers) == len(kinds):
        return _computed(node, numbers)
    if SHARE in kinds:
        return _of_share(node, kinds)
    if alike and node.op is Op.WHERE and not is_alike(kinds[0]):
        return ANY
    found = _SPECIAL[node.op](kinds) if node.op in _SPECIAL else None
    if found is not None:
        return found
    if not alike and (node.op in _BOUNDED or node.dtype is DType.BOOL):
        return PLAIN
    return mixed(kinds)


def _of_share(node: Node, kinds: Sequence[Kind]) -> Kind:
    """Shares may be multiplied by what is alike, and chosen."""
    if node.op is Op.WHERE and isinstance(kinds[0], float):
        return kinds[1] if kinds[0] else kinds[2]
    others = [kind for kind in kinds if kind is not SHARE]
    scaled = node.op is Op.MUL or (node.op is Op.DIV and kinds[0] is SHARE)
    if not scaled or len(others) != 1 or not is_plain(others[0]):
        return ANY
    return 0.0 if node.op is Op.MUL and others[0] == 0.0 else SHARE


def _computed(node: Node, numbers: Sequence[float]) -> Kind:
    sources = [
        const(np.array(value).astype(_NUMPY[source.dtype]).reshape(1))
        for value, source in zip(numbers, node.sources, strict=True)
    ]
    made = fold(make(node.op, *sources, arg=node.arg, dtype=node.dtype, name=node.name))
    return number(float(made.array[0]))


def _add(kinds: Sequence[Kind]) -> Kind | None:
    if any(map(is_low, kinds)):
        others = [kind for kind in kinds if not is_low(kind)]
        return LOW if all(map(is_plain, others)) else ANY
    return None


def _sub(kinds: Sequence[Kind]) -> Kind | None:
    a, b = kinds
    if is_plain(a) and isinstance(b, float):
        return _add([a, -b])
    return LOW if is_low(a) and is_plain(b) else None


def _mul(kinds: Sequence[Kind]) -> Kind | None:
    return 0.0 if 0.0 in kinds and all(map(is_plain, kinds)) else None


def _div(kinds: Sequence[Kind]) -> Kind | None:
    return 0.0 if kinds[0] == 0.0 and is_plain(kinds[1]) else None


def _and(kinds: Sequence[Kind]) -> Kind | None:
    return 0.0 if 0.0 in kinds else None


def _or(kinds: Sequence[Kind]) -> Kind | None:
    return 1.0 if 1.0 in kinds else None


def _where(kinds: Sequence[Kind]) -> Kind | None:
    condition, then, otherwise = kinds
    if isinstance(condition, float):
        return then if condition else otherwise
    return joined([then, otherwise])


def _cast(kinds: Sequence[Kind]) -> Kind | None:
    return kinds[0]


def _exp(kinds: Sequence[Kind]) -> Kind | None:
    return 0.0 if is_low(kinds[0]) else None


_SPECIAL: Final = {
    Op.ADD: _add,
    Op.SUB: _sub,
    Op.MUL: _mul,
    Op.DIV: _div,
    Op.AND: _and,
    Op.OR: _or,
    Op.WHERE: _where,
    Op.EXP: _exp,
    Op.CAST: _cast,
}

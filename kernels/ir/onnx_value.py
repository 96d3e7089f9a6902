"""What a tensor of an ONNX graph becomes: a node of ours, and where its lead stands.

In our graph the lead is axis 0 of a value. In an ONNX graph it may stand elsewhere for a while
(``Transpose``), or be a factor of an axis (``Reshape`` of ``[rows, 8, 5]`` to ``[-1, 5]``). A
``Value`` keeps the node, lead first, beside the ONNX view of it. In that view the axis ``at`` has
``outer x lead x inner`` elements, in this order from slowest to fastest.

A node's shape is ``[lead, *dims]``, where dims are the ONNX dimensions in their order without axis
``at``; if ``outer * inner`` is more than 1, that product stands in its place. A value that is the
same for every row needs no lead of its own: it is a constant ``[1, *dims]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import attrs
import numpy as np

from kernels.graph.model import Array
from kernels.ir.node import Lead, Node


@attrs.frozen
class Count:
    """A size that is known when a batch runs: ``factor`` times the rows, or requests."""

    lead: Lead
    factor: int = 1

    def __mul__(self, other: object) -> Count:
        if isinstance(other, (int, np.integer)) and other > 0:
            return Count(self.lead, self.factor * int(other))
        return NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Count:
        if isinstance(other, (int, np.integer)) and other > 0 and not self.factor % other:
            return Count(self.lead, self.factor // int(other))
        return NotImplemented

    def __str__(self) -> str:
        return str(self.lead) if self.factor == 1 else f"{self.factor}*{self.lead}"


Size: TypeAlias = int | Count


@attrs.frozen
class View:
    """The ONNX side of a value: its rank, and where the lead is.

    Attributes:
        at: The axis that the lead is in, or None for a value without one.
        outer, inner: What else is in that axis, before and after the lead.
    """

    rank: int
    at: int | None = None
    lead: Lead | None = None
    outer: int = 1
    inner: int = 1

    @property
    def merged(self) -> int:
        """How many elements axis ``at`` has for each row."""
        return self.outer * self.inner

    def dims(self, local: tuple[int, ...]) -> tuple[int, ...]:
        """Return a node's dims (without the lead) for ONNX dims ``local``, ``merged`` at ``at``."""
        if self.at is None or self.merged > 1:
            return local
        return (*local[: self.at], *local[self.at + 1 :])

    def axis(self, axis: int) -> int:
        """Return the node's axis of an ONNX axis, which is not ``at`` (or is merged)."""
        if self.at is None:
            return axis
        return axis if self.merged == 1 and axis > self.at else axis + 1


@attrs.frozen(eq=False)
class Value:
    """A node, and the ONNX view of it; see the module's text."""

    node: Node
    view: View

    @property
    def local(self) -> tuple[int, ...]:
        """The ONNX dimensions for one row: those of axis ``at`` without the lead."""
        at = self.view.at
        if at is None:
            return self.node.dims
        dims = self.node.dims if self.node.lead is not None else self.node.dims[1:]
        return dims if self.view.merged > 1 else (*dims[:at], 1, *dims[at:])

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The ONNX shape."""
        found: list[Size] = list(self.local)
        if self.view.at is not None and self.view.lead is not None:
            found[self.view.at] = Count(self.view.lead, self.view.merged)
        return tuple(found)

    @property
    def is_alike(self) -> bool:
        """Whether it has a lead in ONNX, and the same constant for every element of it."""
        return self.view.at is not None and self.node.lead is None


@attrs.frozen(eq=False)
class Sizes:
    """An integer tensor whose elements are ``Size``: what shapes are computed with."""

    array: Array  # of objects

    def flat(self) -> list[Size]:
        """Return the elements in order."""
        return [each if isinstance(each, Count) else int(each) for each in self.array.ravel()]


class RequestOfRow:
    """The input ``request_of_row``, which has one use: to gather a user value's rows."""

    sizes: Final[tuple[Size, ...]] = (Count(Lead.ROWS),)


Operand: TypeAlias = Value | Array | Sizes | RequestOfRow


def sizes_of(items: Sequence[Size]) -> Sizes | Array:
    """Make an array of sizes: a plain one where all are known."""
    if all(isinstance(item, int) for item in items):
        return np.asarray(items, np.int64)
    array = np.empty(len(items), object)
    array[:] = items
    return Sizes(array)


def settled(array: Any) -> Sizes | Array:  # noqa: ANN401 - what numpy makes of objects
    """Return an array of objects as ``Sizes``, or as integers where no ``Count`` is left."""
    objects = np.asarray(array, object)
    if any(isinstance(each, Count) for each in objects.ravel()):
        return Sizes(objects)
    flags = all(isinstance(each, (bool, np.bool_)) for each in objects.ravel())
    return objects.astype(np.bool_ if flags and objects.size else np.int64)

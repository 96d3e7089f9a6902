"""Helpers of movement: views that are not made where they change nothing, and intervals.

A value's row is a flat array of ``width`` elements. RESHAPE leaves that array alone, and a SLICE
of its outermost dimension is an interval of it; so is what both make together. Seen so, pieces of
one value can be told apart and put together again whatever shapes they have taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.build import make
from kernels.ir.node import Node, Op, Shape, Slice, const


def shaped(node: Node, dims: Sequence[int]) -> Shape:
    """Return ``dims`` behind the lead of ``node``."""
    return tuple(dims) if node.lead is None else (node.lead, *dims)


def reshape(node: Node, dims: Sequence[int]) -> Node:
    """Return a value as the same elements of other dimensions, lead aside."""
    shape = shaped(node, dims)
    while node.op is Op.RESHAPE:
        node = node.sources[0]
    if node.shape == shape:
        return node
    if node.op is Op.CONST:
        return const(node.array.reshape(tuple(dims)), node.name)
    return make(Op.RESHAPE, node, shape=shape, name=node.name)


def cut(node: Node, axis: int, start: int, stop: int) -> Node:
    """Return elements ``start .. stop - 1`` of an axis (of the shape, with its lead)."""
    if (start, stop) == (0, node.shape[axis]):
        return node
    return make(Op.SLICE, node, arg=Slice(axis, start, stop), name=node.name)


def transposed(node: Node, order: tuple[int, ...]) -> Node:
    """Return a value with its axes permuted."""
    if order == tuple(range(len(order))):
        return node
    return make(Op.TRANSPOSE, node, arg=order, name=node.name)


def join(nodes: Sequence[Node], axis: int) -> Node:
    """Return values side by side; one is itself."""
    if len(nodes) == 1:
        return nodes[0]
    return make(Op.CONCAT, *nodes, arg=axis, name=nodes[0].name)


@attrs.frozen
class Interval:
    """Elements ``start .. stop - 1`` of each row of ``base``, in its flat order."""

    base: Node
    start: int
    stop: int


def interval(node: Node) -> Interval:
    """Find the value that a node is an interval of; itself, at worst."""
    start, width = 0, node.width
    while True:
        if node.op is Op.SLICE:
            part = node.arg
            assert isinstance(part, Slice)
            lead = node.lead is not None
            source = node.sources[0]
            if part.step != 1 or math.prod(source.dims[: part.axis - lead]) != 1:
                break
            start += part.start * math.prod(source.dims[part.axis - lead + 1 :])
        elif node.op is not Op.RESHAPE:
            break
        node = node.sources[0]
    return Interval(node, start, start + width)


def piece(whole: Interval, dims: Sequence[int]) -> Node:
    """Make an interval, with these dimensions."""
    base, lead = whole.base, whole.base.lead is not None
    if whole.stop - whole.start == base.width:
        return reshape(base, dims)
    axis = next(i for i, dim in enumerate(base.dims) if dim != 1)
    stride = math.prod(base.dims[axis + 1 :])
    if whole.start % stride or whole.stop % stride:
        base, axis, stride = reshape(base, (base.width,)), 0, 1
    return reshape(cut(base, axis + lead, whole.start // stride, whole.stop // stride), dims)


def runs(parts: Sequence[Interval]) -> list[list[int]]:
    """Group the indices of consecutive intervals that continue each other in one base."""
    groups: list[list[int]] = []
    for index, part in enumerate(parts):
        before = parts[groups[-1][-1]] if groups else None
        if before is not None and before.base is part.base and before.stop == part.start:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Pair dimensions of two shapes of one size: the smallest runs of equal product."""
    found: list[tuple[range, range]] = []
    if 0 in old or 0 in new:
        return found
    i = j = 0
    while i < len(old) and j < len(new):
        first_i, first_j = i, j
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= old[i]
                i += 1
            else:
                right *= new[j]
                j += 1
        found.append((range(first_i, i), range(first_j, j)))
    if (i < len(old) or j < len(new)) and found:  # ones are left over
        last_i, last_j = found.pop()
        found.append((range(last_i.start, len(old)), range(last_j.start, len(new))))
    return found


def is_scalar(node: Node) -> bool:
    """Whether a node is a constant of one element."""
    return node.op is Op.CONST and node.width == 1


def scalar(node: Node) -> float:
    """Return the element of a constant of one."""
    return float(node.array.reshape(-1)[0])


def is_value(node: Node, value: float) -> bool:
    """Whether a node is a constant, all of whose elements are ``value``."""
    return node.op is Op.CONST and bool(np.all(node.array == value))


def channels(node: Node, width: int) -> NDArray[np.float64] | None:
    """Return a float constant as ``[width]`` along the last axis, or None if it is not that.

    Args:
        node: Any value; a constant that varies along another axis is none of these.
        width: The last dimension of what it meets; a constant of one element repeats.
    """
    if node.op is not Op.CONST or not node.shape or math.prod(node.dims[:-1]) != 1:
        return None
    flat = node.array.reshape(-1).astype(np.float64)
    return np.broadcast_to(flat, (width,)) if flat.size in (1, width) else None

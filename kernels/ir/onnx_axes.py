"""Moving values about in ONNX's terms: broadcasting, Reshape, Transpose and Expand.

Each keeps the lead first in our graph and says in the view where ONNX has it. What would move
elements from one row to another is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from kernels.graph.model import Array
from kernels.ir.node import Arg, DType, Lead, Node, Op, Shape
from kernels.ir.onnx_call import Call
from kernels.ir.onnx_value import Count, Size, Value, View


def align(call: Call, operands: Sequence[Value | Array]) -> tuple[list[Node], View]:
    """Broadcast: return nodes of equal rank, with 1 where a dimension repeats, and their view."""
    values = [call.lift(each) for each in operands]
    rank = max(value.view.rank for value in values)
    view = View(rank)
    for value in values:
        if value.view.at is None:
            continue
        theirs = attrs.evolve(value.view, rank=rank, at=value.view.at + rank - value.view.rank)
        if view.at is not None and theirs != view:
            raise call.refuse("sets some rows against others: they stand on different axes")
        view = theirs
    return _without_expand([_fit(call, value, view) for value in values]), view


def _fit(call: Call, value: Value, view: View) -> Node:
    local = (1,) * (view.rank - value.view.rank) + value.local
    if view.at is None:
        return reshaped(call, value.node, local)
    if value.view.at is None and local[view.at] != 1:
        raise call.refuse(f"has a constant with {local[view.at]} elements along the rows")
    return reshaped(call, value.node, (value.node.lead or 1, *view.dims(local)))


def _without_expand(nodes: list[Node]) -> list[Node]:
    """Read what an EXPAND reads, where broadcasting gives the same shape without it."""
    found = list(nodes)
    for i, node in enumerate(found):
        if node.op is Op.EXPAND and node.sources[0].lead is not None:
            rest = [each.shape for j, each in enumerate(found) if j != i]
            slim = node.sources[0]
            if broadcast([*rest, slim.shape]) == broadcast([*rest, node.shape]):
                found[i] = slim
    return found


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that shapes of one rank broadcast to."""
    return tuple(next((dim for dim in dims if dim != 1), 1) for dims in zip(*shapes, strict=True))


def reshaped(call: Call, node: Node, shape: Shape) -> Node:
    """Reshape a node, if its shape is another."""
    return node if node.shape == shape else call.make(Op.RESHAPE, node, shape=shape)


def elementwise(
    call: Call, op: Op, *operands: Value | Array, arg: Arg = None, dtype: DType | None = None
) -> Value:
    """Apply an elementwise op, with broadcasting."""
    nodes, view = align(call, operands)
    return Value(call.make(op, *nodes, arg=arg, dtype=dtype), view)


def transpose(call: Call, value: Value, order: Sequence[int]) -> Value:
    """Permute ONNX axes."""
    view = value.view
    if list(order) == list(range(view.rank)):
        return value
    moved = [each for each in order if each != view.at or view.merged > 1]
    axes = tuple(view.axis(each) for each in moved)
    at = None if view.at is None else list(order).index(view.at)
    if at is not None:
        axes = (0, *axes)
    shape = tuple(value.node.shape[axis] for axis in axes)
    wide = [axis for axis in axes if value.node.shape[axis] != 1]
    if wide == sorted(wide):  # only dimensions of 1 move
        node = reshaped(call, value.node, shape)
    else:
        node = call.make(Op.TRANSPOSE, value.node, arg=axes)
    return Value(node, attrs.evolve(view, at=at))


def swap_last(call: Call, value: Value) -> Value:
    """Swap the last two ONNX axes."""
    rank = value.view.rank
    return transpose(call, value, [*range(rank - 2), rank - 1, rank - 2])


def reshape(call: Call, value: Value, target: Sequence[Size]) -> Value:
    """Reshape to sizes that are all resolved (``resolve``)."""
    view = value.view
    if view.at is None:
        known = tuple(each for each in target if isinstance(each, int))
        if len(known) != len(target) or math.prod(known) != value.node.width:
            raise call.refuse(f"makes {list(map(str, target))} of {list(value.local)}")
        return Value(reshaped(call, value.node, known), View(len(known)))
    counts = [i for i, each in enumerate(target) if isinstance(each, Count)]
    count = target[counts[0]] if counts else None
    if len(counts) != 1 or not isinstance(count, Count) or count.lead is not view.lead:
        raise call.refuse(f"wants {list(map(str, target))}, which has not one axis of {view.lead}")
    at = counts[0]
    local = [each if isinstance(each, int) else 1 for each in target]
    before = math.prod(value.local[: view.at]) * view.outer
    outer, rest = divmod(before, math.prod(local[:at]))
    local[at] = count.factor
    if rest or count.factor % max(outer, 1) or math.prod(local) != math.prod(value.local):
        raise call.refuse(
            f"makes {list(map(str, target))} of {list(map(str, value.sizes))}, "
            f"which would mix {view.lead}"
        )
    made = View(len(local), at, view.lead, outer, count.factor // outer)
    shape = (value.node.shape[0], *made.dims(tuple(local)))
    return Value(reshaped(call, value.node, shape), made)


def resolve(
    call: Call, sizes: Sequence[Size], target: Sequence[Size], *, zero_copies: bool
) -> list[Size]:
    """Replace -1 (what is left) and 0 (as it was) of a Reshape's target."""
    found = list(target)
    for i, each in enumerate(found):
        if each == 0 and zero_copies and i < len(sizes):
            found[i] = sizes[i]
    if -1 not in found:
        return found
    place = found.index(-1)
    others = found[:place] + found[place + 1 :]
    left, rest = divmod(_factor(sizes), max(_factor(others), 1))
    if rest:
        raise call.refuse(f"makes {list(map(str, target))} of {list(map(str, sizes))}")
    lead = _lead(sizes)
    found[place] = left if lead is None or _lead(others) is not None else Count(lead, left)
    return found


def _factor(sizes: Sequence[Size]) -> int:
    return math.prod(each.factor if isinstance(each, Count) else each for each in sizes)


def _lead(sizes: Sequence[Size]) -> Lead | None:
    return next((each.lead for each in sizes if isinstance(each, Count)), None)


def expand(call: Call, value: Value, target: Sequence[Size]) -> Value:
    """Broadcast to sizes, in which 1 keeps what is there. Of a constant, make one a row."""
    rank = max(len(target), value.view.rank)
    wanted: list[Size] = [*(1 for _ in range(rank - len(target))), *target]
    local = [*(1 for _ in range(rank - value.view.rank)), *value.local]
    view = attrs.evolve(value.view, rank=rank)
    if view.at is not None:
        view = attrs.evolve(view, at=view.at + rank - value.view.rank)
    for axis, size in enumerate(wanted):
        if axis == view.at:
            if size not in (1, value.sizes[axis - rank]):
                raise call.refuse(f"repeats {view.lead}")
        elif isinstance(size, Count):
            if view.at is not None or local[axis] != 1:
                raise call.refuse(f"sets {view.lead} against {size}")
            view = View(rank, axis, size.lead, 1, size.factor)
            local[axis] = size.factor
        elif size != 1:
            if local[axis] not in (1, size):
                raise call.refuse(f"makes {size} of {local[axis]}")
            local[axis] = size
    node = _fit(call, value, view)
    shape: Shape = tuple(local)
    if view.at is not None:
        shape = (node.shape[0], *view.dims(tuple(local)))
    return Value(node if node.shape == shape else call.make(Op.EXPAND, node, shape=shape), view)


def with_rows(call: Call, value: Value) -> Value:
    """Return a value whose node has the lead that the ONNX tensor has."""
    if not value.is_alike or value.view.lead is None:
        return value
    shape: Shape = (value.view.lead, *value.node.dims[1:])
    return Value(call.make(Op.EXPAND, value.node, shape=shape), value.view)


def drop(call: Call, value: Value, axes: Sequence[int]) -> Value:
    """Drop ONNX axes, each of size 1."""
    keep = [size for axis, size in enumerate(value.sizes) if axis not in axes]
    return reshape(call, value, keep)


def insert(call: Call, value: Value, axes: Sequence[int]) -> Value:
    """Insert ONNX axes of size 1; ``axes`` are places in the result."""
    left = iter(value.sizes)
    rank = value.view.rank + len(axes)
    return reshape(call, value, [1 if axis in axes else next(left) for axis in range(rank)])

"""Import of operators that move elements: Reshape, Transpose, Concat, Expand, Pad, their like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx

from kernels.graph.model import Array
from kernels.ir.node import Op
from kernels.ir.onnx_axes import drop, elementwise, expand, insert, reshape, resolve, transpose
from kernels.ir.onnx_axes import with_rows as rows_of
from kernels.ir.onnx_call import Call, Result, Table
from kernels.ir.onnx_ops_index import part, take
from kernels.ir.onnx_value import (
    Count,
    Operand,
    RequestOfRow,
    Size,
    Sizes,
    Value,
    settled,
    sizes_of,
)


def sizes_at(call: Call, i: int, name: str, since: int) -> list[Size]:
    """Return sizes: an attribute before opset ``since``, input ``i`` from then on."""
    if call.opset < since:
        return [int(each) for each in call.attribute(name)]
    given = call.inputs[i] if i < len(call.inputs) else None
    if isinstance(given, Sizes):
        return given.flat()
    return [int(each) for each in call.array(i, f"its {name}").ravel()]


def _identity(call: Call) -> Result:
    given = call.inputs[0]
    if given is None:
        raise call.refuse("input 0 is missing")
    return given


def _dropout(call: Call) -> Result:
    training = call.inputs[2] if call.has(2) else None
    if training is not None and not (isinstance(training, np.ndarray) and not training.any()):
        raise call.refuse("may be in training mode")
    return (call.operand(0), None)


def _reshape(call: Call) -> Result:
    given = call.inputs[0]
    target = sizes_at(call, 1, "shape", 5)
    if isinstance(given, Sizes):
        known = [each for each in target if isinstance(each, int)]
        return settled(given.array.reshape(known))
    x = call.value(0)
    copies = not call.attribute("allowzero", 0)
    return reshape(call, x, resolve(call, x.sizes, target, zero_copies=copies))


def _flatten(call: Call) -> Result:
    x = call.value(0)
    axis = call.attribute("axis", 1)
    axis += x.view.rank if axis < 0 else 0
    sizes = [_total(x.sizes[:axis]), _total(x.sizes[axis:])]
    return reshape(call, x, sizes)


def _total(sizes: Sequence[Size]) -> Size:
    total: Size = math.prod(each for each in sizes if isinstance(each, int))
    for each in sizes:
        if isinstance(each, Count):
            total = each * total
    return total


def _unsqueeze(call: Call) -> Result:
    given = call.inputs[0]
    axes = call.integers(1, "axes", 13) or []
    if isinstance(given, Sizes):
        return settled(np.expand_dims(given.array, tuple(axes)))
    if isinstance(given, RequestOfRow):
        raise call.refuse("uses request_of_row for more than to gather rows")
    x = call.value(0)
    rank = x.view.rank + len(axes)
    return insert(call, x, [call.axis(axis, rank) for axis in axes])


def _squeeze(call: Call) -> Result:
    given = call.inputs[0]
    axes = call.integers(1, "axes", 13)
    if isinstance(given, Sizes):
        return settled(np.squeeze(given.array, None if axes is None else tuple(axes)))
    x = call.value(0)
    if axes is None:  # at a batch of one row, ONNX would drop the rows' axis too
        axes = [i for i, size in enumerate(x.sizes) if size == 1]
    axes = [call.not_rows(x, call.axis(axis, x.view.rank)) for axis in axes]
    if any(x.local[axis] != 1 for axis in axes):
        raise call.refuse(f"drops axes {axes} of {list(map(str, x.sizes))}")
    return drop(call, x, axes)


def _transpose(call: Call) -> Result:
    x = call.value(0)
    order = call.attribute("perm") or list(range(x.view.rank))[::-1]
    return transpose(call, x, [call.axis(axis, x.view.rank) for axis in order])


def _expand(call: Call) -> Result:
    return expand(call, call.value(0), sizes_at(call, 1, "shape", 8))


def _tile(call: Call) -> Result:
    x = call.value(0)
    repeats = sizes_at(call, 1, "repeats", 6)
    for axis, times in enumerate(repeats):
        if times == 1:
            continue
        if axis == x.view.at:
            raise call.refuse(f"repeats {x.view.lead}")
        if isinstance(times, Count) and x.local[axis] != 1:
            raise call.refuse(f"repeats {x.local[axis]} elements {times} times")
        whole = [*x.sizes[:axis], 1, *x.sizes[axis:]]
        wide: list[Size] = [*x.sizes[:axis], times, *x.sizes[axis:]]
        joined = [*x.sizes[:axis], times * x.local[axis], *x.sizes[axis + 1 :]]
        x = reshape(call, expand(call, reshape(call, x, whole), wide), joined)
    return x


def concat(call: Call, parts: Sequence[Value | Array], axis: int) -> Value:
    """Concatenate along an ONNX axis that does not hold the rows."""
    values = [call.lift(each) for each in parts]
    lead = next((value for value in values if value.view.at is not None), None)
    if lead is not None:
        call.not_rows(lead, axis)
        values = [rows_of(call, value) for value in values]
        if any(value.view != lead.view for value in values):
            raise call.refuse("sets some rows beside others: they stand on different axes")
    view = values[0].view
    nodes = [value.node for value in values if value.local[axis]]
    if len(nodes) < 2:
        return Value(nodes[0] if nodes else values[0].node, view)
    return Value(call.make(Op.CONCAT, *nodes, arg=view.axis(axis)), view)


def _concat(call: Call) -> Result:
    axis = call.attribute("axis", 1)
    if any(isinstance(each, Sizes) for each in call.inputs):
        return settled(np.concatenate([_objects(call, each) for each in call.inputs], axis))
    parts = call.operands()
    return concat(call, parts, call.axis(axis, call.lift(parts[0]).view.rank))


def _objects(call: Call, operand: Operand | None) -> Array:
    if isinstance(operand, Sizes):
        return operand.array
    if isinstance(operand, np.ndarray):
        return operand.astype(object)
    raise call.refuse("joins sizes and data")


def _pad(call: Call) -> Result:
    x = call.value(0)
    rank = x.view.rank
    pads = call.integers(1, "pads", 11) or []
    axes = list(range(rank))
    if call.has(3):
        axes = [call.axis(int(axis), rank) for axis in call.array(3, "its axes").ravel()]
    fill = call.attribute("value", 0.0)
    if call.opset >= 11:
        fill = call.array(2, "its value").item() if call.has(2) else 0
    mode = call.attribute("mode", "constant")
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if before or after:
            call.not_rows(x, axis)
            x = padded(call, x, axis, (before, after), fill, mode)
    return x


def padded(
    call: Call, x: Value, axis: int, pads: tuple[int, int], fill: float, mode: str = "constant"
) -> Value:
    """Add elements before and after those of an axis, or drop some (negative pads)."""
    n = x.local[axis]
    first, last = max(-pads[0], 0), n - max(-pads[1], 0)
    more = (max(pads[0], 0), max(pads[1], 0))
    if mode != "constant":
        how = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
        return take(call, x, axis, np.pad(np.arange(first, last), more, how))  # type: ignore[call-overload]
    x = part(call, x, axis, first, last)
    dtype = {"float": np.float32, "int": np.int64, "bool": np.bool_}[x.node.dtype]
    sides = []
    for size in more:
        shape = (*x.local[:axis], size, *x.local[axis + 1 :])
        side = expand(call, call.lift(np.asarray(fill, dtype)), _with_lead(x, shape))
        sides.append(side)
    return concat(call, [sides[0], x, sides[1]], axis)


def _with_lead(like: Value, shape: tuple[int, ...]) -> list[Size]:
    sizes: list[Size] = list(shape)
    if like.view.at is not None:
        sizes[like.view.at] = like.sizes[like.view.at]
    return sizes


def _trilu(call: Call) -> Result:
    x = call.value(0)
    rank = x.view.rank
    for axis in (rank - 2, rank - 1):
        call.not_rows(x, axis)
    k = int(call.array(1, "k").item()) if call.has(1) else 0
    ones = np.ones(x.local[-2:], np.bool_)
    mask = np.triu(ones, k) if call.attribute("upper", 1) else np.tril(ones, k)
    return elementwise(call, Op.WHERE, mask, x, np.zeros((), np.float32))


def _shape(call: Call) -> Result:
    given = call.inputs[0]
    sizes: list[Size]
    if isinstance(given, RequestOfRow):
        sizes = list(given.sizes)
    elif isinstance(given, Sizes):
        sizes = list(given.array.shape)
    else:
        sizes = list(call.value(0).sizes)
    return sizes_of(sizes[call.attribute("start", 0) : call.attribute("end")])


def _size(call: Call) -> Result:
    given = call.inputs[0]
    sizes = given.sizes if isinstance(given, RequestOfRow) else call.value(0).sizes
    return settled(np.asarray(_total(sizes), object))


def _constant_of_shape(call: Call) -> Result:
    value = call.attribute("value")
    fill = np.zeros((), np.float32)
    if value is not None:
        fill = onnx.numpy_helper.to_array(value).reshape(())
    return expand(call, call.lift(fill), sizes_at(call, 0, "shape", 1))


MOVEMENTS: Final[Table] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Pad": _pad,
    "Trilu": _trilu,
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
}

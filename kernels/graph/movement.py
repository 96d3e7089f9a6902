"""Movement: the operators that only select, repeat and rearrange elements, on numpy arrays.

Run on numbers that stand for elements instead of on the elements, they say where each element of
their result comes from (``trace.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx

from kernels.graph.model import Array, attribute

Move = Callable[[onnx.NodeProto, Sequence[Array | None]], list[Array]]


def _data(arrays: Sequence[Array | None]) -> Array:
    data = arrays[0]
    assert data is not None
    return data


def _operand(
    node: onnx.NodeProto, arrays: Sequence[Array | None], index: int, name: str
) -> list[int] | None:
    """Return integers that newer opsets take as an input and older ones as an attribute."""
    if index < len(arrays) and (array := arrays[index]) is not None:
        return [int(each) for each in array.ravel()]
    value = attribute(node, name)
    return None if value is None else [int(each) for each in value]


def _identity(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    return [_data(arrays)]


def _reshape(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    data = _data(arrays)
    shape = _operand(node, arrays, 1, "shape") or []
    if not attribute(node, "allowzero", 0):
        shape = [data.shape[i] if each == 0 else each for i, each in enumerate(shape)]
    return [data.reshape(shape)]


def _flatten(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    data = _data(arrays)
    axis = attribute(node, "axis", 1)
    axis += data.ndim if axis < 0 else 0
    return [data.reshape(int(np.prod(data.shape[:axis])), -1)]


def _squeeze(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    axes = _operand(node, arrays, 1, "axes")
    return [np.squeeze(_data(arrays), None if axes is None else tuple(axes))]


def _unsqueeze(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    return [np.expand_dims(_data(arrays), tuple(_operand(node, arrays, 1, "axes") or ()))]


def _transpose(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    return [np.transpose(_data(arrays), attribute(node, "perm"))]


def _concat(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    parts = [array for array in arrays if array is not None]
    return [np.concatenate(parts, attribute(node, "axis"))]


def _slice(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    data = _data(arrays)
    starts = _operand(node, arrays, 1, "starts") or []
    ends = _operand(node, arrays, 2, "ends") or []
    axes = _operand(node, arrays, 3, "axes") or list(range(len(starts)))
    steps = _operand(node, arrays, 4, "steps") or [1] * len(starts)
    index: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # ONNX: an end below -size means "past the front" where the step is negative
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return [data[tuple(index)]]


def _split(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    data, axis = _data(arrays), attribute(node, "axis", 0)
    sizes = _operand(node, arrays, 1, "split")
    if sizes is None:
        each = -(-data.shape[axis] // len(node.output))
        sizes = [each] * (len(node.output) - 1)
    else:
        sizes = sizes[:-1]
    return list(np.split(data, np.cumsum(sizes, dtype=np.int64), axis))


def _expand(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    data, shape = _data(arrays), _operand(node, arrays, 1, "shape") or []
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape)))]


def _tile(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    return [np.tile(_data(arrays), _operand(node, arrays, 1, "repeats") or ())]


def _gather(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    index = arrays[1]
    assert index is not None
    return [np.take(_data(arrays), index, attribute(node, "axis", 0))]


MOVES: Final[Mapping[str, Move]] = {
    "Identity": _identity,
    "Cast": _identity,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "Gather": _gather,
}


def is_move(node: onnx.NodeProto) -> bool:
    """Whether a node only moves elements (a Cast: as far as its types allow; the caller knows)."""
    return node.domain in ("", "ai.onnx") and node.op_type in MOVES


def n_moved(node: onnx.NodeProto) -> int:
    """Return how many of a moving node's inputs, from the first on, hold moved elements."""
    return len(node.input) if node.op_type == "Concat" else 1


def move(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    """Run a moving node. The first ``n_moved`` arrays are moved; the others are its operands.

    Raises:
        ValueError, IndexError: The arrays do not fit the node.
    """
    return MOVES[node.op_type](node, arrays)

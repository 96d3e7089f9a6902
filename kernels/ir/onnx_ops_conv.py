"""Import of convolutions and pooling: elements are taken into patches, then a Linear or reduction.

No model of the zoo has a large one: on ``[rows, 4, 26, 8]`` a copy into patches costs little.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import attrs
import numpy as np

from kernels.graph.model import Array
from kernels.ir.node import Linear, Op
from kernels.ir.onnx_axes import elementwise, reshape, transpose
from kernels.ir.onnx_call import Call, Handler, Result, Table
from kernels.ir.onnx_ops_index import take
from kernels.ir.onnx_ops_linear import linear
from kernels.ir.onnx_ops_movement import padded
from kernels.ir.onnx_ops_reduce import reduce
from kernels.ir.onnx_value import Value


@attrs.frozen
class Window:
    """How a kernel is moved over the spatial axes; one entry an axis.

    Attributes:
        pads: Before and after.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether each place is computed from that place alone."""
        ones = (*self.kernel, *self.strides)
        return all(each == 1 for each in ones) and not any(itertools.chain(*self.pads))

    def reach(self, axis: int) -> int:
        """Return the elements that the kernel covers, gaps included."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def places(self, sizes: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        """Return flat places ``[n_outputs, n_kernel]`` in axes of ``sizes``, and output sizes."""
        counts = tuple(
            (size - self.reach(axis)) // self.strides[axis] + 1 for axis, size in enumerate(sizes)
        )
        outputs = np.indices(counts).reshape(len(sizes), -1, 1)
        inside = np.indices(self.kernel).reshape(len(sizes), 1, -1)
        strides, dilations = (
            np.reshape(each, (-1, 1, 1)) for each in (self.strides, self.dilations)
        )
        return np.ravel_multi_index(tuple(outputs * strides + inside * dilations), sizes), counts


def _window(call: Call, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> Window:
    n = len(kernel)
    strides = tuple(call.attribute("strides", [1] * n))
    dilations = tuple(call.attribute("dilations", [1] * n))
    flat = call.attribute("pads", [0] * (2 * n))
    window = Window(kernel, strides, dilations, tuple(zip(flat[:n], flat[n:], strict=True)))
    auto = call.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for axis, size in enumerate(sizes):
            outputs = -(-size // strides[axis])
            total = max((outputs - 1) * strides[axis] + window.reach(axis) - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        window = attrs.evolve(window, pads=tuple(pads))
    elif auto == "VALID":
        window = attrs.evolve(window, pads=((0, 0),) * n)
    return window


def _patches(call: Call, x: Value, window: Window, fill: float) -> tuple[Value, tuple[int, ...]]:
    """Return ``[rows, channels, n_outputs, n_kernel]`` and the output's spatial sizes."""
    for axis, pads in enumerate(window.pads):
        if any(pads):
            x = padded(call, x, axis + 2, pads, fill)
    places, counts = window.places(x.local[2:])
    head = x.sizes[:2]
    flat = reshape(call, x, [*head, math.prod(x.local[2:])])
    return reshape(call, take(call, flat, 2, places.ravel()), [*head, *places.shape]), counts


def _rows_first(call: Call) -> Value:
    x = call.value(0)
    if x.view.at != 0:
        raise call.refuse("does not have the rows in its first dimension")
    return x


def _conv(call: Call) -> Result:
    x, weight = _rows_first(call), call.array(1, "its kernel")
    kernel, group = tuple(weight.shape[2:]), int(call.attribute("group", 1))
    window = _window(call, kernel, x.local[2:])
    rows, channels = x.sizes[0], x.local[1]
    n_out, n_in = len(weight), channels // group
    if window.is_pointwise and group == 1:
        counts = x.local[2:]
        flat = reshape(call, x, [rows, channels, math.prod(counts)])
        patches = transpose(call, flat, [0, 2, 1])
    else:
        patches, counts = _patches(call, x, window, 0.0)
        patches = transpose(call, patches, [0, 2, 1, 3])
        patches = reshape(
            call, patches, [rows, math.prod(counts), n_in * group * math.prod(kernel)]
        )
    bias = call.array(2, "its bias") if call.has(2) else np.zeros(n_out, np.float32)
    if group == 1:
        made = linear(call, patches, weight.reshape(n_out, -1).T, bias)
    else:
        made = _grouped(call, patches, weight, bias, group)
    return reshape(call, transpose(call, made, [0, 2, 1]), [rows, n_out, *counts])


def _grouped(call: Call, patches: Value, weight: Array, bias: Array, group: int) -> Value:
    """Multiply each group's patches ``[rows, places, group * k]`` with weights of its own."""
    rows, places, width = patches.sizes
    n_out = len(weight)
    x = reshape(call, patches, [rows, places, group, patches.local[2] // group])
    del width
    weights = weight.reshape(group, n_out // group, -1).transpose(0, 2, 1)
    constants = [
        call.lift(np.ascontiguousarray(each)).node for each in (weights, bias.reshape(group, -1))
    ]
    node = call.make(Op.LINEAR, x.node, *constants, arg=Linear(grouped=True))
    return reshape(call, Value(node, x.view), [rows, places, n_out])


def _pool(op: Op, fill: float) -> Handler:
    def handler(call: Call) -> Result:
        x = _rows_first(call)
        if call.attribute("ceil_mode", 0):
            raise call.refuse("rounds its output's size up (ceil_mode)")
        window = _window(call, tuple(call.attribute("kernel_shape")), x.local[2:])
        patches, counts = _patches(call, x, window, fill)
        made = reduce(call, op, patches, [3])
        made = reshape(call, made, [*x.sizes[:2], *counts])
        if (
            op is Op.MEAN
            and not call.attribute("count_include_pad", 0)
            and any(itertools.chain(*window.pads))
        ):
            inside = np.pad(np.ones(x.local[2:], np.float32), window.pads)
            places, _ = window.places(inside.shape)
            shares = inside.ravel()[places].mean(axis=1).reshape(counts)
            made = elementwise(call, Op.DIV, made, shares)
        return (made, *([None] * (len(call.node.output) - 1)))

    return handler


def _global_pool(op: Op) -> Handler:
    def handler(call: Call) -> Result:
        x = _rows_first(call)
        return reduce(call, op, x, range(2, x.view.rank))

    return handler


CONVOLUTIONS: Final[Table] = {
    "Conv": _conv,
    "MaxPool": _pool(Op.REDUCE_MAX, -math.inf),
    "AveragePool": _pool(Op.MEAN, 0.0),
    "GlobalAveragePool": _global_pool(Op.MEAN),
    "GlobalMaxPool": _global_pool(Op.REDUCE_MAX),
}

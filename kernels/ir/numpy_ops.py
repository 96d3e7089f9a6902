"""What each op means, in numpy: the oracle that every pass and kernel is held against.

A meaning takes the node, its sources' values and the batch, and returns the node's value. It works
in any float dtype, whole arrays at a time. A value is an array of the node's shape, where a lead
has become its size. NaN in gives NaN out, through RELU, MAX and MIN too: what a kernel failed to
write must show. ``kernels/cuda/math.cuh`` does likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.node import Dim, DType, Lead, Node, Op, Slice, Take, TopK

Array: TypeAlias = NDArray[Any]


@attrs.frozen(eq=False)
class Batch:
    """What a graph is applied to.

    Attributes:
        inputs: ``[lead, width]`` by name.
        sizes: Rows and requests.
        request_of_row: int ``[rows]``: the request that each row belongs to.
        dtype: Of floats.
    """

    inputs: Mapping[str, Array]
    sizes: Mapping[Lead, int]
    request_of_row: Array
    dtype: np.dtype[Any]

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return a node's shape with numbers for leads."""
        return tuple(self.size(dim) for dim in node.shape)

    def size(self, dim: Dim) -> int:
        """Return a dimension as a number."""
        return self.sizes[dim] if isinstance(dim, Lead) else dim

    def floats(self, array: Array) -> Array:
        """Return floats in the batch's dtype, others as they are."""
        return array.astype(self.dtype, copy=False) if array.dtype.kind == "f" else array


Meaning: TypeAlias = Callable[[Node, tuple[Array, ...], Batch], Array]


def elementwise(function: Callable[..., Array]) -> Meaning:
    """Return the meaning of an op that is a function of its sources alone."""
    return lambda node, sources, batch: function(*sources)


def with_number(function: Callable[[Array, Any], Array]) -> Meaning:
    """Return the meaning of an op of one source and a number."""
    return lambda node, sources, batch: function(sources[0], node.arg)


def relu(x: Array) -> Array:
    """``max(x, 0)``; NaN stays."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, small, x.dtype.type(1)) / (1 + small))


def softplus(x: Array) -> Array:
    """``log(1 + exp(x))``, without overflow."""
    return np.asarray(np.logaddexp(x.dtype.type(0), x))


def leaky_relu(x: Array, slope: float) -> Array:
    """X, times ``slope`` below 0."""
    return np.where(x < 0, x * x.dtype.type(slope), x)


def elu(x: Array, alpha: float) -> Array:
    """X, ``alpha (exp(x) - 1)`` below 0."""
    return np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)


_ERF_STEPS: Final = 8  # knots to one
_ERF_END: Final = 6  # erf(6) is 1 in float64
_ERF_TERMS: Final = 13


def _erf_table() -> NDArray[np.float64]:
    """Taylor coefficients of erf around each knot, ``[terms, knots]``.

    Derivative n + 1 is ``(-1)^n H_n(x) 2 / sqrt(pi) exp(-x^2)``, H_n Hermite's polynomials with
    ``H_(n+1) = 2 x H_n - 2 n H_(n-1)`` (Abramowitz and Stegun, 7.1.19 and 22.7.13).
    """
    knots = np.arange(_ERF_STEPS * _ERF_END + 1) / _ERF_STEPS
    table = [np.array([math.erf(knot) for knot in knots])]
    before, hermite = np.zeros_like(knots), np.ones_like(knots)
    slope = 2 / math.sqrt(math.pi) * np.exp(-knots * knots)
    for n in range(_ERF_TERMS - 1):
        table.append((-1) ** n * hermite * slope / math.factorial(n + 1))
        before, hermite = hermite, 2 * knots * hermite - 2 * n * before
    return np.stack(table)


_ERF: Final = _erf_table()


def erf(x: Array) -> Array:
    """The error function, to float64's precision: Taylor's series around the nearest knot."""
    size = np.minimum(np.abs(x.astype(np.float64)), _ERF_END)
    knot = np.rint(np.nan_to_num(size) * _ERF_STEPS).astype(np.intp)
    offset = size - knot / _ERF_STEPS
    total = np.zeros_like(size)
    for coefficients in _ERF[::-1]:
        total = total * offset + coefficients[knot]
    return np.copysign(total, x).astype(x.dtype)


def divide(a: Array, b: Array) -> Array:
    """``a / b``; of integers, truncated toward zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


def modulo(a: Array, b: Array) -> Array:
    """What a division leaves: of floats with the dividend's sign, of integers the divisor's."""
    return np.asarray(np.fmod(a, b) if a.dtype.kind == "f" else np.mod(a, b))


def power(a: Array, b: Array) -> Array:
    """``a ** b``; of integers, 0 where b is negative."""
    if a.dtype.kind == "f":
        return np.power(a, b)
    return np.where(b < 0, 0, np.power(a, np.maximum(b, 0)))


_INT_LIMIT: Final = float(2**63 - 1024)  # the largest float64 that an int64 holds


def cast(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Floats are truncated to integers, saturating, NaN to 0; anything but 0 is true."""
    (x,) = sources
    if node.dtype is DType.BOOL:
        return np.asarray(x != 0)
    if node.dtype is DType.INT and x.dtype.kind == "f":
        wide = np.clip(x.astype(np.float64), -_INT_LIMIT, _INT_LIMIT)
        return np.where(np.isnan(wide), 0, wide).astype(np.int64)
    return x.astype(np.int64 if node.dtype is DType.INT else batch.dtype)


def input_(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Return the input of that name."""
    assert isinstance(node.arg, str)
    return batch.floats(batch.inputs[node.arg])


def const(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Return the array, floats in the batch's dtype."""
    return batch.floats(node.array)


def reshape(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """To the node's shape."""
    return sources[0].reshape(batch.shape(node))


def expand(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """To the node's shape."""
    return np.broadcast_to(sources[0], batch.shape(node))


def transpose(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Axes permuted by ``arg``."""
    assert isinstance(node.arg, tuple)
    return sources[0].transpose(node.arg)


def slice_(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Part of an axis."""
    cut = node.arg
    assert isinstance(cut, Slice)
    return sources[0][(slice(None),) * cut.axis + (slice(cut.start, cut.stop, cut.step),)]


def concat(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Behind each other on an axis."""
    assert isinstance(node.arg, int)
    return np.concatenate(sources, node.arg)


def take(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Elements of an axis by index."""
    assert isinstance(node.arg, Take)
    return sources[0].take(np.asarray(node.arg.indices, np.intp), node.arg.axis)


def to_rows(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Each row gets its request's value."""
    return sources[0][batch.request_of_row]


def reduction(function: Callable[..., Array]) -> Meaning:
    """Return the meaning of a reduction over axes that stay as 1."""
    return lambda node, sources, batch: np.asarray(
        function(sources[0], axis=node.arg, keepdims=True)
    )


def top_k(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """The k largest or smallest, sorted from that end; NaN counts as the largest."""
    arg = node.arg
    assert isinstance(arg, TopK)
    ordered = np.moveaxis(np.sort(sources[0], arg.axis), arg.axis, -1)
    found = ordered[..., ::-1][..., : arg.k] if arg.largest else ordered[..., : arg.k]
    return np.moveaxis(found, -1, arg.axis)


def activate(activation: Op | None, x: Array, slope: float) -> Array:
    """Apply the activation of a row program."""
    match activation:
        case None:
            return x
        case Op.RELU:
            return relu(x)
        case Op.SIGMOID:
            return sigmoid(x)
        case Op.TANH:
            return np.tanh(x)
        case Op.LEAKY_RELU:
            return leaky_relu(x, slope)
        case Op.ELU:
            return elu(x, slope)
    raise AssertionError(activation)

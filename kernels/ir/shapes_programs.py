"""Shape rules of row programs: softmax, layer norm, Linear, attention. See ``shapes``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from kernels.ir.node import DType, Encoder, Linear, Op, TargetAttention, TopK
from kernels.ir.shapes import FLOATS, NUMBERS, Asked, Inferred, resized, text

ACTIVATIONS: Final = frozenset({Op.RELU, Op.SIGMOID, Op.TANH, Op.LEAKY_RELU, Op.ELU})


def softmax(asked: Asked) -> Inferred:
    """Normalised over an axis."""
    if not asked.inner(asked.argument(int)):
        raise asked.refuse("normalises no elements")
    return asked.sources[0].shape, asked.typed(FLOATS)


def layer_norm(asked: Asked) -> Inferred:
    """(x, gain, offset)."""
    source = asked.sources[0]
    asked.number()
    size = asked.inner(len(source.shape) - 1)
    asked.parameter(1, (size,), "gain")
    asked.parameter(2, (size,), "offset")
    return source.shape, asked.typed(FLOATS)


def top_k(asked: Asked) -> Inferred:
    """The k first of an axis, sorted."""
    source, top = asked.sources[0], asked.argument(TopK)
    if not 1 <= top.k <= asked.inner(top.axis):
        raise asked.refuse(f"{top.k} of {text(source.shape)} on axis {top.axis}")
    return resized(source.shape, top.axis, top.k), asked.typed(NUMBERS)


def matmul(asked: Asked) -> Inferred:
    """[.., m, k] x [.., k, n]."""
    left, right = (asked.led(source, -3, "a source") for source in asked.sources)
    if len(left) != len(right) or left[:-2] != right[:-2] or left[-1] != right[-2]:
        raise asked.refuse(" x ".join(text(source.shape) for source in asked.sources))
    return (*asked.sources[0].shape[:-1], right[-1]), asked.typed(FLOATS)


def linear(asked: Asked) -> Inferred:
    """x_1 .. x_n, weight, bias."""
    arg = asked.argument(Linear)
    if arg.n_inputs < 1 or len(asked.sources) != arg.n_inputs + 2:
        raise asked.refuse(f"{len(asked.sources)} sources for {arg.n_inputs} inputs")
    _activation(asked, arg.activation, ACTIVATIONS)
    inputs = asked.sources[: arg.n_inputs]
    dims = [asked.led(x, -3 if arg.grouped else -2, f"input {i}") for i, x in enumerate(inputs)]
    if len({each[:-1] for each in dims}) != 1:
        shapes = ", ".join(text(x.shape) for x in inputs)
        raise asked.refuse(f"inputs differ before the last axis: {shapes}")
    groups = dims[0][-2:-1] if arg.grouped else ()
    n_outputs = asked.sources[-1].shape[-1] if asked.sources[-1].shape else 0
    if not isinstance(n_outputs, int) or n_outputs < 1:
        raise asked.refuse(f"bias is {text(asked.sources[-1].shape)}")
    depth = sum(each[-1] for each in dims)
    if not depth:
        raise asked.refuse("inputs have no columns")
    asked.parameter(arg.n_inputs, (*groups, depth, n_outputs), "weight")
    asked.parameter(arg.n_inputs + 1, (*groups, n_outputs), "bias")
    return (*inputs[0].shape[:-1], n_outputs), asked.typed(FLOATS)


def _activation(asked: Asked, activation: Op | None, allowed: Collection[Op]) -> None:
    if activation is not None and activation not in allowed:
        raise asked.refuse(f"activation {activation}")


def target_attention(asked: Asked) -> Inferred:
    """query, keys, mask, parameters."""
    arg = asked.argument(TargetAttention)
    _activation(asked, arg.activation, ACTIVATIONS - {Op.ELU})
    if arg.n_layers < 2 or len(asked.sources) != 5 + 2 * arg.n_layers:
        raise asked.refuse(f"{len(asked.sources)} sources for {arg.n_layers} layers")
    query, keys, mask = asked.sources[:3]
    (width,) = asked.led(query, 2, "query")
    steps, key_width = asked.led(keys, 3, "keys")
    (mask_steps,) = asked.led(mask, 2, "mask")
    if key_width != width or mask_steps != steps or mask.dtype is not DType.BOOL or not steps:
        shapes = ", ".join(text(each.shape) for each in (query, keys, mask))
        raise asked.refuse(f"query, keys and mask are {shapes}; mask is {mask.dtype}")
    asked.typed(FLOATS, (query, keys))
    hidden = asked.sources[6].width
    for i, what in enumerate(("W_q", "W_k", "W_p"), 3):
        asked.parameter(i, (width, hidden), what)
    asked.parameter(6, (hidden,), "b_1")
    for layer in range(2, arg.n_layers + 1):
        at = 3 + 2 * layer
        n_outputs = 1 if layer == arg.n_layers else asked.sources[at + 1].width
        asked.parameter(at, (hidden, n_outputs), f"W_{layer}")
        asked.parameter(at + 1, (n_outputs,), f"b_{layer}")
        hidden = n_outputs
    return query.shape, DType.FLOAT


def encoder(asked: Asked) -> Inferred:
    """x, parameters."""
    arg = asked.argument(Encoder)
    _activation(asked, arg.activation, ACTIVATIONS)
    x = asked.sources[0]
    steps, width = asked.led(x, 3, "x")
    if arg.n_heads < 1 or width % arg.n_heads or not steps:
        raise asked.refuse(f"{arg.n_heads} heads of {text(x.shape)}")
    asked.typed(FLOATS, (x,))
    inner = asked.sources[8].width
    wanted = {
        "W_qkv": (width, 3 * width),
        "b_qkv": (3 * width,),
        "W_o": (width, width),
        "b_o": (width,),
        "gain_1": (width,),
        "offset_1": (width,),
        "W_1": (width, inner),
        "b_1": (inner,),
        "W_2": (inner, width),
        "b_2": (width,),
        "gain_2": (width,),
        "offset_2": (width,),
    }
    for i, (what, dims) in enumerate(wanted.items(), 1):
        asked.parameter(i, dims, what)
    return x.shape, DType.FLOAT

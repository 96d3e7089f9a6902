"""What row programs mean, in numpy: softmax, layer norm, Linear, attention. See ``numpy_ops``."""

from __future__ import annotations

import numpy as np

from kernels.ir.node import Encoder, Linear, Node, TargetAttention
from kernels.ir.numpy_ops import Array, Batch, activate


def _softmax(x: Array, axis: int) -> Array:
    raised = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis, keepdims=True))


def _layer_norm(x: Array, gain: Array, offset: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + x.dtype.type(epsilon)) * gain + offset)


def _product(x: Array, weight: Array) -> Array:
    """Return ``x @ weight`` as one product: numpy would make one for each row."""
    return np.asarray(x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1])


def _grouped_product(x: Array, weight: Array) -> Array:
    """Return ``[.., g, n]`` of x ``[.., g, k]`` and weight ``[g, k, n]``, a product for each g."""
    groups, depth, width = weight.shape
    by_group = x.reshape(-1, groups, depth).swapaxes(0, 1) @ weight
    return np.asarray(by_group.swapaxes(0, 1)).reshape(*x.shape[:-1], width)


def softmax(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """Normalised over an axis."""
    assert isinstance(node.arg, int)
    return _softmax(sources[0], node.arg)


def layer_norm(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """(x, gain, offset) over the last axis."""
    assert isinstance(node.arg, int | float)
    x, gain, offset = sources
    return _layer_norm(x, gain, offset, node.arg)


def linear(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """See ``node.Linear``."""
    arg = node.arg
    assert isinstance(arg, Linear)
    *inputs, weight, bias = sources
    x = inputs[0] if len(inputs) == 1 else np.concatenate(inputs, -1)
    total = _grouped_product(x, weight) if arg.grouped else _product(x, weight)
    return activate(arg.activation, total + bias, arg.slope)


def target_attention(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """See ``node.TargetAttention``."""
    arg = node.arg
    assert isinstance(arg, TargetAttention)
    query, keys, mask, w_query, w_key, w_product, bias = sources[:7]
    query = query[:, None, :]
    hidden = _product(query, w_query) + _product(keys, w_key) + bias
    hidden = hidden + _product(query * keys, w_product)
    for weight, bias in zip(sources[7::2], sources[8::2], strict=True):
        hidden = _product(activate(arg.activation, hidden, arg.slope), weight) + bias
    scores = np.where(mask[..., None], hidden, hidden.dtype.type(arg.masked))
    if arg.softmax:
        scores = _softmax(scores, 1)
    return np.asarray((scores * keys).sum(1))


def encoder(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """See ``node.Encoder``."""
    arg = node.arg
    assert isinstance(arg, Encoder)
    x, w_qkv, b_qkv, w_o, b_o, gain_1, offset_1, w_1, b_1, w_2, b_2, gain_2, offset_2 = sources
    n, steps, width = x.shape
    heads = (_product(x, w_qkv) + b_qkv).reshape(n, steps, 3, arg.n_heads, width // arg.n_heads)
    query, key, value = heads.transpose(2, 0, 3, 1, 4)  # each [n, heads, steps, width / heads]
    weights = _softmax(query @ key.swapaxes(-1, -2) * x.dtype.type(arg.scale), -1)
    joined = (weights @ value).transpose(0, 2, 1, 3).reshape(n, steps, width)
    y = _layer_norm(x + _product(joined, w_o) + b_o, gain_1, offset_1, arg.epsilon_1)
    inner = activate(arg.activation, _product(y, w_1) + b_1, arg.slope)
    return _layer_norm(y + _product(inner, w_2) + b_2, gain_2, offset_2, arg.epsilon_2)


def matmul(node: Node, sources: tuple[Array, ...], batch: Batch) -> Array:
    """[.., m, k] x [.., k, n]."""
    return np.asarray(sources[0] @ sources[1])

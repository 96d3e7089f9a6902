"""The six models under jax. Weights are ``[n_in, n_out]``, under torch's names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

Array = Any
Parameters = Mapping[str, Array]
_SLOPE: Final = 0.01
_EPSILON: Final = 1e-5


def function_of(name: str) -> Callable[..., Array]:
    """Return a model as a function of parameters and inputs, in the order of ``Model.inputs``."""
    return _FUNCTIONS[name]


def _jax(name: str = "") -> Any:  # noqa: ANN401 - jax reaches type checkers only if installed
    return importlib.import_module(f"jax{name}")


def _linear(p: Parameters, name: str, x: Array) -> Array:
    y = x @ p[f"{name}.weight"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _mlp(p: Parameters, name: str, x: Array, *, last: bool = True) -> Array:
    n_layers = sum(key.startswith(f"{name}.") for key in p) // 2
    for index in range(n_layers):
        x = _linear(p, f"{name}.{2 * index}", x)
        if last or index < n_layers - 1:
            x = _jax(".nn").relu(x)
    return x


def _norm(p: Parameters, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / _jax(".numpy").sqrt(x.var(-1, keepdims=True) + _EPSILON)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def _dlrm_dcnv2(p: Parameters, dense: Array, emb: Array) -> Array:
    parts = [_mlp(p, "bot", dense), emb.reshape(len(emb), -1)]
    x = start = _jax(".numpy").concatenate(parts, 1)
    for index in range(3):
        x = start * _linear(p, f"w.{index}", _linear(p, f"v.{index}", x)) + x
    return _jax(".nn").sigmoid(_mlp(p, "top", x, last=False))


def _dlrm(p: Parameters, dense: Array, emb: Array) -> Array:
    jnp = _jax(".numpy")
    bottom = _mlp(p, "bot", dense)
    vectors = jnp.concatenate([bottom[:, None], emb], 1)
    i, j = np.tril_indices(27, -1)
    pairs = jnp.einsum("bid,bjd->bij", vectors, vectors)[:, i, j]
    return _jax(".nn").sigmoid(_mlp(p, "top", jnp.concatenate([bottom, pairs], 1), last=False))


def _deepfm(p: Parameters, dense: Array, emb: Array, first: Array) -> Array:
    total = emb.sum(1)
    pairs = 0.5 * (total * total - (emb * emb).sum(1)).sum(1, keepdims=True)
    flat = _jax(".numpy").concatenate([emb.reshape(len(emb), -1), dense], 1)
    deep = _mlp(p, "deep", flat, last=False)
    linear = first.sum(1, keepdims=True) + _linear(p, "lin", dense)
    return _jax(".nn").sigmoid(deep + pairs + linear)


def _din(p: Parameters, query: Array, hist: Array, mask: Array, other: Array) -> Array:
    jnp = _jax(".numpy")
    each = jnp.broadcast_to(query[:, None], hist.shape)
    features = jnp.concatenate([each, hist, each - hist, each * hist], -1)
    scores = _mlp(p, "att", features, last=False)[..., 0]
    masked = -6e4 if scores.dtype == jnp.float16 else -1e30
    weights = _jax(".nn").softmax(jnp.where(mask > 0.5, scores, masked), -1)
    pooled = jnp.einsum("bt,btd->bd", weights, hist)
    top = jnp.concatenate([query, pooled, other], 1)
    return _jax(".nn").sigmoid(_mlp(p, "top", top, last=False))


def _mmoe(p: Parameters, x: Array) -> Array:
    jnp, nn = _jax(".numpy"), _jax(".nn")
    experts = jnp.stack([_mlp(p, f"experts.{i}", x) for i in range(8)], 1)
    tasks = []
    for task in range(4):
        weights = nn.softmax(_linear(p, f"gates.{task}", x), -1)
        mixed = (weights[:, :, None] * experts).sum(1)
        tasks.append(nn.sigmoid(_mlp(p, f"towers.{task}", mixed, last=False)))
    return jnp.concatenate(tasks, 1)


def _bst(p: Parameters, seq: Array, other: Array) -> Array:
    jnp, nn = _jax(".numpy"), _jax(".nn")
    rows, steps, width = seq.shape
    heads = _linear(p, "qkv", seq).reshape(rows, steps, 3, 4, 16)
    query, key, value = heads.transpose(2, 0, 3, 1, 4)
    weights = nn.softmax(jnp.einsum("bhtd,bhsd->bhts", query, key) * 0.25, -1)
    joined = jnp.einsum("bhts,bhsd->bhtd", weights, value)
    attended = joined.transpose(0, 2, 1, 3).reshape(rows, steps, width)
    x = _norm(p, "n1", seq + _linear(p, "o", attended))
    wide = nn.leaky_relu(_linear(p, "f1", x), _SLOPE)
    x = _norm(p, "n2", x + _linear(p, "f2", wide))
    top = jnp.concatenate([x.reshape(rows, -1), other], 1)
    return nn.sigmoid(_mlp(p, "top", top, last=False))


_FUNCTIONS: Final[Mapping[str, Callable[..., Array]]] = {
    "DLRMDCNv2": _dlrm_dcnv2,
    "DLRM": _dlrm,
    "DeepFM": _deepfm,
    "DIN": _din,
    "MMoE": _mmoe,
    "BST": _bst,
}

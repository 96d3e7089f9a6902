"""A model that attends to a user's ragged history, and the whole of it in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from tests.kernels.bundle_help import write_model

N_USERS, N_ITEMS, STEPS, D = 7, 30, 24, 8

FEATURES: Final = f"""\
version = 1

[features.user_id]
side = "user"
kind = "categorical"
encode = "identity"
size = {N_USERS}

[features.history]
side = "user"
kind = "sequence"
encode = "identity"
size = {N_ITEMS}
max_length = {STEPS}
pad_side = "right"

[features.history_mask]
kind = "mask"
of = "history"

[features.item_id]
side = "candidate"
kind = "categorical"
encode = "identity"
size = {N_ITEMS}
"""
_BODY: Final = """
    h = Gather(items, history)
    q = Gather(items, item_id)
    p = Mul(h, q)
    a = MatMul(p, w_a)
    t = Tanh(a)
    s = MatMul(t, v)
    r = Reshape(s, steps)
    k = Cast <to = 9> (history_mask)
    {weights}
    f = Reshape(d, one)
    g = MatMul(f, h)
    pooled = Reshape(g, row)
    item = Reshape(q, row)
    i = Gather(users, user_id)
    user = Reshape(i, row)
    x = Concat <axis = 1> (pooled, item, user)
    z = MatMul(x, w)
    y = Sigmoid(z)
"""
_WEIGHTS: Final = {
    True: "c = Where(k, r, low)\n    d = Softmax <axis = 1> (c)",
    False: "d = Where(k, r, nothing)",
}


def _constants() -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(3)
    shapes = {
        "users": (N_USERS, D),
        "items": (N_ITEMS, D),
        "w_a": (D, 16),
        "v": (16, 1),
        "w": (3 * D, 1),
    }
    found: dict[str, NDArray[np.generic]] = {
        name: (0.6 * random.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    found["steps"] = np.array([-1, STEPS], np.int64)
    found["one"] = np.array([-1, 1, STEPS], np.int64)
    found["row"] = np.array([-1, D], np.int64)
    return found


def build(folder: Path, *, softmax: bool = True, pad_side: str = "right") -> Path:
    """Build the bundle; return its folder. Scores do not depend on the order of steps."""
    constants = _constants()
    name = "low" if softmax else "nothing"
    constants[name] = np.array(-1e9 if softmax else 0.0, np.float32)
    signature = (
        f"(int64[B, 1] user_id, int64[B, {STEPS}] history, float[B, {STEPS}] history_mask, "
        "int64[B, 1] item_id) => (float[B, 1] y)"
    )
    body = _BODY.format(weights=_WEIGHTS[softmax])
    model = write_model(folder / "attending.onnx", signature, body, constants)
    features = folder / "features.toml"
    features.write_text(FEATURES.replace('"right"', f'"{pad_side}"'))
    build_bundle(model, features, folder / "bundle", BuildOptions())
    return folder / "bundle"


def score(
    user_id: int, history: Sequence[int], items: Sequence[int], *, softmax: bool = True
) -> NDArray[np.float64]:
    """Score one user's candidates in float64."""
    w = {name: np.asarray(value, np.float64) for name, value in _constants().items()}
    padded = [*history, *[0] * STEPS][:STEPS]
    keys, query = w["items"][padded], w["items"][list(items)]
    scores = (np.tanh((keys * query[:, None]) @ w["w_a"]) @ w["v"])[..., 0]
    alive = np.arange(STEPS) < len(history)
    if softmax:
        raised = np.exp(np.where(alive, scores, -1e9 if history else 0.0))
        weights = raised / raised.sum(1, keepdims=True)
    else:
        weights = np.where(alive, scores, 0.0)
    users = np.tile(w["users"][user_id], (len(query), 1))
    x = np.concatenate([weights @ keys, query, users], 1)
    found: NDArray[np.float64] = 1 / (1 + np.exp(-(x @ w["w"])[:, 0]))
    return found

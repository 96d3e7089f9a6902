"""A model small enough to be checked by hand, and the whole of it in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

N_USERS, N_ITEMS, N_GENRES = 11, 17, 5
HISTORY = 4

FEATURES = f"""\
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
max_length = {HISTORY}

[features.age]
side = "user"
kind = "numeric"
missing = 30.0

[features.item_id]
side = "candidate"
kind = "categorical"
encode = "identity"
size = {N_ITEMS}

[features.genre]
side = "candidate"
kind = "categorical"
encode = "vocabulary"
vocabulary = "genres.txt"
unseen = 0

[features.price]
side = "candidate"
kind = "numeric"
missing = 0.0
"""
GENRES = ["drama", "comedy", "crime", "science fiction", "été"]


def weights(seed: int = 20) -> dict[str, NDArray[np.float32]]:
    """Return the tables and weights, the same at each call; other seeds are other versions."""
    rng = np.random.default_rng(seed)
    shapes = {
        "users": (N_USERS, 4),
        "items": (N_ITEMS, 6),
        "genres": (N_GENRES, 3),
        "w1": (4 + 6 + 6 + 3 + 2, 8),
        "b1": (8,),
        "w2": (8, 1),
    }
    # Small enough that scores spread between 0 and 1, with ages in years.
    return {
        name: (0.2 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_model(folder: Path, seed: int = 20) -> tuple[Path, Path]:
    """Write ``tiny.onnx`` and ``features.toml`` with its vocabulary; return their paths."""

    def tensor(name: str, dtype: int, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["batch", width])

    ints, floats = TensorProto.INT64, TensorProto.FLOAT
    nodes = [
        helper.make_node("Gather", ["users", "user_id"], ["user_rows"]),
        helper.make_node("Gather", ["items", "history"], ["history_rows"]),
        helper.make_node("Gather", ["items", "item_id"], ["item_rows"]),
        helper.make_node("Gather", ["genres", "genre"], ["genre_rows"]),
        helper.make_node("Flatten", ["user_rows"], ["user"]),
        helper.make_node("ReduceMean", ["history_rows", "axis"], ["liked"], keepdims=0),
        helper.make_node("Flatten", ["item_rows"], ["item"]),
        helper.make_node("Flatten", ["genre_rows"], ["kind"]),
        helper.make_node(
            "Concat", ["user", "liked", "item", "kind", "age", "price"], ["x"], axis=1
        ),
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["click"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights(seed).items()]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            tensor("user_id", ints, 1),
            tensor("history", ints, HISTORY),
            tensor("age", floats, 1),
            tensor("item_id", ints, 1),
            tensor("genre", ints, 1),
            tensor("price", floats, 1),
        ],
        [tensor("click", floats, 1)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "tiny.onnx")
    (folder / "features.toml").write_text(FEATURES)
    (folder / "genres.txt").write_text("".join(f"{genre}\n" for genre in GENRES))
    return folder / "tiny.onnx", folder / "features.toml"


def click(
    user: dict[str, Any],
    candidates: dict[str, Any],
    seed: int = 20,
    changed: Mapping[str, NDArray[np.float32]] | None = None,
) -> NDArray[np.float64]:
    """Score one user's candidates in float64, from ids: float64 ``[n]``.

    Args:
        user: Features of the user.
        candidates: Those of candidates, as columns.
        seed: Of ``weights``.
        changed: Tables that are not as ``weights`` has them.
    """
    now = {**weights(seed), **(changed or {})}
    w = {name: value.astype(np.float64) for name, value in now.items()}
    history = [*user["history"], *([0] * HISTORY)][:HISTORY]
    one = np.concatenate([w["users"][user["user_id"]], w["items"][history].mean(axis=0)])
    items = np.asarray(candidates["item_id"])
    x = np.concatenate(
        [
            np.tile(one, (len(items), 1)),
            w["items"][items],
            w["genres"][np.asarray(candidates["genre"])],
            np.full((len(items), 1), user["age"]),
            np.asarray(candidates["price"], np.float64)[:, None],
        ],
        axis=1,
    )
    logit = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"]
    scores: NDArray[np.float64] = (1 / (1 + np.exp(-logit)))[:, 0]
    return scores

"""Two versions of the tiny model: their bundles, requests, and which of them made an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import load_bundle
from tests import tiny
from transport.exchange import Scores

SEEDS = (20, 21)


def build(folder: Path) -> list[Path]:
    """Build the bundles of the weights of ``SEEDS``; return their folders."""
    for seed in SEEDS:
        model, features = tiny.write_model(folder / f"{seed}", seed)
        build_bundle(model, features, folder / f"{seed}" / "bundle", BuildOptions())
    return [folder / f"{seed}" / "bundle" for seed in SEEDS]


def version(bundle: Path) -> str:
    return load_bundle(bundle).manifest.version


def asked(number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the user and the candidates of a request."""
    user = {"user_id": number % 11, "history": [number % 17, 3], "age": 20.0}
    rows = [
        {"item_id": (number + k) % 17, "genre": tiny.GENRES[k % 5], "price": 0.1 * k}
        for k in range(1 + number % 7)
    ]
    return user, rows


def seed_of(number: int, scores: Scores) -> int:
    """Return which weights made an answer; fails if it is neither's, or a mix."""
    user, rows = asked(number)
    candidates = {
        "item_id": [row["item_id"] for row in rows],
        "genre": [tiny.GENRES.index(row["genre"]) for row in rows],
        "price": [row["price"] for row in rows],
    }
    found = [
        seed
        for seed in SEEDS
        if np.allclose(scores.scores, tiny.click(user, candidates, seed), atol=1e-5)
    ]
    assert len(found) == 1, (number, scores)
    return found[0]

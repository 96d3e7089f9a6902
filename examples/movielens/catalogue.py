"""What the demo knows besides the bundle: the films, the users, the scores that torch gave."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

HOME: Final = Path(__file__).parent


@attrs.frozen(kw_only=True)
class Film:
    """A film; ``year`` is 0 if it is not known."""

    item_id: str
    title: str
    year: int
    genres: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.title} ({self.year})" if self.year else self.title


def read_films(folder: Path = HOME) -> list[Film]:
    """Read ``films.tsv``."""
    rows = [line.split("\t") for line in _text(folder / "films.tsv").splitlines()]
    return [
        Film(
            item_id=item_id,
            title=title,
            year=int(year),
            genres=tuple(genres.split("|")) if genres else (),
        )
        for item_id, title, year, genres in rows
    ]


def write_films(films: Sequence[Film], folder: Path) -> None:
    """Write ``films.tsv``: item id, title, year and genres, the latter separated by ``|``."""
    lines = [f"{f.item_id}\t{f.title}\t{f.year}\t{'|'.join(f.genres)}\n" for f in films]
    (folder / "films.tsv").write_text("".join(lines), encoding="utf-8")


def read_users(folder: Path = HOME) -> list[dict[str, Any]]:
    """Read ``users.toml``: each user's raw features, and a ``name``."""
    users: list[dict[str, Any]] = tomllib.loads(_text(folder / "users.toml"))["users"]
    return users


def read_expected(folder: Path = HOME) -> NDArray[np.float32]:
    """Read ``expected.npz``: torch's scores, float32 ``[n_users, n_films]``."""
    with np.load(folder / "expected.npz") as arrays:
        scores: NDArray[np.float32] = arrays["scores"]
    return scores


def write_expected(scores: NDArray[np.float32], folder: Path) -> None:
    """Write ``expected.npz``."""
    np.savez_compressed(folder / "expected.npz", scores=scores)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")

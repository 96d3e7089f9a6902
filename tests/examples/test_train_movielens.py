from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.movielens.catalogue import HOME, read_expected, read_films, read_users
from kernels.bundle.load import load_bundle

ROOT = Path(__file__).parents[2]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None,
    reason="needs the extra 'train'",
)


def write_data(folder: Path) -> None:
    """Write ratings of the shipped films: 20 users, 60 each, those of even numbers being liked."""
    rng = np.random.default_rng(0)
    films = read_films()
    known = {item_id for user in read_users() for item_id in user["history"]}
    often = [n for n, film in enumerate(films) if film.item_id in known] + list(range(10))
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for time in range(1200):
        film = films[int(rng.choice(often))]
        stars = 5 if int(film.item_id) % 2 == 0 else 2
        lines.append(f"{1 + time % 20}\t{film.item_id}\t{stars}\t{time}")
    (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    lines += [f"{f.item_id}\t{f.title}\t{f.year or ''}\t{' '.join(f.genres)}" for f in films]
    (folder / "ml-100k.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    lines += [f"{n}\t{20 + n}\tF\twriter\t0" for n in range(1, 21)]
    (folder / "ml-100k.user").write_text("\n".join(lines) + "\n")


@needs_torch
@pytest.mark.slow
def test_training_writes_a_bundle_and_what_the_demo_needs(tmp_path: Path) -> None:
    write_data(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(HOME / "users.toml", out)
    command = [sys.executable, "-m", "examples.train_movielens", "--most-epochs", "4"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path), "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {table.name for table in load_bundle(out / "bundle").manifest.tables} >= {
        "user.weight",
        "film.weight",
        "genre.weight",
    }
    scores = read_expected(out)
    assert scores.shape == (len(read_users()), len(read_films()))
    assert ((scores > 0) & (scores < 1)).all()
    assert read_films(out) == read_films()
    card = (out / "MODEL.md").read_text()
    judged = next(line for line in card.splitlines() if line.startswith("| this model"))
    assert float(judged.split("|")[2]) > 0.8  # what is liked could hardly be plainer


def test_what_ships_is_small_and_fits_together() -> None:
    files = [path for path in HOME.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert not [path for path in files if path.suffix in (".inter", ".pt")]
    films, users = read_films(), read_users()
    assert read_expected().shape == (len(users), len(films))
    titles = {film.item_id for film in films}
    assert all(titles >= set(user["history"]) for user in users)

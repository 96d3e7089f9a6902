from __future__ import annotations

import sys

import pytest

from tests.transport.film_gateway import run_with_films, serve_films


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("trio_client", ["age 30: 286 (0.286), 258 (0.258), 181 (0.181)", "age 61: 286"]),
        (
            "blocking_client",
            [
                "the gateway is ready",
                "age 18: 286 (0.286), 258 (0.258)",
                "refused: candidate 1",
                "(field item_id)",
            ],
        ),
    ],
)
def test_the_example_ranks_films(name: str, want: list[str]) -> None:
    result, seen = run_with_films([sys.executable, "-m", f"examples.{name}"], serve_films)
    assert result.returncode == 0, result.stderr
    for line in want:
        assert line in result.stdout
    assert len(seen) == {"trio_client": 3, "blocking_client": 5}[name]

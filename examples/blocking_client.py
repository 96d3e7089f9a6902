"""Ranks five films from threads, such as those of a Flask or Django worker.

Run with a gateway that serves the film recommender of this folder::

    python -m examples.blocking_client tcp://127.0.0.1:7400
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from transport.blocking import BlockingClient
from transport.errors import InvalidRequest

# One mapping for each film; columns, as in examples/trio_client.py, are faster.
FILMS: Final[list[dict[str, Any]]] = [
    {"item_id": 50, "year": 1977},
    {"item_id": 100, "year": 1997},
    {"item_id": 181, "year": 1983},
    {"item_id": 258},  # what a film lacks is missing
    {"item_id": 286, "year": 1996},
]


def rank(client: BlockingClient, age: int) -> str:
    """Return the films in the order of their scores for a user."""
    scores = client.score(model="movielens", user={"age": age}, candidates=FILMS, budget=2.0)
    assert len(scores.scores) == len(FILMS)
    ranked = sorted(zip(scores.scores, FILMS, strict=True), key=lambda pair: -pair[0])
    return f"age {age}: " + ", ".join(f"{film['item_id']} ({score:.3f})" for score, film in ranked)


def main(*addresses: str) -> None:
    """Rank for several users, each in a thread; they share the client."""
    with BlockingClient(*addresses) as client:
        print(f"the gateway is {client.ping()}")
        with ThreadPoolExecutor(max_workers=4) as pool:
            for line in pool.map(lambda age: rank(client, age), [18, 30, 45, 61]):
                print(line)
        try:
            client.score(model="movielens", user={"age": 30}, candidates={"item_id": ["a", 1]})
        except InvalidRequest as error:
            print(f"refused: {error} (field {error.field})")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["tcp://127.0.0.1:7400"]))

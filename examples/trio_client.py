"""Ranks five films for two users at once, from a trio program.

Run with a gateway that serves the film recommender of this folder::

    python -m examples.trio_client tcp://127.0.0.1:7400
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
import trio

from transport.client import Client
from transport.errors import DeadlineExceeded, RequestError

FILMS: Final = {
    "item_id": np.array([50, 100, 181, 258, 286]),
    "year": np.array([1977, 1997, 1983, 1997, 1996]),
}
USERS: Final[list[dict[str, Any]]] = [
    {"age": 30, "gender": "F", "history": ["172", "174"]},
    {"age": 61, "gender": "M", "history": ["302"]},
]


async def rank(client: Client, user: dict[str, Any]) -> None:
    """Print the films in the order of their scores for one user."""
    try:
        scores = await client.score(model="movielens", user=user, candidates=FILMS, budget=2.0)
    except DeadlineExceeded:
        print(f"age {user['age']}: no answer in time")  # show what is popular instead
        raise
    except RequestError as error:
        print(f"age {user['age']}: {error.code}: {error}")
        raise
    assert scores.scores.shape == (5,)
    order = np.argsort(-scores.scores)
    ranked = [f"{FILMS['item_id'][i]} ({scores.scores[i]:.3f})" for i in order]
    print(f"age {user['age']}: {', '.join(ranked)}")


async def main(*addresses: str) -> None:
    """Rank for all users at a time, over one connection to each gateway."""
    async with Client.connect(*addresses) as client:
        assert "movielens" in await client.models()
        async with trio.open_nursery() as nursery:
            for user in USERS:
                nursery.start_soon(rank, client, user)


if __name__ == "__main__":
    trio.run(main, *(sys.argv[1:] or ["tcp://127.0.0.1:7400"]))

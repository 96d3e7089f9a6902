"""TensorBatch inside a trio service: the recommender's actors run in the service's own event loop.

    python -m examples.embed_trio

A hundred users ask at the same time; their requests share launches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from runtime.service import Service

BUNDLE = Path(__file__).parent / "movielens" / "bundle"
FILMS: dict[str, list[Any]] = {
    "item_id": ["50", "1", "172", "234", "71"],
    "year": [1977, 1995, 1980, 1975, 1994],
    "genres": [
        ["Action", "Adventure", "Romance", "Sci-Fi", "War"],
        ["Animation", "Children's", "Comedy"],
        ["Action", "Adventure", "Drama", "Romance", "Sci-Fi", "War"],
        ["Action", "Horror"],
        ["Animation", "Children's", "Musical"],
    ],
}


async def main() -> None:
    """Score a few films for many users at once, then say how the requests were served."""
    best: list[str] = []

    async with Service.open(BUNDLE) as service:

        async def rank(age: int) -> None:
            user = {"age": age, "gender": "F", "occupation": "artist", "history": ["1", "71"]}
            answer = await service.score(user=user, candidates=FILMS, budget=5.0)
            best.append(FILMS["item_id"][int(answer.scores.argmax())])

        async with trio.open_nursery() as nursery:
            for age in range(100):
                nursery.start_soon(rank, age)
        stats = await service.stats()

    assert len(best) == 100
    window = stats["executor-0"]["window_requests"]
    print(f"100 requests in {window['n']} launches, film {best[0]} first for the first of them")


if __name__ == "__main__":
    trio.run(main)

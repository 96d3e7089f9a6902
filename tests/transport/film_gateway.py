"""A fake of a gateway that serves the film recommender, for the example clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trio

from tests.transport.fake_gateway import Behaviour, FakeGateway
from transport import messages as m
from transport.columns import decode_rows
from transport.sockets import open_context

ROOT = Path(__file__).parents[2]


async def serve_films(gateway: FakeGateway, identity: bytes, message: Any) -> None:  # noqa: ANN401
    """Score a film by its id, and its year, by the thousand."""
    if isinstance(message, m.Ping):
        await gateway.send(identity, m.Pong(request_id=message.request_id, status="ready"))
        return
    if isinstance(message, m.ModelsRequest):
        models = json.dumps({"movielens": {"version": "v7"}})
        await gateway.send(identity, m.ModelsReply(request_id=message.request_id, models=models))
        return
    blocks = message.blocks
    if message.rows:
        n, blocks = decode_rows(message.rows)
        assert n == message.n_candidates
    values = {
        name: column.tolist()
        for block in blocks
        if block.row_splits is None and block.char_splits is None
        for name, column in zip(block.names, block.values, strict=True)
    }
    assert values["age"][0] > 0
    scores = np.array([values["item_id"], values["year"]], np.float32).T
    reply = m.ScoreReply(
        request_id=message.request_id,
        outputs=("a", "b"),
        widths=(1, 1),
        scores=scores / np.float32(1000),
    )
    await gateway.send(identity, reply)


def run_with_films(
    command: Sequence[str], *behaviours: Behaviour
) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    """Run a command with a gateway's address as last argument; return what it did and asked."""

    async def main() -> tuple[subprocess.CompletedProcess[str], list[Any]]:
        async with open_context() as context, trio.open_nursery() as nursery:
            gateway = FakeGateway(context, "tcp://127.0.0.1:*", *behaviours)
            nursery.start_soon(gateway.run)
            run = partial(
                subprocess.run,
                [*command, gateway.address],
                capture_output=True,
                text=True,
                timeout=60,
                cwd=ROOT,
            )
            result = await trio.to_thread.run_sync(run)
            nursery.cancel_scope.cancel()
        return result, gateway.seen

    return trio.run(main)

"""A seed: a snapshot that one replica takes over from another, in parts that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from runtime.actor import Ref
from transport.errors import Unavailable
from transport.updates import SeedPart, SeedRequest

# Bytes of a seed in a message: about 10 ms of a network of 10 Gbit/s.
PART_BYTES: Final = 8 << 20
_BUDGET_S: Final = 30.0


async def download(peer: Ref, model: str, version: str, to: Path) -> None:
    """Write a peer's snapshot to a file; what is in it is not looked at.

    Raises:
        RequestError: The peer does not give it.
        OSError: It cannot be written.
    """
    snapshot, offset, size = 0, 0, 1
    await trio.to_thread.run_sync(to.write_bytes, b"")
    while offset < size:
        question = SeedRequest(model=model, version=version, snapshot=snapshot, offset=offset)
        answer = await peer.ask(question, budget=_BUDGET_S)
        if not isinstance(answer, SeedPart) or answer.offset != offset or not len(answer.data):
            raise Unavailable(f"{peer.name}: answers with something else than a part")
        await trio.to_thread.run_sync(_append, to, answer.data)
        snapshot, size = answer.snapshot, answer.size
        offset += len(answer.data)


def read_part(path: Path, offset: int) -> tuple[NDArray[np.uint8], int]:
    """Return a part of a snapshot, uint8 ``[n]``, and the size of all of it in bytes.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(offset)
        return np.frombuffer(file.read(PART_BYTES), np.uint8), size


def _append(path: Path, data: NDArray[np.uint8]) -> None:
    with path.open("ab") as file:
        file.write(data.data)

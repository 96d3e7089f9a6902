"""How long do encoding and decoding a request, a reply and a batch take?

Run as ``python -m tests.bench.bench_codec``; prints one JSON line, times in microseconds.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from transport.codec import Packet, decode, encode
from transport.messages import CANDIDATE, USER, Batch, Block, Message, ScoreReply, ScoreRequest

REPEATS, CALLS = 15, 2000


def messages() -> dict[str, Message]:
    """Return what is measured: 23 user and 16 candidate columns, 40 candidates; batches of 16."""
    user = np.ones((23, 1), np.float32)
    candidate = np.ones((16, 40), np.float32)
    return {
        "request": ScoreRequest(
            request_id=1 << 40,
            model="deepfm",
            budget_us=50_000,
            n_candidates=40,
            blocks=(
                Block(side=USER, names=tuple(f"user_{i}" for i in range(23)), values=user),
                Block(
                    side=CANDIDATE, names=tuple(f"item_{i}" for i in range(16)), values=candidate
                ),
            ),
        ),
        "reply": ScoreReply(
            request_id=1 << 40, outputs=("ctr",), widths=(1,), scores=np.ones((40, 1), np.float32)
        ),
        "batch": Batch(
            gateway="gateway",
            seq=1,
            model="deepfm",
            version="0" * 64,
            n_parts=2,
            n_rows=np.full(16, 40, np.int32),
            budgets_us=np.full(16, 50_000, np.int64),
            user_values=np.ones((16, 13), np.float32),
            candidate_values=np.ones((640, 13), np.float32),
        ),
    }


def measure(call: Callable[[], object]) -> dict[str, float]:
    """Return median and best of the repeats, after a warm-up."""
    for _ in range(CALLS):
        call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    return {"median": round(statistics.median(times), 2), "best": round(min(times), 2)}


def main() -> None:
    """Print one JSON line."""
    result: dict[str, object] = {"device": platform.machine(), "python": platform.python_version()}
    for name, message in messages().items():
        packet = Packet("", 0, message)
        frames = [bytes(frame) for frame in encode(packet)]
        result[name] = {
            "bytes": sum(map(len, frames)),
            "encode_us": measure(lambda packet=packet: encode(packet)),  # type: ignore[misc]
            "decode_us": measure(lambda frames=frames: decode(frames)),  # type: ignore[misc]
        }
    print(json.dumps(result))  # noqa: T201 - the result


if __name__ == "__main__":
    main()

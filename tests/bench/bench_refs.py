"""What does a message between actors cost? ``python -m tests.bench.bench_refs``: one JSON line.

Tells in bursts of 100, and asks one after the other, within a process and over the bus (both ends
in this process, so their CPU times add up).
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path

import trio

from runtime.actor import Context
from runtime.mailbox import Mailbox
from tests.runtime.actors import Echo
from tests.runtime.test_refs import Open, in_one_process, over_the_bus
from transport.messages import Ping

N_BURSTS, BURST, N_ASKS = 100, 100, 2000


class Counter(Echo):
    """Counts tells, and wakes who waits for the last of a burst; answers asks."""

    burst: trio.Event

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        Counter.burst = trio.Event()

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        n_told = 0
        while batch := await mailbox.receive_batch(256):
            for envelope in batch:
                if envelope.reply is not None:
                    envelope.reply(envelope.message)
                else:
                    n_told += 1
            if n_told == BURST:
                n_told = 0
                Counter.burst.set()


async def measure(opened: Open, folder: Path) -> dict[str, float]:
    async with opened(folder, Counter, mailbox=4096) as pair:
        message = Ping(request_id=1)
        await pair.ref.ask(message, budget=5)
        bursts, asks = [], []
        for _ in range(N_BURSTS):
            Counter.burst = trio.Event()
            before = trio.current_time()
            for _ in range(BURST):
                pair.ref.tell(message)
            await Counter.burst.wait()
            bursts.append((trio.current_time() - before) / BURST * 1e6)
        for _ in range(N_ASKS):
            before = trio.current_time()
            await pair.ref.ask(message, budget=5)
            asks.append((trio.current_time() - before) * 1e6)
    bursts.sort()
    asks.sort()
    return {
        "tell_us_median": round(bursts[len(bursts) // 2], 2),
        "ask_us_median": round(asks[len(asks) // 2], 1),
        "ask_us_p99": round(asks[len(asks) * 99 // 100], 1),
    }


async def main() -> None:
    result: dict[str, object] = {"python": platform.python_version()}
    for name, opened in (("local", in_one_process), ("bus", over_the_bus)):
        with tempfile.TemporaryDirectory() as folder:
            result[name] = await measure(opened, Path(folder))
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    trio.run(main)

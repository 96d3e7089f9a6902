"""What does a batch's part of cached tables cost an executor, in its event loop?

``python -m tests.bench.bench_hot_tables`` prints one JSON line for each number of cached tables and
groups of shards: microseconds of the thread's own time a batch, medians once the rows are warm, to
take what it asks for, of which what is missing goes to the shards, and to take all their answers. A
batch asks for about 5,000 different keys in all, drawn by a power law of exponent 1.1; a table of
1,000,000 rows of 64 bytes has places for 100,000, divided by the number of tables. Shards answer at
once.
"""

from __future__ import annotations

import json
import time

import numpy as np
from numpy.typing import NDArray

from actors.asking import Question
from actors.hot_rows import HotTables
from actors.hot_table import Group, HotTable
from kernels.bundle.manifest import Table
from kernels.shards import ShardLayout
from tests.actors.shard_help import rows_part
from transport.messages import LookupBatch, RowsPart

N_KEYS = 1_000_000
N_DIFFERENT = 5_000
N_ROWS = 100_000
N_BATCHES = 400
SEGMENTS = 64
NOTHING = ShardLayout(
    tables=(), lookups=(), id_rows=np.arange(0), weight_rows=np.arange(0), width=0, runs=()
)


def main() -> None:
    """Print a line for each shape."""
    for n_tables, n_groups in ((1, 1), (1, 8), (26, 1), (26, 8)):
        _report(n_tables, n_groups)


def _report(n_tables: int, n_groups: int) -> None:
    tables = [
        HotTable(
            number=number,
            table=Table(
                name=f"t{number}",
                rows=N_KEYS,
                dim=16,
                dtype="fp32",
                file=f"t{number}",
                keyed=True,
                segments=SEGMENTS,
            ),
            max_bytes=N_ROWS // n_tables * 106,
            stale_s=1e9,
            group_of=(np.arange(SEGMENTS) * n_groups // SEGMENTS).astype(np.int32),
        )
        for number in range(n_tables)
    ]
    groups = {group: Group((f"shard-{group}",), NOTHING, NOTHING) for group in range(n_groups)}
    hot = HotTables(
        name="executor", model="m", version="v", n_tables=n_tables, tables=tables, groups=groups
    )
    asks, answers, n_keys, n_missing = [], [], 0, 0
    for seq, batch in enumerate(_batches(n_tables)):
        start = time.thread_time()
        todo = hot.ask(batch, seq * 1e-3)
        asked = time.thread_time()
        came = [_answer(each) for each in todo if isinstance(each, Question)]
        again = time.thread_time()
        for each in came:
            hot.answered(each, seq * 1e-3)
        end = time.thread_time()
        if seq > N_BATCHES // 2:
            asks.append(asked - start)
            answers.append(end - again)
            n_keys += len(batch.keys)
            n_missing += sum(each.rows.size for each in came) // 64
    line = {
        "tables": n_tables,
        "groups": n_groups,
        "keys": round(n_keys / len(asks)),
        "missing": round(n_missing / len(asks)),
        "ask_us": round(1e6 * float(np.median(asks))),
        "answers_us": round(1e6 * float(np.median(answers))),
    }
    print(json.dumps(line))  # noqa: T201 - a program


def _batches(n_tables: int) -> list[LookupBatch]:
    rng = np.random.default_rng(0)
    sums = np.cumsum(np.arange(1, N_KEYS + 1, dtype=np.float64) ** -1.1)
    n_drawn = _drawn(sums, N_DIFFERENT // n_tables)
    batches = []
    for seq in range(N_BATCHES):
        keys: list[NDArray[np.int64]] = [
            np.unique(np.searchsorted(sums, rng.random(n_drawn) * sums[-1]))
            for _ in range(n_tables)
        ]
        splits = np.cumsum([0, *map(len, keys)]).astype(np.int32)
        batches.append(
            LookupBatch(
                gateway="gateway",
                seq=seq,
                model="m",
                version="v",
                executor="executor",
                part=0,
                budget_us=50_000,
                user_ids=np.empty((0, 1), np.int64),
                user_weights=np.empty((0, 1), np.float32),
                candidate_ids=np.empty((0, 1), np.int64),
                candidate_weights=np.empty((0, 1), np.float32),
                keys=np.concatenate(keys),
                key_splits=splits,
            )
        )
    return batches


def _drawn(sums: NDArray[np.float64], n_different: int) -> int:
    """Return how many keys to draw to get so many different ones."""
    weights = np.diff(sums, prepend=0) / sums[-1]
    n = n_different
    while (1 - (1 - weights) ** n).sum() < n_different:
        n = n * 11 // 10
    return n


def _answer(question: Question) -> RowsPart:
    asked = question.lookup
    return rows_part(asked, np.zeros(64 * len(asked.keys), np.uint8))


if __name__ == "__main__":
    main()

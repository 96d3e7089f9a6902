"""Hot rows of cached tables: what does a batch cost with them on the card, and beside it?

``python -m tests.bench.bench_hot_card`` needs a card. It prints one JSON line for each number of
rows of a batch and each place of the hot rows: ``card``, where slots are staged and kernels gather
and pool, or ``host``, where the processor pools rows and columns are staged. The model has 26
tables of 1,000,000 rows of 64 halves, of which a twentieth has a place: 20 that a candidate looks
up one id in, 5 that a user does, and one of a user's bag of 50; its dense half is 512, 256, 1 wide.
Keys are drawn by a power law of exponent 1.1, a request for each 64 rows. Times are medians of
batches once rows are warm, in microseconds: ``ask`` looks keys up and takes shards' answers in,
``join`` puts parts together (and pools), ``stage`` fills a lane's buffers, ``launch`` is from
queueing to scores. ``bytes`` are copied to the card for a batch. Scores of both ways are compared.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.asking import Question
from actors.block_layout import BlockLayout
from actors.engine import Engine, Work
from actors.fetch import FetchLayout
from actors.hot_kept import Fill, OnCard
from actors.hot_rows import HotTables
from actors.hot_table import Group, HotTable
from actors.layouts import Layouts
from kernels import _cuda
from kernels.arenas import HotPlan
from kernels.bundle.manifest import Lookup, Manifest, Pooling, SideLayout, SideName, Source, Table
from kernels.compiler import Options, compile_graph
from kernels.device_tables import DeviceTables
from kernels.gpu.executor import GpuExecutor, Model
from kernels.gpu.lanes import Blocks
from kernels.gpu.model import cost_of
from kernels.ir.build import make
from kernels.ir.node import Graph, Lead, Linear, Node, Op, const
from kernels.nvrtc import Builder, Cache
from kernels.placement import Placement
from kernels.shards import shard_layout
from runtime.metrics import Metrics
from runtime.window import WindowPolicy
from tests.actors.shard_help import rows_part
from transport.messages import Batch, LookupBatch, PartsLate, RowsPart, ScoresBatch

DIM = 64
ROW_BYTES = 2 * DIM
N_CANDIDATE, N_USER, BAG = 20, 5, 50
N_KEYS = 1_000_000
N_SLOTS = N_KEYS // 20
ROWS_A_REQUEST = 64
N_WARM, N_MEASURED = 150, 100
BASE = 1 << 16  # different rows that shards have


def main() -> None:
    """Print a line for each size and place."""
    problem = _cuda.available()
    if problem is not None:
        raise SystemExit(f"this needs a card: {problem}")
    measure((64, 512, 2048))


def measure(sizes: tuple[int, ...], n_warm: int = N_WARM, n_measured: int = N_MEASURED) -> None:
    """Measure batches of so many rows, each way."""
    device = _cuda.device_name(0)
    with tempfile.TemporaryDirectory(prefix="tb-cache-") as folder:
        for n_rows in sizes:
            scores = []
            for place in ("host", "card"):
                way = Way.open(place, n_rows, Cache(Path(folder)))
                try:
                    line, last = way.run(n_warm, n_measured)
                finally:
                    way.engine.close()
                scores.append(last)
                line = {"device": device, "place": place, "rows": n_rows, **line}
                print(json.dumps(line), flush=True)  # noqa: T201 - a program
            error = float(np.abs(scores[0] - scores[1]).max())
            print(json.dumps({"rows": n_rows, "largest_difference": error}))  # noqa: T201
            assert error < 0.01, "the two ways disagree"


@functools.cache
def model() -> tuple[Manifest, Graph]:
    """Return the manifest and the dense graph."""
    user = [("user", i, 1) for i in range(N_USER)] + [("user", N_USER, BAG)]
    candidate = [("candidate", N_USER + 1 + i, 1) for i in range(N_CANDIDATE)]
    manifest = Manifest(
        format=1,
        model="hot",
        version="v",
        tables=tuple(
            Table(name=f"t{i:02}", rows=N_KEYS, dim=DIM, dtype="fp16", file=f"t{i:02}", segments=64)
            for i in range(N_USER + 1 + N_CANDIDATE)
        ),
        user=_side("user", [(table, n) for _, table, n in user]),
        candidate=_side("candidate", [(table, n) for _, table, n in candidate]),
        outputs=(),
        kept=(),
    )
    of_user = Node(Op.INPUT, (), (Lead.REQUESTS, manifest.user.width), arg="user", name="user")
    shape = (Lead.ROWS, manifest.candidate.width)
    of_rows = Node(Op.INPUT, (), shape, arg="candidate", name="candidate")
    first = make(Op.ADD, _linear(of_rows, 512, 0), make(Op.TO_ROWS, _linear(of_user, 512, 1)))
    hidden = _linear(make(Op.RELU, first), 256, 2, Op.RELU)
    return manifest, Graph("hot", {"user": of_user, "candidate": of_rows}, _linear(hidden, 1, 3))


def _side(name: SideName, tables: list[tuple[int, int]]) -> SideLayout:
    lookups, at, n_ids = [], 0, 0
    for table, n in tables:
        pooling: Pooling = "mean" if n > 1 else "none"
        lookups.append(
            Lookup(
                side=name,
                table=f"t{table:02}",
                tensor=f"t{table:02}",
                pooling=pooling,
                first_id=n_ids,
                n_ids=n,
                first_weight=None,
                offset=at,
                width=DIM,
            )
        )
        at, n_ids = at + DIM, n_ids + n
    source = Source(feature="x")
    return SideLayout(
        ids=(source,) * n_ids,
        weights=(),
        values=(source,),
        lookups=tuple(lookups),
        width=at + 1,
        program=None,
    )


def _linear(x: Node, n: int, seed: int, activation: Op | None = None) -> Node:
    rng = np.random.default_rng(seed)
    k = x.dims[-1]
    weight = const((rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32), "w")
    bias = const(np.zeros(n, np.float32), "b")
    return make(Op.LINEAR, x, weight, bias, arg=Linear(activation=activation))


@attrs.define(eq=False)
class Way:
    """An executor, and the books of its cached tables."""

    n_rows: int
    fetch: FetchLayout
    hot: HotTables
    engine: Engine
    executor: GpuExecutor
    answers: list[ScoresBatch]
    filling: list[tuple[int, Fill]] = attrs.Factory(list)
    n_missing: int = 0

    @classmethod
    def open(cls, place: str, n_rows: int, cache: Cache) -> Way:
        """Compile the model for batches of so many rows."""
        manifest, graph = model()
        n_requests = max(n_rows // ROWS_A_REQUEST, 1)
        options = Options()
        tables = None
        names = [table.name for table in manifest.tables]
        if place == "card":
            plan = HotPlan(
                max_bytes=dict.fromkeys(names, N_SLOTS * ROW_BYTES),
                max_rows=n_rows,
                max_requests=n_requests,
                n_lanes=1,
            )
            tables = DeviceTables.of(manifest, [], options.precision, plan)
        item = np.dtype(options.input_dtype).itemsize
        widths = (
            (manifest.user.width, manifest.candidate.width)
            if tables is None
            else (tables.user.row_width(item), tables.candidate.row_width(item))
        )
        blocks = Blocks(n_rows, n_requests, *widths, 1, np.dtype(options.input_dtype), tables)
        executor = GpuExecutor(
            Model(
                name="hot",
                blocks=blocks,
                compile=functools.partial(compile_graph, graph, options=options, tables=tables),
                cost=cost_of(graph, blocks, options),
                table=lambda name: np.empty((0, DIM), np.float32),
            ),
            Builder(cache),
            buckets=[n_rows],
        )
        parts = {name: np.zeros(64, np.int32) for name in names}
        fetch = FetchLayout.of(manifest, parts, 1)
        layouts = Layouts(
            placement=Placement(groups=()),
            shards=(),
            nothing=(shard_layout(manifest.user, ()), shard_layout(manifest.candidate, ())),
            parts=(),
            hot=0,
            fetch=fetch,
            device=None,
        )
        layout = BlockLayout.of(manifest, layouts, tables=tables)
        answers: list[ScoresBatch] = []

        def tell(gateway: str, message: ScoresBatch | PartsLate) -> None:
            assert isinstance(message, ScoresBatch), message
            answers.append(message)

        policy: WindowPolicy[Work] = WindowPolicy(
            max_rows=n_rows,
            max_requests=n_requests,
            n_lanes=1,
            bucket=executor.bucket,
            backlog_rows=10 * n_rows,
        )
        engine = Engine(
            version="v", dense=executor, layout=layout, policy=policy, tell=tell, metrics=Metrics()
        )
        card = None
        if layout.card is not None and executor.filler is not None:
            most_rows = executor.filler.most_rows
            card = OnCard(layout.card.tables, [1e9] * len(names), most_rows)
        hot = HotTables(
            name="executor",
            model="hot",
            version="v",
            n_tables=len(names),
            tables=[
                HotTable(
                    number=number,
                    table=each.table,
                    max_bytes=N_SLOTS * (ROW_BYTES + 42),
                    stale_s=1e9,
                    group_of=np.zeros(64, np.int32),
                )
                for number, each in enumerate(fetch.tables)
            ],
            groups={0: Group(("shard",), *layouts.nothing)},
            card=card,
        )
        return cls(n_rows, fetch, hot, engine, executor, answers)

    def run(self, n_warm: int, n_measured: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """Serve batches; return what they took, and the scores of the last."""
        batches = batches_of(self.fetch, self.n_rows, n_warm + n_measured)
        took = []
        n_keys = 0
        for seq, (head, lookup) in enumerate(batches):
            if seq == n_warm:
                self.n_missing = n_keys = 0
            n_keys += len(lookup.keys)
            took.append(self.serve(head, lookup, seq * 1e-3))
        medians = np.median(np.array(took[n_warm:]) * 1e6, axis=0)
        names = ("ask_us", "join_us", "stage_us", "launch_us")
        line = {name: round(float(value), 1) for name, value in zip(names, medians, strict=True)}
        staging = self.executor.staging(0)
        n_bytes = sum(
            n * block.strides[0]
            for n, block in ((self.n_rows, staging.candidate), (len(head.n_rows), staging.user))
        )
        return {
            **line,
            "total_us": round(float(np.median(np.array(took[n_warm:]).sum(1) * 1e6)), 1),
            "keys": n_keys // n_measured,
            "hit_rate": round(1 - self.n_missing / n_keys, 3),
            "bytes": n_bytes + (0 if staging.spare is None else staging.spare.n_bytes),
        }, self.answers[-1].scores

    def serve(self, head: Batch, lookup: LookupBatch, now: float) -> list[float]:
        """Serve a batch; return the seconds of its steps."""
        self.answers.clear()
        start = time.perf_counter()
        todo = list(self.hot.ask(lookup, now))
        asked = time.perf_counter() - start
        parts = [each for each in todo if isinstance(each, RowsPart)]
        for question in [each for each in todo if isinstance(each, Question)]:
            answer = answer_to(question)
            self.n_missing += len(question.lookup.keys)
            start = time.perf_counter()
            for each in self.hot.answered(answer, now):
                if isinstance(each, Fill):
                    self.fill(each)
                elif isinstance(each, RowsPart):
                    parts.append(each)
            asked += time.perf_counter() - start
        [part] = parts
        times = [time.perf_counter()]
        self.engine.begin(head, now)
        self.engine.add(part, now)
        times.append(time.perf_counter())
        for window in self.engine.windows(now):
            times.append(time.perf_counter())
            self.executor.start(window.lane, len(window.slices), window.n_rows)
            scores = self.executor.finish(window.lane)
            times.append(time.perf_counter())
            self.engine.done(window, scores, now, now)
        assert len(times) == 4, "a batch is one window"
        assert self.answers[-1].message == ""
        return [asked, *(b - a for a, b in itertools.pairwise(times))]

    def fill(self, fill: Fill) -> None:
        """Send rows to their slots, as ``HotAsker`` does."""
        assert self.executor.filler is not None
        number = self.executor.filler.put(fill.to, fill.rows, fill.at, fill.sizes)
        if number is None:
            self.hot.lost(fill)
        else:
            self.filling.append((number, fill))
        n_done = self.executor.filler.n_done()
        while self.filling and self.filling[0][0] < n_done:
            self.hot.filled(self.filling.pop(0)[1])


def batches_of(
    fetch: FetchLayout, n_rows: int, n_batches: int
) -> Iterator[tuple[Batch, LookupBatch]]:
    """Draw batches, the same for each way."""
    manifest, _ = model()
    rng = np.random.default_rng(0)
    sums = np.cumsum(np.arange(1, N_KEYS + 1, dtype=np.float64) ** -1.1)
    n_requests = max(n_rows // ROWS_A_REQUEST, 1)

    def drawn(n: int, m: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.searchsorted(sums, rng.random((n, m)) * sums[-1])
        return found

    for seq in range(n_batches):
        user = drawn(len(manifest.user.ids), n_requests)
        candidate = drawn(len(manifest.candidate.ids), n_rows)
        wanted = fetch.split(user, candidate)
        head = Batch(
            gateway="gateway",
            seq=seq,
            model="hot",
            version="v",
            n_parts=1,
            n_rows=np.full(n_requests, n_rows // n_requests, np.int32),
            budgets_us=np.full(n_requests, 10**9, np.int64),
            user_values=np.zeros((n_requests, 1), np.float32),
            candidate_values=np.zeros((n_rows, 1), np.float32),
            user_slots=wanted.user_slots,
            user_slot_weights=np.empty((0, n_requests), np.float32),
            candidate_slots=wanted.candidate_slots,
            candidate_slot_weights=np.empty((0, n_rows), np.float32),
            part_rows=wanted.part_rows,
        )
        lookup = LookupBatch(
            gateway="gateway",
            seq=seq,
            model="hot",
            version="v",
            executor="executor",
            part=0,
            budget_us=10**9,
            user_ids=np.empty((0, n_requests), np.int64),
            user_weights=np.empty((0, n_requests), np.float32),
            candidate_ids=np.empty((0, n_rows), np.int64),
            candidate_weights=np.empty((0, n_rows), np.float32),
            keys=wanted.keys[0],
            key_splits=wanted.key_splits[0],
        )
        yield head, lookup


@functools.cache
def _base() -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((BASE, DIM)) * 0.5).astype(np.float16)
    return rows.view(np.uint8)


def answer_to(question: Question) -> RowsPart:
    """Return what a shard sends."""
    asked = question.lookup
    tables = np.repeat(np.arange(len(asked.key_splits) - 1), np.diff(asked.key_splits))
    rows = _base()[(asked.keys * 31 + tables) % BASE]
    return rows_part(asked, np.ascontiguousarray(rows).reshape(-1))


if __name__ == "__main__":
    main()

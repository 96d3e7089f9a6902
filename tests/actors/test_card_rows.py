"""Hot rows on a card, as values: from what a batch asks to what its launch reads."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.asking import Question
from actors.card_part import CardPart, let_go
from actors.card_rows import CardLayout, CardTables
from actors.fetch import FetchLayout, Wanted
from actors.hot_kept import Fill, OnCard
from actors.hot_rows import HotTables, Todo
from actors.hot_table import Group, HotTable
from kernels.arenas import HotPlan
from kernels.bundle.manifest import Manifest
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.errors import LookupFailed
from kernels.executor import Bags, Spare
from kernels.program import Precision
from kernels.shards import ShardLayout
from kernels.store.rows import RowType, decode_rows, encode_rows
from tests.actors.shard_help import rows_part
from tests.kernels.gather_help import DIMS, manifest
from transport.messages import Batch, LookupBatch, RowsPart

F32 = NDArray[np.float32]
HOT = ("wide", "three", "eight")
N_KEYS = 50  # of any table
MAX_ROWS, MAX_REQUESTS, N_LANES = 12, 4, 2
PART = 1  # of cached tables; "four" is fetched and pooled by the processor, "one" on the card whole
NO_LAYOUT = ShardLayout(
    tables=(), lookups=(), id_rows=np.arange(0), weight_rows=np.arange(0), width=0, runs=()
)


def device_of(made: Manifest, precision: Precision = Precision.FP32) -> DeviceTables:
    """Hot tables of 16 slots each, of which few batches find all their rows there."""
    item = precision.item_bytes
    plan = HotPlan(
        max_bytes={name: 16 * DIMS[name] * item for name in HOT},
        max_rows=MAX_ROWS,
        max_requests=MAX_REQUESTS,
        n_lanes=N_LANES,
    )
    return DeviceTables.of(made, ["one"], precision, plan)


def fetch_of(made: Manifest) -> FetchLayout:
    parts = {name: np.array([PART if name in HOT else 0], np.int32) for name in (*HOT, "four")}
    return FetchLayout.of(made, parts, 2)


def shortened(made: Manifest) -> tuple[GatheredSide, GatheredSide]:
    """Return blocks that have fewer of the rows of lookups that are not pooled."""
    sides = []
    for side in (made.user, made.candidate):
        lookups, at = [], 0
        for each in side.lookups:
            n_ids = 1 if each.pooling == "none" else each.n_ids
            width = DIMS[each.table] if each.pooling == "none" else each.width
            lookups.append(attrs.evolve(each, n_ids=n_ids, width=width, offset=at))
            at += width
        short = attrs.evolve(side, lookups=tuple(lookups), width=at + len(side.values))
        sides.append(GatheredSide.of(short, ["one"], HOT))
        assert len(sides[-1].hot_id_rows) < len(GatheredSide.of(side, ["one"], HOT).hot_id_rows)
    return sides[0], sides[1]


def row_of(table: str, key: int, version: int) -> F32:
    """A row that tells what it is."""
    row = np.zeros(DIMS[table], np.float32)
    row[:3] = key, version, DIMS[table]
    return row


@attrs.define(eq=False)
class Asked:
    """A batch under way."""

    head: Batch
    user_ids: NDArray[np.int64]
    candidate_ids: NDArray[np.int64]
    began: float
    told: dict[tuple[str, int], int]
    part: CardPart | None = None
    n_waiting: int = 0  # requests that no launch has answered


@attrs.define(eq=False)
class Launch:
    """What a lane runs: each run's batch, and for each id what row it is of, and where it lies."""

    layout: CardLayout
    runs: list[tuple[Asked, int]] = attrs.Factory(list)
    reads: list[tuple[Asked, str, int, int]] = attrs.Factory(list)
    found: list[bytes] = attrs.Factory(list)


class Machine:
    """A gateway, shards, hot tables, a card and its lanes; time and chance are the caller's."""

    def __init__(self, rng: random.Random, stale_s: float) -> None:
        self.rng, self.stale_s = rng, stale_s
        self.now = 0.0
        self.n_checked = self.n_hits = 0
        self.asked: dict[int, Asked] = {}
        self.ready: list[Asked] = []
        self.questions: list[RowsPart] = []
        self.fills: list[Fill] = []
        self.lanes: list[Launch | None] = [None] * N_LANES
        self.versions: dict[tuple[str, int], int] = {}
        self.replaced_at: dict[tuple[str, int, int], float] = {}
        self.told: dict[tuple[str, int], int] = {}
        self.made = manifest()
        self.fetch, self.device = fetch_of(self.made), device_of(self.made)
        self.layout = CardLayout.of(self.fetch, self.device, PART)
        self.layouts = [self.layout, self.layout.shortened(*shortened(self.made))]
        self.memory = np.full(self.device.size_bytes, 0xEE, np.uint8)
        spare = self.device.spare
        self.spares = [
            Spare(np.zeros(spare.size_bytes, np.uint8), spare.offset + lane * spare.size_bytes)
            for lane in range(N_LANES)
        ]
        self.kept = OnCard(self.layout.tables, [self.stale_s] * len(HOT), 5)
        self.hot = HotTables(
            name="executor",
            model="m",
            version="v",
            n_tables=len(self.fetch.tables),
            tables=[
                HotTable(
                    number=number,
                    table=each.table,
                    max_bytes=0,
                    stale_s=self.stale_s,
                    group_of=np.zeros(1, np.int32),
                )
                for number, each in enumerate(self.fetch.tables)
                if each.table.name in HOT
            ],
            groups={0: Group(("a",), NO_LAYOUT, NO_LAYOUT)},
            card=self.kept,
        )

    # What happens

    def ask(self, seq: int) -> None:
        rng = np.random.default_rng(self.rng.randrange(1 << 30))
        n_rows = rng.integers(1, 4, rng.integers(1, 3)).astype(np.int32)
        of_users, of_rows = (
            np.minimum(rng.geometric(0.2, (len(side.ids), n)), N_KEYS - 1)
            for side, n in (
                (self.made.user, len(n_rows)),
                (self.made.candidate, int(n_rows.sum())),
            )
        )
        wanted = self.fetch.split(of_users, of_rows)
        head = head_of(self.made, self.fetch, wanted, n_rows)
        asked = Asked(head, of_users, of_rows, self.now, dict(self.told), n_waiting=len(n_rows))
        self.asked[seq] = asked
        lookup = LookupBatch(
            gateway="gateway",
            seq=seq,
            model="m",
            version="v",
            executor="executor",
            part=PART,
            budget_us=self.rng.choice([300_000, 2_000_000]),
            user_ids=np.empty((0, len(n_rows)), np.int64),
            user_weights=np.empty((0, len(n_rows)), np.float32),
            candidate_ids=np.empty((0, of_rows.shape[1]), np.int64),
            candidate_weights=np.empty((0, of_rows.shape[1]), np.float32),
            keys=wanted.keys[PART],
            key_splits=wanted.key_splits[PART],
        )
        self.take(self.hot.ask(lookup, self.now))

    def take(self, todo: Sequence[Todo]) -> None:
        for each in todo:
            if isinstance(each, Question):
                self.questions.append(self.answer(each))
            elif isinstance(each, Fill):
                self.fill(each)
            elif isinstance(each, RowsPart):
                asked = self.asked.pop(each.seq)
                if isinstance(each, CardPart):
                    asked.part = each
                    self.n_hits += int(np.count_nonzero(each.lease.slots >= 0))
                    self.ready.append(asked)

    def fill(self, fill: Fill) -> None:
        if self.rng.random() < 0.1:
            self.hot.lost(fill)
            return
        for at, size in zip(fill.to.tolist(), fill.sizes.tolist(), strict=True):
            self.memory[at : at + size] = 0xEE  # half written
        self.fills.append(fill)

    def finish_fill(self) -> None:
        for _ in range(min(len(self.fills), self.rng.randint(1, 6))):
            fill = self.fills.pop(0)
            for to, at, size in zip(
                fill.to.tolist(), fill.at.tolist(), fill.sizes.tolist(), strict=True
            ):
                self.memory[to : to + size] = fill.rows[at : at + size]
            self.hot.filled(fill)

    def answer(self, question: Question) -> RowsPart:
        lookup = question.lookup
        rows = [np.empty(0, np.float32)]
        for number, each in enumerate(self.fetch.tables):
            name = each.table.name
            first, last = lookup.key_splits[number : number + 2].tolist()
            keys = lookup.keys[first:last].tolist()
            rows += [row_of(name, key, self.versions.get((name, key), 0)) for key in keys]
        return rows_part(lookup, np.concatenate(rows).view(np.uint8))

    def answered(self) -> None:
        if self.questions:
            answer = self.questions.pop(self.rng.randrange(len(self.questions)))
            if self.rng.random() < 0.1:
                answer = attrs.evolve(
                    answer, code="unavailable", message="gone", rows=np.empty(0, np.uint8)
                )
            self.take(self.hot.answered(answer, self.now))

    def change(self, *, tell: bool) -> None:
        name = self.rng.choice(HOT)
        keys = self.rng.sample(range(N_KEYS // 2), 4)
        for key in keys:
            version = self.versions.get((name, key), 0)
            self.replaced_at[name, key, version] = self.now
            self.versions[name, key] = version + 1
            if tell:
                self.told[name, key] = version + 1
        if tell:
            self.hot.changed(name, np.array(keys))

    def launch(self) -> None:
        """Stage some requests of some batches, in runs, on a lane that is idle."""
        idle = [lane for lane, launch in enumerate(self.lanes) if launch is None]
        if not idle or not self.ready:
            return
        lane = self.rng.choice(idle)
        spare, launch = self.spares[lane], Launch(self.rng.choice(self.layouts))
        spare.n_bytes = n_rows = n_requests = 0
        spare.rows[:] = 0xEE
        self.rng.shuffle(self.ready)
        while self.ready:
            asked = self.ready[0]
            counts = asked.head.n_rows.tolist()
            first = len(counts) - asked.n_waiting
            n = self.rng.randint(1, asked.n_waiting)
            mine = sum(counts[first : first + n])
            if n_rows + mine > MAX_ROWS or n_requests + n > MAX_REQUESTS:
                break
            n_rows, n_requests = n_rows + mine, n_requests + n
            start = sum(counts[:first])
            self.stage(lane, launch, asked, slice(first, first + n), slice(start, start + mine))
            launch.runs.append((asked, n))
            asked.n_waiting -= n
            if asked.n_waiting:
                break
            self.ready.pop(0)
        self.memory[spare.at : spare.at + spare.n_bytes] = spare.rows[: spare.n_bytes]
        launch.found = [self.read(table, at) for _, table, _, at in launch.reads]
        self.lanes[lane] = launch

    def stage(self, lane: int, launch: Launch, asked: Asked, requests: slice, rows: slice) -> None:
        assert asked.part is not None
        parts = {PART: asked.part}
        assert self.layout.problem(asked.head, parts) is None
        joined = self.layout.rows_of(asked.head, parts)
        layout = launch.layout
        bags = []
        for part, n in (
            (layout.user, requests.stop - requests.start),
            (layout.candidate, rows.stop - rows.start),
        ):
            ids = np.full((n, part.gathered.n_ids), -5, np.int32)
            weights = np.full((n, part.gathered.n_weights), np.nan, np.float32)
            bags.append(Bags(ids, weights))
        layout.stage(joined.part(requests, rows), self.spares[lane], *bags)
        for bag, gathered, ids, which in (
            (bags[0], layout.user.gathered, asked.user_ids, requests),
            (bags[1], layout.candidate.gathered, asked.candidate_ids, rows),
        ):
            first = len(gathered.layout.id_rows)
            assert (bag.ids[:, :first] == -5).all()
            pairs = zip(gathered.hot_id_tables, gathered.hot_id_rows, strict=True)
            for column, (table, row) in enumerate(pairs, first):
                for key, slot in zip(ids[row, which], bag.ids[:, column], strict=True):
                    launch.reads.append((asked, HOT[table], int(key), int(slot)))
            weights = bag.weights[:, len(gathered.layout.weight_rows) :]
            assert (weights == gathered.hot_weight_rows).all()

    def read(self, table: str, slot: int) -> bytes:
        placed = self.device.table(table)
        assert 0 <= slot < placed.rows
        size = 4 * placed.dim
        at = placed.offset + slot * size
        return self.memory[at : at + size].tobytes()

    def finish(self) -> None:
        """End a launch: see what it read, then and when it began."""
        busy = [lane for lane, launch in enumerate(self.lanes) if launch is not None]
        if not busy:
            return
        lane = self.rng.choice(busy)
        launch, self.lanes[lane] = self.lanes[lane], None
        assert launch is not None
        for (asked, table, key, slot), found in zip(launch.reads, launch.found, strict=True):
            assert self.read(table, slot) == found, "a row changed while it was read"
            row = np.frombuffer(found, np.float32)
            version = int(row[1])
            np.testing.assert_array_equal(row, row_of(table, key, version))
            replaced = self.replaced_at.get((table, key, version), np.inf)
            assert asked.began - replaced <= self.stale_s + 1e-9
            assert version >= asked.told.get((table, key), 0)
            self.n_checked += 1
        for asked, _ in launch.runs:
            running = any(each and asked in dict(each.runs) for each in self.lanes)
            if not asked.n_waiting and not running:
                assert asked.part is not None
                let_go(asked.part)
                let_go(asked.part)  # as when an answer comes twice

    def drop(self) -> None:
        """Give a batch up that waits for a lane."""
        if self.ready:
            asked = self.ready.pop()
            if any(each and asked in dict(each.runs) for each in self.lanes):
                self.ready.append(asked)
                return
            assert asked.part is not None
            let_go(asked.part)


def head_of(made: Manifest, fetch: FetchLayout, wanted: Wanted, n_rows: NDArray[np.int32]) -> Batch:
    n, n_all = len(n_rows), int(n_rows.sum())
    return Batch(
        gateway="gateway",
        seq=1,
        model="m",
        version="v",
        n_parts=2,
        n_rows=n_rows,
        budgets_us=np.full(n, 1000, np.int64),
        user_values=np.zeros((n, len(made.user.values)), np.float32),
        candidate_values=np.zeros((n_all, len(made.candidate.values)), np.float32),
        user_slots=wanted.user_slots,
        user_slot_weights=weights_of(fetch.user, n),
        candidate_slots=wanted.candidate_slots,
        candidate_slot_weights=weights_of(fetch.candidate, n_all),
        part_rows=wanted.part_rows,
    )


def weights_of(layout: ShardLayout, n: int) -> F32:
    """Weights that tell which rows of the side's they are."""
    return np.repeat(layout.weight_rows[:, np.newaxis], n, axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_every_launch_reads_each_keys_row_no_older_than_is_promised(seed: int) -> None:
    """Lanes, fills, answers in any order, updates that are told and others that are not."""
    rng = random.Random(seed)
    machine = Machine(rng, stale_s=rng.choice([1.5, 8.0]))
    for seq in range(1, 1200):
        machine.now += rng.expovariate(80)
        machine.take(machine.hot.tick(machine.now))
        what = rng.random()
        if what < 0.15:
            machine.ask(seq)
        elif what < 0.2:
            machine.change(tell=what < 0.18)
        elif what < 0.22:
            machine.drop()
        elif what < 0.4:
            machine.launch()
        elif what < 0.6:
            machine.finish()
        elif what < 0.75:
            machine.finish_fill()
        else:
            machine.answered()
    machine.now += 100
    machine.take(machine.hot.tick(machine.now))
    while machine.ready or any(machine.lanes):
        machine.launch()
        machine.finish()
    while machine.fills:
        machine.finish_fill()
    assert machine.n_checked > 1000
    assert machine.n_hits > 100
    assert n_pins(machine.kept) == 0
    assert machine.hot.wake_at() is None


def n_pins(kept: OnCard) -> int:
    slots = kept._slots
    native = [each._arrays["pins"].view(np.uint32) for each in slots._natives]
    return sum(int(each.sum()) for each in native or [each._pins for each in slots._plain])


def test_default_rows_that_came_from_elsewhere_are_staged_as_others_are() -> None:
    made = manifest()
    fetch = fetch_of(made)
    layout = CardLayout.of(fetch, device_of(made), PART)
    ids = [np.full((len(side.ids), 1), 7) for side in (made.user, made.candidate)]
    wanted = fetch.split(*ids)
    head = head_of(made, fetch, wanted, np.ones(1, np.int32))
    rows = [row_of(name, 0, 3) for name in HOT]
    part = RowsPart(
        gateway="gateway",
        seq=1,
        version="v",
        part=PART,
        user=np.empty((1, 0), np.float32),
        candidate=np.empty((1, 0), np.float32),
        rows=np.concatenate(rows).view(np.uint8),
        degraded=True,
    )
    joined = layout.rows_of(head, {PART: part})
    assert (joined.user < 0).all()
    assert joined.rows.tobytes() == part.rows.tobytes()
    spare = Spare(np.zeros(1 << 12, np.uint8), layout.tables.device.spare.offset)
    layout.stage(joined, spare, None, None)
    assert sum(map(len, rows)) * 4 <= spare.n_bytes <= sum(map(len, rows)) * 4 + 3 * 64


@pytest.mark.parametrize("bad", [-1, 1, 1 << 30])
def test_slots_that_are_none_are_told(bad: int) -> None:
    made = manifest()
    fetch = fetch_of(made)
    layout = CardLayout.of(fetch, device_of(made), PART)
    wanted = fetch.split(*(np.full((len(s.ids), 1), 7) for s in (made.user, made.candidate)))
    head = head_of(made, fetch, wanted, np.ones(1, np.int32))
    empty = np.empty((1, 0), np.float32)
    rows = np.zeros(4 * sum(DIMS[name] for name in HOT), np.uint8)
    part = RowsPart(
        gateway="g", seq=1, version="v", part=PART, user=empty, candidate=empty, rows=rows
    )
    assert layout.rows_of(head, {PART: part}).candidate.shape[1] == 1
    damaged = head.candidate_slots.copy()
    damaged[layout.candidate.rows[0]] = bad
    with pytest.raises(LookupFailed, match=f"slot {bad} is none of 1 rows"):
        layout.rows_of(attrs.evolve(head, candidate_slots=damaged), {PART: part})


@pytest.mark.parametrize("precision", list(Precision))
def test_rows_are_converted_to_what_the_card_stores(precision: Precision) -> None:
    """Of tables that are stored in different ways, one after the other and mixed."""
    made = manifest()
    kinds: dict[str, RowType] = {"wide": "int8", "three": "fp16", "eight": "int8"}
    tables = tuple(
        attrs.evolve(table, dtype=kinds.get(table.name, "fp32")) for table in made.tables
    )
    made = attrs.evolve(made, tables=tables)
    device = device_of(made, precision)
    card = CardTables.of(fetch_of(made), device)
    assert card.names == HOT
    rng = np.random.default_rng(0)
    of_row = rng.integers(0, 3, 40)
    encoded, want = [], []
    for table in of_row.tolist():
        name = HOT[table]
        row = rng.standard_normal((1, DIMS[name])).astype(np.float32)
        encoded.append(encode_rows(row, kinds[name]).ravel())
        out = np.empty_like(row)
        decode_rows(encoded[-1].reshape(1, -1), kinds[name], DIMS[name], out, native=False)
        want.append(device.stored(out).view(np.uint8).ravel())
    found = card.stored(of_row, np.concatenate(encoded))
    np.testing.assert_array_equal(found, np.concatenate(want))
    assert not len(card.stored(of_row[:0], np.empty(0, np.uint8)))

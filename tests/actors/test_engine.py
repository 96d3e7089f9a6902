from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.block_layout import BlockLayout
from actors.engine import Engine, Work
from kernels.executor import Staging
from kernels.lookup import ShardLayout
from kernels.program import Bucket
from kernels.shards import Run
from runtime.metrics import Metrics
from runtime.window import Window, WindowPolicy
from transport.messages import Batch, PartsLate, RowsPart, ScoresBatch
from transport.values import ERROR_CODES

WIDTH = 3


class Adder:
    """A dense graph that adds the user's number and the candidate's, so each score is known."""

    sequences = None

    def __init__(self, max_rows: int, n_lanes: int = 1) -> None:
        self.n_lanes, self.max_rows, self.max_requests, self.n_outputs = n_lanes, max_rows, 8, 1
        self.stagings = [
            Staging(
                np.full((self.max_requests, 1), np.nan, np.float32),
                np.full((max_rows, WIDTH), np.nan, np.float32),
                np.full(max_rows, -1, np.int64),
            )
            for _ in range(n_lanes)
        ]
        self.closed = False

    def bucket(self, n_rows: int) -> int:
        return n_rows

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        return self.stagings[lane]

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        staging = self.stagings[lane]
        of_row = staging.request_of_row[:n_rows]
        assert of_row.max() == n_requests - 1
        scores: NDArray[np.float32] = staging.user[of_row] + staging.candidate[:n_rows].sum(
            axis=1, keepdims=True
        )
        for each in (staging.user, staging.candidate):
            each[:] = np.nan
        return scores

    def close(self) -> None:
        self.closed = True


class Bench:
    """An engine with its surroundings: what it tells gateways, and a clock that stands still."""

    def __init__(self, max_rows: int = 8, backlog_rows: int = 1000, n_lanes: int = 1) -> None:
        nothing = np.empty(0, np.intp)
        layouts = [
            (
                ShardLayout(
                    tables=("u",),
                    lookups=(),
                    id_rows=nothing,
                    weight_rows=nothing,
                    width=1,
                    runs=(Run(0, 0, 1),),
                ),
                ShardLayout(
                    tables=("a",),
                    lookups=(),
                    id_rows=nothing,
                    weight_rows=nothing,
                    width=2,
                    runs=(Run(0, 0, 2),),
                ),
            )
        ]
        self.told: list[tuple[str, ScoresBatch]] = []
        self.late: list[PartsLate] = []
        self.degraded = False
        self.dense = Adder(max_rows, n_lanes)
        self.engine = Engine(
            version="v",
            dense=self.dense,
            layout=BlockLayout(layouts, user_values=(), candidate_values=(Run(0, 2, 1),)),
            policy=WindowPolicy(
                max_rows=max_rows,
                max_requests=8,
                n_lanes=n_lanes,
                bucket=self.dense.bucket,
                backlog_rows=backlog_rows,
            ),
            tell=self.tell,
            metrics=Metrics(),
        )
        self.now = 10.0

    def tell(self, gateway: str, message: ScoresBatch | PartsLate) -> None:
        if isinstance(message, PartsLate):
            self.late.append(message)
        else:
            self.told.append((gateway, message))

    def send(
        self, seq: int, n_rows: Sequence[int], budget_us: int = 1_000_000, version: str = "v"
    ) -> NDArray[np.float32]:
        """Let a batch arrive; return the scores that its rows are to get."""
        total = sum(n_rows)
        user = np.arange(len(n_rows), dtype=np.float32)[:, None] * 1000 + seq * 100_000
        rows = np.arange(total, dtype=np.float32)[:, None] + np.zeros(WIDTH, np.float32)
        self.engine.begin(
            Batch(
                gateway="gateway",
                seq=seq,
                model="m",
                version=version,
                n_parts=1,
                n_rows=np.array(n_rows, np.int32),
                budgets_us=np.full(len(n_rows), budget_us, np.int64),
                user_values=np.empty((len(n_rows), 0), np.float32),
                candidate_values=rows[:, 2:],
            ),
            self.now,
        )
        self.engine.add(
            RowsPart(
                gateway="gateway",
                seq=seq,
                version="v",
                part=0,
                user=user,
                candidate=rows[:, :2],
                degraded=self.degraded,
            ),
            self.now,
        )
        scores: NDArray[np.float32] = np.repeat(user, n_rows, axis=0)
        scores += rows.sum(axis=1, keepdims=True)
        return scores

    def run(self) -> list[Window[Work]]:
        """Run windows, one after the other, until there are no more; return them."""
        ran = []
        while windows := list(self.engine.windows(self.now)):
            for window in windows:
                scores = self.dense.run(window.lane, len(window.slices), window.n_rows)
                self.engine.done(window, scores, self.now, self.now + 1e-3)
                ran.append(window)
        return ran

    def answers(self) -> dict[tuple[int, int], tuple[str, NDArray[np.float32]]]:
        """Return code and scores for each (seq, position) that was answered; each only once."""
        answers: dict[tuple[int, int], tuple[str, NDArray[np.float32]]] = {}
        for _, told in self.told:
            n_ok = int((told.codes == 0).sum())
            pieces = iter(_split(told, self.sizes, n_ok))
            for position, code in zip(told.requests.tolist(), told.codes.tolist(), strict=True):
                assert (told.seq, position) not in answers
                scores = next(pieces) if code == 0 else np.empty((0, 1), np.float32)
                answers[told.seq, position] = (ERROR_CODES[code], scores)
        return answers

    sizes: dict[tuple[int, int], int]


def _split(
    told: ScoresBatch, sizes: dict[tuple[int, int], int], n_ok: int
) -> list[NDArray[np.float32]]:
    ok = [p for p, c in zip(told.requests.tolist(), told.codes.tolist(), strict=True) if c == 0]
    lengths = [sizes[told.seq, position] for position in ok]
    assert len(ok) == n_ok
    assert sum(lengths) == len(told.scores)
    return np.split(told.scores, np.cumsum(lengths)[:-1]) if ok else []


@given(
    batches=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=5),
    max_rows=st.integers(1, 16),
    n_lanes=st.integers(1, 3),
)
def test_every_row_gets_its_own_score_however_windows_cut_requests(
    batches: list[list[int]], max_rows: int, n_lanes: int
) -> None:
    bench = Bench(max_rows, n_lanes=n_lanes)
    bench.sizes = {(s, p): n for s, rows in enumerate(batches) for p, n in enumerate(rows)}
    want = {seq: bench.send(seq, rows) for seq, rows in enumerate(batches)}
    bench.run()
    answers = bench.answers()
    assert set(answers) == set(bench.sizes)
    for seq, rows in enumerate(batches):
        pieces = np.split(want[seq], np.cumsum(rows)[:-1])
        for position, piece in enumerate(pieces):
            code, scores = answers[seq, position]
            assert code == "ok"
            np.testing.assert_array_equal(scores, piece)
    assert bench.engine.idle


def test_small_requests_of_several_batches_share_a_launch() -> None:
    bench = Bench(max_rows=8)
    bench.send(1, [1, 2])
    bench.send(2, [3])
    [window] = bench.run()
    assert (len(window.slices), window.n_rows) == (3, 6)


def test_what_has_no_time_left_is_answered_without_a_launch() -> None:
    bench = Bench()
    bench.sizes = {}
    bench.send(1, [2], budget_us=1000)
    bench.now += 0.002
    assert bench.run() == []
    assert bench.answers()[1, 0][0] == "deadline"


def test_above_the_backlog_requests_are_answered_overloaded_at_once() -> None:
    bench = Bench(backlog_rows=4)
    bench.sizes = {}
    bench.send(1, [3, 1, 1])
    assert bench.answers()[1, 2][0] == "overloaded"
    assert {position for _, position in bench.answers()} == {2}


def test_a_batch_of_another_version_is_refused() -> None:
    bench = Bench()
    bench.sizes = {}
    bench.send(1, [1, 1], version="w")
    assert [code for code, _ in bench.answers().values()] == ["unavailable", "unavailable"]
    assert "version w" not in bench.told[0][1].message
    assert "not w" in bench.told[0][1].message


def test_a_failed_launch_answers_its_requests_and_the_next_one_runs() -> None:
    bench = Bench(max_rows=4)
    bench.sizes = {(2, 0): 2}
    bench.send(1, [6])
    [window] = bench.engine.windows(bench.now)
    bench.engine.failed(window, "the card is on fire")
    want = bench.send(2, [2])
    bench.run()
    answers = bench.answers()
    assert answers[1, 0][0] == "internal"
    assert bench.told[0][1].message == "the card is on fire"
    np.testing.assert_array_equal(answers[2, 0][1], want)


def test_when_the_card_is_lost_everything_held_is_answered_unavailable() -> None:
    bench = Bench(max_rows=4)
    bench.sizes = {}
    bench.send(1, [3, 3, 9])
    [window] = bench.engine.windows(bench.now)
    head = Batch(
        gateway="gateway",
        seq=2,
        model="m",
        version="v",
        n_parts=1,
        n_rows=np.array([1, 2], np.int32),
        budgets_us=np.full(2, 1_000_000, np.int64),
        user_values=np.empty((2, 0), np.float32),
        candidate_values=np.zeros((3, 1), np.float32),
    )
    bench.engine.begin(head, bench.now)  # its part has not come
    bench.engine.failed(window, "lost", "unavailable")
    bench.engine.abandon("lost")
    answers = bench.answers()
    assert set(answers) == {(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)}
    assert {code for code, _ in answers.values()} == {"unavailable"}
    assert bench.engine.idle
    n_told = len(bench.told)
    bench.engine.abandon("lost")
    assert len(bench.told) == n_told


def test_times_of_each_stage_are_reported() -> None:
    bench = Bench()
    bench.sizes = {(1, 0): 2}
    bench.send(1, [2])
    bench.now += 0.004
    bench.run()
    told = bench.told[0][1]
    assert told.join_us == 0
    assert told.queue_us == pytest.approx(4000, abs=1)
    assert told.compute_us == pytest.approx(1000, abs=1)


def test_of_a_part_that_failed_the_gateway_is_told_and_another_answer_serves() -> None:
    bench = Bench()
    bench.sizes = {(1, 0): 2}
    failed = RowsPart(
        gateway="gateway",
        seq=1,
        version="v",
        part=0,
        attempt=3,
        user=np.empty((0, 0), np.float32),
        candidate=np.empty((0, 0), np.float32),
        code="unavailable",
        message="shard-0: no such model",
    )
    bench.engine.add(failed, bench.now)
    [told] = bench.late
    assert (told.seq, told.parts.tolist(), told.attempts.tolist()) == (1, [0], [3])
    assert [ERROR_CODES[code] for code in told.codes] == ["unavailable"]
    assert told.message == "shard-0: no such model"
    want = bench.send(1, [2])
    bench.run()
    code, scores = bench.answers()[1, 0]
    assert code == "ok"
    np.testing.assert_array_equal(scores, want)


def test_scores_of_default_rows_are_marked() -> None:
    bench = Bench()
    bench.degraded = True
    bench.send(1, [2, 1])
    bench.degraded = False
    bench.send(2, [1])
    bench.run()
    assert [told.degraded.tolist() for _, told in bench.told] == [[1, 1], []]

"""Buckets of fewer steps in the GPU executor, over the real bindings and a fake driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from kernels.bundle.load import load_bundle
from kernels.bundle.representative import fp8_of
from kernels.compiler import Options, compile_graph
from kernels.device_tables import ALL, DeviceTables
from kernels.fp8 import Scales
from kernels.gpu import stock
from kernels.gpu.executor import GpuExecutor, Model
from kernels.gpu.model import model_of
from kernels.ir.node import Graph
from kernels.lengths.columns import Shortened, Stretch
from kernels.lengths.find import InputFacts
from kernels.lengths.side import input_facts, shorten_side, shorten_tables
from kernels.program import H100, Bucket, Pointer, Program, Role, Target
from tests import attending
from tests.kernels.gpu_help import FakeCuda, fake_cuda, score_program

__all__ = ["fake_cuda"]
ROWS, REQUESTS, STEPS = 64, 16, attending.STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attending.build(tmp_path_factory.mktemp("attending"))


@pytest.fixture
def model(folder: Path) -> Model:
    """The model, with programs that the fake card can run: ``candidate.sum() + user[0]``."""

    def compile_program(bucket: Bucket, target: Target) -> Program:
        at = made.blocks.at(bucket.length)
        return score_program(
            bucket, target, user_width=at.user_width, candidate_width=at.candidate_width
        )

    made = model_of(load_bundle(folder), max_rows=ROWS, max_requests=REQUESTS)
    return attrs.evolve(made, compile=compile_program)


def test_the_staging_is_that_of_the_bucket(fake_cuda: FakeCuda, model: Model) -> None:
    given = [Bucket(ROWS, REQUESTS, 8), Bucket(32, 4, 8), Bucket(ROWS, REQUESTS, 16)]
    executor = GpuExecutor(model, fake_cuda.builder, buckets=given)
    assert executor.sequences is model.blocks.sequences
    whole = executor.staging(0)
    assert (whole.length, whole.user.shape) == (STEPS, (REQUESTS, 8 + STEPS * 9))
    for shape, length in (
        (Bucket(10, 2, 0), 8),
        (Bucket(10, 2, 8), 8),
        (Bucket(10, 2, 9), 16),
        (Bucket(10, 2, 17), STEPS),
    ):
        staging = executor.staging(0, shape)
        assert (staging.length, staging.user.shape[1]) == (length, 8 + length * 9)
        bucket = executor.start(0, shape.requests, shape.rows)
        executor.finish(0)
        assert bucket.length == length
        assert bucket.rows == (32 if length == 8 else ROWS)
    # What was staged stays so until it is staged anew, whatever is run of it.
    executor.staging(0, Bucket(10, 2, 8))
    assert executor.start(0, 16, 64) == Bucket(ROWS, REQUESTS, 8)
    executor.finish(0)
    executor.staging(0)
    assert executor.start(0, 1, 1).length == STEPS
    executor.finish(0)
    assert [rows for rows, _ in executor.measure()] == [ROWS]
    executor.close()


def test_fewer_steps_are_fewer_bytes_to_copy(fake_cuda: FakeCuda, model: Model) -> None:
    executor = GpuExecutor(model, fake_cuda.builder, buckets=[Bucket(ROWS, REQUESTS, 8)])
    copied = []
    for length in (STEPS, 8):
        executor.staging(0, Bucket(10, 3, length))
        before, allocated = fake_cuda.copied_bytes, fake_cuda.allocations
        executor.run(0, 3, 10)
        copied.append(fake_cuda.copied_bytes - before)
        assert fake_cuda.allocations == allocated
    heads = 256 + 4 * ROWS + 10 * 8 * 4
    assert copied == [heads + 3 * 4 * 224, heads + 3 * 4 * 80]
    executor.close()


def test_gaps_of_rows_are_zeros_whatever_lay_there(fake_cuda: FakeCuda, model: Model) -> None:
    """Kernels read rows up to a multiple of 8 columns."""
    addresses = []

    def noted(bucket: Bucket, target: Target) -> Program:
        program = model.compile(bucket, target)
        arguments = (Pointer(Role.USER), *program.launches[0].arguments[1:])
        addresses.append(arguments)
        return attrs.evolve(
            program, launches=(attrs.evolve(program.launches[0], arguments=arguments),)
        )

    odd = 7  # 71 columns of 72
    given = [Bucket(ROWS, REQUESTS, odd)]
    executor = GpuExecutor(attrs.evolve(model, compile=noted), fake_cuda.builder, buckets=given)
    executor.staging(0).user[:] = np.nan
    executor.run(0, 3, 10)
    staging = executor.staging(0, Bucket(10, 3, odd))
    assert staging.user.shape[1] == 8 + odd * 9 == 71
    executor.run(0, 3, 10)
    base = staging.user
    padded = np.lib.stride_tricks.as_strided(base, (REQUESTS, 72), base.strides)
    assert (padded[:3, 71] == 0).all()
    assert np.isnan(padded[3:, 71]).any()
    executor.close()


def test_lengths_adapt_to_the_traffic(
    fake_cuda: FakeCuda, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "_LOOK_AFTER", 10)
    executor = GpuExecutor(model, fake_cuda.builder)
    assert executor.statistics().buckets == (Bucket(ROWS, REQUESTS, STEPS),)
    for length in (3, 5) * 5:
        executor.staging(0, Bucket(10, 2, length))
        executor.run(0, 2, 10)
    executor.settle()
    assert executor.staging(0, Bucket(10, 2, 5)).length == 8
    assert executor.start(0, 2, 10) == Bucket(16, REQUESTS, 8)
    executor.finish(0)
    statistics = executor.statistics()
    assert statistics.padding_steps == pytest.approx(1 - 45 / (10 * STEPS + 8))
    executor.close()


def test_who_stages_is_told_of_each_length_before_it_is_used(
    fake_cuda: FakeCuda, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "_LOOK_AFTER", 10)
    executor = GpuExecutor(model, fake_cuda.builder)
    told: list[int] = []
    executor.prepare(told.append)
    assert told == [STEPS]
    for _ in range(10):
        executor.staging(0, Bucket(10, 2, 5))
        executor.run(0, 2, 10)
        assert executor.staging(0, Bucket(10, 2, 5)).length in told
    executor.settle()
    assert executor.staging(0, Bucket(10, 2, 5)).length == 8
    assert 8 in told
    executor.close()


def test_nonsense_lengths_are_refused(fake_cuda: FakeCuda, model: Model) -> None:
    with pytest.raises(ValueError, match=r"sequences of up to 24 steps, got 8 rows .* 25 steps"):
        GpuExecutor(model, fake_cuda.builder, buckets=[Bucket(8, 8, 25)])
    plain = attrs.evolve(model.blocks, sequences=None, shorter=None)
    with pytest.raises(ValueError, match=r"sequences of up to 0 steps, got 8 rows .* 4 steps"):
        GpuExecutor(attrs.evolve(model, blocks=plain), fake_cuda.builder, buckets=[Bucket(8, 8, 4)])


def test_what_steps_cost_is_told_from_what_does_not_depend_on_them(model: Model) -> None:
    cost, blocks = model.cost, model.blocks
    assert cost.request_step > 0
    assert cost.row_step > 0
    whole = Bucket(1, 0, STEPS)
    flops_and_bytes = cost.of(whole)
    assert flops_and_bytes == pytest.approx(cost.row + STEPS * cost.row_step)
    assert blocks.at(STEPS) is blocks
    assert blocks.at(0) is blocks


def test_lookups_of_a_side_are_cut_where_their_steps_end(folder: Path) -> None:
    manifest = load_bundle(folder).manifest
    (users, history) = manifest.user.lookups
    assert (users.n_ids, history.n_ids, history.offset) == (1, STEPS, 8)
    rows, mask = Stretch("user", 8, STEPS, 8), Stretch("user", 200, STEPS, 1)
    sequences = Shortened(stretches=(rows, mask), marks=())
    short = shorten_side(manifest.user, "user", sequences, 5)
    assert short.width == 8 + 5 * 9
    assert [lookup.n_ids for lookup in short.lookups] == [1, 5]
    assert short.values == manifest.user.values[:5]
    assert shorten_side(manifest.candidate, "candidate", sequences, 5) == manifest.candidate
    tables = DeviceTables.of(manifest, ALL)
    cut = shorten_tables(tables, manifest, sequences, 5)
    assert (cut.tables, cut.size_bytes) == (tables.tables, tables.size_bytes)
    assert (cut.user.n_ids, tables.user.n_ids) == (6, 1 + STEPS)
    halves = Shortened(stretches=(Stretch("user", 8, 2 * STEPS, 4),), marks=())
    with pytest.raises(ValueError, match="are no rows of"):
        shorten_side(manifest.user, "user", halves, 5)


def test_lists_that_are_padded_on_the_left_are_known_from_the_spec(
    folder: Path, tmp_path: Path
) -> None:
    right = load_bundle(folder)
    left = load_bundle(attending.build(tmp_path, pad_side="left"))
    first_values = {"user": 200, "candidate": 8}
    assert input_facts(right.manifest, right.spec_text) == InputFacts(
        first_values=first_values, padded_left=frozenset()
    )
    assert input_facts(left.manifest, left.spec_text).padded_left == {("user", 8)}
    sequences = model_of(left, max_rows=8, max_requests=8).blocks.sequences
    assert sequences is not None
    assert sequences.kept("user", 224, 5) == [(0, 8), (8 + 19 * 8, 200), (219, 224)]
    short = shorten_side(left.manifest.user, "user", sequences, 5)
    first = left.manifest.user.lookups[1].first_id
    assert [(lookup.first_id, lookup.n_ids) for lookup in short.lookups[1:]] == [(first + 19, 5)]
    assert short.values == left.manifest.user.values[19:]


def test_a_lookup_of_two_sequences_becomes_two(folder: Path) -> None:
    manifest = load_bundle(folder).manifest
    half = STEPS // 2
    two = tuple(Stretch("user", 8 + n * half * 8, half, 8) for n in range(2))
    short = shorten_side(manifest.user, "user", Shortened(stretches=two, marks=()), 3)
    first = manifest.user.lookups[1].first_id
    found = [(lookup.first_id - first, lookup.n_ids, lookup.offset) for lookup in short.lookups[1:]]
    assert found == [(0, 3, 8), (half, 3, 32)]
    assert short.width == 8 + 2 * 3 * 8 + STEPS


def test_inputs_to_find_scales_from_are_cut_where_steps_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Options] = []

    def compile_program(graph: Graph, bucket: Bucket, target: Target, *rest: Any) -> Program:  # noqa: ANN401
        given.append(rest[0])
        return compile_graph(graph, bucket, target, *rest)

    monkeypatch.setattr("kernels.gpu.model.compile_graph", compile_program)
    bundle = load_bundle(folder)
    options = Options(fp8=fp8_of(bundle, Scales.ROW))
    made = model_of(bundle, max_rows=ROWS, max_requests=REQUESTS, options=options)
    for length in (0, 8, STEPS):
        made.compile(Bucket(ROWS, REQUESTS, length), H100)
        fp8, blocks = given[-1].fp8, made.blocks.at(length)
        assert fp8 is not None
        assert fp8.inputs["user"].shape == (16, blocks.user_width)
        assert fp8.inputs["candidate"].shape == (128, blocks.candidate_width)

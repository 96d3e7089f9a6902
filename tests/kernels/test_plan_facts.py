"""Facts of launches, on the six models of the benchmark: they add up to the program's."""

from __future__ import annotations

import functools

import pytest

from kernels.bench.graphs import graph_of
from kernels.bench.models import MODELS
from kernels.compiler import Options, compile_graph
from kernels.program import A100, H100, Bucket, Pointer, Precision, Program, Role, Target

INPUTS = {Role.USER, Role.CANDIDATE}


@functools.cache
def program(name: str, target: Target) -> Program:
    model = MODELS[name]
    graph = graph_of(model, model.draw_parameters(1))
    return compile_graph(graph, Bucket(500), target, Options(precision=Precision.FP16))


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("target", [A100, H100])
def test_launches_add_up_to_the_program(name: str, target: Target) -> None:
    made = program(name, target)
    assert len(made.facts) == len(made.launches)
    assert sum(each.flops for each in made.facts) == made.flops
    assert sum(each.weights_bytes for each in made.facts) == made.weights.nbytes
    assert all(each.items for each in made.facts)
    assert all(each.rows_run >= each.rows == 500 for each in made.facts)


def test_what_is_read_was_written_before(name: str) -> None:
    written = set[Pointer]()
    made = program(name, H100)
    for facts in made.facts:
        for each in facts.reads:
            assert each.pointer.role in INPUTS or each.pointer in written
            assert 0 < each.used <= each.columns
        written.update(each.pointer for each in facts.writes)
    assert [each.pointer.role for each in made.facts[-1].writes] == [Role.SCORES]


def test_what_is_held_at_once_lies_apart_and_within(name: str) -> None:
    made = program(name, H100)
    for launch, facts in zip(made.launches, made.facts, strict=True):
        for i, one in enumerate(facts.held):
            assert one.offset + one.size_bytes <= launch.shared_bytes
            for two in facts.held[:i]:
                at_once = one.first <= two.last and two.first <= one.last
                apart = (
                    one.offset + one.size_bytes <= two.offset
                    or two.offset + two.size_bytes <= one.offset
                )
                assert apart or not at_once, (one, two)


def test_columns_that_a_launch_does_not_read_do_not_count() -> None:
    attention, top = program("DIN", H100).facts
    (inputs,) = (each for each in attention.reads if each.pointer.role is Role.CANDIDATE)
    assert inputs.used == 64 + 100 * 64 + 100
    (others,) = (each for each in top.reads if each.pointer.role is Role.CANDIDATE)
    assert (others.used, others.columns) == (64 + 256, 6820)
    assert others.size_bytes == 500 * 320 * 4

"""Shorter sequences: what is proven of a graph holds of ragged batches, by the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.bench.graphs import graph_of as peer_graph
from kernels.bench.models import MODELS
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import load_bundle
from kernels.compiler import Options, compile_graph
from kernels.ir.build import concat, reshape, slice_
from kernels.ir.check import check
from kernels.ir.node import Graph, Lead, Node, Op, Steps, input_node
from kernels.ir.onnx_import import import_dense
from kernels.ir.reference import evaluate
from kernels.lengths.bind import bind, has_steps
from kernels.lengths.columns import Mark, Shortened, Stretch
from kernels.lengths.find import Found, InputFacts, find_sequences
from kernels.passes import optimise
from kernels.program import A100, H100, Bucket, Precision, Target
from tests import zoo
from tests.kernels import shim
from tests.kernels.emitted_help import TOLERANCE, Sample, error_of
from tests.kernels.ir_graphs import random_graph
from tests.kernels.lengths_help import (
    QUERY,
    SHORT,
    STEPS,
    WHOLE,
    D,
    Parts,
    cut,
    dense,
    graph_of,
    length_of,
    masked_mean,
    maximum,
    ragged,
    softmax_of_where,
    transformer,
    weights_as_they_are,
)
from tests.kernels.shim_program import run_program

needs_shim = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))


def found_in(graph: Graph, *, left: bool = False) -> tuple[Found, Shortened]:
    """Find a graph's sequences; ``left``: the first is padded on the left."""
    places = {(name, 0) for name in graph.inputs}
    found = find_sequences(graph, InputFacts(padded_left=places if left else ()))
    assert found.shortened is not None, found.whole
    check(found.graph)
    return found, found.shortened


def assert_equal(graph: Graph, sample: Sample, found: Found, length: int) -> None:
    """Check that a batch scores alike at a length and whole."""
    assert found.shortened is not None
    bound = bind(found.graph, length)
    check(bound)
    assert not has_steps(bound)
    whole = evaluate(graph, sample.inputs, sample.request_of_row)
    short = cut(sample, found.shortened, length)
    got = evaluate(bound, short.inputs, short.request_of_row)
    # Constants are folded to float32 on the way.
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(
    ("user", "padding"), [(False, False), (True, False), (False, True)], ids=["row", "user", "pad"]
)
def test_a_masked_sequence_may_be_shorter(name: str, user: bool, padding: bool) -> None:
    graph = graph_of(SHORT[name], user=user, padding=padding)
    found, shortened = found_in(graph)
    side = "user" if user else "candidate"
    keys, mask = Stretch(side, 0, STEPS, D), Stretch(side, STEPS * D, STEPS, 1)
    assert shortened.stretches == (keys, mask)
    assert shortened.marks == (Mark(mask, float(padding)),)
    softmax = name in ("softmax_of_where", "softmax_of_sum", "with_positions", "transformer")
    assert shortened.needs_step == ({STEPS} if softmax or name == "maximum" else set())
    for seed, lengths in enumerate(([0] * 5, [3, 1, 2, 3, 0], [7] * 5, [0, STEPS, 1, 2, 3])):
        sizes = {"candidate": lengths} if not user else {"candidate": [0] * 9, "user": lengths}
        sample = ragged(graph, shortened, sizes, seed)
        least = length_of(sample, shortened)
        assert least == (STEPS if shortened.needs_step and 0 in lengths else max(1, *lengths))
        for length in {least, min(least + 1, STEPS), STEPS}:
            assert_equal(graph, sample, found, length)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("user", [False, True], ids=["row", "user"])
def test_what_is_padded_on_the_left_keeps_its_last_steps(name: str, user: bool) -> None:
    graph = graph_of(SHORT[name], user=user)
    found, shortened = found_in(graph, left=True)
    assert all(each.last for each in shortened.stretches)
    lengths = [3, 1, 5, 2]
    sizes = {"candidate": [0] * 9, "user": lengths} if user else {"candidate": lengths}
    sample = ragged(graph, shortened, sizes, 4)
    assert length_of(sample, shortened) == 5
    for length in (5, 6, STEPS):
        assert_equal(graph, sample, found, length)
    # The others keep their first steps, and find these full.
    _, other = found_in(graph)
    assert length_of(sample, other) == STEPS


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("user", [False, True], ids=["row", "user"])
def test_an_empty_sequence_may_be_short_where_its_padding_is_alike(name: str, user: bool) -> None:
    graph = graph_of(SHORT[name], user=user)
    found, shortened = found_in(graph)
    # Positions differ, whatever the padding.
    can_be = name != "with_positions"
    assert shortened.alike == (shortened.needs_step if can_be else set())
    lengths = [0, 2, 0, 3]
    sizes = {"candidate": [0] * 9, "user": lengths} if user else {"candidate": lengths}
    sample = ragged(graph, shortened, sizes, 4, alike=True)
    assert length_of(sample, shortened) == (3 if can_be else STEPS)
    for length in {length_of(sample, shortened), 7, STEPS}:
        if can_be:
            assert_equal(graph, sample, found, length)
    side = "user" if user else "candidate"
    sample.inputs[side][2, 3 * D] += 1  # one step that is not
    assert length_of(sample, shortened) == (STEPS if shortened.needs_step else 3)


@given(
    name=st.sampled_from(sorted(SHORT)),
    other=st.sampled_from(sorted(SHORT)),
    user=st.booleans(),
    padding=st.booleans(),
    steps=st.sampled_from([(STEPS,), (12, 12), (6, 15)]),
    lengths=st.lists(st.integers(0, STEPS), min_size=1, max_size=6),
    extra=st.integers(0, STEPS),
    alike=st.booleans(),
    left=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ragged_batches_score_as_whole_ones(
    name: str,
    other: str,
    user: bool,
    padding: bool,
    steps: tuple[int, ...],
    lengths: list[int],
    extra: int,
    alike: bool,
    left: bool,
    seed: int,
) -> None:
    graph = graph_of(SHORT[name], SHORT[other], user=user, padding=padding, steps=steps)
    found, shortened = found_in(graph, left=left)
    assert {each.last for each in shortened.stretches} <= {False, left}
    assert shortened.most == max(steps)
    sizes = {"candidate": [0] * 7, "user": lengths} if user else {"candidate": lengths}
    sample = ragged(graph, shortened, sizes, seed, alike=alike)
    least = length_of(sample, shortened)
    assert_equal(graph, sample, found, min(least + extra, shortened.most))


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_every_step_stays_whole_and_says_why(name: str) -> None:
    graph = graph_of(WHOLE[name])
    found = find_sequences(graph)
    assert found.shortened is None
    assert found.graph is graph
    keys = Stretch("candidate", 0, STEPS, D)
    if name == "last_step":  # its columns are read beside the others: no steps at all
        assert keys not in found.whole
        return
    why = {
        "unmasked": "softmax .* goes over all steps, masked or not",
        "maximum_of_zeros": "reduce_max .* goes over all steps",
        "flattened_unmasked": "linear .* has weights for each step",
        "weak_mask": "softmax .* goes over all steps",
        "causal": "softmax .* goes over all steps",
    }[name]
    with pytest.raises(ValueError, match=why):
        raise ValueError(found.whole[keys])


def test_one_sequence_may_be_shorter_beside_one_that_may_not() -> None:
    graph = graph_of(WHOLE["unmasked"], masked_mean, steps=(12, 20))
    found, shortened = found_in(graph)
    assert [each.most for each in shortened.stretches] == [20, 20]
    assert [each.most for each in found.whole] == [12]
    assert [mark.stretch.most for mark in shortened.marks] == [20]
    sample = ragged(graph, shortened, {"candidate": [4, 0, 2]}, 3)
    # The other sequence's mask is drawn like any number.
    assert_equal(graph, sample, found, 4)


def test_sequences_of_two_lengths_share_a_buckets() -> None:
    graph = graph_of(masked_mean, weights_as_they_are, steps=(6, 15))
    found, shortened = found_in(graph)
    assert shortened.most == 15
    at_ten = bind(found.graph, 10)
    assert at_ten.inputs["candidate"].width == 6 * D + 10 * D + 6 + 10 + QUERY
    assert shortened.width("candidate", graph.inputs["candidate"].width, 10) == 160
    assert bind(found.graph, 99).inputs["candidate"].width == graph.inputs["candidate"].width


def test_as_few_masks_are_marks_as_there_are_needed() -> None:
    """A column of numbers a step is a sequence, too; it does not keep batches long."""
    block = input_node("candidate", Lead.ROWS, STEPS * D + 2 * STEPS + QUERY)
    at = STEPS * D
    parts = Parts(
        reshape(slice_(block, 1, 0, at), STEPS, D),
        slice_(block, 1, at, at + STEPS),
        slice_(block, 1, at + 2 * STEPS, at + 2 * STEPS + QUERY),
    )
    prices = reshape(slice_(block, 1, at + STEPS, at + 2 * STEPS), STEPS, 1)
    both = concat(parts.keys, prices, axis=2)
    keys = dense(both, D)
    pooled = masked_mean(attrs.evolve(parts, keys=keys))
    graph = Graph("prices", {"candidate": block}, dense(concat(pooled, parts.query), 1))
    found, shortened = found_in(graph)
    assert len(shortened.stretches) == 3
    assert [mark.stretch.start for mark in shortened.marks] == [at]
    sample = ragged(graph, shortened, {"candidate": [2, 5, 0]}, 1)
    assert length_of(sample, shortened) == 5
    assert_equal(graph, sample, found, 5)


def test_what_is_looked_up_is_no_mask() -> None:
    """A weight of one column a step, of an embedding table, is 0 by chance at best."""
    graph = graph_of(masked_mean)
    only_numbers = {"candidate": STEPS * D}
    assert find_sequences(graph, InputFacts(first_values=only_numbers)).shortened is not None
    looked_up = {"candidate": STEPS * D + STEPS}
    found = find_sequences(graph, InputFacts(first_values=looked_up))
    assert found.shortened is None
    assert set(found.whole.values()) == {"no input looks like its mask"}
    _, shortened = found_in(graph)
    with pytest.raises(ValueError, match="candidate: a mask lies in column 160, before 180"):
        shortened.lengths("candidate", np.zeros((2, QUERY)), first=STEPS * D + STEPS)


def test_a_mask_with_holes_reaches_to_its_last_step() -> None:
    graph = graph_of(softmax_of_where)
    found, shortened = found_in(graph)
    sample = ragged(graph, shortened, {"candidate": [9, 4]}, 1)
    mask = sample.inputs["candidate"][:, STEPS * D : STEPS * D + STEPS]
    mask[0, 3:8] = 0
    assert length_of(sample, shortened) == 9
    assert_equal(graph, sample, found, 9)
    mask[1] *= 0.5  # true to some tests of a mask, and false to others
    assert length_of(sample, shortened) == STEPS


def test_the_dimension_of_steps_is_symbolic() -> None:
    found, _ = found_in(graph_of(transformer, steps=(STEPS,)))
    shapes = [node.shape for node in found.graph.nodes() if node.op is Op.SOFTMAX]
    assert [str(dim) for dim in shapes[0]] == ["rows", "2", f"steps<={STEPS}", f"steps<={STEPS}"]
    dim = Steps(STEPS, D)
    assert (dim, dim.at(3), dim.at(99), str(dim)) == (160, 24, 160, "steps<=20x8")
    with pytest.raises(ValueError, match="sequences: want at least 1 step, got 0"):
        bind(found.graph, 0)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_found_in_random_graphs_holds(seed: int) -> None:
    graph, make_inputs = random_graph(seed, blocks=("target_attention", "pool", "tower", "chain"))
    found = find_sequences(graph)
    if found.shortened is None:
        return
    check(found.graph)
    for rows in (1, 9):
        drawn = make_inputs(rows, 3, seed)
        sample = Sample(drawn.inputs, drawn.request_of_row)
        for mark in found.shortened.marks:
            part = mark.stretch
            mask = sample.inputs[part.input][:, part.start : part.stop]
            mask[:, part.most // 2 :] = mark.dead
        assert_equal(graph, sample, found, length_of(sample, found.shortened))


def test_random_graphs_have_sequences_that_may_be_shorter() -> None:
    graphs = (random_graph(seed, blocks=("target_attention", "pool"))[0] for seed in range(60))
    assert sum(find_sequences(graph).shortened is not None for graph in graphs) >= 5


@pytest.mark.parametrize(("name", "shorter"), [("DIN", True), ("BST", False), ("DeepFM", False)])
def test_the_benchmarks_models(name: str, shorter: bool) -> None:
    model = MODELS[name]
    graph = peer_graph(model, model.draw_parameters(1))
    found = find_sequences(graph)
    assert (found.shortened is not None) is shorter
    if found.shortened is None:
        assert set(found.whole.values()) == {"no input looks like its mask"}
        return
    assert [each.each for each in found.shortened.stretches] == [64, 1]
    sample = ragged(graph, found.shortened, {"candidate": [5, 30, 1]}, 1)
    assert_equal(graph, sample, found, 30)
    # What is fused whole is fused shorter.
    ops = [node.op for node in optimise(bind(found.graph, 30)).nodes()]
    assert Op.TARGET_ATTENTION in ops


@pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")
@pytest.mark.parametrize("name", ["DIN.dynamo", "DIN_nonorm.dynamo", "DIN_dice.legacy"])
def test_models_of_the_zoo(name: str, tmp_path: Path) -> None:
    (model,) = zoo.models(zoo.ZOO, f"^deepctr_{name}$")
    build_bundle(model.file, None, tmp_path / "bundle", BuildOptions(infer=True, check=False))
    bundle = load_bundle(tmp_path / "bundle")
    graph = import_dense(bundle.dense_model(), bundle.manifest.model)
    found, shortened = found_in(graph)
    assert [(each.most, each.each) for each in shortened.stretches] == [(30, 8), (30, 8), (30, 1)]
    for lengths in ([4, 1, 9], [0, 30, 2], [0, 0, 3]):
        sample = ragged(graph, shortened, {"candidate": lengths}, 5, alike=True)
        assert length_of(sample, shortened) == max(lengths)
        assert_equal(graph, sample, found, max(lengths))


def _masks(n: int, *lengths: int) -> np.ndarray:
    return (np.arange(n) < np.array(lengths)[:, None]).astype(np.float32)


def test_lengths_are_read_from_the_value_columns_alone() -> None:
    clicks, buys = Stretch("user", 80, 10, 1), Stretch("user", 90, 5, 1)
    both = Shortened(
        stretches=(Stretch("user", 0, 10, 8), clicks, buys),
        marks=(Mark(clicks, 0.0), Mark(buys, 1.0)),
    )
    values = np.concatenate([_masks(10, 3, 0, 10, 0), 1 - _masks(5, 1, 5, 0, 0)], 1)
    found = both.lengths("user", values, first=80)
    assert found is not None
    assert found.tolist() == [3, 5, 10, 0]
    assert both.lengths("candidate", values) is None
    strict = attrs.evolve(both, needs_step=frozenset({5}))
    found = strict.lengths("user", values, first=80)
    assert found is not None
    assert found.tolist() == [3, 5, 10, 10]
    odd = values.copy()
    odd[0, 7] = np.nan
    found = both.lengths("user", odd, first=80)
    assert found is not None
    assert found.tolist() == [8, 5, 10, 0]
    assert both.kept("user", 100, 4) == [(0, 32), (80, 84), (90, 94), (95, 100)]


@needs_shim
@pytest.mark.parametrize(
    ("length", "precision", "target"),
    [(1, Precision.FP16, H100), (8, Precision.FP16, A100), (5, Precision.FP32, H100)],
    ids=["1", "8", "5-fp32"],
)
@pytest.mark.parametrize(
    "block", [softmax_of_where, transformer, maximum, weights_as_they_are], ids=lambda b: b.__name__
)
def test_programs_of_a_length_agree_with_the_whole_in_float64(
    block: Callable[[Parts], Node], length: int, precision: Precision, target: Target
) -> None:
    user = length % 2 == 0
    graph = graph_of(block, user=user)
    found, shortened = found_in(graph)
    lengths = [max(length - k, 1) for k in range(5)]
    sizes = {"candidate": [0] * 11, "user": lengths} if user else {"candidate": lengths}
    sample = ragged(graph, shortened, sizes, length)
    program = compile_graph(found.graph, Bucket(16, 6, length), target, Options(precision))
    got = run_program(program, cut(sample, shortened, length).batch)
    assert error_of(graph, sample, got) < 3 * TOLERANCE[precision]

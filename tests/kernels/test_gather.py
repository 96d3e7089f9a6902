"""Tables on the card: kernels gather and pool, on the CPU, what numpy says of the same ids."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.arenas import HotPlan
from kernels.bundle.manifest import Manifest
from kernels.compiler import Options, compile_graph
from kernels.device_tables import ALL, DeviceTables
from kernels.errors import GraphError
from kernels.ir.node import Graph
from kernels.nvrtc.compile import compile_source
from kernels.plan.shape import TileShape
from kernels.program import A100, H100, TARGETS, Bucket, Precision, Program, Target
from tests.kernels import shim
from tests.kernels.gather_help import DIMS, TOLERANCE, dense, gathered, manifest
from tests.kernels.shim_program import run_program

runs_here = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))


def run(
    made: Manifest,
    graph: Graph,
    placed: DeviceTables,
    options: Options,
    *,
    target: Target = A100,
    damage: bool = False,
    seed: int = 0,
    races: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float64], Program]:
    """Return a batch's scores, what they are to be, and the program."""
    case = gathered(made, graph, placed, options, target=target, damage=damage)
    found = run_program(case.program, case.batch, tables=case.tables, seed=seed, races=races)
    return found, case.expected, case.program


def agree(found: NDArray[np.float32], expected: NDArray[np.float64], tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance * 2, rtol=tolerance * 4)


@runs_here
@pytest.mark.parametrize("target", [A100, H100])
def test_staged_rows_may_be_halves(target: Target) -> None:
    made = manifest()
    options = Options(input_dtype="float16")
    placed = DeviceTables.of(made, ALL)
    found, expected, program = run(
        made, dense(made, "tensor cores"), placed, options, target=target
    )
    agree(found, expected, TOLERANCE[Precision.FP16])
    # The user's launch, then the candidates': both gather, none is added.
    assert [launch.dependent for launch in program.launches] == [False, target is H100]


@runs_here
@pytest.mark.parametrize("input_dtype", ["float32", "float16"])
def test_what_reads_a_block_without_a_tile_finds_it_gathered(input_dtype: str) -> None:
    made = manifest()
    options = Options(input_dtype=input_dtype)
    placed = DeviceTables.of(made, ALL)
    found, expected, program = run(made, dense(made, "wide"), placed, options)
    agree(found, expected, TOLERANCE[Precision.FP16])
    assert [facts.kind for facts in program.facts if facts.lead == "rows"] == [
        "tile",
        "wide",
        "tile",
    ]


@runs_here
@pytest.mark.parametrize("names", [["wide"], ["three", "one"], ["eight", "four"], []])
def test_other_lookups_columns_are_staged(names: list[str]) -> None:
    made = manifest()
    placed = DeviceTables.of(made, names)
    assert (
        placed.candidate.staged_width + sum(lookup.width for lookup in placed.candidate.lookups)
        == made.candidate.width
    )
    found, expected, _ = run(made, dense(made, "tensor cores"), placed, Options())
    agree(found, expected, TOLERANCE[Precision.FP16])


def hot_plan(*names: str, n_bytes: int = 2000) -> HotPlan:
    """A plan for several lanes, of which each table is too large for its slots."""
    return HotPlan(max_bytes=dict.fromkeys(names, n_bytes), max_rows=64, max_requests=9, n_lanes=3)


@runs_here
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize(
    ("whole", "hot"),
    [
        ([], ["wide", "four", "three", "one", "eight"]),
        (["wide", "three"], ["eight", "four"]),
        (["eight"], ["one"]),
    ],
)
def test_hot_rows_are_gathered_from_their_slots_and_from_spare_rows(
    whole: list[str], hot: list[str], precision: Precision
) -> None:
    made = manifest()
    placed = DeviceTables.of(made, whole, precision, hot_plan(*hot, n_bytes=1100))
    assert [table.name for table in placed.hot] == [name for name in DIMS if name in hot]
    options = Options(precision=precision)
    found, expected, _ = run(made, dense(made, "tensor cores"), placed, options)
    agree(found, expected, TOLERANCE[precision])
    found, _, _ = run(made, dense(made, "tensor cores"), placed, options, damage=True)
    assert np.isfinite(found).all()


def test_arenas_take_what_they_may_and_spare_rows_are_enough_for_any_batch() -> None:
    made = manifest(n_rows=1000)
    placed = DeviceTables.of(made, ["wide"], Precision.FP16, hot_plan("three", "eight", "one"))
    whole, *hot = placed.tables
    assert whole.capacity is None
    for table in hot:
        assert table.capacity is not None
        assert table.capacity * table.dim * 2 <= 2000 < (table.capacity + 16) * table.dim * 2
        assert table.offset % (table.dim * 2) == table.offset % 256 == 0
        # Ids reach the last spare row, and nothing behind it.
        assert 0 <= placed.size_bytes - table.offset - table.rows * table.dim * 2 < table.dim * 2
    ends = sorted((each.offset, each.offset + (each.capacity or 0) * each.dim * 2) for each in hot)
    assert whole.rows * whole.dim * 2 <= ends[0][0]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert ends[-1][1] <= placed.spare.offset
    assert placed.size_bytes == placed.spare.offset + 3 * placed.spare.size_bytes
    # Ids of a batch, each of a row of its own: 9 requests of 2, 64 rows of 1, of 7 and of 4.
    n_bytes = 2 * (9 * 2 * 3 + 64 * (1 + 7 * 8 + 4 * 3))
    assert n_bytes <= placed.spare.size_bytes < n_bytes + 9 * 2 * (3 + 8 + 1) + 256


def test_a_hot_table_without_room_is_refused() -> None:
    made = manifest()
    with pytest.raises(GraphError, match="cached: table 'wide', on the card: max_bytes: want at"):
        DeviceTables.of(made, [], Precision.FP32, hot_plan("wide", n_bytes=1000))
    with pytest.raises(GraphError, match="no table 'x'"):
        DeviceTables.of(made, [], Precision.FP32, hot_plan("x"))


@runs_here
@pytest.mark.parametrize("cluster", [2, 4])
def test_blocks_of_a_cluster_gather_for_themselves(cluster: int) -> None:
    made = manifest()
    options = Options(tile=TileShape(16, cluster))
    for seed in range(3):
        graph = dense(made, "tensor cores")
        placed = DeviceTables.of(made, ALL)
        found, expected, _ = run(
            made, graph, placed, options, target=H100, seed=seed, races=seed == 0
        )
        agree(found, expected, TOLERANCE[Precision.FP16])


@runs_here
def test_ids_outside_a_table_read_nothing_that_is_not_there() -> None:
    made = manifest()
    placed = DeviceTables.of(made, ALL)
    found, _, _ = run(made, dense(made, "tensor cores"), placed, Options(), damage=True)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("arch", list(TARGETS))
def test_it_compiles_for_every_card_without_spills(arch: str) -> None:
    made = manifest()
    for precision in Precision:
        placed = DeviceTables.of(made, ALL, precision)
        graph = dense(made, "tensor cores")
        options = Options(precision=precision)
        program = compile_graph(graph, Bucket(64, 8), TARGETS[arch], options, placed)
        for source in program.sources:
            assert not compile_source(source).problems


def test_a_table_that_is_not_there_is_named() -> None:
    made = manifest()
    with pytest.raises(GraphError, match="gathers: no table 'users'; there are eight, four, one"):
        DeviceTables.of(made, ["wide", "users"])
    with pytest.raises(GraphError, match="want 'all' or a list of tables, got 'wide'"):
        DeviceTables.of(made, "wide")
    empty = attrs.evolve(made, tables=(attrs.evolve(made.tables[0], rows=0),))
    with pytest.raises(GraphError, match="table 'wide' of 0 rows cannot lie on a card"):
        DeviceTables.of(empty, ALL)


@runs_here
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("kind", ["in place", "tensor cores"])
def test_bags_of_every_kind_are_gathered(precision: Precision, kind: str) -> None:
    made = manifest()
    placed = DeviceTables.of(made, ALL, precision)
    options = Options(precision=precision)
    found, expected, program = run(made, dense(made, kind), placed, options)
    agree(found, expected, TOLERANCE[precision])
    assert program.table_bytes == placed.size_bytes
    assert any("gather" in note for note in program.notes)

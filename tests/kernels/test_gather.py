"""Tables on the card: kernels gather and pool, on the CPU, what numpy says of the same ids."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.bundle.manifest import Manifest
from kernels.compiler import Options, compile_graph
from kernels.device_tables import ALL, DeviceTables
from kernels.errors import GraphError
from kernels.ir.node import Graph
from kernels.nvrtc.compile import compile_source
from kernels.plan.tile import TileShape
from kernels.program import A100, H100, TARGETS, Bucket, Precision, Program, Target
from tests.kernels import shim
from tests.kernels.gather_help import TOLERANCE, dense, gathered, manifest
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

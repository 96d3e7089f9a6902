"""Tables on the card: kernels gather and pool, on the CPU, what numpy says of the same ids."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup, Manifest, Pooling, SideLayout, SideName, Source, Table
from kernels.bundle.reference import block
from kernels.compiler import Options, compile_graph
from kernels.device_tables import ALL, DeviceTables, GatheredSide
from kernels.errors import GraphError
from kernels.features.blocks import SideMatrices
from kernels.ir.build import make
from kernels.ir.node import Graph, Lead, Linear, Node, Op, const
from kernels.ir.reference import evaluate
from kernels.nvrtc.compile import compile_source
from kernels.plan.tile import TileShape
from kernels.program import A100, H100, TARGETS, Bucket, Precision, Program, Target
from tests.kernels import shim
from tests.kernels.shim_program import Batch, run_program

runs_here = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
TOLERANCE = {Precision.FP16: 4e-3, Precision.BF16: 3e-2, Precision.FP32: 1e-5}
# Whole chunks of halves and of floats, of floats only, of neither.
DIMS = {"wide": 16, "four": 4, "three": 3, "one": 1, "eight": 8}
N_VALUES = {"user": 2, "candidate": 3}


def look(
    side: SideName,
    table: str,
    first_id: int,
    n_ids: int,
    pooling: Pooling = "none",
    first_weight: int | None = None,
) -> Lookup:
    """Return a lookup whose place in the block ``side_layout`` fills in."""
    width = DIMS[table] * (n_ids if pooling == "none" else 1)
    return Lookup(
        side=side,
        table=table,
        tensor=f"{table}_{first_id}",
        pooling=pooling,
        first_id=first_id,
        n_ids=n_ids,
        first_weight=first_weight,
        offset=0,
        width=width,
    )


def side_layout(side: SideName, lookups: tuple[Lookup, ...]) -> SideLayout:
    placed, at = [], 0
    for lookup in lookups:
        placed.append(attrs.evolve(lookup, offset=at))
        at += lookup.width
    n_ids = max((each.first_id + each.n_ids for each in lookups), default=0)
    weighted = [each for each in lookups if each.first_weight is not None]
    n_weights = max(((each.first_weight or 0) + each.n_ids for each in weighted), default=0)
    source = Source(feature="x")
    return SideLayout(
        ids=(source,) * n_ids,
        weights=(source,) * n_weights,
        values=(source,) * N_VALUES[side],
        lookups=tuple(placed),
        width=at + N_VALUES[side],
        program=None,
    )


def manifest(n_rows: int = 50) -> Manifest:
    user = (
        look("user", "wide", 0, 5, "mean"),
        look("user", "three", 5, 2),
        look("user", "four", 0, 5, "sum", first_weight=0),
    )
    candidate = (
        look("candidate", "one", 0, 1),
        look("candidate", "wide", 1, 1),
        look("candidate", "eight", 2, 7, "max", first_weight=1),
        look("candidate", "eight", 2, 7, "max"),
        look("candidate", "three", 9, 4, "mean", first_weight=8),
        look("candidate", "wide", 13, 2),
        look("candidate", "four", 2, 7, "sum"),
    )
    return Manifest(
        format=1,
        model="gathers",
        version="v",
        tables=tuple(
            Table(name=name, rows=n_rows + dim, dim=dim, dtype="float32", file=f"{name}.npy")
            for name, dim in DIMS.items()
        ),
        user=side_layout("user", user),
        candidate=side_layout("candidate", candidate),
        outputs=(),
        kept=(),
    )


def tables_of(made: Manifest) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    return {
        table.name: (rng.standard_normal((table.rows, table.dim)) * 0.5).astype(np.float32)
        for table in made.tables
    }


def matrices(side: SideLayout, made: Manifest, n: int, seed: int) -> SideMatrices:
    rng = np.random.default_rng([seed, n])
    most = {table.name: table.rows for table in made.tables}
    ids = np.zeros((len(side.ids), n), np.int64)
    for row in range(len(ids)):
        limits = [
            most[each.table]
            for each in side.lookups
            if each.first_id <= row < each.first_id + each.n_ids
        ]
        ids[row] = rng.integers(0, min(limits), n)
        ids[row, -1] = min(limits) - 1
    weights = rng.standard_normal((len(side.weights), n)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.4] = 0  # ragged bags: what is absent weighs nothing
    values = rng.standard_normal((n, len(side.values))).astype(np.float32)
    return SideMatrices(ids=ids, weights=weights, values=values)


def staged(
    side: GatheredSide, values: NDArray[np.float32], given: SideMatrices, dtype: str
) -> NDArray[np.generic]:
    """Lay staged rows out, as ``kernels.device_tables`` says."""
    item = np.dtype(dtype).itemsize
    rows = np.zeros((len(values), side.row_width(item)), dtype)
    for run in side.staged:
        rows[:, run.part : run.part + run.width] = values[:, run.block : run.block + run.width]
    if side.lookups:
        tail = np.zeros((len(values), side.n_ids + side.n_weights), np.int32)
        tail[:, : side.n_ids] = given.ids[side.layout.id_rows].T
        tail[:, side.n_ids :] = given.weights[side.layout.weight_rows].T.copy().view(np.int32)
        rows[:, side.ids_at :] = tail.view(dtype)
    return rows


def linear(x: Node, n: int, seed: int, activation: Op | None = None) -> Node:
    rng = np.random.default_rng(seed)
    k = x.dims[-1]
    weight = const((rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32), "w")
    bias = const((rng.standard_normal(n) * 0.1).astype(np.float32), "b")
    return make(Op.LINEAR, x, weight, bias, arg=Linear(activation=activation))


def dense(made: Manifest, kind: str) -> Graph:
    """Return a graph that reads the blocks whole, in place, through requests, by a wide Linear."""
    user = Node(Op.INPUT, (), (Lead.REQUESTS, made.user.width), arg="user", name="user")
    shape = (Lead.ROWS, made.candidate.width)
    candidate = Node(Op.INPUT, (), shape, arg="candidate", name="candidate")
    if kind == "in place":  # all columns of both, with weights that tell them apart
        one = linear(make(Op.TO_ROWS, user), 1, 0)
        output = make(Op.ADD, one, linear(candidate, 1, 1))
    elif kind == "wide":  # a launch of its own reads the candidate block
        x = linear(linear(candidate, 8200, 2, Op.RELU), 2, 3)
        output = make(Op.ADD, x, make(Op.TO_ROWS, linear(user, 2, 4)))
    else:
        x, own = linear(candidate, 24, 2, Op.RELU), linear(user, 24, 3, Op.RELU)
        output = linear(make(Op.MUL, x, make(Op.TO_ROWS, own)), 2, 4)
    return Graph("gathers", {"user": user, "candidate": candidate}, output)


def run(
    made: Manifest,
    graph: Graph,
    placed: DeviceTables,
    options: Options,
    *,
    n_rows: int = 21,
    n_requests: int = 5,
    target: Target = A100,
    damage: bool = False,
    seed: int = 0,
    races: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float64], Program]:
    """Return a batch's scores, what they are to be, and the program."""
    tables = tables_of(made)
    of_row = np.sort(np.arange(n_rows) % n_requests).astype(np.int32)
    blocks: dict[str, NDArray[np.float32]] = {}
    rows: dict[str, NDArray[np.generic]] = {}
    for name, n in (("user", n_requests), ("candidate", n_rows)):
        side = made.user if name == "user" else made.candidate
        given = matrices(side, made, n, len(name))
        gathered = placed.user if name == "user" else placed.candidate
        blocks[name] = block(side, given, tables)
        if damage:
            given.ids[:, ::2] = 2_000_000_000
            given.ids[:, 1] = -1
        rows[name] = staged(gathered, blocks[name], given, options.input_dtype)
    memory = np.zeros(placed.size_bytes, np.uint8)
    for at, piece in placed.pieces(tables.__getitem__):
        memory[at : at + piece.nbytes] = piece.reshape(-1).view(np.uint8)
    program = compile_graph(graph, Bucket(n_rows + 5, n_requests + 1), target, options, placed)
    batch = Batch(rows["candidate"], rows["user"], of_row)  # type: ignore[arg-type]
    found = run_program(program, batch, tables=memory, seed=seed, races=races)
    inputs = {name: blocks[name] for name in graph.inputs}
    expected: NDArray[np.float64] = evaluate(graph, inputs, of_row, np.float64)
    return found, expected, program


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

"""A manifest with lookups of every kind, graphs that read their blocks, and batches of ids."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup, Manifest, Pooling, SideLayout, SideName, Source, Table
from kernels.bundle.reference import block
from kernels.compiler import Options, compile_graph
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.features.blocks import SideMatrices
from kernels.ir.build import make
from kernels.ir.node import Graph, Lead, Linear, Node, Op, const
from kernels.ir.reference import evaluate
from kernels.program import Bucket, Precision, Program, Target
from kernels.shards import shard_layout
from tests.kernels.shim_program import Batch

TOLERANCE = {Precision.FP16: 4e-3, Precision.BF16: 3e-2, Precision.TF32: 4e-3, Precision.FP32: 1e-5}
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
    side: GatheredSide,
    values: NDArray[np.float32],
    given: SideMatrices,
    dtype: str,
    whole: SideLayout,
    slots: dict[str, NDArray[np.int64]],
) -> NDArray[np.generic]:
    """Lay staged rows out, as ``kernels.device_tables`` says.

    Args:
        side: How.
        values: The block.
        given: Its ids and weights.
        dtype: Of what is staged.
        whole: The side.
        slots: Of hot tables, the slot of each row.
    """
    item = np.dtype(dtype).itemsize
    rows = np.zeros((len(values), side.row_width(item)), dtype)
    for run in side.staged:
        rows[:, run.part : run.part + run.width] = values[:, run.block : run.block + run.width]
    if side.lookups:
        tail = np.zeros((len(values), side.n_ids + side.n_weights), np.int32)
        ids = [given.ids[side.layout.id_rows]]
        for name, of_rows in slots.items():
            mine = given.ids[shard_layout(whole, [name]).id_rows]
            ids.append(of_rows[np.clip(mine, 0, len(of_rows) - 1)])
            ids[-1][mine != np.clip(mine, 0, len(of_rows) - 1)] = 2_000_000_000
        tail[:, : side.n_ids] = np.concatenate(ids).T
        weight_rows = [*side.layout.weight_rows, *side.hot_weight_rows]
        tail[:, side.n_ids :] = given.weights[weight_rows].T.copy().view(np.int32)
        rows[:, side.ids_at :] = tail.view(dtype)
    return rows


def slots_of(
    placed: DeviceTables, tables: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.int64]]:
    """Give each row of hot tables a slot, at random; those for which there is none, spare rows."""
    rng = np.random.default_rng(5)
    slots = {}
    at = placed.spare.offset
    for table in placed.hot:
        n, size = len(tables[table.name]), table.dim * placed.precision.item_bytes
        assert table.offset % size == 0
        capacity = table.capacity or 0
        first = -(-at // size)
        n_spare = max(n - capacity, 0)
        at = (first + n_spare) * size
        ids = [*rng.permutation(capacity)[: n - n_spare]]
        ids += [(first * size - table.offset) // size + i for i in range(n_spare)]
        slots[table.name] = rng.permutation(np.array(ids, np.int64))
    assert at <= placed.size_bytes
    return slots


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


@attrs.frozen(eq=False)
class Gathered:
    """A program that gathers, and a batch for it.

    Attributes:
        batch: Rows as they are staged, with ids.
        tables: The TABLES buffer.
        expected: The scores in float64.
    """

    program: Program
    batch: Batch
    tables: NDArray[np.uint8]
    expected: NDArray[np.float64]


def gathered(
    made: Manifest,
    graph: Graph,
    placed: DeviceTables,
    options: Options,
    *,
    target: Target,
    n_rows: int = 21,
    n_requests: int = 5,
    damage: bool = False,
) -> Gathered:
    """Compile a graph and draw a batch; with ``damage``, ids are outside their tables."""
    tables = tables_of(made)
    slots = slots_of(placed, tables)
    of_row = np.sort(np.arange(n_rows) % n_requests).astype(np.int32)
    blocks: dict[str, NDArray[np.float32]] = {}
    rows: dict[str, NDArray[np.generic]] = {}
    for name, n in (("user", n_requests), ("candidate", n_rows)):
        side = made.user if name == "user" else made.candidate
        given = matrices(side, made, n, len(name))
        placed_side = placed.user if name == "user" else placed.candidate
        blocks[name] = block(side, given, tables)
        if damage:
            given.ids[:, ::2] = 2_000_000_000
            given.ids[:, 1] = -1
        rows[name] = staged(placed_side, blocks[name], given, options.input_dtype, side, slots)
    memory = np.zeros(placed.size_bytes, np.uint8)
    for table in placed.hot:
        stored = placed.stored(tables[table.name])
        size = table.dim * placed.precision.item_bytes
        for row, slot in zip(stored, slots[table.name].tolist(), strict=True):
            at = table.offset + slot * size
            memory[at : at + size] = row.view(np.uint8)
    for at, piece in placed.pieces(tables.__getitem__):
        memory[at : at + piece.nbytes] = piece.reshape(-1).view(np.uint8)
    inputs = {name: blocks[name] for name in graph.inputs}
    return Gathered(
        program=compile_graph(graph, Bucket(n_rows + 5, n_requests + 1), target, options, placed),
        batch=Batch(rows["candidate"], rows["user"], of_row),  # type: ignore[arg-type]
        tables=memory,
        expected=evaluate(graph, inputs, of_row, np.float64),
    )

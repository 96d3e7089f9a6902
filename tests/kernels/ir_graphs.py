"""Random well-formed graphs that resemble the dense graphs of recommendation models.

``random_graph(seed)`` is what tests call. A graph starts from ``user`` [REQUESTS, w] and
``candidate`` [ROWS, w], cut into dense features, fields of embeddings and a sequence with its mask;
blocks from ``ir_blocks.BLOCKS`` (towers, FM, pairwise dots, gates, attention ...) grow on these;
what they leave is joined by a last tower.

Values stay small (a test holds them below 1e4), so that fp32 and fp16 can follow. With ``smooth``,
the default, no value jumps where another changes by little, so a kernel may be compared with the
oracle; without, FLOOR, SIGN, comparisons and the like come in too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.build import reshape, scalar, slice_
from kernels.ir.node import DType, Graph, Lead, Node, Op, const, input_node
from tests.kernels.ir_blocks import BLOCKS, FUSED, JUMPY, UNFUSED
from tests.kernels.ir_maker import F32, History, Maker

__all__ = ["BLOCKS", "FUSED", "JUMPY", "UNFUSED", "Columns", "MakeInputs", "Sample", "random_graph"]


@attrs.frozen(eq=False)
class Sample:
    """A batch for a graph.

    Attributes:
        inputs: float32 ``[rows, width]`` or ``[requests, width]`` by name. Each value is a float16
            too, so that what a kernel in fp16 loses, it loses in computing.
        request_of_row: int32 ``[rows]``, in order. A request may have no rows.
    """

    inputs: dict[str, F32]
    request_of_row: NDArray[np.int32]


@attrs.frozen
class Columns:
    """Columns of an input that one kind of number fills.

    Attributes:
        kind: "normal"; "flags", of 0 and 1; or "length", whole numbers from ``low`` to ``high``.
    """

    kind: str
    n: int
    low: int = 0
    high: int = 0


@attrs.frozen(eq=False)
class MakeInputs:
    """Makes batches for one graph."""

    leads: dict[str, Lead]
    columns: dict[str, list[Columns]]

    def __call__(self, rows: int, requests: int = 1, seed: int = 0) -> Sample:
        """Return a batch; the same for the same arguments."""
        numbers = np.random.default_rng(seed)
        sizes = {Lead.ROWS: rows, Lead.REQUESTS: requests}
        inputs = {
            name: np.concatenate(
                [_fill(each, sizes[lead], numbers) for each in self.columns[name]], 1
            )
            for name, lead in self.leads.items()
        }
        return Sample(inputs, np.sort(numbers.integers(0, requests, rows)).astype(np.int32))


def _fill(columns: Columns, n: int, numbers: np.random.Generator) -> F32:
    shape = (n, columns.n)
    if columns.kind == "flags":
        return (numbers.random(shape) < 0.7).astype(np.float32)
    if columns.kind == "length":
        return numbers.integers(columns.low, columns.high + 1, shape).astype(np.float32)
    return numbers.standard_normal(shape).astype(np.float16).astype(np.float32)


def random_graph(
    seed: int,
    *,
    n_blocks: int | None = None,
    blocks: Sequence[str] | None = None,
    smooth: bool = True,
) -> tuple[Graph, MakeInputs]:
    """Return a graph, and what makes batches for it. The same seed gives the same graph.

    ``n_blocks`` is 1 to 6 by chance; ``blocks`` are names from ``ir_blocks.BLOCKS`` to pick from,
    by default all those that are unfused, as an importer makes them: a test of an emitter may want
    ``(*UNFUSED, *FUSED)``. ``smooth``: see the module's text.
    """
    maker = Maker(random.Random(seed), np.random.default_rng(seed), smooth)
    inputs, make_inputs = _inputs(maker)
    names = blocks if blocks is not None else (*UNFUSED, *(() if smooth else JUMPY))
    for i in range(n_blocks if n_blocks is not None else maker.chance.randint(1, 6)):
        name = maker.chance.choice(names)
        maker.block = f"{name}_{i}"
        maker.flats.append(BLOCKS[name](maker))
    return Graph(f"random_{seed}", inputs, _head(maker)), make_inputs


def _head(maker: Maker) -> Node:
    """Join the last values by a tower to scores ``[ROWS, n]``."""
    maker.block = "head"
    last = maker.flats[-1]
    if last.lead is Lead.REQUESTS or maker.likely():
        rows = [flat for flat in maker.flats if flat.lead is Lead.ROWS]
        others = [*maker.flats[-4:-1], *rows[-1:]]
        last = maker.concat(*(each for each in others if each is not last), last)
    if last.lead is Lead.REQUESTS:
        last = maker.do(Op.TO_ROWS, last)
    for _ in range(maker.chance.randint(0, 2)):
        last = maker.activate(maker.linear(last, maker.width()))
    scores = maker.linear(last, maker.chance.choice((1, 1, 1, 2, 4)))
    return maker.do(Op.SIGMOID, scores) if maker.likely(0.8) else scores


def _inputs(maker: Maker) -> tuple[dict[str, Node], MakeInputs]:
    depth = maker.chance.choice((2, 4, 8, 8, 16))
    sides = [("user", Lead.REQUESTS), ("candidate", Lead.ROWS)]
    if maker.likely(0.15):
        del sides[0]
    inputs: dict[str, Node] = {}
    columns: dict[str, list[Columns]] = {}
    for name, lead in sides:
        maker.block = name
        columns[name], n_fields = _columns(maker, name, depth)
        whole = input_node(name, lead, sum(each.n for each in columns[name]))
        inputs[name] = whole
        # An exported graph gathers the user's rows first, and leaves it to a pass to do so late.
        value = (
            maker.do(Op.TO_ROWS, whole) if lead is Lead.REQUESTS and maker.likely(0.3) else whole
        )
        _cut(maker, value, columns[name], n_fields, depth)
    return inputs, MakeInputs(
        {name: node.lead or Lead.ROWS for name, node in inputs.items()}, columns
    )


def _columns(maker: Maker, name: str, depth: int) -> tuple[list[Columns], int]:
    """Lay out an input: fields, dense features, and perhaps a sequence with its mask."""
    n_fields = maker.chance.randint(1, 5)
    columns = [Columns("normal", n_fields * depth), Columns("normal", maker.width())]
    if maker.likely(0.8 if name == "user" else 0.2):
        steps = maker.chance.choice((1, 3, 5, 8, 10))
        columns.append(Columns("normal", steps * depth))
        if maker.likely(0.4):
            columns.append(Columns("flags", steps))
        else:
            columns.append(Columns("length", 1, maker.chance.choice((0, 1)), steps))
    return columns, n_fields


def _cut(maker: Maker, value: Node, columns: list[Columns], n_fields: int, depth: int) -> None:
    parts, start = [], 0
    for each in columns:
        parts.append(slice_(value, 1, start, start + each.n))
        start += each.n
    maker.fields.append(reshape(parts[0], n_fields, depth))
    maker.flats += [parts[0], parts[1]]
    if len(parts) == 4:
        keys = reshape(parts[2], parts[2].width // depth, depth)
        maker.sequences.append(_sequence(maker, keys, parts[3], columns[3]))


def _sequence(maker: Maker, keys: Node, given: Node, columns: Columns) -> History:
    """Make the mask from flags or a length, in one of the ways that exporters write."""
    if columns.kind == "length":
        steps = np.arange(columns.high, dtype=np.float32)[None]
        mask = maker.do(Op.LT, const(steps, "steps"), given)
        return History(keys, mask, columns.low > 0)
    if maker.likely():
        return History(keys, maker.do(Op.CAST, given, dtype=DType.BOOL), nonempty=False)
    zero = maker.do(Op.EQ, given, scalar(0.0, given))
    return History(keys, maker.do(Op.NOT, zero), nonempty=False)

"""Nodes, batches and answers in float64 for tests of the sequence programs, on CPUs and cards."""

from __future__ import annotations

from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir import numpy_programs
from kernels.ir.node import DType, Encoder, Lead, Node, Op, TargetAttention, const
from kernels.ir.numpy_ops import Batch
from kernels.plan.matrix import Matrix
from kernels.program import Pointer, Precision, Role, leading_dimension

F64 = NDArray[np.float64]
ELEMENTS: Final[dict[str, np.dtype[Any]]] = {
    "Fp16": np.dtype(np.float16),
    "Float32": np.dtype(np.float32),
}
_NO_BATCH: Final = Batch({}, {}, np.zeros(0, np.intp), np.dtype(np.float64))


def _input(name: str, *dims: int, lead: Lead = Lead.ROWS, dtype: DType = DType.FLOAT) -> Node:
    return Node(Op.INPUT, (), (lead, *dims), dtype, name)


def _layer(rng: np.random.Generator, k: int, n: int) -> tuple[Node, Node]:
    weight = (rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32)
    return const(weight), const((rng.standard_normal(n) * 0.1).astype(np.float32))


def target_attention(
    rng: np.random.Generator,
    d: int,
    hidden: tuple[int, ...],
    steps: int,
    arg: TargetAttention | None = None,
) -> Node:
    """Return a node with random weights, its scores spread by about 1 over the steps."""
    arg = arg or TargetAttention(len(hidden) + 1, Op.RELU)
    first = [_layer(rng, d, hidden[0])[0] for _ in range(3)]
    sources = [_input("query", d), _input("keys", steps, d)]
    sources += [_input("mask", steps, dtype=DType.BOOL), *first, _layer(rng, d, hidden[0])[1]]
    for k, n in zip(hidden, (*hidden[1:], 1), strict=True):
        sources += _layer(rng, k, n)
    return Node(Op.TARGET_ATTENTION, tuple(sources), (Lead.ROWS, d), DType.FLOAT, arg, "attention")


def encoder(rng: np.random.Generator, d: int, f: int, steps: int, arg: Encoder) -> Node:
    """Return a node with random weights."""
    qkv, o, one, two = (_layer(rng, k, n) for k, n in ((d, 3 * d), (d, d), (d, f), (f, d)))
    norms = [
        const((1 + 0.1 * rng.standard_normal(d)).astype(np.float32)),
        const((0.1 * rng.standard_normal(d)).astype(np.float32)),
        const((1 + 0.1 * rng.standard_normal(d)).astype(np.float32)),
        const((0.1 * rng.standard_normal(d)).astype(np.float32)),
    ]
    sources = (_input("x", steps, d), *qkv, *o, *norms[:2], *one, *two, *norms[2:])
    return Node(Op.ENCODER, sources, (Lead.ROWS, steps, d), DType.FLOAT, arg, "encoder")


def masks(rng: np.random.Generator, rows: int, steps: int) -> NDArray[np.bool_]:
    """Return ``[rows, steps]``: ragged, with a row of none, one, the last alone, all, and holes."""
    lengths = rng.integers(1, steps + 1, rows)
    mask = np.arange(steps) < lengths[:, None]
    special = [
        np.zeros(steps, bool),
        np.arange(steps) == 0,
        np.arange(steps) == steps - 1,
        np.ones(steps, bool),
        rng.random(steps) < 0.3,
    ]
    for row, pattern in zip(range(rows), special, strict=False):
        mask[row] = pattern
    return mask


@attrs.frozen(eq=False)
class Block:
    """An input block ``[rows, ld]`` of parts side by side, as staging fills it."""

    array: NDArray[Any]
    offsets: tuple[int, ...]
    widths: tuple[int, ...]
    element: str

    @classmethod
    def of(cls, parts: list[NDArray[Any]], element: str, skip: int = 0) -> Block:
        """Lay parts ``[rows, ..]`` beside one another after ``skip`` columns of something else."""
        flat = [part.reshape(len(part), -1) for part in parts]
        widths = [part.shape[1] for part in flat]
        offsets = [skip + sum(widths[:i]) for i in range(len(widths))]
        array = np.zeros((len(flat[0]), leading_dimension(skip + sum(widths))), ELEMENTS[element])
        array[:, :skip] = np.nan
        for offset, part in zip(offsets, flat, strict=True):
            array[:, offset : offset + part.shape[1]] = part
        return cls(array, tuple(offsets), tuple(widths), element)

    def matrix(self, i: int, lead: Lead = Lead.ROWS) -> Matrix:
        """Return where part ``i`` lies; the buffer is CANDIDATE or USER."""
        role = Role.CANDIDATE if lead is Lead.ROWS else Role.USER
        pointer = Pointer(role, self.offsets[i] * self.array.itemsize)
        return Matrix(pointer, lead, self.widths[i], self.array.shape[1], self.element)

    def part(self, i: int) -> NDArray[Any]:
        """Return part ``i`` from its first element on, to the block's end, flat."""
        return self.array.reshape(-1)[self.offsets[i] :]


def answer(node: Node, inputs: list[NDArray[Any]]) -> F64:
    """Return what a node comes to, in float64, for its non-constant sources."""
    floats = [x if x.dtype == bool else x.astype(np.float64) for x in inputs]
    constants = [np.asarray(s.array, np.float64) for s in node.sources[len(inputs) :]]
    run = {
        Op.TARGET_ATTENTION: numpy_programs.target_attention,
        Op.ENCODER: numpy_programs.encoder,
    }[node.op]
    return np.asarray(run(node, (*floats, *constants), _NO_BATCH), np.float64)


def output(columns: int, precision: Precision, ld: int | None = None) -> Matrix:
    """Return a matrix of rows for results, in 16-bit storage."""
    element = "Fp16" if precision is Precision.FP16 else "Bf16"
    return Matrix(Pointer(Role.SCRATCH), Lead.ROWS, columns, ld or columns, element)


def floats_of(bits: NDArray[Any], precision: Precision) -> NDArray[np.float32]:
    """Return 16-bit storage as float32."""
    if precision is Precision.BF16:
        return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)

"""A phase of one sequence program, as ``kernels.sequences`` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import GraphError
from kernels.ir.node import DType, Node, Op
from kernels.plan.expression import Expression
from kernels.plan.index import Index, Term
from kernels.plan.matrix import Matrix, located
from kernels.plan.phases import Kind, Phase, tested
from kernels.program import Launch, Pointer, Precision, Role, Target
from kernels.sequences import encoder, target_attention


class Launcher(Protocol):
    """Makes the launch, once its source and weights have a place."""

    def __call__(self, source: int, *, weights: Pointer, dependent: bool) -> Launch:
        """Return the launch; ``weights`` is where ``SequenceLaunch.weights`` lie."""
        ...


@attrs.frozen(eq=False)
class SequenceLaunch:
    """A kernel's text and weights, and how to launch it."""

    text: str
    weights: NDArray[np.uint8]
    launch: Launcher


def unsupported(node: Node, precision: Precision) -> str | None:
    """Return why no kernel runs a sequence program, or None if one does."""
    if node.op is Op.TARGET_ATTENTION:
        return target_attention.shape_of(node, precision).unsupported()
    return encoder.shape_of(node, precision).unsupported()


def sequence_launch(
    phase: Phase,
    entry: str,
    precision: Precision,
    target: Target,
    rows: int,
    matrices: Mapping[Node, Matrix],
    output: Matrix,
) -> SequenceLaunch:
    """Return what runs a phase over ``rows`` rows of a bucket."""
    node = phase.chain[0]
    kernel: target_attention.AttentionKernel | encoder.EncoderKernel
    if phase.kind is Kind.ATTENTION:
        weights, kernel = _attention(node, entry, precision, target, rows, matrices, output)
    else:
        weights, sizes = encoder.pack_encoder(node, precision)
        tile = encoder.choose_tile(sizes, rows, target)
        x = _matrix(node.sources[0], matrices)
        kernel = encoder.emit_encoder(sizes, tile, entry, x=x, output=output)

    def launch(source: int, *, weights: Pointer, dependent: bool) -> Launch:
        return kernel.launch(
            source,
            rows,
            target,
            counts=Pointer(Role.COUNTS),
            weights=weights,
            request_of_row=Pointer(Role.REQUEST_OF_ROW),
            dependent=dependent,
        )

    return SequenceLaunch('#include "math.cuh"\n' + kernel.text, weights, launch)


def _attention(
    node: Node,
    entry: str,
    precision: Precision,
    target: Target,
    rows: int,
    matrices: Mapping[Node, Matrix],
    output: Matrix,
) -> tuple[NDArray[np.uint8], target_attention.AttentionKernel]:
    query, keys, mask = node.sources[:3]
    weights, sizes = target_attention.pack_target_attention(node, precision)
    tests = tested(mask)
    return weights, target_attention.emit_target_attention(
        sizes,
        entry,
        query=_matrix(query, matrices),
        keys=_matrix(keys, matrices),
        mask=_matrix(tests, matrices),
        output=output,
        mask_test=_test(mask, tests),
        warps_per_row=target_attention.choose_warps_per_row(rows, sizes.steps, target),
    )


def _matrix(node: Node, matrices: Mapping[Node, Matrix]) -> Matrix:
    found = located(node, matrices)
    assert found is not None, f"{node.name}: phases store what a sequence program reads"
    return found.as_matrix()


@attrs.frozen
class _Tested:
    """Implements ``expression.Memory``: the tested value is ``x``."""

    node: Node

    def load(self, node: Node, element: Index, row: str, scope: Expression) -> str | None:
        """Return ``x`` for the tested value."""
        del element, row, scope
        return "x" if node is self.node else None

    def table(self, values: Sequence[int | float], dtype: DType, index: Index) -> str:
        """Refuse: a test compares with uniform constants."""
        raise GraphError("a mask's test reads no tables")


def _test(mask: Node, tested_node: Node) -> str:
    """Return C++ over ``x``, an element of what is tested: true for a step that counts."""
    if mask is tested_node:
        return "x > 0.5f"
    expression = Expression(_Tested(tested_node))
    result = expression.element(mask, (Term("c"),) * len(mask.dims))
    return f"[&] {{ {expression.body(result)} }}()"

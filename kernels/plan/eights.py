"""Which wide Linears multiply floats of eight bits (e4m3), and which values are stored so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import attrs
import numpy as np

from kernels.errors import GraphError
from kernels.fp8 import Fp8, Scales, scale_of
from kernels.ir.node import Linear, Node
from kernels.ir.reference import evaluate_nodes
from kernels.plan.facts import computed
from kernels.plan.phases import Kind, Phase, matrix_view, staged_by

# Elements; a copy by a tensor map begins at 16 bytes.
_ALIGNED_COLUMNS = 16


@attrs.frozen
class Eights:
    """What of a chain of phases is e4m3.

    Attributes:
        readers: Linears whose inputs and weights are.
        scales: Values that are stored so, and what they are multiplied by.
        only: Those of them that nothing reads as 16-bit floats.
        weights: What has a scale of its own, of the weights.
    """

    readers: Set[Node] = frozenset()
    scales: Mapping[Node, float] = attrs.field(factory=dict)
    only: Set[Node] = frozenset()
    weights: Scales = Scales.ROW


def plan_eights(phases: Sequence[Phase], fp8: Fp8) -> Eights:
    """Let each wide Linear multiply e4m3 that reads nothing but what other wide Linears left.

    Raises:
        GraphError: The representative inputs are not what the graph takes.
    """
    left = {phase.outputs[0] for phase in phases if phase.kind is Kind.WIDE}
    readers: set[Node] = set()
    stored: dict[Node, None] = {}
    for phase in phases:
        bases = _input_bases(phase, left) if phase.kind is Kind.WIDE else None
        if bases is not None:
            readers.add(phase.chain[0])
            stored |= dict.fromkeys(bases)
    scales = _scales(stored, fp8)
    halves: set[Node] = set()
    before: dict[Node, None] = {}
    for phase in phases:
        halves |= _read_as_halves(phase, readers, before)
        before |= dict.fromkeys(phase.outputs)
    return Eights(readers, scales, set(stored) - halves, fp8.scales)


def _scales(stored: Iterable[Node], fp8: Fp8) -> dict[Node, float]:
    try:
        values = evaluate_nodes(stored, fp8.inputs, fp8.request_of_row, np.float32)
    except ValueError as error:
        raise GraphError(f"inputs to find scales from: {error}") from error
    return {node: scale_of(values[node]) for node in stored}


def _input_bases(phase: Phase, left: Set[Node]) -> list[Node] | None:
    """Return the values in which a wide Linear's inputs lie, if all are of ``left``."""
    core = phase.chain[0]
    assert isinstance(core.arg, Linear)
    sources = core.sources[: core.arg.n_inputs]
    views = [matrix_view(source) for source in sources]
    for source, view in zip(sources, views, strict=True):
        if view is None or view.base not in left or view.column % _ALIGNED_COLUMNS:
            return None
        if core.arg.grouped and source.dims[-1] % _ALIGNED_COLUMNS:
            return None
    return [view.base for view in views if view is not None]


def _read_as_halves(phase: Phase, readers: Set[Node], before: Mapping[Node, object]) -> set[Node]:
    """Return what of ``before`` a phase reads, other than e4m3."""
    if phase.kind is Kind.WIDE and phase.chain[0] in readers:
        views = [matrix_view(each) for each in staged_by(phase.chain)]
        return {view.base for view in views if view is not None}
    return set(computed(phase.outputs, before)[1])

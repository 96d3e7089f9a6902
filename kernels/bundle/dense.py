"""The dense graph: from the two blocks and the request of each row to the scores."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx

from kernels.bundle.emit import Block, Emitter
from kernels.bundle.layout import Blocks
from kernels.bundle.manifest import Output
from kernels.bundle.planned import Plan
from kernels.bundle.select import Selection
from kernels.bundle.user_once import user_side_once
from kernels.errors import GraphError

_USER, _CANDIDATE, _ROWS, _SCORES = "user", "candidate", "request_of_row", "scores"
_USER_ROWS: Final = "cut/user_rows"
_F32: Final = np.dtype(np.float32)
_FLOAT: Final = onnx.TensorProto.FLOAT


def dense_model(
    plan: Plan, selection: Selection, blocks: Blocks
) -> tuple[onnx.ModelProto, tuple[Output, ...]]:
    """Write the dense graph; see ``manifest.py`` for its inputs and output.

    Returns:
        The model, and where each output of the original is in the scores.
    """
    columns = plan.traces.columns
    tensors = {"user": _USER_ROWS, "candidate": _CANDIDATE}

    def locate(number: int) -> tuple[str, int]:
        side, place = blocks.places[columns.element(number)]
        return tensors[side], place

    emitter = Emitter(
        graph=plan.graph,
        facts=plan.facts,
        selection=selection,
        blocks={
            _USER_ROWS: Block(_USER_ROWS, blocks.user.width, _F32),
            _CANDIDATE: Block(_CANDIDATE, blocks.candidate.width, _F32),
        },
        locate=locate,
        n_rows=_n_rows,
        taken=frozenset({_USER, _CANDIDATE, _ROWS, _SCORES}),
    )
    emitter.nodes.append(onnx.helper.make_node("Gather", [_USER, _ROWS], [_USER_ROWS], axis=0))
    emitter.run()
    outputs, parts = _scores(plan, emitter)
    last = onnx.helper.make_node("Concat", parts, [_SCORES], axis=1)
    if len(parts) == 1:
        last = onnx.helper.make_node("Identity", parts, [_SCORES])
    emitter.nodes.append(last)
    info = onnx.helper.make_tensor_value_info
    model = emitter.model(
        [
            info(_USER, _FLOAT, ["requests", blocks.user.width]),
            info(_CANDIDATE, _FLOAT, ["rows", blocks.candidate.width]),
            info(_ROWS, onnx.TensorProto.INT64, ["rows"]),
        ],
        [info(_SCORES, _FLOAT, ["rows", sum(output.width for output in outputs)])],
    )
    return user_side_once(model, user=_USER, rows=_ROWS), outputs


def _n_rows(emitter: Emitter) -> str:
    shape = emitter.add("Shape", [_ROWS], "rows")
    return emitter.add("Gather", [shape, emitter.integers(0)], "rows", axis=0)


def _scores(plan: Plan, emitter: Emitter) -> tuple[tuple[Output, ...], list[str]]:
    """Make a float32 matrix of each output."""
    outputs: list[Output] = []
    parts: list[str] = []
    for name in plan.graph.outputs:
        shape = plan.facts.seen(name)
        if shape is None or not shape or (shape[0].fixed, shape[0].per_row) != (0, 1):
            raise GraphError(
                f"{plan.graph.name}: output {name!r} does not have one row for each row of the "
                "inputs in its first dimension"
            )
        if any(dim.per_row for dim in shape[1:]):
            raise GraphError(f"{plan.graph.name}: output {name!r} has the batch in two dimensions")
        row = tuple(dim.fixed for dim in shape[1:])
        size = int(np.prod(row, dtype=np.int64))
        part = emitter.cast(emitter.tensor(name), plan.facts.dtypes[name], _F32)
        parts.append(part if len(row) == 1 else emitter.reshape(part, [-1, size]))
        offset = sum(output.width for output in outputs)
        outputs.append(Output(name=name, offset=offset, width=size, shape=row))
    return tuple(outputs), parts

"""A program: the small graph that computes ids, weights and values of one side from features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx

from kernels.bundle.emit import Block, Emitter
from kernels.bundle.planned import Plan
from kernels.bundle.select import select
from kernels.features.spec import FeatureSpec
from kernels.graph.trace import Root

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "int64": np.dtype(np.int64),
    "float32": np.dtype(np.float32),
}


def program_model(
    plan: Plan, spec: FeatureSpec, roots: Sequence[Root], output_name: Callable[[Root], str]
) -> onnx.ModelProto:
    """Write a program.

    Its inputs are named as features: int64 or float32 ``[n, width]``. Its outputs are ``[n, m]``,
    int64 where the original has integers, else float32.

    Args:
        plan: Of the cut.
        spec: The features.
        roots: What it gives.
        output_name: Name of the output that holds a root.
    """
    columns = plan.traces.columns
    tensors = [root.name for root in roots if root.space == "computed"]
    selection = select(plan.graph, plan.facts, plan.feature_codes, columns, tensors)
    used = dict.fromkeys(root.name for root in roots if root.space == "feature")
    for numbers in selection.views.values():
        used.update(dict.fromkeys(e.root.name for e in columns.elements(numbers)))
    features = [feature for feature in spec.features if feature.name in used]

    def locate(number: int) -> tuple[str, int]:
        element = columns.element(number)
        return element.root.name, element.place

    def n_rows(emitter: Emitter) -> str:
        shape = emitter.add("Shape", [features[0].name], "rows")
        return emitter.add("Gather", [shape, emitter.integers(0)], "rows", axis=0)

    emitter = Emitter(
        graph=plan.graph,
        facts=plan.facts,
        selection=selection,
        blocks={f.name: Block(f.name, f.width, _DTYPES[f.dtype]) for f in features},
        locate=locate,
        n_rows=n_rows,
        taken=frozenset({f.name for f in features} | {output_name(root) for root in roots}),
    )
    emitter.run()
    outputs = []
    for root in roots:
        name, dtype = _result(plan, spec, emitter, root)
        emitter.nodes.append(onnx.helper.make_node("Identity", [name], [output_name(root)]))
        outputs.append(_info(output_name(root), dtype))
    inputs = [_info(f.name, _DTYPES[f.dtype], f.width) for f in features]
    return emitter.model(inputs, outputs)


def _result(
    plan: Plan, spec: FeatureSpec, emitter: Emitter, root: Root
) -> tuple[str, np.dtype[Any]]:
    """Add what makes a root a matrix of int64 or float32, changed as it says."""
    if root.space == "feature":
        name, dtype = root.name, _DTYPES[spec.by_name[root.name].dtype]
    else:
        dtype, dims = plan.facts.dtypes[root.name], plan.facts.dims[root.name]
        size = plan.facts.row_size(root.name)
        assert size is not None  # or it would not be a root
        name = emitter.tensor(root.name)
        if len(dims) != 2 or dims[0].per_row != 1:
            name = emitter.reshape(name, [-1, size])
    if root.change is not None and root.change[0] != "Identity":
        return _changed(emitter, name, dtype, root.change), _DTYPES["float32"]
    after = _DTYPES["int64" if dtype.kind in "iu" else "float32"]
    return emitter.cast(name, dtype, after), after


def _changed(
    emitter: Emitter, name: str, dtype: np.dtype[Any], change: tuple[str, tuple[float, ...]]
) -> str:
    op, numbers = change
    if op != "Where":
        return emitter.add(op, [emitter.cast(name, dtype, _DTYPES["float32"])], "change")
    mask = emitter.cast(name, dtype, np.dtype(np.bool_))
    branches = [
        emitter.constant(f"cut/number/{number!r}", np.asarray(number, np.float32))
        for number in numbers
    ]
    return emitter.add("Where", [mask, *branches], "change")


def _info(name: str, dtype: np.dtype[Any], width: int | None = None) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, ["rows", width])

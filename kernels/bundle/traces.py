"""Where the tensors that depend on features alone take their elements from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.graph.facts import TRACE_BATCH, Facts, Kind
from kernels.graph.model import Graph, reads
from kernels.graph.trace import (
    Codes,
    Columns,
    Element,
    Root,
    Traced,
    Tracer,
    column_numbers,
    encode,
)


@attrs.frozen(eq=False)
class FeatureTraces:
    """Traces to features (or input columns) and to what is computed from them.

    Attributes:
        columns: Numbers all roots' columns.
        values: Elements that are exact copies.
        ids: Elements that are copies, plus an integer constant.
        sources: For each computed root, the columns that it depends on.
        alike: For columns of computed roots, the first column of the same root that always holds
            the same number, as it is computed in the same way from the same elements.
    """

    columns: Columns
    values: Mapping[str, Traced]
    ids: Mapping[str, Traced]
    sources: Mapping[str, frozenset[Element]]
    alike: Mapping[int, int]


def trace_features(
    graph: Graph,
    facts: Facts,
    roots: Mapping[str, Codes],
    columns: Columns,
    is_integral: Callable[[Element], bool],
    row_wise: Collection[str] | None,
) -> FeatureTraces:
    """Trace all tensors of kind FEATURES.

    Args:
        graph: Read only.
        facts: Of the graph.
        roots: Codes of the graph's inputs.
        columns: Numbers the columns of ``roots``, and of those that are found.
        is_integral: Whether a column of an input only ever holds integers.
        row_wise: Names of the tensors whose rows depend on nothing but their row of the inputs;
            only these can be computed roots. None: take all that have rows for such.
    """

    def integral(number: int) -> bool:
        element = columns.element(number)
        if element.root.space == "computed":
            return facts.dtypes[element.root.name].kind in "iub"
        return is_integral(element)

    def root_of(name: str) -> Codes | None:
        size = facts.row_size(name)
        if facts.kinds[name] != Kind.FEATURES or size is None:
            return None
        if row_wise is not None and name not in row_wise:
            return None
        return encode(columns.of(Root("computed", name), size), facts.shape(name))

    def run(*, offsets: bool) -> dict[str, Traced]:
        tracer = Tracer(graph, facts, roots, is_integral=integral, offsets=offsets, root_of=root_of)
        return tracer.run()

    values = run(offsets=False)
    return FeatureTraces(
        columns,
        values,
        run(offsets=True),
        _sources(graph, facts, values, columns),
        _alike(graph, facts, values, columns),
    )


def elements_of(traced: Traced, columns: Columns) -> list[Element]:
    """Return the columns that a tensor's elements come from, each once."""
    return columns.elements(sorted(numbers_of(traced)))


def places_of(traced: Traced, columns: Columns) -> list[tuple[Element, int]]:
    """Return the columns that a tensor's elements come from, with what is added; each once."""
    codes, added = traced.codes.ravel(), traced.added.ravel()
    pairs = np.unique(np.stack([(codes - 1) // TRACE_BATCH, added])[:, codes > 0], axis=1)
    return [(columns.element(int(number)), int(by)) for number, by in pairs.T]


def numbers_of(traced: Traced) -> set[int]:
    """Return the numbers of the columns that a tensor's elements come from."""
    return column_numbers(traced.codes)


def _sources(
    graph: Graph, facts: Facts, values: Mapping[str, Traced], columns: Columns
) -> dict[str, frozenset[Element]]:
    """Find the inputs' columns that each computed tensor depends on."""
    found: dict[str, frozenset[Element]] = {}

    def of(name: str) -> frozenset[Element]:
        if facts.kinds[name] != Kind.FEATURES:
            return frozenset()
        if name in found:
            return found[name]
        result: set[Element] = set()
        for element in elements_of(values[name], columns):
            computed = element.root.space == "computed"
            result |= found[element.root.name] if computed else {element}
        return frozenset(result)

    for node in graph.nodes:
        sources = frozenset[Element]().union(*(of(name) for name in reads(node)))
        for name in node.output:
            if name and facts.kinds.get(name) == Kind.FEATURES:
                traced = values.get(name)
                if traced is None or is_own_root(name, traced, columns):
                    found[name] = sources
    return found


def is_own_root(name: str, traced: Traced, columns: Columns) -> bool:
    """Whether a traced tensor is computed, and not moved from others."""
    if not traced.codes.size or not traced.codes.flat[0]:
        return False
    first = columns.element(int(traced.codes.flat[0] - 1) // TRACE_BATCH)
    return first == Element(Root("computed", name), 0)


def _alike(
    graph: Graph, facts: Facts, values: Mapping[str, Traced], columns: Columns
) -> dict[int, int]:
    """Find the elements that are the same function of the same elements: a mask, once repeated."""
    found: dict[int, int] = {}
    for node in graph.nodes:
        name = node.output[0] if node.output else ""
        traced = values.get(name)
        if node.op_type not in _ELEMENTWISE or traced is None:
            continue
        if not is_own_root(name, traced, columns):
            continue
        operands = [_operand(each, graph, facts, values, found) for each in node.input if each]
        if any(each is None for each in operands):
            continue
        shape = facts.shape(name)
        keys = np.stack(
            [
                np.broadcast_to(o, shape).reshape(TRACE_BATCH, -1)[0]
                for o in operands
                if o is not None
            ]
        )
        _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        root = Root("computed", name)
        for place, group in enumerate(inverse.ravel()):
            if first[group] != place:
                number = columns.number(Element(root, place))
                found[number] = columns.number(Element(root, int(first[group])))
    return found


def _operand(
    name: str,
    graph: Graph,
    facts: Facts,
    values: Mapping[str, Traced],
    alike: Mapping[int, int],
) -> NDArray[np.int64] | None:
    """Return numbers that tell elements apart: positive codes, or negative ones for values."""
    if name in values:
        codes = values[name].codes
        if alike:
            numbers, inverse = np.unique((codes - 1) // TRACE_BATCH, return_inverse=True)
            mapped = np.asarray([alike.get(int(each), int(each)) for each in numbers])
            codes = (
                1 + (codes - 1) % TRACE_BATCH + TRACE_BATCH * mapped[inverse.reshape(codes.shape)]
            )
        return codes
    array = graph.constants.get(name)
    if array is None and facts.kinds[name] <= Kind.BATCH:
        array = facts.values[TRACE_BATCH].get(name)
    if array is None:
        return None
    _, inverse = np.unique(array, return_inverse=True)
    return -1 - inverse.reshape(array.shape).astype(np.int64)


_ELEMENTWISE: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Neg", "Abs", "Not", "And", "Or", "Xor", "Where"}
    | {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Cast", "Min", "Max", "Clip"}
    | {"Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Relu", "Sigmoid"}
)

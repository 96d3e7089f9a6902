"""Features for the inputs that no spec describes, derived from what the graph does with them.

A column that is looked up becomes a categorical identity feature of as many values as the smallest
table (or part of a shared table) that it is looked up in; one that ids are computed from, of as
many as its type holds; any other a raw number. Columns that the graph always takes together are
one feature.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.inputs import Shapes, gaps
from kernels.bundle.stores import Stores
from kernels.bundle.traces import FeatureTraces, elements_of, places_of, trace_features
from kernels.errors import GraphError
from kernels.features.spec import FeatureSpec
from kernels.graph.facts import TRACE_BATCH, Facts, feeds, row_shape
from kernels.graph.model import Array, Graph, Port, reads
from kernels.graph.probe import open_prober
from kernels.graph.trace import Codes, Columns, Root, encode

# Where only the type bounds an id: what int32, exact JSON numbers and float32 can hold.
_TRIED = 64  # values tried at once when bounding a column
_LARGEST = {"i": 2**53, "f": 2**24}


@attrs.define(eq=False)
class _Column:
    """What is found out about one column of an input.

    Attributes:
        size: How many ids it may hold; None for a number.
        computed: Whether ids are computed from it.
        keyed: Whether it is looked up in a table of keys.
        used_in: The tensors that hold it but not all columns of its input, and its place in
            lookups that tell columns apart: columns with the same belong together.
    """

    size: int | None = None
    computed: bool = False
    keyed: bool = False
    used_in: set[object] = attrs.field(factory=set)


def infer_features(
    graph: Graph, facts: Facts, shapes: Shapes, spec: FeatureSpec | None, stores: Stores
) -> str:
    """Return sections of a ``features.toml`` for the columns that ``spec`` leaves out.

    Args:
        graph: The graph.
        facts: Of it.
        shapes: Dimensions of one row of inputs that leave them open.
        spec: What is described already.
        stores: Tables of the store, by the constants that they take the place of.
    """
    sizes = {
        p.name: int(np.prod(row_shape(graph, p, shapes), dtype=np.int64)) for p in graph.inputs
    }
    columns = Columns()
    roots: dict[str, Codes] = {}
    for port in graph.inputs:
        numbers = columns.of(Root("column", port.name), sizes[port.name])
        shape = (TRACE_BATCH, *row_shape(graph, port, shapes))
        roots[port.name] = encode(numbers, shape)
    traces = trace_features(graph, facts, roots, columns, lambda _: True, None)
    found = {name: [_Column() for _ in range(size)] for name, size in sizes.items()}
    _note_uses(found, traces)
    _note_ids(found, graph, facts, traces, stores)
    _bound_computed(found, graph, facts, shapes, stores)
    text = ""
    for port in graph.inputs:
        described = [] if spec is None else [f for f in spec.features if f.input == port.name]
        for start, end in gaps(described, sizes[port.name]):
            text += _sections(port, found[port.name], start, end)
    return text


def _note_uses(found: Mapping[str, list[_Column]], traces: FeatureTraces) -> None:
    for name, traced in traces.ids.items():
        used: dict[str, set[int]] = {}
        for element in elements_of(traced, traces.columns):
            if element.root.space == "column":
                used.setdefault(element.root.name, set()).add(element.place)
        for port, places in used.items():
            if len(places) < len(found[port]):
                for place in places:
                    found[port][place].used_in.add(name)


def _rows(table: str, graph: Graph, stores: Stores) -> int | None:
    """Return the rows of a table; None if it has keys."""
    if table not in stores:
        return int(graph.constants[table].shape[0])
    header = stores[table].header
    return None if header.keyed else header.rows


def _note_ids(
    found: Mapping[str, list[_Column]],
    graph: Graph,
    facts: Facts,
    traces: FeatureTraces,
    stores: Stores,
) -> None:
    """Bound the columns that are looked up."""
    producers = graph.producers()
    for output in facts.lookups:
        node = producers[output]
        rows = _rows(node.input[0], graph, stores)
        traced = traces.ids.get(node.input[1])
        if traced is None:
            _note_computed(found, node.input[1], graph, facts, traces)
            continue
        places = places_of(traced, traces.columns)
        if rows is None:
            for element, _ in places:
                if element.root.space == "computed":
                    _note_computed(found, element.root.name, graph, facts, traces)
                else:
                    found[element.root.name][element.place].keyed = True
            continue
        starts = sorted({added for _, added in places})
        ends = dict(zip(starts, [*starts[1:], rows], strict=True))
        for element, added in places:
            if element.root.space == "computed":
                _note_computed(found, element.root.name, graph, facts, traces)
                continue
            column = found[element.root.name][element.place]
            size = ends[added] - added
            if size < 1 or added < 0:
                raise GraphError(
                    f"{graph.name}: {output!r} looks {element.root.name}[{element.place}] up from "
                    f"row {added} on of a table of {rows} rows"
                )
            column.size = size if column.size is None else min(size, column.size)
            if len(starts) > 1:
                column.used_in.add((output, added))


def _note_computed(
    found: Mapping[str, list[_Column]],
    tensor: str,
    graph: Graph,
    facts: Facts,
    traces: FeatureTraces,
) -> None:
    """Note as ids the integer columns that a tensor of ids is computed from."""
    producers = graph.producers()
    pending, seen = [tensor], {tensor}
    while pending:
        node = producers.get(pending.pop())
        for name in [] if node is None else reads(node):
            if name not in traces.values:
                pending += [] if name in seen else [name]
                seen.add(name)
                continue
            kind = facts.dtypes[name].kind
            for element in elements_of(traces.values[name], traces.columns):
                root = element.root
                if root.space == "computed" and root.name not in seen:
                    seen.add(root.name)
                    pending.append(root.name)
                elif root.space == "column" and kind in "iu":
                    column = found[root.name][element.place]
                    largest = _LARGEST["f" if facts.dtypes[root.name].kind == "f" else "i"]
                    if facts.dtypes[root.name].itemsize == 4 and kind in "iu":
                        largest = min(largest, 2**31)
                    column.computed = True
                    column.size = largest if column.size is None else column.size


def _bound_computed(
    found: Mapping[str, list[_Column]],
    graph: Graph,
    facts: Facts,
    shapes: Shapes,
    stores: Stores,
) -> None:
    """Lower the sizes of columns from which ids are computed to what keeps these in their tables.

    By trying values, each column's for itself and the others zero: the ids come from arithmetic
    that nothing here knows. Hashes take all values; ``x * n + field`` takes the first so many.
    """
    columns = [
        (name, place, column)
        for name, each in found.items()
        for place, column in enumerate(each)
        if column.computed
    ]
    if not columns:
        return
    producers = graph.producers()
    rows = {
        producers[name].input[1]: size
        for name in facts.lookups
        if producers[name].input[1] in producers
        and (size := _rows(producers[name].input[0], graph, stores)) is not None
    }
    part = attrs.evolve(graph, outputs=tuple(rows), nodes=list(graph.nodes))
    part.constants = dict(graph.constants)
    part.prune()
    prober = open_prober(part, rows)

    def fits(name: str, place: int, values: Array) -> NDArray[np.bool_]:
        fed = feeds(graph, shapes, len(values), 0)
        flat = fed[name].reshape(len(values), -1)
        flat[:, place] = values
        fed[name] = flat.reshape(fed[name].shape)
        results = prober.run(fed)
        ok = np.ones(len(values), np.bool_)
        for tensor, n in rows.items():
            ids = results[tensor].reshape(len(values), -1)
            ok &= ((ids >= 0) & (ids < n)).all(axis=1)
        return ok

    for name, place, column in columns:
        assert column.size is not None
        low, high = 0, column.size  # every value below low + 1 fits, as far as was tried
        while high - low > 1:
            values = np.unique(np.linspace(low, high - 1, _TRIED).astype(np.int64))
            failing = np.flatnonzero(~fits(name, place, values))
            if not failing.size:
                low = high - 1
            elif failing[0] == 0:
                break  # not even zero fits: the other columns must go with it
            else:
                low, high = int(values[failing[0] - 1]), int(values[failing[0]])
        if high < column.size:
            column.size = low + 1


def _sections(port: Port, columns: list[_Column], start: int, end: int) -> str:
    """Write the features of the columns from ``start`` to ``end``."""

    def key(place: int) -> tuple[int | None, bool, frozenset[object]]:
        column = columns[place]
        return column.size, column.keyed, frozenset(column.used_in)

    text = ""
    for (size, keyed, _), group in itertools.groupby(range(start, end), key):
        places = list(group)
        first, last = places[0], places[-1]
        name = port.name
        if len(places) < len(columns):
            name += f"[{first}]" if first == last else f"[{first}:{last + 1}]"
        quoted = json.dumps(name, ensure_ascii=False)  # a JSON string is a TOML string too
        text += f'\n[features.{quoted}]\nside = "candidate"\n'
        if size is None and keyed:
            text += 'kind = "categorical"\nencode = "key"\n'
        elif size is None:
            text += 'kind = "numeric"\n'
        else:
            text += f'kind = "categorical"\nencode = "identity"\nsize = {size}\n'
        quoted_input = json.dumps(port.name, ensure_ascii=False)
        text += f"width = {len(places)}\ninput = {quoted_input}\ncolumn = {first}\n"
    return text

"""Planning a cut: which lookups are cut, pooled or not, and what else crosses into the dense graph.

A tensor that depends on features alone crosses as columns of its features, or is *hoisted*: a
program computes it beside the lookups. Hoisted is work on integers and truth values (masks,
lengths, comparisons of ids), so that what is left is work on fractions; not what takes few columns
and makes many, such as a mask of every position against every other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import numpy as np
import onnx

from kernels.bundle.inputs import Inputs, width
from kernels.bundle.manifest import Pooling, SideName
from kernels.bundle.pooling import Pool, Pooled, Pooler, rows_root
from kernels.bundle.samples import Sampler, counted, row_wise_tensors
from kernels.bundle.traces import FeatureTraces, elements_of, places_of, trace_features
from kernels.errors import GraphError
from kernels.features.spec import Feature, FeatureSpec
from kernels.graph.facts import TRACE_BATCH, Dim, Facts, Kind
from kernels.graph.model import Graph, attribute, reads
from kernels.graph.trace import Codes, Columns, Element, Root, Tracer, encode, row_columns

# Operators that a program runs on a CPU for next to nothing. Not among them: products with weights,
# convolutions, recurrences, loops.
_CHEAP: Final = frozenset(
    {"Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "Ceil", "Clip", "Concat", "CumSum", "Div"}
    | {"Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "Greater"}
    | {"GreaterOrEqual", "Identity", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod"}
    | {"Mul", "Neg", "Not", "OneHot", "Or", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Round", "Shape", "Sign", "Slice"}
    | {"Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"}
    | {"ReduceL1", "ReduceL2", "ReduceSumSquare", "Sigmoid", "Tanh", "Softmax"}
    | {"Xor", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"}
)
# A column costs four bytes a row to carry; computing a small mask again on a GPU costs a launch.
_MOST_GROWTH: Final = 4
_FREE_COLUMNS: Final = 64


@attrs.frozen
class Id:
    """Where one id of a lookup comes from: an element, plus an integer."""

    element: Element
    added: int


@attrs.frozen
class PlannedLookup:
    """A lookup of the bundle, before its place in a block is known.

    Attributes:
        root: Stands for its columns; several lookups share one where one Gather takes ids of both
            sides, and each has ``entries`` of it.
        tensor: What it replaces in the graph.
        table: A constant of the graph, or the file of a feature's own table.
        first: Its first column's place in ``root``.
    """

    root: Root
    side: SideName
    tensor: str
    table: str
    pooling: Pooling
    ids: tuple[Id, ...]
    weights: tuple[Element, ...] | None
    dim: int
    first: int = 0

    @property
    def width(self) -> int:
        """Columns of the block."""
        return len(self.ids) * self.dim if self.pooling == "none" else self.dim


@attrs.frozen(eq=False)
class Plan:
    """How a graph is cut.

    Attributes:
        codes: Of the tensors that hold nothing but columns of features, hoisted tensors and
            lookups: the dense graph's boundary.
        feature_codes: Of those that hold nothing but columns of features: the programs' boundary.
        lookups: All that the dense graph needs.
        sides: Side of a feature's or computed column.
        sampler: Draws inputs that the model accepts.
    """

    graph: Graph
    facts: Facts
    traces: FeatureTraces
    codes: Mapping[str, Codes]
    feature_codes: Mapping[str, Codes]
    lookups: tuple[PlannedLookup, ...]
    sides: Callable[[Element], SideName]
    sampler: Sampler


def make_plan(graph: Graph, facts: Facts, inputs: Inputs, spec: FeatureSpec) -> Plan:
    """Plan the cut of a simplified graph.

    Raises:
        GraphError: An output has no rows, or its rows depend on each other; a feature's ids do not
            fit the table that they are looked up in.
    """
    return _Planner(graph, facts, inputs, spec).run()


def table_root(feature: Feature) -> Root:
    """Return the root that stands for the columns of a feature's own table."""
    return Root("rows", f"feature {feature.name}")


def join_neighbours(graph: Graph, facts: Facts, codes: dict[str, Codes]) -> Facts:
    """Join the traced ones among a Concat's inputs by a Concat of their own, which is then traced.

    So that a Concat of looked up rows and a computed tensor takes the rows as one stretch.
    """
    nodes: list[onnx.NodeProto] = []
    dims, dtypes, kinds = dict(facts.dims), dict(facts.dtypes), dict(facts.kinds)
    for node in graph.nodes:
        nodes.append(node)
        if node.op_type != "Concat" or node.output[0] in codes or node.output[0] not in dims:
            continue
        axis = attribute(node, "axis") % len(dims[node.output[0]])
        if dims[node.output[0]][axis].per_row:
            continue
        inputs: list[str] = []
        for is_traced, group in itertools.groupby(node.input, codes.__contains__):
            names = list(group)
            if not is_traced or len(names) < 2:
                inputs += names
                continue
            joined = f"{node.output[0]}/joined/{len(inputs)}"
            inputs.append(joined)
            nodes.insert(-1, onnx.helper.make_node("Concat", names, [joined], axis=axis))
            codes[joined] = np.concatenate([codes[name] for name in names], axis)
            size = sum(dims[name][axis].fixed for name in names)
            dims[joined] = (*dims[names[0]][:axis], Dim(size, 0), *dims[names[0]][axis + 1 :])
            dtypes[joined] = dtypes[names[0]]
            kinds[joined] = max(kinds[name] for name in names)
        if len(inputs) < len(node.input):
            nodes[-1] = onnx.helper.make_node("Concat", inputs, list(node.output), axis=axis)
    graph.nodes = nodes
    return attrs.evolve(facts, dims=dims, dtypes=dtypes, kinds=kinds)


@attrs.frozen(eq=False)
class Work:
    """The nodes that compute a tensor of kind FEATURES, and the columns that they start from."""

    nodes: tuple[onnx.NodeProto, ...]
    columns: frozenset[Element]

    @property
    def is_cheap(self) -> bool:
        """Whether a program should do it."""
        return all(node.op_type in _CHEAP and not node.domain for node in self.nodes) and all(
            element.root.space == "feature" for element in self.columns
        )


class _Planner:
    def __init__(self, graph: Graph, facts: Facts, inputs: Inputs, spec: FeatureSpec) -> None:
        self.graph, self.facts, self.inputs, self.spec = graph, facts, inputs, spec
        self.producers = graph.producers()
        self.columns = Columns()
        self.roots = self._input_codes()
        traces = self._trace(None)
        self._check_ranges(traces)
        sources = {
            name: {element.root.name for element in found} for name, found in traces.sources.items()
        }
        self.sampler = Sampler(inputs, counted(facts, sources, inputs))
        self.row_wise = row_wise_tensors(graph, facts, self.sampler)
        self._check_outputs()
        self.traces = self._trace(self.row_wise)
        self.ids: dict[str, list[Id]] = {}
        for name in facts.lookups:
            if (ids := self._ids(name)) is not None:
                self.ids[name] = ids
        self.dims = {name: self._dim(name) for name in self.ids}

    def run(self) -> Plan:
        pooled = Pooler(self.graph, self.facts, self.traces, self.dims).run()
        pooled = {name: each for name, each in pooled.items() if self._is_cheap(each)}
        while True:
            demand = _Demand(self, pooled)
            demand.need(self.graph.outputs)
            late = {
                name
                for name in demand.pooled
                if any(pool.lookup in demand.unpooled for pool in pooled[name].pools)
            }
            if not late:
                break
            pooled = {name: each for name, each in pooled.items() if name not in late}
        lookups = [*self._table_lookups(), *self._unpooled(demand), *self._pooled(demand, pooled)]
        roots = {name: pooled[name].codes for name in demand.pooled}
        for name in demand.unpooled:
            roots[name] = self._lookup_codes(name)
        for name in demand.hoisted:
            numbers = self.columns.of(Root("computed", name), self.row_size(name))
            roots[name] = encode(numbers, self.facts.shape(name))
        codes = self._moved(roots)
        self.facts = join_neighbours(self.graph, self.facts, codes)
        return Plan(
            graph=self.graph,
            facts=self.facts,
            traces=self.traces,
            codes=codes,
            feature_codes=self._moved({}),
            lookups=tuple(lookups),
            sides=self.side,
            sampler=self.sampler,
        )

    def side(self, element: Element) -> SideName:
        """Return the side of a feature's or computed column."""
        root = element.root
        if root.space == "feature":
            return self.spec.by_name[root.name].side
        sources = self.traces.sources[root.name]
        return "user" if all(self.side(each) == "user" for each in sources) else "candidate"

    def _input_codes(self) -> dict[str, Codes]:
        codes = {}
        for port in self.graph.inputs:
            numbers: list[int] = []
            for feature in self.inputs.pieces[port.name]:
                root = Root("feature", feature.name) if feature.table is None else None
                numbers += self.columns.of(root or table_root(feature), width(feature))
            if numbers:
                shape = (TRACE_BATCH, *self.inputs.shapes[port.name])
                codes[port.name] = encode(numbers, shape)
        return codes

    def _trace(self, row_wise: set[str] | None) -> FeatureTraces:
        return trace_features(
            self.graph, self.facts, self.roots, self.columns, self._is_integral, row_wise
        )

    def _is_cheap(self, pooled: Pooled) -> bool:
        """Whether a program may compute the weights of a pooling."""
        roots = {e.root for pool in pooled.pools for e in pool.weights or ()}
        for root in roots:
            if root.space == "rows":
                return False
            if root.space == "computed" and not self.work(root.name).is_cheap:
                return False
        return True

    def work(self, tensor: str) -> Work:
        """Return what computing a tensor from features takes."""
        nodes: dict[str, onnx.NodeProto] = {}
        columns: set[Element] = set()
        pending = [tensor]
        while pending:
            node = self.producers[pending.pop()]
            if node.output[0] in nodes:
                continue
            nodes[node.output[0]] = node
            for each in reads(node):
                if self.facts.kinds[each] != Kind.FEATURES:
                    continue
                traced = self.traces.values.get(each)
                if traced is None:
                    pending.append(each)
                    continue
                for element in elements_of(traced, self.columns):
                    if element.root.space == "computed":
                        pending.append(element.root.name)
                    else:
                        columns.add(element)
        return Work(tuple(nodes.values()), frozenset(columns))

    def _is_integral(self, element: Element) -> bool:
        root = element.root
        return root.space == "feature" and self.spec.by_name[root.name].dtype == "int64"

    def _moved(self, roots: Mapping[str, Codes]) -> dict[str, Codes]:
        """Trace to features and ``roots`` alone."""

        def integral(number: int) -> bool:
            element = self.columns.element(number)
            if element.root.space == "computed":
                return self.facts.dtypes[element.root.name].kind in "iub"
            return self._is_integral(element)

        tracer = Tracer(self.graph, self.facts, self.roots, is_integral=integral, root_of=roots.get)
        return {name: traced.codes for name, traced in tracer.run().items()}

    def _check_outputs(self) -> None:
        for name in self.graph.outputs:
            if name in self.graph.constants or self.facts.kinds[name] <= Kind.BATCH:
                raise GraphError(
                    f"{self.graph.name}: output {name!r} does not depend on the inputs"
                )
            if name not in self.row_wise:
                raise GraphError(
                    f"{self.graph.name}: output {name!r} is not one result a row: its rows depend "
                    "on each other or on their number"
                )

    def row_size(self, name: str) -> int:
        """Return how many elements a row of a tensor with rows has."""
        size = self.facts.row_size(name)
        assert size is not None  # only such tensors become roots
        return size

    def _dim(self, name: str) -> int:
        table = self.graph.constants[self.producers[name].input[0]]
        return int(np.prod(table.shape[1:], dtype=np.int64))

    def _lookup_codes(self, name: str) -> Codes:
        size = len(self.ids[name]) * self.dims[name]
        numbers = self.columns.of(Root("rows", name), size)
        return encode(numbers, self.facts.shape(name))

    def _ids(self, name: str) -> list[Id] | None:
        """Return where a lookup's ids come from; None if it cannot be cut."""
        tensor = self.producers[name].input[1]
        if self.facts.row_size(name) is None or self.facts.row_size(tensor) is None:
            return None
        traced = self.traces.ids.get(tensor)
        numbers = None if traced is None else row_columns(traced.codes)
        if traced is not None and numbers is not None:
            added = traced.added.reshape(TRACE_BATCH, -1)
            elements = self.columns.elements(numbers)
            if (added == added[0]).all() and all(e.root.space != "rows" for e in elements):
                ids = [Id(e, int(by)) for e, by in zip(elements, added[0], strict=True)]
                return ids
        if tensor not in self.row_wise or not self._from_features(tensor):
            return None
        root = Root("computed", tensor)
        return [Id(Element(root, place), 0) for place in range(self.row_size(tensor))]

    def _from_features(self, tensor: str) -> bool:
        """Whether a tensor depends on features themselves, and not on rows of their own tables."""
        if tensor not in self.traces.sources:
            return all(
                self._from_features(name)
                for name in reads(self.producers[tensor])
                if self.facts.kinds[name] == Kind.FEATURES
            )
        return all(each.root.space == "feature" for each in self.traces.sources[tensor])

    def _check_ranges(self, traces: FeatureTraces) -> None:
        """Refuse features whose ids go beyond a table that they are looked up in."""
        for name in self.facts.lookups:
            table, tensor = self.producers[name].input
            rows = self.graph.constants[table].shape[0]
            if tensor not in traces.ids:
                continue
            for element, added in places_of(traces.ids[tensor], self.columns):
                feature = self.spec.by_name.get(element.root.name)
                if element.root.space != "feature" or feature is None or feature.ids is None:
                    continue
                low, high = (bound + added for bound in feature.ids)
                if low < 0 or high >= rows:
                    raise GraphError(
                        f"{self.graph.name}: feature {feature.name!r} gives ids {feature.ids[0]} "
                        f"to {feature.ids[1]}, which are rows {low} to {high} of table {table!r}; "
                        f"it has {rows} rows"
                    )

    def _table_lookups(self) -> list[PlannedLookup]:
        """Return the lookups of features that bring their own table."""
        found = []
        for feature in self.inputs.features():
            if feature.table is None:
                continue
            root, weights = Root("feature", feature.name), None
            if f"{feature.name}.weight" in self.spec.by_name:
                scale = Root("feature", f"{feature.name}.weight")
                weights = tuple(Element(scale, place) for place in range(feature.width))
            ids = tuple(Id(Element(root, place), 0) for place in range(feature.width))
            dim = width(feature) // (feature.width if feature.pooling == "none" else 1)
            found.append(
                PlannedLookup(
                    root=table_root(feature),
                    side=feature.side,
                    tensor=feature.input,
                    table=feature.table,
                    pooling=feature.pooling,
                    ids=ids,
                    weights=weights,
                    dim=dim,
                )
            )
        return found

    def _unpooled(self, demand: _Demand) -> list[PlannedLookup]:
        """Return the lookups that are laid side by side, one for each stretch of one side."""
        found = []
        for name in demand.unpooled:
            ids, first = self.ids[name], 0
            while first < len(ids):
                side, last = self.side(ids[first].element), first + 1
                while last < len(ids) and self.side(ids[last].element) == side:
                    last += 1
                found.append(
                    PlannedLookup(
                        root=Root("rows", name),
                        side=side,
                        tensor=name,
                        table=self.producers[name].input[0],
                        pooling="none",
                        ids=tuple(ids[first:last]),
                        weights=None,
                        dim=self.dims[name],
                        first=first * self.dims[name],
                    )
                )
                first = last
        return found

    def _pooled(self, demand: _Demand, pooled: Mapping[str, Pooled]) -> list[PlannedLookup]:
        pools: dict[Pool, str] = {}
        for name in demand.pooled:
            for pool in pooled[name].pools:
                pools.setdefault(pool, name)
        found = []
        for pool, name in pools.items():
            ids = tuple(self.ids[pool.lookup][entry] for entry in pool.entries)
            elements = [*(each.element for each in ids), *(pool.weights or ())]
            user = all(self.side(element) == "user" for element in elements)
            found.append(
                PlannedLookup(
                    root=rows_root(pool),
                    side="user" if user else "candidate",
                    tensor=name,
                    table=self.producers[pool.lookup].input[0],
                    pooling=pool.pooling,
                    ids=ids,
                    weights=pool.weights,
                    dim=self.dims[pool.lookup],
                )
            )
        return found


class _Demand:
    """What the dense graph needs, when some reductions are taken for pooled lookups.

    Attributes:
        unpooled: Lookups whose rows it needs as they are.
        pooled: Reductions whose results it needs.
        hoisted: Tensors of features that it needs and a program computes.
    """

    def __init__(self, planner: _Planner, pooled: Mapping[str, Pooled]) -> None:
        self.planner, self.candidates = planner, pooled
        self.unpooled: list[str] = []
        self.pooled: list[str] = []
        self.hoisted: list[str] = []
        self._seen: set[str] = set()

    def need(self, names: tuple[str, ...]) -> None:
        """Note what computing these tensors takes."""
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in self._seen:
                continue
            self._seen.add(name)
            pending += self._expand(name)

    def _expand(self, name: str) -> list[str]:
        """Note one tensor; return those that the dense graph needs for it."""
        planner = self.planner
        if name in planner.graph.constants or planner.facts.kinds[name] <= Kind.BATCH:
            return []
        if name in self.candidates:
            self.pooled.append(name)
            return []
        if name in planner.dims:
            self.unpooled.append(name)
            return []
        traced = planner.traces.values.get(name)
        if traced is None:
            return reads(planner.producers[name])
        needed: list[str] = []
        for root in dict.fromkeys(e.root for e in elements_of(traced, planner.columns)):
            if root.space != "computed" or root.name in self._seen - {name}:
                continue
            self._seen.add(root.name)
            if self._is_hoisted(root.name):
                self.hoisted.append(root.name)
            else:
                needed += reads(planner.producers[root.name])
        return needed

    def _is_hoisted(self, name: str) -> bool:
        """Whether a computed tensor is integer work that is better done beside the lookups."""
        planner = self.planner
        work = planner.work(name)
        dtypes = planner.facts.dtypes
        if not work.is_cheap or not any(
            dtypes[output].kind in "iub" for node in work.nodes for output in node.output
        ):
            return False
        return planner.row_size(name) <= _FREE_COLUMNS + _MOST_GROWTH * len(work.columns)

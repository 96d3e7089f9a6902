"""Planning a cut: which lookups are cut, pooled or not, and where their ids come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels.bundle.demand import Demand, Worker
from kernels.bundle.inputs import Inputs, width
from kernels.bundle.manifest import SideName
from kernels.bundle.planned import Id, Plan, PlannedLookup
from kernels.bundle.pooling import Pool, Pooled, Pooler, rows_root
from kernels.bundle.samples import Sampler, counted, row_wise_tensors
from kernels.bundle.stores import Stores
from kernels.bundle.traces import FeatureTraces, places_of, trace_features
from kernels.errors import GraphError
from kernels.features.spec import Feature, FeatureSpec
from kernels.graph.facts import RANDOM, TRACE_BATCH, Facts, Kind
from kernels.graph.join import join_neighbours
from kernels.graph.model import Graph, reads
from kernels.graph.trace import Codes, Columns, Element, Root, Tracer, encode, row_columns


def make_plan(
    graph: Graph, facts: Facts, inputs: Inputs, spec: FeatureSpec, stores: Stores
) -> Plan:
    """Plan the cut of a simplified graph.

    Args:
        graph: The graph.
        facts: Of it.
        inputs: Its inputs as features.
        spec: The features.
        stores: Tables of the store, by the constants that they take the place of.

    Raises:
        GraphError: An output has no rows, or its rows depend on each other; a feature's ids do not
            fit the table that they are looked up in.
    """
    return _Planner(graph, facts, inputs, spec, stores).run()


def table_root(feature: Feature) -> Root:
    """Return the root that stands for the columns of a feature's own table."""
    return Root("rows", f"feature {feature.name}")


class _Planner:
    def __init__(
        self, graph: Graph, facts: Facts, inputs: Inputs, spec: FeatureSpec, stores: Stores
    ) -> None:
        self.graph, self.facts, self.inputs, self.spec = graph, facts, inputs, spec
        self.stores = stores
        self.producers = graph.producers()
        self.columns = Columns()
        self.roots = self._input_codes()
        traces = self._trace(None)
        self._check_ranges(traces)
        sources = {
            name: {element.root.name for element in found} for name, found in traces.sources.items()
        }
        self.looked_up = {name: self._looked_up(name, traces) for name in stores}
        bounds: dict[str, int] = {}
        for name, features in self.looked_up.items():
            for feature in features:
                rows = len(graph.constants[name])
                bounds[feature] = min(rows, bounds.get(feature, rows))
        self.sampler = Sampler(inputs, counted(facts, sources, inputs), bounds)
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
            worker = Worker(self.graph, self.facts, self.traces)
            demand = Demand(worker, frozenset(self.dims), frozenset(pooled))
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
            stores=self.stores,
            looked_up=self.looked_up,
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
        work = Worker(self.graph, self.facts, self.traces)
        roots = {e.root for pool in pooled.pools for e in pool.weights or ()}
        for root in roots:
            if root.space == "rows":
                return False
            if root.space == "computed" and not work.of(root.name).is_cheap:
                return False
        return True

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
                chance = [node.op_type for node in self.graph.nodes if node.op_type in RANDOM]
                raise GraphError(
                    f"{self.graph.name}: output {name!r} is not one result a row: its rows depend "
                    f"on {f'chance ({chance[0]})' if chance else 'each other or on their number'}"
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

    def _looked_up(self, table: str, traces: FeatureTraces) -> frozenset[str]:
        """Return the features whose values are ids of a table, or make them."""
        found: set[str] = set()
        for name in self.facts.lookups:
            source, tensor = self.producers[name].input
            if source != table or tensor not in traces.ids:
                continue
            for element, _ in places_of(traces.ids[tensor], self.columns):
                if element.root.space == "feature":
                    found.add(element.root.name)
                elif element.root.space == "computed":
                    found |= {each.root.name for each in traces.sources[element.root.name]}
        return frozenset(found & self.spec.by_name.keys())

    def _check_ranges(self, traces: FeatureTraces) -> None:
        """Refuse features whose ids go beyond a table that they are looked up in."""
        for name in self.facts.lookups:
            table, tensor = self.producers[name].input
            rows = self.graph.constants[table].shape[0]
            store = self.stores.get(table)
            if store is not None:
                rows = store.header.rows
            if tensor not in traces.ids or (store is not None and store.header.keyed):
                continue
            for element, added in places_of(traces.ids[tensor], self.columns):
                feature = self.spec.by_name.get(element.root.name)
                if element.root.space != "feature" or feature is None or feature.ids is None:
                    continue
                if feature.keyed:
                    raise GraphError(
                        f"{self.graph.name}: feature {feature.name!r} gives keys, but table "
                        f"{table!r} is found by row numbers: --table {table}=TABLE/ names one of "
                        "keys to take its place"
                    )
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
            root, weights, pooling = Root("feature", feature.name), None, feature.pooling
            if f"{feature.name}.weight" in self.spec.by_name:
                pooling = feature.weighted_pooling
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
                    pooling=pooling,
                    ids=ids,
                    weights=weights,
                    dim=dim,
                )
            )
        return found

    def _unpooled(self, demand: Demand) -> list[PlannedLookup]:
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

    def _pooled(self, demand: Demand, pooled: Mapping[str, Pooled]) -> list[PlannedLookup]:
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

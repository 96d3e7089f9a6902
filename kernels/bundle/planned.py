"""A planned cut, as values: lookups without a place yet, and the dense graph's boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from kernels.bundle.manifest import Pooling, SideName
from kernels.bundle.samples import Sampler
from kernels.bundle.stores import Stores
from kernels.bundle.traces import FeatureTraces
from kernels.graph.facts import Facts
from kernels.graph.model import Graph
from kernels.graph.trace import Codes, Element, Root


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
        stores: Tables of the store, by the constants of the graph that they take the place of.
        looked_up: Of each of these, the features whose values are its ids, or make them.
    """

    graph: Graph
    facts: Facts
    traces: FeatureTraces
    codes: Mapping[str, Codes]
    feature_codes: Mapping[str, Codes]
    lookups: tuple[PlannedLookup, ...]
    sides: Callable[[Element], SideName]
    sampler: Sampler
    stores: Stores
    looked_up: Mapping[str, frozenset[str]]

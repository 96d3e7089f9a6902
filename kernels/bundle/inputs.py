"""Graph inputs as features: which columns of which input each feature of the spec fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from kernels.errors import GraphError
from kernels.features.spec import Feature, FeatureSpec
from kernels.graph.facts import row_shape
from kernels.graph.model import Array, Graph

Shapes = Mapping[str, tuple[int, ...]]


@attrs.frozen(eq=False)
class Inputs:
    """A model's inputs, cut into features.

    Attributes:
        pieces: For each graph input, its features by column, without gaps; an input that nothing
            reads need not have any.
        shapes: Dimensions of one row of each graph input.
    """

    graph: Graph
    pieces: Mapping[str, tuple[Feature, ...]]
    shapes: Shapes

    def features(self) -> list[Feature]:
        """Return the features in use, by input and column."""
        return [feature for pieces in self.pieces.values() for feature in pieces]

    def assemble(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Make graph inputs from each feature's columns, ``[n, graph_width]`` by name."""
        feeds = {}
        n = len(next(iter(columns.values())))
        for port in self.graph.inputs:
            flat = np.zeros((n, _size(self.shapes[port.name])), port.dtype)
            for feature in self.pieces[port.name]:
                end = feature.column + width(feature)
                flat[:, feature.column : end] = columns[feature.name]
            feeds[port.name] = flat.reshape(n, *self.shapes[port.name])
        return feeds

    def take_apart(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Invert ``assemble``: from graph inputs, with rows in dimension 0, to features' columns.

        Raises:
            GraphError: An input is missing, or its rows are of another size.
        """
        columns = {}
        for port in self.graph.inputs:
            if not self.pieces[port.name]:
                continue
            if port.name not in feeds:
                raise GraphError(f"{self.graph.name}: no value for input {port.name!r}")
            array = feeds[port.name]
            want = self.shapes[port.name]
            size = _size(want)
            if array.ndim == 0 or array.size != len(array) * size:
                raise GraphError(
                    f"{self.graph.name}: input {port.name!r}: rows of {list(array.shape[1:])}, "
                    f"want {list(want)}"
                )
            flat = array.reshape(len(array), size)
            for feature in self.pieces[port.name]:
                end = feature.column + width(feature)
                columns[feature.name] = flat[:, feature.column : end]
        return columns


def _size(row: tuple[int, ...]) -> int:
    return int(np.prod(row, dtype=np.int64))


def width(feature: Feature) -> int:
    """Return how many columns of its input a feature fills."""
    assert feature.graph_width is not None  # the spec was read with its tables at hand
    return feature.graph_width


def open_shapes(graph: Graph, spec: FeatureSpec, given: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the row shapes of inputs, the open ones as wide as their features."""
    shapes = dict(given)
    for port in graph.inputs:
        if port.name not in shapes and port.shape[1:] == (None,):
            ends = [f.column + width(f) for f in spec.features if f.input == port.name]
            if ends:
                shapes[port.name] = (max(ends),)
    return shapes


def cover(graph: Graph, spec: FeatureSpec, shapes: Shapes) -> Inputs:
    """Match features to graph inputs.

    Raises:
        GraphError: A feature is for an input that there is not, or lies outside its input; columns
            of an input have no feature.
    """
    known = {port.name for port in graph.inputs}
    by_input: dict[str, list[Feature]] = {name: [] for name in known}
    for feature in spec.features:
        if feature.kind == "weight":
            continue
        if feature.input in by_input:
            by_input[feature.input].append(feature)
        elif feature.name not in spec.members:
            raise GraphError(
                f"{graph.name}: feature {feature.name!r} (line {feature.line} of {spec.name}) is "
                f"for input {feature.input!r}; the model has {', '.join(sorted(known))}"
            )
    rows = {port.name: row_shape(graph, port, shapes) for port in graph.inputs}
    used = graph.consumers().keys() | set(graph.outputs)
    pieces = {
        port.name: _in_order(graph, port.name, by_input[port.name], rows[port.name])
        if port.name in used or by_input[port.name]
        else ()
        for port in graph.inputs
    }
    return Inputs(graph, pieces, rows)


def gaps(features: Sequence[Feature], size: int) -> list[tuple[int, int]]:
    """Return the ranges of ``size`` columns that no feature fills."""
    found, at = [], 0
    for feature in sorted(features, key=lambda each: each.column):
        if feature.column > at:
            found.append((at, feature.column))
        at = feature.column + width(feature)
    return [*found, (at, size)] if at < size else found


def _in_order(
    graph: Graph, name: str, features: list[Feature], row: tuple[int, ...]
) -> tuple[Feature, ...]:
    size = _size(row)
    features.sort(key=lambda each: each.column)
    (port,) = (port for port in graph.inputs if port.name == name)
    for feature in features:
        if feature.keyed and feature.table is None and port.dtype != np.int64:
            raise GraphError(
                f"{graph.name}: feature {feature.name!r} gives keys of 64 bits, but input {name!r} "
                f"is {port.dtype}: export the model with int64"
            )
        if feature.column + width(feature) > size:
            raise GraphError(
                f"{graph.name}: feature {feature.name!r} fills columns {feature.column} to "
                f"{feature.column + width(feature) - 1} of input {name!r}, which has {size}"
            )
    missing = gaps(features, size)
    if missing:
        listed = ", ".join(f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in missing)
        raise GraphError(
            f"{graph.name}: no feature fills columns {listed} of input {name!r} "
            "(--infer-features derives identity features for them)"
        )
    return tuple(features)

"""Random inputs that a model accepts: what analysis and check of a cut are run on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.inputs import Inputs, width
from kernels.errors import GraphError
from kernels.features.spec import Feature
from kernels.graph.facts import Facts, Kind
from kernels.graph.model import Array, Graph
from kernels.graph.probe import open_prober

_SEED = 20240607
# Numbers that the graph takes for integers are lengths and counts: at least 1, since ONNX Runtime
# 1.32 ends by a signal on sequences that are all empty, and not beyond any sequence.
_LARGEST_COUNTS = (4, 2, 1)
TRIALS = len(_LARGEST_COUNTS)


@attrs.frozen(eq=False)
class Sampler:
    """Draws features' columns.

    Attributes:
        counts: Names of features of numbers that the graph turns into integers.
        bounds: Of features that are looked up in tables whose rows the graph has few of: their
            ids are drawn below so many.
        keys: Of features that are keys: those to draw from, among others.
    """

    inputs: Inputs
    counts: Collection[str]
    bounds: Mapping[str, int] = attrs.field(factory=dict)
    keys: Mapping[str, NDArray[np.int64]] = attrs.field(factory=dict)

    def draw(self, n: int, trial: int) -> dict[str, Array]:
        """Return ``[n, graph_width]`` for each feature; the same trial gives the same rows."""
        random = np.random.default_rng([_SEED, trial])
        return {
            feature.name: self._column(feature, n, trial, random)
            for feature in self.inputs.features()
        }

    def _column(self, feature: Feature, n: int, trial: int, random: np.random.Generator) -> Array:
        shape = (n, width(feature))
        if feature.dtype == "int64" and feature.ids is not None and feature.table is None:
            bound, keys = self.bounds.get(feature.name), self.keys.get(feature.name)
            return ids_of(feature, shape, random, bound=bound, keys=keys)
        if self._is_flag(feature):
            return random.integers(0, 2, shape)
        if feature.name in self.counts:
            largest = _LARGEST_COUNTS[trial % TRIALS]
            return random.integers(1, largest + 1, shape)
        return random.normal(size=shape).astype(np.float32)

    def _is_flag(self, feature: Feature) -> bool:
        ports = self.inputs.graph.inputs
        return any(port.name == feature.input and port.dtype.kind == "b" for port in ports)


def ids_of(
    feature: Feature,
    shape: tuple[int, int],
    random: np.random.Generator,
    *,
    bound: int | None = None,
    keys: NDArray[np.int64] | None = None,
) -> Array:
    """Draw ids of a feature: all over its range, its ends included, the lowest one repeatedly.

    Args:
        feature: Of ids.
        shape: Of the ids.
        random: The source of chance.
        bound: Draw only ids from 0 on and below this.
        keys: Of the table that the ids are looked up in, if it has keys: most are among these.
    """
    assert feature.ids is not None
    low, high = feature.ids
    if bound is not None:
        high = max(min(high, bound - 1), 0)
        low = min(max(low, 0), high)
    ids = random.integers(low, high, shape, endpoint=True)
    choice = random.random(shape)
    pad = low if feature.padding is None or not feature.keyed else feature.padding.pad
    if bound is None or low <= pad <= high:
        ids[choice < 0.3] = pad  # padding, as a rule
    if keys is not None and len(keys) and feature.keyed:
        known = random.choice(keys, shape)
        return np.where(choice > 0.5, known, ids)
    ids[choice > 0.9] = high
    return ids


def counted(facts: Facts, sources: Mapping[str, Collection[str]], inputs: Inputs) -> set[str]:
    """Return the features of numbers from which the graph computes integers or truth values."""
    found = {
        feature.name
        for port in inputs.graph.inputs
        if port.dtype.kind in "iub"
        for feature in inputs.pieces[port.name]
    }
    for tensor, names in sources.items():
        if facts.dtypes[tensor].kind in "iub":
            found.update(names)
    return found


def row_wise_tensors(graph: Graph, facts: Facts, sampler: Sampler) -> set[str]:
    """Find the tensors of kind FEATURES, and outputs, whose rows depend on their row alone.

    Rows are run in another order and beside other rows; a tensor that so depends on its row's
    place, on the batch, or on other rows shows.

    Raises:
        GraphError: The model did not run on any of the inputs tried.
    """
    names = [
        name
        for node in graph.nodes
        for name in node.output
        if facts.kinds.get(name) == Kind.FEATURES and facts.row_size(name) is not None
    ]
    names = list(dict.fromkeys([*names, *graph.outputs]))
    names = [name for name in names if name not in graph.constants]
    found = set(names)
    for few, many in _pairs(graph, sampler, names):
        for name in list(found):
            if name not in few or not _follows(few[name], many[name]):
                found.remove(name)
    return found


_FEW, _MANY = 5, 7


def _pairs(
    graph: Graph, sampler: Sampler, names: list[str]
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yield results of ``_MANY`` rows and of the first ``_FEW`` of them in reverse order."""
    prober = open_prober(graph, names)
    problem: GraphError | None = None
    ran = False
    for trial in range(TRIALS):
        columns = sampler.draw(_MANY, trial)
        reverse = {name: array[_FEW - 1 :: -1] for name, array in columns.items()}
        try:
            many = prober.run(sampler.inputs.assemble(columns))
            few = prober.run(sampler.inputs.assemble(reverse))
        except GraphError as error:
            problem = error
            continue
        ran = True
        yield few, many
    if not ran:
        raise GraphError(f"{graph.name}: does not run on random inputs: {problem}")


def _follows(few: Array, many: Array) -> bool:
    if not few.ndim or not many.ndim or few.size * _MANY != many.size * _FEW or not few.size:
        return False
    if len(few) % _FEW or len(many) % _MANY:
        return False
    rows = many.reshape(_MANY, -1)[_FEW - 1 :: -1]
    flat = few.reshape(_FEW, -1)
    if few.dtype.kind != "f":
        return np.array_equal(flat, rows)
    return bool(np.allclose(flat, rows, rtol=1e-3, atol=1e-5, equal_nan=True))

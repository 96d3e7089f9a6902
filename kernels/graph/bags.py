"""EmbeddingBags that exporters wrote as loops, found by what they compute.

Exporters have no operator for a bag and write a Loop over the bags' offsets, each in its own way.
So nothing here matches the loop's nodes: if on random ids the result is what pooling the rows of
its table would give, for every batch tried, then it is that pooling, and plain nodes take its
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs
import numpy as np
import onnx

from kernels.errors import GraphError
from kernels.graph.facts import BATCHES, Facts, Kind, feeds
from kernels.graph.model import Array, Graph, bodies, reads
from kernels.graph.probe import Prober, open_prober

_SEED = 20  # any: the ids tried are the same in every build
_TRIES = 3


@attrs.frozen
class _Bag:
    """A guess: ``output`` is ``op`` over the rows ``table[ids]``, times ``weights`` if any."""

    output: str
    table: str
    ids: str
    weights: str | None
    op: str


def rewrite_bags(graph: Graph, facts: Facts, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Replace the bags among a graph's loops, in place; say whether there were any."""
    loops = [node for node in graph.nodes if node.op_type == "Loop"]
    guesses = [guess for loop in loops for guess in _guesses(loop, graph, facts)]
    if not guesses:
        return False
    names = {name for g in guesses for name in (g.output, g.ids, g.weights) if name is not None}
    runs = list(_runs(open_prober(graph, sorted(names)), graph, guesses, shapes))
    found: dict[str, _Bag] = {}
    for guess in guesses:
        if guess.output not in found and runs and all(_holds(guess, g, graph) for g in runs):
            found[guess.output] = guess
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        bags = [found[name] for name in node.output if name in found]
        if not bags:
            nodes.append(node)
        for bag in bags:
            nodes += _plain(bag, graph, runs[0])
    graph.nodes = nodes
    return bool(found)


def _runs(
    prober: Prober, graph: Graph, guesses: list[_Bag], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[dict[str, Array]]:
    """Run the graph on random ids that are in range for the tables at hand."""
    rows = min(graph.constants[guess.table].shape[0] for guess in guesses)
    random = np.random.default_rng(_SEED)
    for batch in (*BATCHES, *BATCHES[:_TRIES]):
        fed = feeds(graph, shapes, batch, 0)
        for name, array in fed.items():
            fed[name] = random.integers(0, max(rows, 2), array.shape).astype(array.dtype)
        try:
            yield prober.run(fed)
        except GraphError:
            continue  # these numbers do not suit another part of the model


def _guesses(loop: onnx.NodeProto, graph: Graph, facts: Facts) -> Iterator[_Bag]:
    outputs = _results(loop, graph)
    above = _above(loop, graph, facts)
    inner = [node for body in bodies(loop) for node in _all_nodes(body)]
    tables = {node.input[0] for node in (*above, *inner) if node.op_type == "Gather"}
    tables = {name for name in tables if _is_table(name, graph)}
    read = dict.fromkeys((*reads(loop), *(name for node in above for name in reads(node))))
    of_features = [name for name in read if facts.kinds.get(name) == Kind.FEATURES]
    ids = [name for name in of_features if facts.dtypes[name].kind == "i"]
    weights = [name for name in of_features if facts.dtypes[name].kind == "f"]
    for output in outputs:
        for table in sorted(tables):
            for each in ids:
                for weight in (None, *weights):
                    for op in ("ReduceSum", "ReduceMean", "ReduceMax"):
                        yield _Bag(output, table, each, weight, op)


def _results(loop: onnx.NodeProto, graph: Graph) -> list[str]:
    """Return the tensors that a loop's results come out in."""
    made = set(loop.output)
    results = [name for name in loop.output if name]
    return results + [
        node.output[0]
        for node in graph.nodes
        if node.op_type == "ConcatFromSequence" and node.input[0] in made
    ]


def _above(loop: onnx.NodeProto, graph: Graph, facts: Facts) -> list[onnx.NodeProto]:
    """Return the nodes between the loop and the inputs that its rows come through."""
    producers = graph.producers()
    found: dict[str, onnx.NodeProto] = {}
    pending = [name for name in reads(loop) if name in producers]
    while pending:
        node = producers[pending.pop()]
        if node.output[0] in found:
            continue
        found[node.output[0]] = node
        if facts.kinds[node.output[0]] == Kind.MIXED:
            pending += [name for name in reads(node) if name in producers]
    return list(found.values())


def _all_nodes(body: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in body.node:
        yield node
        for inner in bodies(node):
            yield from _all_nodes(inner)


def _is_table(name: str, graph: Graph) -> bool:
    array = graph.constants.get(name)
    return array is not None and array.ndim == 2 and array.dtype.kind == "f"


def _holds(guess: _Bag, run: Mapping[str, Array], graph: Graph) -> bool:
    """Whether a guess is what a run gave."""
    result, ids = run.get(guess.output), run.get(guess.ids)
    table = graph.constants[guess.table]
    if result is None or ids is None or result.ndim != 2 or not len(result):
        return False
    if ids.size % len(result) or result.shape[1] != table.shape[1] or not ids.size:
        return False
    if ids.min() < -len(table) or ids.max() >= len(table):
        return False
    rows = table[ids.reshape(len(result), -1)].astype(np.float64)
    if guess.weights is not None:
        weights = run.get(guess.weights)
        if weights is None or weights.size != ids.size:
            return False
        rows *= weights.reshape(*rows.shape[:2], 1)
    pooled = rows.max(1) if guess.op == "ReduceMax" else rows.sum(1)
    if guess.op == "ReduceMean":
        pooled /= rows.shape[1]
    return bool(np.allclose(result, pooled, rtol=1e-3, atol=1e-5))


def _plain(bag: _Bag, graph: Graph, run: Mapping[str, Array]) -> Iterable[onnx.NodeProto]:
    """Return nodes that compute a bag without a loop."""
    length = run[bag.ids].size // len(run[bag.output])
    name, make = bag.output, onnx.helper.make_node
    graph.constants[name + "/bags"] = np.asarray([-1, length], np.int64)
    yield make("Reshape", [bag.ids, name + "/bags"], [name + "/ids"])
    yield make("Gather", [bag.table, name + "/ids"], [name + "/rows"])
    rows = name + "/rows"
    if bag.weights is not None:
        graph.constants[name + "/columns"] = np.asarray([-1, length, 1], np.int64)
        yield make("Reshape", [bag.weights, name + "/columns"], [name + "/weights"])
        yield make("Mul", [rows, name + "/weights"], [name + "/weighted"])
        rows = name + "/weighted"
    if graph.opsets.get("", 1) < (13 if bag.op == "ReduceSum" else 18):
        yield make(bag.op, [rows], [name], axes=[1], keepdims=0)
    else:
        graph.constants[name + "/axis"] = np.asarray([1], np.int64)
        yield make(bag.op, [rows, name + "/axis"], [name], keepdims=0)

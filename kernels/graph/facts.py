"""What is known of each tensor of a graph: type, dimensions, and what its value depends on."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from typing import Any, Final

import attrs
import numpy as np
import onnx

from kernels.errors import GraphError
from kernels.graph.model import Array, Graph, Port, attribute, bodies, reads
from kernels.graph.probe import open_prober

# Pairwise different, prime and unlikely as sizes of a layer, so that a dimension that follows the
# batch is told from one that does not. Batch 1 is where exporters' special cases sit.
BATCHES: Final = (3, 5, 7)
TRACE_BATCH: Final = 3


class Kind(enum.IntEnum):
    """What a tensor's value depends on; each kind includes those before it."""

    CONSTANT = 0
    BATCH = 1  #: on the batch size alone
    FEATURES = 2  #: on inputs
    MIXED = 3  #: on looked up rows too


@attrs.frozen
class Dim:
    """A dimension: ``fixed + per_row * batch``."""

    fixed: int
    per_row: int


Dims = tuple[Dim, ...]

# Inputs that say how large an output is, where not all do.
_SIZE_OPERANDS: Final[Mapping[str, tuple[int, ...]]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "TopK": (1,),
    "OneHot": (1,),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Resize": (2, 3),
}
_UNSIZED: Final = frozenset(
    {
        "NonZero",
        "Compress",
        "Unique",
        "NonMaxSuppression",
        "Loop",
        "Scan",
        "SequenceAt",
        "StringSplit",
    }
    | {"ConcatFromSequence", "SequenceInsert"}
)
RANDOM: Final = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)


@attrs.frozen(eq=False)
class Facts:
    """Of a graph's tensors, by name.

    Attributes:
        dims: Only of tensors whose shape depends on nothing but the batch size.
        observed: As ``dims``, of the other tensors whose shape was regular in the runs.
        values: For each batch of ``BATCHES`` (and 1 where the model runs on one row), the tensors
            of kind CONSTANT and BATCH.
        lookups: Names of the outputs of the nodes that look features' ids up in constant tables.
    """

    dtypes: Mapping[str, np.dtype[Any]]
    dims: Mapping[str, Dims]
    observed: Mapping[str, Dims]
    kinds: Mapping[str, Kind]
    values: Mapping[int, Mapping[str, Array]]
    lookups: tuple[str, ...]

    def shape(self, name: str, batch: int = TRACE_BATCH) -> tuple[int, ...]:
        """Return a tensor's shape at a batch size."""
        return tuple(dim.fixed + dim.per_row * batch for dim in self.dims[name])

    def seen(self, name: str) -> Dims | None:
        """Return a tensor's dimensions, proven or observed."""
        return self.dims.get(name, self.observed.get(name))

    def row_size(self, name: str) -> int | None:
        """Return how many elements a row has, where dimension 0 holds the rows; else None."""
        dims = self.dims.get(name)
        if not dims or dims[0].fixed or any(dim.per_row for dim in dims[1:]):
            return None
        return dims[0].per_row * int(np.prod([dim.fixed for dim in dims[1:]], dtype=np.int64))


def learn(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Facts:
    """Find out what can be known of a graph's tensors by running it on ones (or zeros).

    Args:
        graph: Read only.
        shapes: Dimensions of one row, for inputs whose shape leaves them open.
    """
    runs = _probe(graph, shapes)
    first = runs[BATCHES[0]]
    dims = {name: _dims(name, runs) for name in first}
    sized: set[str] = set(graph.constants) | {port.name for port in graph.inputs}
    kinds = dict.fromkeys(graph.constants, Kind.CONSTANT)
    kinds |= {port.name: Kind.FEATURES for port in graph.inputs}
    lookups: list[str] = []
    for node in graph.nodes:
        names = reads(node)
        is_sized = _is_sized(node, kinds) and all(name in sized for name in names)
        kind = _kind(node, names, kinds, is_sized)
        if is_lookup(node, kinds, graph.constants):
            kind = Kind.MIXED
            lookups.append(node.output[0])
        for name in node.output:
            kinds[name] = kind
            if is_sized and dims.get(name) is not None:
                sized.add(name)
    return Facts(
        dtypes={name: array.dtype for name, array in (first | graph.constants).items()},
        dims={name: each for name, each in dims.items() if each is not None and name in sized}
        | {name: tuple(Dim(n, 0) for n in a.shape) for name, a in graph.constants.items()},
        observed={name: each for name, each in dims.items() if each is not None},
        kinds=kinds,
        values={
            batch: {name: a for name, a in run.items() if kinds[name] <= Kind.BATCH}
            for batch, run in runs.items()
        },
        lookups=tuple(lookups),
    )


def is_lookup(
    node: onnx.NodeProto, kinds: Mapping[str, Kind], constants: Mapping[str, Array]
) -> bool:
    """Whether a node takes rows of a constant table at places that inputs name.

    A table holds fractions, or bytes that stand for some (quantised). Other integers are ids or
    counts: what looks those up is work on ids.
    """
    return (
        node.op_type == "Gather"
        and node.domain in ("", "ai.onnx")
        and attribute(node, "axis", 0) == 0
        and kinds[node.input[1]] == Kind.FEATURES
        and (table := constants.get(node.input[0])) is not None
        and table.ndim > 0
        and (table.dtype.kind == "f" or (table.dtype.itemsize == 1 and table.ndim > 1))
        and table.dtype.kind in "fiu"
    )


def _probe(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[int, dict[str, Array]]:
    prober = open_prober(graph)
    problem: GraphError | None = None
    for fill in (1, 0):  # ones first: a length of zero ends ONNX Runtime 1.32's GRU by a signal
        try:
            runs = {batch: prober.run(feeds(graph, shapes, batch, fill)) for batch in BATCHES}
        except GraphError as error:
            problem = error
            continue
        with contextlib.suppress(GraphError):  # the check of the bundle tells
            runs[1] = prober.run(feeds(graph, shapes, 1, fill))
        return runs
    fixed = {port.shape[0] for port in graph.inputs if port.shape and port.shape[0] is not None}
    hint = ""
    if fixed:
        hint = f" (its inputs say batch {sorted(fixed)}: export it with a dynamic batch dimension)"
    raise GraphError(f"{graph.name}: does not run on batches of {BATCHES}{hint}: {problem}")


def feeds(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], batch: int, fill: int
) -> dict[str, Array]:
    """Return inputs of ``batch`` rows, all ``fill``."""
    return {
        port.name: np.full((batch, *row_shape(graph, port, shapes)), fill, port.dtype)
        for port in graph.inputs
    }


def row_shape(graph: Graph, port: Port, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the dimensions of one row of an input.

    Raises:
        GraphError: They are open, and ``shapes`` does not say, or the input has no rows at all.
    """
    if not port.shape:
        raise GraphError(f"{graph.name}: input {port.name!r} is a scalar, it has no rows")
    tail = shapes.get(port.name, port.shape[1:])
    if len(tail) != len(port.shape) - 1 or any(
        have is not None and have != want for have, want in zip(port.shape[1:], tail, strict=True)
    ):
        raise GraphError(
            f"{graph.name}: rows of input {port.name!r}: {list(port.shape[1:])}, not {list(tail)}"
        )
    known = tuple(dim for dim in tail if dim is not None)
    if len(known) != len(tail):
        raise GraphError(
            f"{graph.name}: input {port.name!r} leaves its shape open, {list(port.shape)}: "
            "describe its features, or give its shape"
        )
    return known


def _dims(name: str, runs: Mapping[int, Mapping[str, Array]]) -> Dims | None:
    """Fit ``fixed + per_row * batch`` to each dimension; None if the shape does not follow that."""
    if any(name not in runs[batch] for batch in BATCHES):
        return None
    a, b, c = BATCHES
    found = []
    arrays = [runs[batch][name] for batch in BATCHES]
    if len({array.ndim for array in arrays}) != 1:
        return None
    for x, y, z in zip(*(array.shape for array in arrays), strict=True):
        per_row, rest = divmod(y - x, b - a)
        if rest or z - y != per_row * (c - b):
            return None
        found.append(Dim(x - per_row * a, per_row))
    return tuple(found)


def _is_sized(node: onnx.NodeProto, kinds: Mapping[str, Kind]) -> bool:
    """Whether the sizes of a node's outputs follow from those of its inputs and from the batch."""
    if node.op_type in _UNSIZED:
        return False
    if node.op_type == "If":
        inner = [each for body in bodies(node) for each in body.node]
        if kinds[node.input[0]] > Kind.BATCH or any(each.op_type in _UNSIZED for each in inner):
            return False
    places = _SIZE_OPERANDS.get(node.op_type, ())
    operands = [node.input[i] for i in places if i < len(node.input) and node.input[i]]
    return all(kinds[name] <= Kind.BATCH for name in operands)


def _kind(
    node: onnx.NodeProto, names: list[str], kinds: Mapping[str, Kind], is_sized: bool
) -> Kind:
    if node.op_type in RANDOM:
        return Kind.MIXED
    kind = max((kinds[name] for name in names), default=Kind.CONSTANT)
    if node.op_type in ("Shape", "Size") and is_sized:
        return min(kind, Kind.BATCH)
    return kind

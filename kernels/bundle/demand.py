"""What the dense graph needs: lookups, poolings, and what is hoisted into the programs.

A tensor that depends on features alone crosses as columns of its features, or is *hoisted*: a
program computes it beside the lookups. Hoisted is work on integers and truth values (masks,
lengths, comparisons of ids), so that what is left is work on fractions; not what takes few columns
and makes many, such as a mask of every position against every other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import attrs
import onnx

from kernels.bundle.traces import FeatureTraces, elements_of
from kernels.graph.facts import Facts, Kind
from kernels.graph.model import Graph, reads
from kernels.graph.trace import Element

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


@attrs.frozen(eq=False)
class Worker:
    """Finds the work behind tensors."""

    graph: Graph
    facts: Facts
    traces: FeatureTraces
    producers: Mapping[str, onnx.NodeProto] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "producers", self.graph.producers())

    def of(self, tensor: str) -> Work:
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
                for element in elements_of(traced, self.traces.columns):
                    if element.root.space == "computed":
                        pending.append(element.root.name)
                    else:
                        columns.add(element)
        return Work(tuple(nodes.values()), frozenset(columns))

    def is_hoisted(self, tensor: str) -> bool:
        """Whether a computed tensor is integer work that is better done beside the lookups."""
        work, size = self.of(tensor), self.facts.row_size(tensor)
        has_integers = any(
            self.facts.dtypes[output].kind in "iub" for node in work.nodes for output in node.output
        )
        if size is None or not has_integers or not work.is_cheap:
            return False
        return size <= _FREE_COLUMNS + _MOST_GROWTH * len(work.columns)


@attrs.define(eq=False)
class Demand:
    """What the dense graph needs, when some reductions are taken for pooled lookups.

    Attributes:
        lookups: Outputs of the nodes that can be cut.
        poolings: The reductions that are taken for pooled lookups.
        unpooled: Lookups whose rows it needs as they are.
        pooled: Reductions whose results it needs.
        hoisted: Tensors of features that it needs and a program computes.
    """

    worker: Worker
    lookups: Collection[str]
    poolings: Collection[str]
    unpooled: list[str] = attrs.field(factory=list)
    pooled: list[str] = attrs.field(factory=list)
    hoisted: list[str] = attrs.field(factory=list)
    _seen: set[str] = attrs.field(factory=set)
    _decided: set[str] = attrs.field(factory=set)

    def need(self, names: tuple[str, ...]) -> None:
        """Note what computing these tensors takes."""
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in self._seen:
                self._seen.add(name)
                pending += self._expand(name)

    def _expand(self, name: str) -> list[str]:
        """Note one tensor; return those that the dense graph needs for it."""
        worker = self.worker
        if name in worker.graph.constants or worker.facts.kinds[name] <= Kind.BATCH:
            return []
        if name in self.poolings:
            self.pooled.append(name)
            return []
        if name in self.lookups:
            self.unpooled.append(name)
            return []
        traced = worker.traces.values.get(name)
        if traced is None:
            return reads(worker.producers[name])
        needed: list[str] = []
        for root in dict.fromkeys(e.root for e in elements_of(traced, worker.traces.columns)):
            if root.space != "computed" or root.name in self._decided:
                continue
            self._decided.add(root.name)
            if worker.is_hoisted(root.name):
                self.hoisted.append(root.name)
            else:
                needed += reads(worker.producers[root.name])
        return needed

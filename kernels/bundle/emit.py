"""Writing a selected part of a graph as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import onnx

from kernels.bundle.select import (
    BROADCASTING,
    Selection,
    affine,
    equal_rows,
    replaces_shape,
    shape_constant,
)
from kernels.graph.facts import Dims, Facts, Kind
from kernels.graph.model import Array, Graph, make_model, reads, renamed

#: A stretch of a block's columns: the block's tensor, its first column, the one after its last.
Stretch = tuple[str, int, int]


@attrs.frozen
class Block:
    """A matrix ``[n, width]`` that columns are taken from."""

    tensor: str
    width: int
    dtype: np.dtype[Any]


@attrs.define(eq=False)
class Emitter:
    """Collects the nodes of a model.

    Attributes:
        blocks: By tensor.
        locate: The block and place of a column's number.
        n_rows: Name of a scalar int64 tensor that holds the number of rows.
        taken: Names that the part's own tensors must not have.
    """

    graph: Graph
    facts: Facts
    selection: Selection
    blocks: Mapping[str, Block]
    locate: Callable[[int], tuple[str, int]]
    n_rows: Callable[[Emitter], str]
    taken: frozenset[str]
    nodes: list[onnx.NodeProto] = attrs.field(factory=list)
    constants: dict[str, Array] = attrs.field(factory=dict)
    _made: dict[Any, str] = attrs.field(factory=dict)

    def run(self) -> None:
        """Add the views' and the part's nodes."""
        stretches = {
            name: self._stretches(numbers) for name, numbers in self.selection.views.items()
        }
        self._cut_blocks([each for found in stretches.values() for each in found])
        for name, found in stretches.items():
            self._made[name] = self._view(name, found)
        for node in self.selection.nodes:
            self._node(node)

    def tensor(self, name: str) -> str:
        """Return the name that a tensor of the graph has here; adds what makes it, if need be."""
        if name in self._made:
            return self._made[name]
        if name in self.graph.constants:
            self._made[name] = self.constant(self._free(name), self.graph.constants[name])
        elif self.facts.kinds[name] <= Kind.BATCH:
            self._made[name] = self._batch_value(name)
        else:
            self._made[name] = self._free(name)
        return self._made[name]

    def add(self, op: str, inputs: Sequence[str], stem: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node with one output, unless the same is there already, and return the output."""
        key = (op, tuple(inputs), repr(sorted(attributes.items())))
        if key not in self._made:
            output = f"cut/{stem}/{len(self.nodes)}"
            self.nodes.append(onnx.helper.make_node(op, inputs, [output], **attributes))
            self._made[key] = output
        return self._made[key]

    def constant(self, name: str, array: Array) -> str:
        """Add a constant and return its name."""
        self.constants[name] = array
        return name

    def integers(self, numbers: Sequence[int] | int) -> str:
        """Add an int64 constant, once, and return its name."""
        array = np.asarray(numbers, np.int64)
        key = ("integers", array.shape, tuple(array.ravel().tolist()))
        if key not in self._made:
            self._made[key] = self.constant(f"cut/integers/{len(self.constants)}", array)
        return self._made[key]

    def cast(self, name: str, before: np.dtype[Any], after: np.dtype[Any]) -> str:
        """Cast a tensor, if it has another type."""
        if before == after:
            return name
        to = onnx.helper.np_dtype_to_tensor_dtype(after)
        return self.add("Cast", [name], "cast", to=to)

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Reshape a tensor."""
        return self.add("Reshape", [name, self.integers(shape)], "reshape")

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the model of all that was added and that its outputs need."""
        needed = {output.name for output in outputs}
        nodes = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                nodes.append(node)
                needed.update(reads(node))
        constants = {name: array for name, array in self.constants.items() if name in needed}
        return make_model(
            self.graph, nodes=nodes[::-1], constants=constants, inputs=inputs, outputs=outputs
        )

    def _free(self, name: str) -> str:
        return f"graph/{name}" if name in self.taken or name.startswith("cut/") else name

    def _stretches(self, numbers: Sequence[int]) -> list[Stretch]:
        found: list[Stretch] = []
        for number in numbers:
            block, place = self.locate(number)
            if found and found[-1][0] == block and found[-1][2] == place:
                found[-1] = (block, found[-1][1], place + 1)
            else:
                found.append((block, place, place + 1))
        return found

    def _cut_blocks(self, stretches: Sequence[Stretch]) -> None:
        """Name the stretches: those that hold no other by one Split, those within others by Slice.

        A stretch that is a whole block needs no node.
        """
        for block in self.blocks.values():
            wanted = sorted(
                {s for s in stretches if s[0] == block.tensor}, key=lambda s: (s[1], -s[2])
            )
            outer: list[Stretch] = []
            for stretch in wanted:
                if stretch[1:] == (0, block.width):
                    self._made[stretch] = block.tensor
                elif not outer or stretch[1] >= outer[-1][2]:
                    outer.append(stretch)
            self._split(block, outer)
            for stretch in wanted:
                if stretch not in self._made:
                    bounds = [self.integers([each]) for each in (*stretch[1:], 1)]
                    self._made[stretch] = self.add("Slice", [block.tensor, *bounds], "slice")

    def _split(self, block: Block, outer: Sequence[Stretch]) -> None:
        if len(outer) < 2:  # one Slice is cheaper than a Split with parts that nobody reads
            return
        sizes, names, at = [], [], 0
        for stretch in outer:
            if stretch[1] > at:
                sizes.append(stretch[1] - at)
                names.append(f"cut/rest/{block.tensor}/{at}")
            sizes.append(stretch[2] - stretch[1])
            names.append(f"cut/columns/{block.tensor}/{stretch[1]}")
            self._made[stretch] = names[-1]
            at = stretch[2]
        if at < block.width:
            sizes.append(block.width - at)
            names.append(f"cut/rest/{block.tensor}/{at}")
        if self.graph.opsets.get("", 1) < 13:
            node = onnx.helper.make_node("Split", [block.tensor], names, axis=1, split=sizes)
        else:
            inputs = [block.tensor, self.integers(sizes)]
            node = onnx.helper.make_node("Split", inputs, names, axis=1)
        self.nodes.append(node)

    def _view(self, name: str, stretches: Sequence[Stretch]) -> str:
        """Add what makes a tensor of columns, in its own type and shape."""
        dtype, dims = self.facts.dtypes[name], self.facts.dims[name]
        parts = [
            self.cast(self._made[stretch], self.blocks[stretch[0]].dtype, dtype)
            for stretch in stretches
        ]
        joined = parts[0] if len(parts) == 1 else self.add("Concat", parts, "join", axis=1)
        width = sum(stop - start for _, start, stop in stretches)
        return joined if _is_matrix(dims, width) else self.reshape(joined, _shape(dims))

    def _node(self, node: onnx.NodeProto) -> None:
        names = {name: self._operand(node, name) for name in dict.fromkeys(reads(node))}
        copy = onnx.NodeProto()
        copy.CopyFrom(renamed(node, {old: new for old, new in names.items() if old != new}))
        if replaces_shape(node, self.facts):
            copy.input[1] = self.integers(shape_constant(node, self.facts).tolist())
        for i, name in enumerate(copy.output):
            if name:
                copy.output[i] = self._made.setdefault(name, self._free(name))
        self.nodes.append(copy)

    def _operand(self, node: onnx.NodeProto, name: str) -> str:
        if replaces_shape(node, self.facts) and name != node.input[0]:
            return name
        if name not in self.graph.constants and self.facts.kinds[name] <= Kind.BATCH:
            row = self._one_row(node, name)
            if row is not None:
                return row
        return self.tensor(name)

    def _one_row(self, node: onnx.NodeProto, name: str) -> str | None:
        """Return one row of a batch-sized operand where broadcasting does the rest."""
        if node.op_type not in BROADCASTING or node.output[0] not in self.facts.dims:
            return None
        row = equal_rows(name, self.facts)
        result = self.facts.dims[node.output[0]]
        others = [self.facts.dims.get(each) for each in node.input if each != name]
        if row is None or not any(
            other is not None and len(other) == len(result) and other[0] == result[0]
            for other in others
        ):
            return None
        key = ("row", name)
        if key not in self._made:
            self._made[key] = self.constant(f"cut/row/{name}", row)
        return self._made[key]

    def _batch_value(self, name: str) -> str:
        """Rebuild a tensor that depends on the batch size alone."""
        number = affine(name, self.facts)
        if number is not None:
            fixed, per_row = number
            value = self.add("Mul", [self.n_rows(self), self._array(per_row)], "rows")
            if fixed.any():
                value = self.add("Add", [value, self._array(fixed)], "rows")
            return self.cast(value, np.dtype(np.int64), self.facts.dtypes[name])
        row = equal_rows(name, self.facts)
        if row is None:
            return self._free(name)  # by its own node
        n = self.reshape(self.n_rows(self), [1])
        rest = self.integers(list(row.shape[1:]))
        shape = self.add("Concat", [n, rest], "shape", axis=0) if row.ndim > 1 else n
        return self.add("Expand", [self.constant(f"cut/row/{name}", row), shape], "rows")

    def _array(self, array: Array) -> str:
        return self.integers(array.tolist())


def _is_matrix(dims: Dims, width: int) -> bool:
    return len(dims) == 2 and dims[0].per_row == 1 and dims[1].fixed == width


def _shape(dims: Dims) -> list[int]:
    """Return a Reshape's target for dimensions of which the first alone follows the batch."""
    return [-1 if dim.per_row else dim.fixed for dim in dims]

"""One node of an ONNX graph on its way in: its inputs as operands, its attributes, its refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import numpy as np
import onnx

from kernels.errors import GraphError
from kernels.graph.model import Array, attribute
from kernels.ir.build import fold, make
from kernels.ir.node import Arg, DType, Node, Op, Shape, const
from kernels.ir.onnx_value import Operand, RequestOfRow, Sizes, Value, View


@attrs.define(eq=False)
class Call:
    """A node and what it is applied to. Every handler takes one.

    Attributes:
        model: Name, for errors.
        opset: Of the node's domain.
        inputs: None where an optional input is left out.
    """

    model: str
    node: onnx.NodeProto
    opset: int
    inputs: tuple[Operand | None, ...]

    @property
    def name(self) -> str:
        """The node's name, or that of what it makes."""
        outputs = [name for name in self.node.output if name]
        return self.node.name or (outputs[0] if outputs else "")

    def refuse(self, why: str) -> GraphError:
        """Return the error that names op, node and model."""
        return GraphError(f"{self.model}: {self.node.op_type} {self.name!r}: {why}")

    def attribute(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - any attribute
        """Return an attribute's value; text as str."""
        value = attribute(self.node, name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def operand(self, i: int) -> Value | Array:
        """Return an input that is a tensor of data."""
        given = self.inputs[i] if i < len(self.inputs) else None
        if given is None:
            raise self.refuse(f"input {i} is missing")
        if isinstance(given, Sizes):
            raise self.refuse("uses the number of rows as a number")
        if isinstance(given, RequestOfRow):
            raise self.refuse("uses request_of_row for more than to gather rows")
        return given

    def operands(self) -> list[Value | Array]:
        """Return all inputs, each a tensor of data."""
        return [self.operand(i) for i in range(len(self.inputs))]

    def value(self, i: int) -> Value:
        """Return an input as a value; a constant is lifted."""
        return self.lift(self.operand(i))

    def lift(self, operand: Value | Array) -> Value:
        """Return a constant as a value."""
        if isinstance(operand, Value):
            return operand
        return Value(const(operand, self.name), View(operand.ndim))

    def array(self, i: int, what: str) -> Array:
        """Return an input that has to be a constant; ``what`` it is, for the refusal."""
        given = self.inputs[i] if i < len(self.inputs) else None
        if not isinstance(given, np.ndarray):
            raise self.refuse(f"{what} is not a constant")
        return given

    def integers(self, i: int, name: str, since: int) -> list[int] | None:
        """Return integers: an attribute before opset ``since``, input ``i`` from then on."""
        if self.opset < since:
            given = self.attribute(name)
            return None if given is None else [int(each) for each in np.ravel(given)]
        if not self.has(i):
            return None
        return [int(each) for each in self.array(i, name).ravel()]

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front."""
        if not -rank <= axis < rank:
            raise self.refuse(f"axis {axis} of a tensor of rank {rank}")
        return axis % rank

    def not_rows(self, value: Value, axis: int) -> int:
        """Return an ONNX axis, once it is clear that it does not hold the rows."""
        if axis == value.view.at:
            raise self.refuse(f"works across {value.view.lead}, each of which is computed alone")
        return axis

    def make(
        self,
        op: Op,
        *sources: Node,
        arg: Arg = None,
        shape: Shape | None = None,
        dtype: DType | None = None,
    ) -> Node:
        """Make a node of ours; of constants, make the constant that it comes to."""
        try:
            node = make(op, *sources, arg=arg, shape=shape, dtype=dtype, name=self.name)
        except GraphError as error:
            raise self.refuse(str(error)) from error
        return fold(node)


Result: TypeAlias = "Operand | tuple[Operand | None, ...]"
Handler: TypeAlias = Callable[[Call], Result]
Table: TypeAlias = Mapping[str, Handler]

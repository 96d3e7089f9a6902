"""User side once: what depends on the user alone is computed once a request, not once a row.

The dense graph begins with ``Gather(user, request_of_row)``: one row of user columns for each
candidate. This pass moves that Gather down the graph, as far as it goes:

* An op that acts on each row by itself, on user values and constants alone, is done on the
  ``[n_requests, ...]`` *compact* tensor.
* A Concat of user and candidate columns stays apart (*joined*) through element-wise ops, and where
  sums run along its axis it becomes a *sum* of a user and a candidate part: a Linear over
  ``concat(user, candidate)`` is two Linears, a sum over fields two sums.
* A sum's user parts are added up while compact, then gathered, and enter a Linear of the candidate
  part as its bias.

Each tensor of the graph is, abstractly, one of ``Rows``, ``User``, ``Join`` and ``Sum``; whoever
needs it as an ordinary tensor has it made then (``_rows``). Sums are regrouped, so results differ
by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
import onnx

from kernels.graph.model import Array, attribute, bodies, reads

# Splitting a Linear costs a Gather and an addition of its result, so it pays from so many user
# columns on: at 50 GFLOP/s and 10 GB/s, about 30 multiplications take as long as moving 12 bytes.
_WORTH_COLUMNS: Final = 32
# A sum's result is smaller than what it sums, which would have to be gathered otherwise.
_WORTH_TERMS: Final = 4

# fmt: off
_UNARY: Final = {
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Tanh", "ThresholdedRelu",
}
_BINARY: Final = {
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor",
}
_REDUCTIONS: Final = {
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
}
# fmt: on


@attrs.frozen
class Rows:
    """A tensor of the new graph with one row for each candidate."""

    tensor: str


@attrs.frozen
class User:
    """A tensor of the new graph with one row for each request."""

    tensor: str


@attrs.frozen
class Linear:
    """``rows @ weight``, not yet in the new graph."""

    rows: str
    weight: str


Part: TypeAlias = Rows | User


@attrs.frozen
class Join:
    """Parts side by side along ``axis``; ``sizes`` are theirs there."""

    axis: int
    parts: tuple[Part, ...]
    sizes: tuple[int, ...]

    @property
    def user_size(self) -> int:
        """How much of the axis is of the user."""
        pairs = zip(self.parts, self.sizes, strict=True)
        return sum(size for part, size in pairs if isinstance(part, User))


@attrs.frozen
class Sum:
    """The sum of its parts, all of one shape but for the first dimension."""

    parts: tuple[Part | Linear, ...]


Value: TypeAlias = Rows | User | Join | Sum
Dims: TypeAlias = tuple[int | None, ...]


def user_side_once(model: onnx.ModelProto, *, user: str, rows: str) -> onnx.ModelProto:
    """Return a model with the same inputs and outputs that does the user's part once a request.

    Args:
        model: Has one row of work for each element of the input ``rows``.
        user: The input ``[n_requests, width]``.
        rows: The int64 input ``[n_rows]``, the request of each row.
    """
    rewrite = _Rewrite(model, user, rows)
    for node in model.graph.node:
        rewrite.node(node)
    return rewrite.finish()


class _Rewrite:
    def __init__(self, model: onnx.ModelProto, user: str, rows: str) -> None:
        self._model = model
        self._user = user
        self._request_of_row = rows
        self._constants = {
            each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer
        }
        self._dims = _dims(model)
        self._values: dict[str, Value] = {}
        self._made: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._opset = next(each.version for each in model.opset_import if not each.domain)

    def node(self, node: onnx.NodeProto) -> None:
        """Do one node of the old graph."""
        if (node.op_type, list(node.input[:2])) == ("Gather", [self._user, self._request_of_row]):
            self._values[node.output[0]] = User(self._user)
            return
        value = None
        if node.domain in ("", "ai.onnx") and not any(True for _ in bodies(node)):
            operands = [self._operand(name) for name in node.input if name]
            if any(not isinstance(each, Rows | None) for each in operands):
                value = self._on_user(node) or self._on_parts(node)
        if value is not None:
            self._values[node.output[0]] = value
            return
        self._copy(node, {name: self._rows(name) for name in reads(node)})

    def finish(self) -> onnx.ModelProto:
        """Return the new model, without what nobody reads."""
        graph = self._model.graph
        for output in graph.output:
            self._rows(output.name)
        needed = {output.name for output in graph.output}
        nodes = []
        for node in reversed(self._nodes):
            if any(name in needed for name in node.output):
                nodes.append(node)
                needed.update(reads(node))
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
        made.graph.node.extend(reversed(nodes))
        made.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
            for name, array in self._constants.items()
            if name in needed
        )
        return made

    # Ops on user values alone

    def _on_user(self, node: onnx.NodeProto) -> Value | None:
        """Do an op on compact tensors, if all that it reads is of the user or constant."""
        data = [name for name in node.input if name and name not in self._constants]
        if not data or not all(isinstance(self._operand(name), User) for name in data):
            return None
        if not self._acts_on_rows(node):
            return None
        names = {
            name: value.tensor for name in data if isinstance(value := self._operand(name), User)
        }
        outputs = {name: f"{name}/user" for name in node.output if name}
        self._copy(node, names, outputs)
        for name, compact in outputs.items():
            self._values[name] = User(compact)
        return self._values[node.output[0]]

    def _acts_on_rows(self, node: onnx.NodeProto) -> bool:
        """Whether a node does to each row, apart from the others, the same."""
        dims = self._dims.get(node.input[0])
        op, rank = node.op_type, len(dims or ())
        if op in _UNARY:
            return all(name in self._constants for name in node.input[1:] if name)
        if op in _BINARY:
            return self._broadcasts_rows(node)
        if not rank or node.input[0] in self._constants:
            return False
        if op in _REDUCTIONS:
            axes = self._axes(node)
            return axes is not None and len(axes) > 0 and 0 not in _positive(axes, rank)
        if op in ("Concat", "Split", "Softmax", "LogSoftmax"):
            default = -1 if "Soft" in op and self._opset >= 13 else 1 if "Soft" in op else 0
            return _positive([attribute(node, "axis", default)], rank) != [0]
        if op == "Slice" and len(node.input) > 3:
            axes = self._integers(node.input[3])
            return axes is not None and 0 not in _positive(axes, rank)
        if op == "Reshape":
            return self._keeps_rows(node)
        if op == "Flatten":
            return bool(attribute(node, "axis", 1) == 1)
        if op == "Transpose":
            return bool(attribute(node, "perm", [1])[0] == 0)
        if op == "Gemm":
            return self._is_linear(node)
        if op == "MatMul":
            weight = self._constants.get(node.input[1])
            return rank > 1 and weight is not None and weight.ndim == 2
        return False

    def _keeps_rows(self, node: onnx.NodeProto) -> bool:
        """Whether a Reshape to ``[-1, ...]`` gives one row for each that it takes."""
        before, target = self._dims.get(node.input[0]), self._integers(node.input[1])
        if before is None or target is None or target[:1] != [-1]:
            return False
        size = _product(before[1:])
        return (
            size is not None
            and all(each > 0 for each in target[1:])
            and (_product(target[1:]) == size)
        )

    def _broadcasts_rows(self, node: onnx.NodeProto) -> bool:
        """Whether every operand has the rows in its first dimension, or broadcasts over them."""
        out = self._dims.get(node.output[0])
        if out is None:
            return False
        for name in node.input:
            constant = self._constants.get(name)
            dims = self._dims.get(name) if constant is None else constant.shape
            if dims is None:
                return False
            full = len(dims) == len(out)
            if full if constant is None else not full or dims[0] == 1:
                continue
            return False
        return True

    # Ops on joined values and sums

    def _on_parts(self, node: onnx.NodeProto) -> Value | None:
        op = node.op_type
        if op == "Concat":
            return self._join(node)
        first = self._operand(node.input[0])
        if op in ("Add", "Sum") and len(node.input) == 2:
            return self._add(node) or self._each_part(node)
        if op in _UNARY or op in _BINARY:
            return self._each_part(node)
        if not isinstance(first, Join):
            return None
        if op == "Reshape":
            return self._reshape(node, first)
        if op in _REDUCTIONS:
            return self._reduce(node, first)
        if op in ("Gemm", "MatMul"):
            return self._linear(node, first)
        return None

    def _join(self, node: onnx.NodeProto) -> Value | None:
        dims = self._dims.get(node.output[0])
        if dims is None or (axis := _positive([attribute(node, "axis")], len(dims))[0]) == 0:
            return None
        parts: list[Part] = []
        sizes: list[int] = []
        for name in node.input:
            value = self._operand(name)
            if isinstance(value, Join) and value.axis == axis:
                parts += value.parts
                sizes += value.sizes
                continue
            shape = self._dims.get(name)
            if value is None or shape is None or shape[axis] is None:
                return None
            parts.append(value if isinstance(value, Rows | User) else Rows(self._rows(name)))
            sizes.append(int(shape[axis] or 0))
        return Join(axis, tuple(parts), tuple(sizes))

    def _add(self, node: onnx.NodeProto) -> Value | None:
        """Keep a sum of a user's and a candidate's tensor of one shape as a sum."""
        parts: list[Part | Linear] = []
        shapes = []
        for name in node.input:
            value = self._operand(name)
            dims = self._dims.get(name)
            if dims is None or None in dims[1:] or isinstance(value, Join | None):
                return None
            parts += value.parts if isinstance(value, Sum) else [value]
            shapes.append(dims[1:])
        return Sum(tuple(parts)) if shapes[0] == shapes[1] else None

    def _each_part(self, node: onnx.NodeProto) -> Value | None:
        """Do an element-wise op on each part of a join, or of two that are cut alike."""
        joins: list[Join] = []
        for name in node.input:
            value = self._operand(name)
            if isinstance(value, Join):
                joins.append(value)
            elif name not in self._constants or self._constants[name].size != 1:
                return None
        if not joins or any((j.axis, j.sizes) != (joins[0].axis, joins[0].sizes) for j in joins):
            return None
        kinds = [tuple(type(part) for part in join.parts) for join in joins]
        if any(each != kinds[0] for each in kinds):
            return None
        return self._per_part(node, joins[0], [name for name in node.input if name])

    def _per_part(
        self, node: onnx.NodeProto, like: Join, names: Sequence[str], axis: int | None = None
    ) -> Join:
        """Copy a node for each part of the joins among its inputs."""
        parts: list[Part] = []
        for index, part in enumerate(like.parts):
            inputs = {}
            for name in names:
                value = self._operand(name)
                if isinstance(value, Join):
                    inputs[name] = value.parts[index].tensor
            output = f"{node.output[0]}/part{index}"
            self._copy(node, inputs, {node.output[0]: output})
            parts.append(type(part)(output))
        return Join(like.axis if axis is None else axis, tuple(parts), like.sizes)

    def _reshape(self, node: onnx.NodeProto, value: Join) -> Value | None:
        """Cut columns into fields, or lay fields side by side: a join along axis 1 stays one."""
        before, target = self._dims.get(node.input[0]), self._integers(node.input[1])
        if before is None or target is None or value.axis != 1 or not self._keeps_rows(node):
            return None
        if len(before) == 2 and _product(target[1:-1]) == 1:
            return self._reshape_parts(node, value, target[1:-1], [], list(value.sizes))
        inner_before = _product(before[2:])
        inner_after = _product(target[2:])
        if inner_before is None or inner_after is None or inner_after < 1 or len(target) < 2:
            return None
        columns = [size * inner_before for size in value.sizes]
        if any(each % inner_after for each in columns):
            return None
        sizes = [each // inner_after for each in columns]
        return self._reshape_parts(node, value, [], target[2:], sizes)

    def _reshape_parts(
        self,
        node: onnx.NodeProto,
        value: Join,
        ahead: Sequence[int],
        behind: Sequence[int],
        sizes: Sequence[int],
    ) -> Join:
        """Reshape each part to ``[rows, *ahead, its size, *behind]``."""
        parts: list[Part] = []
        for index, (part, size) in enumerate(zip(value.parts, sizes, strict=True)):
            shape = self._constant(
                f"{node.output[0]}/shape{index}", np.array([-1, *ahead, size, *behind], np.int64)
            )
            output = f"{node.output[0]}/part{index}"
            self._emit("Reshape", [part.tensor, shape], output)
            parts.append(type(part)(output))
        return Join(1 + len(ahead), tuple(parts), tuple(sizes))

    def _reduce(self, node: onnx.NodeProto, value: Join) -> Value | None:
        dims = self._dims.get(node.input[0])
        axes = self._axes(node)
        if dims is None or not axes or 0 in (axes := _positive(axes, len(dims))):
            return None
        if value.axis in axes:
            if node.op_type != "ReduceSum" or value.user_size < _WORTH_TERMS:
                return None
            summed = self._per_part(node, value, [node.input[0]])
            return Sum(summed.parts)
        keep = attribute(node, "keepdims", 1)
        axis = value.axis - (0 if keep else sum(each < value.axis for each in axes))
        return self._per_part(node, value, [node.input[0]], axis)

    def _linear(self, node: onnx.NodeProto, value: Join) -> Value | None:
        """Split a Linear over joined columns into one for each part."""
        dims = self._dims.get(node.input[0])
        weight = self._constants.get(node.input[1])
        if dims is None or weight is None or weight.ndim != 2 or value.axis != len(dims) - 1:
            return None
        if value.user_size < _WORTH_COLUMNS or (
            node.op_type == "Gemm" and not self._is_linear(node)
        ):
            return None
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            weight = weight.T
        # The bias is one row: it is added once, to the first of the user's parts.
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        parts: list[Part | Linear] = []
        start = 0
        for index, (part, size) in enumerate(zip(value.parts, value.sizes, strict=True)):
            name = self._constant(f"{node.input[1]}/rows{start}", weight[start : start + size])
            start += size
            if isinstance(part, Rows) and len(dims) == 2:
                parts.append(Linear(part.tensor, name))
                continue
            output = f"{node.output[0]}/part{index}"
            self._emit("MatMul", [part.tensor, name], output)
            if bias and isinstance(part, User):
                self._emit("Add", [output, bias], f"{node.output[0]}/biased")
                output, bias = f"{node.output[0]}/biased", ""
            parts.append(type(part)(output))
        return Sum(tuple(parts))

    def _is_linear(self, node: onnx.NodeProto) -> bool:
        """Whether a Gemm is ``x @ weight + bias`` with constants, the bias one row."""
        bias = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        return (
            node.input[1] in self._constants
            and all(name in self._constants for name in node.input[2:] if name)
            and not attribute(node, "transA", 0)
            and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
            and (bias is None or bias.ndim < 2 or bias.shape[0] == 1)
        )

    # Making ordinary tensors

    def _operand(self, name: str) -> Value | None:
        """Return what a tensor is; None for a constant."""
        return None if name in self._constants else self._values.get(name, Rows(name))

    def _rows(self, name: str) -> str:
        """Return the tensor of the new graph that is ``name`` of the old one, row by row."""
        value = self._values.get(name)
        if value is None or name in self._made:
            return self._made.get(name, name)
        self._made[name] = name
        if isinstance(value, User):
            self._emit("Gather", [value.tensor, self._request_of_row], name, axis=0)
        elif isinstance(value, Join):
            parts = [
                self._gathered(part.tensor) if isinstance(part, User) else part.tensor
                for part in value.parts
            ]
            self._emit("Concat", parts, name, axis=value.axis)
        elif isinstance(value, Sum):
            self._add_up(value, name)
        return name

    def _gathered(self, compact: str) -> str:
        key = f"{compact}/rows"
        if key not in self._made:
            self._made[key] = key
            self._emit("Gather", [compact, self._request_of_row], key, axis=0)
        return key

    def _add_up(self, value: Sum, name: str) -> None:
        """Add a sum's parts: those of the user while compact, then Linears upon them, then rows."""
        user = self._chain([part.tensor for part in value.parts if isinstance(part, User)], name)
        terms = [part.tensor for part in value.parts if isinstance(part, Rows)]
        so_far = self._gathered(user) if user else None
        linears = [part for part in value.parts if isinstance(part, Linear)]
        for index, part in enumerate(linears):
            last = not terms and index == len(linears) - 1
            output = name if last else f"{name}/linear{index}"
            bias = [] if so_far is None else [so_far]
            self._emit("Gemm", [part.rows, part.weight, *bias], output)
            so_far = output
        if terms:
            both = terms if so_far is None else [so_far, *terms]
            self._chain(both, name, final=True)
        elif not linears:
            self._emit("Identity", [so_far or ""], name)

    def _chain(self, tensors: Sequence[str], name: str, *, final: bool = False) -> str:
        """Add tensors up one by one; the last sum is called ``name`` if ``final``."""
        total = tensors[0] if tensors else ""
        for index, tensor in enumerate(tensors[1:], start=1):
            last = final and index == len(tensors) - 1
            output = name if last else f"{name}/sum{index}" + ("" if final else "/user")
            self._emit("Add", [total, tensor], output)
            total = output
        if final and len(tensors) == 1:
            self._emit("Identity", [total], name)
        return total

    def _copy(
        self,
        node: onnx.NodeProto,
        inputs: dict[str, str],
        outputs: dict[str, str] | None = None,
    ) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = ""
        for index, name in enumerate(copy.input):
            copy.input[index] = inputs.get(name, name)
        for index, name in enumerate(copy.output):
            copy.output[index] = (outputs or {}).get(name, name)
        self._nodes.append(copy)

    def _emit(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:  # noqa: ANN401
        self._nodes.append(onnx.helper.make_node(op, inputs, [output], **attributes))

    def _constant(self, name: str, array: Array) -> str:
        while name in self._constants and not np.array_equal(self._constants[name], array):
            name += "_"
        self._constants[name] = array
        return name

    def _integers(self, name: str) -> list[int] | None:
        array = self._constants.get(name)
        return None if array is None else [int(each) for each in array.ravel()]

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        if len(node.input) > 1 and node.input[1]:
            return self._integers(node.input[1])
        axes = attribute(node, "axes")
        return None if axes is None else list(axes)


def _dims(model: onnx.ModelProto) -> dict[str, Dims]:
    """Return the dimensions of every tensor whose rank is known; None where one is not fixed."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        info.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in info.type.tensor_type.shape.dim
        )
        for info in (*inferred.input, *inferred.value_info, *inferred.output)
        if info.type.tensor_type.HasField("shape")
    }


def _positive(axes: Sequence[int], rank: int) -> list[int]:
    return [axis + rank if axis < 0 else axis for axis in axes]


def _product(dims: Sequence[int | None]) -> int | None:
    product = 1
    for dim in dims:
        if dim is None:
            return None
        product *= dim
    return product

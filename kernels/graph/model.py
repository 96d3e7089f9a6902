"""A graph in memory: nodes as ONNX protos, constants as arrays, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnx.external_data_helper
import onnx.inliner
from numpy.typing import NDArray

from kernels.errors import GraphError

Array = NDArray[Any]


@attrs.frozen
class Port:
    """An input of a graph. ``shape`` has None for a dimension that is not fixed."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@attrs.define(eq=False)
class Graph:
    """An ONNX graph whose functions are inlined and whose constants are arrays.

    Attributes:
        nodes: In topological order.
        constants: Initialisers. Those in external files are mapped, not read.
        opsets: Version of each operator domain.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    nodes: list[onnx.NodeProto]
    constants: dict[str, Array]
    opsets: dict[str, int]
    ir_version: int

    def producers(self) -> dict[str, onnx.NodeProto]:
        """Return the node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor, bodies of loops included."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(reads(node)):
                found.setdefault(name, []).append(node)
        return found

    def prune(self) -> None:
        """Drop nodes and constants that no output needs."""
        needed = set(self.outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if any(name in needed and name not in self.constants for name in node.output):
                kept.append(node)
                needed.update(reads(node))
        self.nodes = kept[::-1]
        self.constants = {name: self.constants[name] for name in self.constants if name in needed}

    def rename(self, names: Mapping[str, str]) -> None:
        """Let every reader of a key read its value instead; outputs keep their names."""
        self.nodes = [renamed(node, names) for node in self.nodes]


def load_graph(path: Path) -> Graph:
    """Read an ONNX file, with weights in external files where it has them.

    Raises:
        GraphError: The file is missing, is not ONNX, or lacks its external data.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}") from error
    except google.protobuf.message.DecodeError as error:
        raise GraphError(f"{path}: not an ONNX model: {error}") from error
    if not model.graph.output:
        raise GraphError(f"{path}: not an ONNX model: it has no outputs")
    return from_model(model, path)


def from_model(model: onnx.ModelProto, path: Path) -> Graph:
    """Take a model apart. ``path`` names it in errors; external data lies beside it."""
    constants: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        constants[tensor.name] = _constant(tensor, path)
    del model.graph.initializer[:]
    model.graph.initializer.extend(  # stand-ins, so that the inliner knows which names are taken
        onnx.TensorProto(name=name, dims=[0], data_type=onnx.TensorProto.FLOAT)
        for name in constants
    )
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            constants[node.output[0]] = _constant_node(node)
        else:
            nodes.append(node)
    return Graph(
        name=path.stem,
        inputs=tuple(_port(info, path) for info in model.graph.input if info.name not in constants),
        outputs=tuple(info.name for info in model.graph.output),
        nodes=nodes,
        constants=constants,
        opsets={each.domain: each.version for each in model.opset_import},
        ir_version=model.ir_version,
    )


def _port(info: onnx.ValueInfoProto, path: Path) -> Port:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or kind.elem_type == onnx.TensorProto.STRING:
        raise GraphError(f"{path}: input {info.name!r} is not a tensor of numbers")
    if not kind.HasField("shape"):
        raise GraphError(f"{path}: input {info.name!r} has no shape, not even its rank")
    shape = tuple(
        each.dim_value if each.HasField("dim_value") and each.dim_value > 0 else None
        for each in kind.shape.dim
    )
    return Port(info.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def _constant(tensor: onnx.TensorProto, path: Path) -> Array:
    """Return an initialiser; one in an external file is mapped read-only."""
    if not onnx.external_data_helper.uses_external_data(tensor):
        inline: Array = onnx.numpy_helper.to_array(tensor)
        return inline
    info = onnx.external_data_helper.ExternalDataInfo(tensor)
    file = (path.parent / info.location).resolve()
    if not file.is_relative_to(path.parent.resolve()):
        raise GraphError(f"{path}: {tensor.name!r} is kept outside the model's folder: {file}")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, dtype)
    try:
        return np.memmap(file, dtype, "r", offset=info.offset or 0, shape=shape or (1,)).reshape(
            shape
        )
    except (OSError, ValueError) as error:
        raise GraphError(f"{path}: data of {tensor.name!r} in {file}: {error}") from error


def _constant_node(node: onnx.NodeProto) -> Array:
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        array: Array = onnx.numpy_helper.to_array(value)
        return array
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise GraphError(f"node {node.name!r}: a Constant of text or a sparse one is not supported")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:  # noqa: ANN401
    """Return an attribute's value."""
    for each in node.attribute:
        if each.name == name:
            return onnx.helper.get_attribute_value(each)
    return default


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds: branches and loop bodies."""
    for each in node.attribute:
        if each.type == onnx.AttributeProto.GRAPH:
            yield each.g
        elif each.type == onnx.AttributeProto.GRAPHS:
            yield from each.graphs


def reads(node: onnx.NodeProto) -> list[str]:
    """Return all tensors that a node reads, those that its bodies take from outside included."""
    found = [name for name in node.input if name]
    for body in bodies(node):
        found += _outer(body)
    return found


def _outer(body: onnx.GraphProto) -> list[str]:
    inside = {each.name for each in body.input} | {each.name for each in body.initializer}
    inside.update(name for node in body.node for name in node.output)
    return [name for node in body.node for name in reads(node) if name not in inside]


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Return a node that reads ``names[x]`` for ``x``, in its bodies too."""
    if not any(name in names for name in reads(node)):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename_inputs(copy, names)
    return copy


def _rename_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    for i, name in enumerate(node.input):
        node.input[i] = names.get(name, name)
    for body in bodies(node):
        inside = {each.name for each in body.input} | {each.name for each in body.initializer}
        inside.update(name for inner in body.node for name in inner.output)
        outer = {name: new for name, new in names.items() if name not in inside}
        for inner in body.node:
            _rename_inputs(inner, outer)


def make_model(
    graph: Graph,
    *,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Make a model of some nodes, with the operator versions of ``graph``."""
    proto = onnx.helper.make_graph(
        nodes,
        graph.name,
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid(domain, v) for domain, v in sorted(graph.opsets.items())]
    return onnx.helper.make_model(proto, opset_imports=opsets, ir_version=graph.ir_version)

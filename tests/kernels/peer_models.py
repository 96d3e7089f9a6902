"""The six models of ``shared/peers/models_torch.py`` as dense graphs of ours.

``module_graph`` takes any torch module of dense inputs; ``peer_graph`` one of the six by name. All
inputs of a module are columns of the block ``candidate``: those of two dimensions first (embeddings
stay 16-byte aligned, in fp16 too), then vectors whose width is a multiple of 8, then the others,
and ``dense`` last. There is no ``user`` block. A DIN's mask is 0 or 1. Needs no GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense

MODELS: Final = Path(__file__).parents[2].parent / "shared" / "peers" / "models_torch.py"
NAMES: Final = ("DLRMDCNv2", "DLRM", "DeepFM", "DIN", "MMoE", "BST")
_ALIGNED: Final = 8  # columns: 16 bytes in fp16
_EXAMPLE_ROWS: Final = 3


@attrs.frozen
class Columns:
    """Where an input lies in the block: from column ``offset`` on, flattened from ``shape``."""

    offset: int
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """How many columns it has."""
        return math.prod(self.shape)


@attrs.frozen
class Layout:
    """The block's columns, by input, in the module's order of inputs."""

    columns: Mapping[str, Columns]

    @property
    def width(self) -> int:
        """Columns of the block."""
        return sum(each.width for each in self.columns.values())

    def block(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Lay inputs ``[rows, *shape]`` out as float32 ``[rows, width]``."""
        rows = len(next(iter(inputs.values())))
        block = np.empty((rows, self.width), np.float32)
        for name, each in self.columns.items():
            block[:, each.offset : each.offset + each.width] = inputs[name].reshape(rows, -1)
        return block


def layout_of(input_shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Lay inputs out; see the module's text."""

    def place(name: str) -> tuple[bool, bool, bool]:
        shape = input_shapes[name]
        return name == "dense", len(shape) < 2, bool(math.prod(shape) % _ALIGNED)

    offset, found = 0, {}
    for name in sorted(input_shapes, key=place):
        found[name] = Columns(offset, tuple(input_shapes[name]))
        offset += found[name].width
    return Layout({name: found[name] for name in input_shapes})


def of_block(module: Any, layout: Layout) -> Any:  # noqa: ANN401 - torch is optional
    """Return a module that takes its inputs as columns of one block."""
    from torch import nn

    class OfBlock(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, candidate: Any) -> Any:  # noqa: ANN401 - tensors
            parts = [
                candidate[:, each.offset : each.offset + each.width].reshape(-1, *each.shape)
                for each in layout.columns.values()
            ]
            return self.module(*parts)

    return OfBlock()


def missing() -> str | None:
    """Return why there are no peers here, or None if there are."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return None if MODELS.exists() else "no peers beside the checkout"


def module_onnx(module: Any, layout: Layout) -> bytes:  # noqa: ANN401 - a torch module
    """Export a module to a dense graph from ``candidate`` to ``scores``, by torch's exporter."""
    import torch

    block = of_block(module, layout).eval()
    example = torch.rand(_EXAMPLE_ROWS, layout.width)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
        program = torch.onnx.export(
            block,
            (example,),
            dynamo=True,
            input_names=["candidate"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            verbose=False,
        )
    assert program is not None
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def module_graph(
    module: Any,  # noqa: ANN401 - a torch module
    input_shapes: Mapping[str, tuple[int, ...]],
) -> tuple[Graph, Layout]:
    """Import a module whose ``forward`` takes inputs ``[rows, *shape]`` in the order given."""
    layout = layout_of(input_shapes)
    return import_dense(module_onnx(module, layout), type(module).__name__), layout


def peer_module(name: str, seed: int = 0) -> Any:  # noqa: ANN401 - a class of a file, not imported
    """Return one of the six, its weights drawn from ``seed``; it has ``inputs``, name to shape."""
    import torch

    key = "peers.models_torch"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, MODELS)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sys.modules[key].MODELS[name]().eval()


def peer_graph(name: str) -> tuple[Graph, Any, Layout]:
    """Return the graph of one of the six, its torch module (float32) and the block's layout."""
    module = peer_module(name)
    graph, layout = module_graph(module, module.inputs)
    return graph, module, layout


def spread_scores(module: Any, deviation: float = 1.0) -> None:  # noqa: ANN401
    """Scale the last layer of each output so that its logit has mean 0 and this deviation.

    As drawn, some of the six give all rows nearly one score (DLRMDCNv2: 0.5150 +- 0.0007), of which
    no error could be told. An output that varies more is left as it is.
    """
    import torch
    from torch import nn

    scores = peer_scores(module, peer_inputs(module, 256, seed=1))
    logits = np.log(scores / (1 - scores))
    lasts = [
        each[-1]
        for each in module.modules()
        if isinstance(each, nn.Sequential)
        and isinstance(each[-1], nn.Linear)
        and each[-1].out_features == 1
    ]
    # An attention's scores have such a layer too, and it comes first.
    last_of_outputs = lasts[-logits.shape[1] :]
    for layer, logit in zip(last_of_outputs, logits.T, strict=True):
        factor = deviation / float(logit.std())
        if factor > 1:
            with torch.no_grad():
                layer.weight *= factor
                layer.bias.fill_(factor * (float(layer.bias) - float(logit.mean())))


def peer_inputs(module: Any, rows: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:  # noqa: ANN401
    """Draw inputs ``[rows, *shape]``: numbers of size 0.3; a mask starts with 1 or more ones."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in module.inputs.items():
        if name == "mask":
            lengths = random.integers(1, shape[0] + 1, rows)
            found[name] = (np.arange(shape[0]) < lengths[:, None]).astype(np.float32)
        else:
            found[name] = (random.normal(size=(rows, *shape)) * 0.3).astype(np.float32)
    return found


def peer_scores(module: Any, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the module's scores in float64, ``[rows, n]``; the module stays float32."""
    import torch

    module.double()
    try:
        with torch.no_grad():
            made = module(*(torch.as_tensor(inputs[name]).double() for name in module.inputs))
    finally:
        module.float()
    scores: NDArray[np.float64] = made.numpy()
    return scores

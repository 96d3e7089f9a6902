"""The six models of the benchmark: their inputs, parameters, and how a block of columns holds both.

Dense graphs at published sizes; inputs are what the sparse side hands over, pooled embeddings and
numbers. Nothing here needs torch: parameters are drawn by numpy, and given to every contender under
the names of torch's ``state_dict``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.program import Precision

F32: TypeAlias = NDArray[np.float32]
Parameters: TypeAlias = Mapping[str, F32]
Inputs: TypeAlias = Mapping[str, F32]

_ALIGNED: Final = 8  # columns: 16 bytes in fp16
_SPREAD: Final = 0.3  # of inputs that are not a mask


@attrs.frozen
class Model:
    """One model.

    Attributes:
        inputs: Shape of one row of each input, in the order of the torch module's ``forward``.
        parameters: Shape of each parameter; a weight is ``[n_out, n_in]``, as torch has it.
    """

    name: str
    inputs: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, tuple[int, ...]]

    @property
    def columns(self) -> dict[str, slice]:
        """Where inputs lie in the candidate block: matrices first, ``dense`` last.

        In between come vectors, those of a multiple of 8 first: so that embeddings are aligned to
        16 bytes.
        """

        def place(name: str) -> tuple[bool, bool, bool]:
            shape = self.inputs[name]
            return name == "dense", len(shape) < 2, bool(math.prod(shape) % _ALIGNED)

        found, offset = {}, 0
        for name in sorted(self.inputs, key=place):
            width = math.prod(self.inputs[name])
            found[name] = slice(offset, offset + width)
            offset += width
        return found

    @property
    def width(self) -> int:
        """Columns of the candidate block."""
        return sum(math.prod(shape) for shape in self.inputs.values())

    def block(self, inputs: Inputs) -> F32:
        """Lay inputs ``[rows, *shape]`` out as the candidate block ``[rows, width]``."""
        rows = len(next(iter(inputs.values())))
        block = np.empty((rows, self.width), np.float32)
        for name, columns in self.columns.items():
            block[:, columns] = inputs[name].reshape(rows, -1)
        return block

    def draw_parameters(self, seed: int) -> dict[str, F32]:
        """Draw weights uniformly, of variance 2 / n_in, which ReLUs keep (arXiv 1502.01852).

        Torch's own are smaller: its scores of these models spread by 3e-4 to 6e-3 about one value,
        less than errors that a check has to find. Biases are within 1 / sqrt(n_in), as torch's.
        Gains of a norm (a ``weight`` of one dimension) are near 1, its offsets near 0.
        """
        random = np.random.default_rng(seed)
        found: dict[str, F32] = {}
        for name, shape in self.parameters.items():
            layer = name.rpartition(".")[0]
            weight = self.parameters[f"{layer}.weight"]
            if len(weight) == 1:
                drawn = random.normal(float(name.endswith("weight")), 0.1, shape)
            else:
                limit = math.sqrt((6 if len(shape) > 1 else 1) / weight[1])
                drawn = random.uniform(-limit, limit, shape)
            found[name] = drawn.astype(np.float32)
        return found

    def draw_inputs(self, rows: int, seed: int, precision: Precision) -> dict[str, F32]:
        """Draw inputs ``[rows, *shape]`` that ``precision`` holds exactly, as every contender does.

        A mask's rows are ones, 1 to all of them, then zeros.
        """
        random = np.random.default_rng(seed)
        found = {}
        for name, shape in self.inputs.items():
            if name == "mask":
                lengths = random.integers(1, shape[0] + 1, rows)
                drawn: NDArray[Any] = np.arange(shape[0]) < lengths[:, None]
            else:
                drawn = random.standard_normal((rows, *shape), np.float32) * np.float32(_SPREAD)
            found[name] = rounded(drawn.astype(np.float32), precision)
        return found


def rounded(array: F32, precision: Precision) -> F32:
    """Round to what a precision holds, to nearest, ties to even."""
    if precision is Precision.FP16:
        return array.astype(np.float16).astype(np.float32)
    if precision is Precision.BF16:
        bits = array.view(np.uint32)
        up = 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))
        return ((bits + up.astype(np.uint32)) & np.uint32(0xFFFF0000)).view(np.float32)
    return array


def _linear(name: str, n_in: int, n_out: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (n_out, n_in)}
    if bias:
        shapes[f"{name}.bias"] = (n_out,)
    return shapes


def _mlp(name: str, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Linears with an activation between: every second place of torch's Sequential."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        shapes |= _linear(f"{name}.{2 * index}", n_in, n_out)
    return shapes


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _dlrm_dcnv2() -> dict[str, tuple[int, ...]]:
    shapes = _mlp("bot", [13, 512, 256, 128])
    for index in range(3):
        shapes |= _linear(f"v.{index}", 3456, 512, bias=False)
        shapes |= _linear(f"w.{index}", 512, 3456)
    return shapes | _mlp("top", [3456, 1024, 1024, 512, 256, 1])


def _mmoe() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(8):
        shapes |= _mlp(f"experts.{index}", [640, 512, 256])
    for index in range(4):
        shapes |= _linear(f"gates.{index}", 640, 8)
        shapes |= _mlp(f"towers.{index}", [256, 128, 64, 1])
    return shapes


_ALL: Final = (
    # MLPerf's: 26 x 128 embeddings, 13 numbers, 3 low-rank (512) crosses (arXiv 2008.13535).
    Model("DLRMDCNv2", {"dense": (13,), "emb": (26, 128)}, _dlrm_dcnv2()),
    # Pairwise dot products (arXiv 1906.00091).
    Model(
        "DLRM",
        {"dense": (13,), "emb": (26, 64)},
        _mlp("bot", [13, 512, 256, 64]) | _mlp("top", [415, 512, 512, 256, 1]),
    ),
    # A factorisation machine beside an MLP (arXiv 1703.04247).
    Model(
        "DeepFM",
        {"dense": (13,), "emb": (26, 16), "first": (26,)},
        _linear("lin", 13, 1) | _mlp("deep", [429, 400, 400, 400, 1]),
    ),
    # Attention of the candidate over 100 behaviours (arXiv 1706.06978).
    Model(
        "DIN",
        {"query": (64,), "hist": (100, 64), "mask": (100,), "other": (256,)},
        _mlp("att", [256, 80, 40, 1]) | _mlp("top", [384, 200, 80, 1]),
    ),
    # 8 experts, 4 tasks (KDD 2018, doi 10.1145/3219819.3220007).
    Model("MMoE", {"x": (640,)}, _mmoe()),
    # A transformer block over 64 behaviours (arXiv 1905.06874).
    Model(
        "BST",
        {"seq": (64, 64), "other": (512,)},
        _linear("qkv", 64, 192)
        | _linear("o", 64, 64)
        | _norm("n1", 64)
        | _norm("n2", 64)
        | _linear("f1", 64, 256)
        | _linear("f2", 256, 64)
        | _mlp("top", [4608, 1024, 512, 256, 1]),
    ),
)
MODELS: Final[Mapping[str, Model]] = {model.name: model for model in _ALL}

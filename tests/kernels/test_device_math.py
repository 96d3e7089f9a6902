"""The CUDA text of every elementwise op, and so every function of math.cuh, against the oracle."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.errors import GraphError
from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, const
from kernels.ir.reference import evaluate_nodes
from kernels.ir.rules import ELEMENTWISE, RULES
from tests.kernels import shim

pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))

CTYPES: Final = {DType.FLOAT: "float", DType.INT: "int", DType.BOOL: "int"}
NUMBER_ARG: Final = 0.375
# math.cuh promises 1e-6 for what it writes itself. The shim's expf and the like are glibc's.
RELATIVE: Final = 1e-6
ABSOLUTE: Final = {Op.SIGMOID: 2e-7}
LARGEST_ANGLE: Final = 1e15
SMALLEST: Final = float(np.finfo(np.float32).tiny)


def floats() -> NDArray[np.float32]:
    """All magnitudes of both signs, integers and halves, zeros and NaN."""
    magnitudes = 10.0 ** np.linspace(-37, 37, 60)
    some = np.concatenate([magnitudes, np.linspace(0.05, 20, 40), np.arange(0, 6, 0.5), [88.0]])
    return np.concatenate([some, -some, [np.nan]]).astype(np.float32)


VALUES: Final[dict[DType, NDArray[Any]]] = {
    DType.FLOAT: floats(),
    DType.INT: np.concatenate([np.arange(-9, 10), [1000, -1000, 46_340, -46_340]]),
    DType.BOOL: np.array([False, True]),
}


@attrs.frozen
class Case:
    """An op on sources of these dtypes; ``to`` for a CAST."""

    op: Op
    dtypes: tuple[DType, ...]
    to: DType | None = None

    @property
    def name(self) -> str:
        return "_".join(["op", self.op, *self.dtypes, *([self.to] if self.to else [])])

    def node(self, *values: NDArray[Any]) -> Node:
        arg = NUMBER_ARG if self.op in (Op.LEAKY_RELU, Op.ELU) else None
        return make(self.op, *map(const, values), arg=arg, dtype=self.to)

    def values(self) -> list[NDArray[Any]]:
        """Every combination, of what the op means something for."""
        combined = itertools.product(*(VALUES[dtype] for dtype in self.dtypes))
        columns = zip(*combined, strict=True)
        found = [
            np.array(column, VALUES[dtype].dtype)
            for column, dtype in zip(columns, self.dtypes, strict=True)
        ]
        keep = np.ones(len(found[0]), bool)
        if self.op in (Op.SIN, Op.COS):
            keep = ~(np.abs(found[0]) >= LARGEST_ANGLE)
        if self.op in (Op.DIV, Op.MOD):
            keep = found[1] != 0
        if self.op is Op.POW and self.dtypes[0] is DType.INT:
            keep = (np.abs(found[0]) < 10) & (found[1] < 10)
        if self.op is Op.CAST and self.to is DType.INT and self.dtypes[0] is DType.FLOAT:
            keep = ~(np.abs(found[0]) >= 2.0**31)
        return [column[keep] for column in found]


def cases() -> Iterator[Case]:
    for op in sorted(ELEMENTWISE):
        arity = RULES[op].arity
        assert arity is not None
        for dtypes in itertools.product(DType, repeat=arity):
            for to in DType if op is Op.CAST else [None]:
                case = Case(op, dtypes, to)
                try:
                    case.node(*(VALUES[dtype][:1] for dtype in dtypes))
                except GraphError:
                    continue  # not of these dtypes
                yield case


CASES: Final = list(cases())


def kernel_text(case: Case) -> str:
    names = "abc"[: len(case.dtypes)]
    node = case.node(*(VALUES[dtype][:1] for dtype in case.dtypes))
    parameters = [f"const {CTYPES[d]}* {n}" for d, n in zip(case.dtypes, names, strict=True)]
    expression = RULES[case.op].cuda_text([f"{name}[i]" for name in names], node)
    return (
        f"KERNEL void {case.name}({', '.join(parameters)}, {CTYPES[node.dtype]}* out, int n) {{\n"
        f"  for (int i = threadIdx.x; i < n; i += 32) out[i] = {expression};\n}}\n"
    )


@functools.cache
def module() -> shim.Module:
    text = '#include "math.cuh"\n' + "".join(map(kernel_text, CASES))
    return shim.build(text, optimize=1)


def device(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype == np.float32 else values.astype(np.int32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_op_on_the_device_is_what_the_oracle_says(case: Case) -> None:
    values = case.values()
    node = case.node(*values)
    with np.errstate(all="ignore"):
        expected = evaluate_nodes([node], {})[node]
        rounded = expected.astype(np.float32)
    out = np.zeros(len(expected), np.float32 if node.dtype is DType.FLOAT else np.int32)
    module().launch(case.name, block=32, args=[*map(device, values), out, len(out)])
    if node.dtype is not DType.FLOAT:
        wrapped = expected.astype(np.int64).astype(np.int32)
        np.testing.assert_array_equal(out, wrapped)
        return
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    with np.errstate(all="ignore"):
        bound = RELATIVE * np.abs(expected) + ABSOLUTE.get(case.op, SMALLEST)
        near = np.abs(out - expected) <= bound
    wrong = ~(near | (out == rounded) | np.isnan(expected))
    assert not wrong.any(), [
        (*(column[i] for column in values), out[i], expected[i]) for i in np.flatnonzero(wrong)[:5]
    ]


def test_every_function_of_math_cuh_is_some_ops_text() -> None:
    theirs = set(re.findall(r"^DEVICE \w+ (\w+)\(", (shim.CUDA / "math.cuh").read_text(), re.M))
    called = set(re.findall(r"\w+", "".join(map(kernel_text, CASES))))
    assert len(theirs) > 10
    assert theirs - called == set()

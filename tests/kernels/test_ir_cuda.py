from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import attrs
import numpy as np
import pytest

import kernels
from kernels.errors import GraphError
from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, const
from kernels.ir.numpy_ops import Array, Batch
from kernels.ir.rules import ELEMENTWISE, RULES
from kernels.nvrtc import compile_source
from kernels.program import Source

HEADERS = Path(kernels.__file__).parent / "cuda"
C_TYPES = {DType.FLOAT: "float", DType.INT: "int", DType.BOOL: "int"}
FLOATS = np.array(
    [-1e30, -3000.5, -88.5, -80.0, -20.0, -2.5, -1.5, -1.0, -0.3, -1e-6, 0.0, 1e-6, 0.3, 0.5, 1.0,
     1.5, 2.5, 3.0, 20.0, 80.0, 3000.5, 1e30, np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip
DENSE = np.concatenate([np.linspace(0, 10, 4001), np.geomspace(1e-6, 3.4e38, 8001)]).astype(
    np.float32
)
VALUES: dict[DType, Array] = {
    DType.FLOAT: FLOATS,
    DType.INT: np.array([-46_341, -100, -7, -3, -1, 1, 2, 5, 6, 30, 1000]),
    DType.BOOL: np.array([False, True]),
}


@attrs.frozen(eq=False)
class Case:
    """One op on sources of some dtypes."""

    node: Node

    def __str__(self) -> str:
        dtypes = "_".join(source.dtype for source in self.node.sources)
        return f"{self.node.op}_{dtypes}_{self.node.dtype}"

    @property
    def parameters(self) -> list[str]:
        return [f"{C_TYPES[each.dtype]} x{i}" for i, each in enumerate(self.node.sources)]

    @property
    def text(self) -> str:
        names = [f"x{i}" for i in range(len(self.node.sources))]
        return RULES[self.node.op].cuda_text(names, self.node)


def all_cases() -> list[Case]:
    """Every elementwise op, on each choice of dtypes that its rule takes."""
    found = []
    for op in sorted(ELEMENTWISE):
        arity = RULES[op].arity
        assert arity is not None
        arg = 0.3 if op in (Op.LEAKY_RELU, Op.ELU) else None
        for dtypes in itertools.product(DType, repeat=arity):
            sources = [const(VALUES[dtype]) for dtype in dtypes]
            made = [const(np.zeros(1, source.array.dtype)) for source in sources]
            for dtype in DType if op is Op.CAST else (None,):
                try:
                    found.append(Case(make(op, *made, arg=arg, dtype=dtype)))
                except GraphError:
                    continue
    return found


CASES = all_cases()


def test_every_elementwise_op_has_a_case() -> None:
    assert {case.node.op for case in CASES} == ELEMENTWISE


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_every_expression_compiles_without_a_spill_or_a_stack(arch: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    lines = ['#include "math.cuh"']
    calls = []
    for i, case in enumerate(CASES):
        result, parameters = C_TYPES[case.node.dtype], ", ".join(case.parameters)
        lines.append(f"DEVICE {result} f{i}({parameters}) {{ return {case.text}; }}")
        arguments = ", ".join(f"{each.split()[0]}s[{j}]" for j, each in enumerate(case.parameters))
        calls.append(f"  out[{i}] = f{i}({arguments});")
    lines += ["KERNEL void all(const float* floats, const int* ints, float* out) {", *calls, "}"]
    cubin = compile_source(Source("all", "\n".join(lines), arch))
    assert cubin.problems == ()
    assert "warning" not in cubin.log


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The expressions, compiled for the CPU: a function of arrays for each case."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    lines = ["#define TB_CPU", '#include "math.cuh"']
    for i, case in enumerate(CASES):
        parameters = ", ".join(f"const {each.replace(' ', '* p')}" for each in case.parameters)
        lines.append(f'extern "C" void case_{i}(int n, {parameters}, float* out) {{')
        reads = " ".join(f"const {each} = p{each.split()[1]}[k];" for each in case.parameters)
        lines.append(f"  for (int k = 0; k < n; k++) {{ {reads} out[k] = (float)({case.text}); }}")
        lines.append("}")
    folder = tmp_path_factory.mktemp("cpu")
    source, library = folder / "all.cpp", folder / "all.so"
    source.write_text("\n".join(lines))
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("i", range(len(CASES)), ids=map(str, CASES))
def test_an_expression_means_what_numpy_does(i: int, on_the_cpu: ctypes.CDLL) -> None:
    """Under g++ its logic shows, NaN and infinity included; CUDA's own functions do not."""
    node = CASES[i].node
    values = [VALUES[source.dtype] for source in node.sources]
    if [source.dtype for source in node.sources] == [DType.FLOAT]:
        values = [np.concatenate([FLOATS, DENSE, -DENSE])]
    sources = [each.ravel() for each in np.meshgrid(*values)]
    kinds = {DType.FLOAT: np.float32, DType.INT: np.int32, DType.BOOL: np.int32}
    given = [
        np.ascontiguousarray(array, kinds[source.dtype])
        for array, source in zip(sources, node.sources, strict=True)
    ]
    out = np.full(len(sources[0]), -77, np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*given, out)]
    getattr(on_the_cpu, f"case_{i}")(len(out), *pointers)
    batch = Batch({}, {}, np.zeros(0, np.intp), np.dtype(np.float64))
    with np.errstate(all="ignore"):
        arrays = tuple(
            array.astype(np.float64) if array.dtype.kind == "f" else array for array in sources
        )
        exact = RULES[node.op].numpy(node, arrays, batch)
        if node.op is Op.CAST and node.dtype is DType.INT:
            exact = exact.clip(-(2**31), 2**31 - 1)  # ints have 32 bits on a card: casts saturate
        elif node.dtype is DType.INT:
            exact = exact.astype(np.int32)  # and all else wraps
        expected = exact.astype(np.float32)
    loose = 2e-7 if node.op is Op.SIGMOID else 0
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=loose)

"""Sources for the tests of ``kernels.nvrtc``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kernels.program import Source

ROOT = Path(__file__).parents[2]


def small(number: int = 0, arch: str = "sm_90a") -> Source:
    """Return a source that compiles in some 50 ms; another for each number."""
    text = f"""#include "ptx.cuh"
KERNEL void sums(float* x) {{ x[threadIdx.x] = warp_sum(x[threadIdx.x]) + {number}.f; }}
"""
    return Source(f"small-{number}", text, arch)


def slow(number: int = 0, n_statements: int = 4000) -> Source:
    """Return a source that takes seconds."""
    body = "".join(
        f"  a{i % 40} = __sinf(a{i * 7 % 40}) * a{i % 37};\n" for i in range(n_statements)
    )
    names = [f"a{i}" for i in range(40)]
    first = ", ".join(f"{name} = x[{i + number}]" for i, name in enumerate(names))
    text = (
        f'extern "C" __global__ void slow(float* x) {{\n  float {first};\n{body}'
        f"  x[0] = {' + '.join(names)};\n}}\n"
    )
    return Source(f"slow-{number}", text, "sm_90a")


SPILLS = Source(
    "spills",
    """extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; i++) a[i] = x[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; k++) {
#pragma unroll
    for (int i = 0; i < 96; i++) a[i] = a[i] * a[(i * 7 + 1) % 96] + a[(i + 5) % 96];
  }
#pragma unroll
  for (int i = 0; i < 96; i++) x[i * 1024 + threadIdx.x] = a[i];
}
""",
    "sm_90a",
)

STACK = Source(
    "stack",
    """__device__ __noinline__ float pick(const float* x, int i) {
  float a[8];
  for (int k = 0; k < 8; k++) a[k] = x[k * i];
  return a[i];
}
extern "C" __global__ void stack(float* x, int n) {
  __shared__ float q[128];
  q[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[n] = pick(x, n) + q[n];
}
""",
    "sm_90a",
)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that runs ``code`` with this checkout's packages."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

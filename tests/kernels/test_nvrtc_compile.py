from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from kernels import _nvrtc
from kernels.errors import CompileError, CompilerMissing, KernelsError
from kernels.nvrtc.compile import CUDA_FOLDER, compile_source, unit_of
from kernels.nvrtc.report import Resources, parse_log, problems
from kernels.program import Source
from tests.kernels.nvrtc_help import SPILLS, STACK, small

WGMMA_LOG = """ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions \
are serialized due to insufficient register resources for the wgmma pipeline in the function 'k'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 3 barriers, 1024 bytes smem, 560 bytes cmem[0], 8 bytes \
cmem[2]
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_a_source_with_our_headers_becomes_a_cubin_for_each_card(arch: str) -> None:
    cubin = compile_source(small(arch=arch))
    assert cubin.image[:4] == b"\x7fELF"
    assert b"sums" in cubin.image
    (kernel,) = cubin.resources
    assert kernel.entry == "sums"
    assert 0 < kernel.registers < 64
    assert cubin.problems == ()
    assert cubin.arch == arch
    assert cubin.seconds > 0


def test_an_error_has_the_source_and_the_log_and_names_the_first() -> None:
    source = Source("broken", "\n\n__device__ int f() { return nothing; }\n", "sm_90a")
    with pytest.raises(CompileError, match=r"broken.*broken.cu\(3\).*nothing") as caught:
        compile_source(source)
    assert caught.value.source == source.text
    assert "1 error detected" in caught.value.log
    assert "\n" not in str(caught.value)


def test_a_header_that_is_not_there_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match=r"nowhere\.cuh"):
        compile_source(Source("broken", '#include "nowhere.cuh"\n', "sm_90a"))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(KernelsError, match="architecture"):
        compile_source(small(arch="sm_12"))


def test_spills_are_found() -> None:
    cubin = compile_source(SPILLS)
    (kernel,) = cubin.resources
    assert kernel.spill_store_bytes > 100
    assert kernel.spill_load_bytes > 100
    (problem,) = cubin.problems
    assert problem.startswith("spills spills: ")


def test_a_stack_and_shared_memory_are_found_though_a_function_is_not_inlined() -> None:
    cubin = compile_source(STACK)
    kernel = next(each for each in cubin.resources if each.entry == "stack")
    assert kernel.shared_bytes == 512
    assert kernel.barriers == 1
    assert any("on a stack" in problem for problem in cubin.problems)


def test_serialised_wgmma_is_a_problem() -> None:
    found, advice = parse_log(WGMMA_LOG)
    assert found == (Resources("k", 168, 0, 0, 0, 1024, 568, 3),)
    assert len(advice) == 1
    assert problems(WGMMA_LOG) == list(advice)
    assert "C7510" in advice[0]


def test_a_log_without_kernels_has_no_resources() -> None:
    assert parse_log("ptxas info    : 0 bytes gmem\n") == ((), ())


def test_the_key_follows_from_all_that_the_cubin_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text("// one\n")
    (tmp_path / "c.cuh").write_text("// not included\n")
    source = Source("k", '  # include "a.cuh"\n', "sm_80")

    def key(source: Source = source) -> str:
        return unit_of(source, tmp_path).key

    first = key()
    assert sorted(unit_of(source, tmp_path).headers) == ["a.cuh", "b.cuh"]
    (tmp_path / "c.cuh").write_text("// changed\n")
    assert key() == first
    assert key(Source("another name", source.text, source.arch)) == first
    assert key(Source("k", source.text, "sm_90a")) != first
    assert key(Source("k", source.text + " ", "sm_80")) != first
    (tmp_path / "b.cuh").write_text("// two\n")
    second = key()
    assert second != first
    monkeypatch.setattr(_nvrtc, "version", lambda: "99.0")
    assert key() != second


def test_headers_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.cuh").write_text('#pragma once\n#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "a.cuh"\n')
    assert len(unit_of(Source("k", '#include "a.cuh"\n', "sm_80"), tmp_path).headers) == 2


def test_headers_include_no_file_from_outside() -> None:
    for header in CUDA_FOLDER.glob("*.cuh"):
        assert "#include <" not in header.read_text(), header


@pytest.fixture
def unloaded() -> object:
    _nvrtc._nvrtc.cache_clear()
    _nvrtc.version.cache_clear()
    yield None
    _nvrtc._nvrtc.cache_clear()
    _nvrtc.version.cache_clear()


@pytest.mark.usefixtures("unloaded")
def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("Failure finding libnvrtc.so\nand a page of where it was looked for")

    package = types.ModuleType("cuda.bindings")
    package.nvrtc = types.SimpleNamespace(nvrtcVersion=missing)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    with pytest.raises(CompilerMissing, match="nvidia-cuda-nvrtc") as caught:
        compile_source(small())
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unloaded")
def test_without_cuda_python_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CompilerMissing, match="cuda-python"):
        compile_source(small())


def test_an_empty_log_leaves_pythons_own_bytes_alone() -> None:
    compile_source(Source("empty", "__global__ void kernel() {}", "sm_90a"))
    assert chr(32).encode() == bytes([32])

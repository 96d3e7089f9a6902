from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import _native
from kernels._native import NativeUnavailable, load

SOURCE = "int forty_two(void) { return 42; }\n"
CDEF = "int forty_two(void);"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    try:
        _native.find_compiler()
    except NativeUnavailable as error:
        pytest.skip(str(error))
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_library_is_compiled_once_and_then_taken_from_the_cache(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(source, CDEF, cache=cache).lib.forty_two() == 42
    (library,) = cache.iterdir()
    assert library.name.startswith("answer-")
    monkeypatch.setattr(_native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert load(source, CDEF, cache=cache).lib.forty_two() == 42


def test_another_source_is_another_library(source: Path, cache: Path) -> None:
    load(source, CDEF, cache=cache)
    source.write_text(SOURCE.replace("42;", "43;"))
    assert load(source, CDEF, cache=cache).lib.forty_two() == 43
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_library_is_compiled_again(source: Path, cache: Path) -> None:
    # Loaded by another process, as this one would keep what it has mapped.
    program = (
        "import sys; from pathlib import Path; from kernels._native import load\n"
        f"print(load(Path(sys.argv[1]), {CDEF!r}, cache=Path(sys.argv[2])).lib.forty_two())"
    )
    command = [sys.executable, "-c", program, str(source), str(cache)]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, capture_output=True)
    (library,) = cache.iterdir()
    library.write_bytes(b"not a library")
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout == "42\n"


def test_a_folder_that_others_can_write_is_not_used(source: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    assert load(source, CDEF, cache=cache).lib.forty_two() == 42
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_not_needed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert load(source, CDEF, cache=tmp_path / "file" / "cache").lib.forty_two() == 42


def test_a_source_that_does_not_compile_is_reported_with_what_the_compiler_said(
    source: Path, cache: Path
) -> None:
    source.write_text("int forty_two(void) { return fortytwo; }\n")
    with pytest.raises(NativeUnavailable, match=r"failed: .*fortytwo"):
        load(source, CDEF, cache=cache)
    assert list(cache.iterdir()) == []


def test_without_a_compiler_the_names_tried_are_reported(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(NativeUnavailable, match=r"no C compiler \(cc, gcc, clang\) found"):
        load(source, CDEF, cache=cache)


def test_a_compiler_that_does_not_start_is_reported(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/nowhere/{name}")
    with pytest.raises(NativeUnavailable, match="/nowhere/cc"):
        load(source, CDEF, cache=cache)


def test_processes_that_start_together_all_load(source: Path, cache: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kernels._native import load\n"
        f"assert load(Path(sys.argv[1]), {CDEF!r}, cache=Path(sys.argv[2])).lib.forty_two() == 42"
    )
    command = [sys.executable, "-c", program, str(source), str(cache)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(list(cache.iterdir())) == 1

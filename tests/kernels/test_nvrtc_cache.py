from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import attrs
import pytest

from kernels.errors import CacheError, CompileError
from kernels.nvrtc.cache import Cache, default_folder
from kernels.nvrtc.compile import Cubin, Unit, unit_of
from kernels.program import Source
from tests.kernels.nvrtc_help import python, small

# Puts one entry, and kills itself at the n-th call of fsync or rename.
KILLED = """
import os, pathlib, signal, sys
from kernels.nvrtc.cache import Cache
from tests.kernels.nvrtc_help import small
from kernels.nvrtc.compile import unit_of
from tests.kernels.test_nvrtc_cache import fake
left = int(sys.argv[2])
def counted(call):
    def wrapper(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return wrapper
os.fsync = counted(os.fsync)
pathlib.Path.rename = counted(pathlib.Path.rename)
unit = unit_of(small())
Cache(pathlib.Path(sys.argv[1])).get_or_compile(unit, fake)
print("put")
"""

# Compiles one source through the cache, and tells how often it compiled.
BUILDS = """
import pathlib, sys
from kernels.nvrtc.cache import Cache
from tests.kernels.nvrtc_help import slow
from kernels.nvrtc.compile import compile_unit, unit_of
n = 0
def compile_it(unit):
    global n
    n += 1
    return compile_unit(unit)
unit = unit_of(slow(n_statements=2000))
print("ready", flush=True)
sys.stdin.readline()
cubin = Cache(pathlib.Path(sys.argv[1])).get_or_compile(unit, compile_it)
print(n, len(cubin.image), flush=True)
"""


def fake(unit: Unit) -> Cubin:
    """Stand in for the compiler."""
    return Cubin(unit.source.name, unit.source.arch, b"\x7fELF" + bytes(1000), "a log", 0.25)


def never(unit: Unit) -> Cubin:
    raise AssertionError(f"{unit.source.name} was compiled")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def entry(cache: Cache, unit: Unit) -> Path:
    return cache.folder / unit.key[:2] / unit.key


def test_what_was_compiled_is_found_with_its_source_beside_it(tmp_path: Path) -> None:
    cache, unit = Cache(tmp_path / "deep" / "folder"), unit_of(small())
    assert cache.get(unit.key) is None
    made = cache.get_or_compile(unit)
    found = cache.get_or_compile(unit, never)
    assert attrs.astuple(found) == attrs.astuple(made)
    assert found.resources == made.resources
    held = {path.name: path.read_bytes() for path in entry(cache, unit).iterdir()}
    assert set(held) == {"kernel.cubin", "source.cu", "log.txt", "manifest.json"}
    assert held["kernel.cubin"] == made.image
    assert held["source.cu"].decode() == unit.source.text


def test_a_source_that_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    unit = unit_of(Source("broken", "int x = ;", "sm_80"))
    with pytest.raises(CompileError):
        Cache(tmp_path).get_or_compile(unit)
    assert all(path.parent.name == "locks" for path in files(tmp_path))


@pytest.mark.parametrize("name", ["kernel.cubin", "log.txt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_entry_is_thrown_away_and_built_again(
    tmp_path: Path, name: str, damage: str
) -> None:
    cache, unit = Cache(tmp_path), unit_of(small())
    made = cache.get_or_compile(unit, fake)
    path = entry(cache, unit) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    assert cache.get(unit.key) is None
    assert not entry(cache, unit).exists()
    assert cache.get_or_compile(unit, fake).image == made.image
    assert cache.get_or_compile(unit, never).image == made.image


def test_a_process_killed_at_any_step_leaves_an_entry_whole_or_none(tmp_path: Path) -> None:
    unit = unit_of(small())
    n_steps = 0
    while True:
        n_steps += 1
        folder = tmp_path / str(n_steps)
        process = python(KILLED, str(folder), str(n_steps))
        said, _ = process.communicate(timeout=60)
        if said:
            assert process.returncode == 0
            break
        assert process.returncode == -signal.SIGKILL
        cache = Cache(folder)
        found = cache.get(unit.key)
        assert found is None or found.image == fake(unit).image
        assert cache.get_or_compile(unit, fake).image == fake(unit).image
        for partial in (folder / "partial").iterdir():
            os.utime(partial, (0, 0))
        cache.put(unit_of(small(1)), fake(unit))
        assert not list((folder / "partial").iterdir())
    assert n_steps > 6  # four files, the folder, the rename


def test_of_two_processes_with_one_key_one_compiles(tmp_path: Path) -> None:
    pair = [python(BUILDS, str(tmp_path)) for _ in range(2)]
    for process in pair:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in pair]
    assert sorted(int(n) for n, _ in said) == [0, 1]
    assert said[0][1] == said[1][1]


def test_a_lock_that_is_never_given_back_does_not_stop_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, unit = Cache(tmp_path), unit_of(small())
    monkeypatch.setattr("kernels.nvrtc.cache._PATIENCE_S", 0.05)
    with cache._building(unit.key):
        assert cache.get_or_compile(unit, fake).image == fake(unit).image


def test_who_is_second_to_finish_keeps_the_first_ones_entry(tmp_path: Path) -> None:
    cache, unit = Cache(tmp_path), unit_of(small())
    cache.put(unit, fake(unit))
    inode = entry(cache, unit).stat().st_ino
    cache.put(unit, fake(unit))
    assert entry(cache, unit).stat().st_ino == inode
    assert not list((tmp_path / "partial").iterdir())


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    units = [unit_of(small(number)) for number in range(4)]
    cache = Cache(tmp_path)
    for age, unit in zip((300, 200, 100), units, strict=False):
        cache.put(unit, fake(unit))
        os.utime(entry(cache, unit), (time.time() - age,) * 2)
    size = sum(path.stat().st_size for path in entry(cache, units[0]).iterdir())
    assert cache.get(units[0].key) is not None  # now the youngest
    small_cache = Cache(tmp_path, limit_bytes=size * 3 + size // 2)
    small_cache.put(units[3], fake(units[3]))
    assert [cache.get(unit.key) is not None for unit in units] == [True, False, True, True]


def test_what_was_just_put_stays_though_it_is_over_the_limit(tmp_path: Path) -> None:
    cache, unit = Cache(tmp_path, limit_bytes=1), unit_of(small())
    cache.get_or_compile(unit, fake)
    assert cache.get(unit.key) is not None


def test_a_young_partial_entry_is_left_to_its_maker(tmp_path: Path) -> None:
    cache, unit = Cache(tmp_path), unit_of(small())
    (tmp_path / "partial" / "other").mkdir(parents=True)
    cache.put(unit, fake(unit))
    assert (tmp_path / "partial" / "other").exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    unit = unit_of(small())
    with pytest.raises(CacheError, match=str(path)):
        Cache(path).get_or_compile(unit, fake)


def test_the_default_folder_follows_the_desktop_convention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/tensorbatch/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/tensorbatch/kernels")

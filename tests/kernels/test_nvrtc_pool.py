from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from kernels.errors import CacheError, CompileError, KernelsError
from kernels.nvrtc import Builder, Cache, Cubin, compile_source
from kernels.nvrtc import pool as pool_module
from kernels.program import Source
from tests.kernels.nvrtc_help import python, slow, small

LIMIT_S = 60.0

# Starts a compilation that takes long, names its worker, and then does what it is told.
PARENT = """
import os, sys, time
from tests.kernels.nvrtc_help import slow
from tests.kernels.test_nvrtc_pool import worker
from kernels.nvrtc import Builder
builder = Builder(None)
builder.submit(slow(n_statements=20000))
print(worker(builder), flush=True)
exec(sys.argv[1])
"""


def worker(builder: Builder) -> int:
    """Return the process of a builder's first worker, once it runs."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for seat in builder._seats:
            if seat._process is not None:
                return seat._process._process.pid
        time.sleep(0.001)
    raise AssertionError("no worker was started")


def gone(pid: int) -> bool:
    """Wait for a process that is not our child to end."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # nobody reaps orphans in some containers
            return True
        time.sleep(0.005)
    return False


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    with Builder(Cache(tmp_path)) as builder:
        yield builder


def test_many_sources_are_built_and_kept(tmp_path: Path) -> None:
    sources = [small(number) for number in range(5)]
    with Builder(Cache(tmp_path), 2) as builder:
        made = builder.build_all(sources)
    assert [cubin.name for cubin in made] == [source.name for source in sources]
    assert all(cubin.image[:4] == b"\x7fELF" and not cubin.problems for cubin in made)
    with Builder(Cache(tmp_path)) as second:
        assert [cubin.image for cubin in second.build_all(sources)] == [c.image for c in made]
        assert not any(seat.used for seat in second._seats)  # the cache costs no process


def test_a_worker_builds_what_this_process_would() -> None:
    with Builder(None) as builder:
        assert builder.image(small()).result(LIMIT_S) == compile_source(small()).image


def test_errors_come_with_source_and_log_and_the_worker_serves_on(builder: Builder) -> None:
    broken = Source("broken", "\nint x = ;\n", "sm_90a")
    with pytest.raises(CompileError, match=r"broken.cu\(2\)") as caught:
        builder.build_all([small(), broken])
    assert caught.value.source == broken.text
    assert "error" in caught.value.log
    pid = worker(builder)
    with pytest.raises(CompileError):
        builder.image(broken).result(LIMIT_S)
    assert builder.submit(small(2)).result(LIMIT_S).resources
    assert worker(builder) == pid
    with pytest.raises(KernelsError, match="architecture"):
        builder.submit(small(arch="sm_12")).result(LIMIT_S)


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Builder(Cache(tmp_path / "file")) as builder, pytest.raises(CacheError, match="file"):
        builder.build_all([small()])


def test_a_killed_worker_is_replaced_and_its_source_tried_again() -> None:
    with Builder(None) as builder:
        future = builder.submit(slow())
        pid = worker(builder)
        os.kill(pid, signal.SIGKILL)
        assert future.result(LIMIT_S).image
        assert worker(builder) != pid


def test_a_source_that_kills_its_worker_twice_is_a_compile_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kernels.nvrtc.worker._COMMAND", "import os, sys; os.kill(os.getpid(), 9)")
    with (
        Builder(None) as builder,
        pytest.raises(CompileError, match="died twice, with exit status -9") as caught,
    ):
        builder.build_all([small()])
    assert caught.value.source == small().text


def test_what_takes_too_long_is_given_up() -> None:
    with Builder(None, limit_s=0.05) as builder:
        with pytest.raises(CompileError, match=r"not compiled in 0\.05 s"):
            builder.build_all([slow(n_statements=20000)])
        assert not any(seat.used for seat in builder._seats)


def test_closing_waits_for_nothing_and_leaves_no_process() -> None:
    builder = Builder(None)
    running = builder.submit(slow(n_statements=20000))
    waiting = builder.submit(small())
    pid = worker(builder)
    builder.close()
    assert gone(pid)
    assert waiting.cancelled()
    with pytest.raises(KernelsError, match="closed before"):
        running.result(0)
    with pytest.raises(KernelsError, match="is closed"):
        builder.submit(small())
    builder.close()


@pytest.mark.parametrize("end", ["kill", "exit", "raise"])
def test_no_worker_outlives_its_parent(end: str) -> None:
    do = {"kill": "time.sleep(60)", "exit": "sys.exit()", "raise": "1 / 0"}[end]
    parent = python(f"import sys\nsys.stderr = open('/dev/null', 'w')\n{PARENT}", do)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if end == "kill":
        parent.kill()
    parent.communicate(timeout=LIMIT_S)
    assert gone(pid)


def test_an_idle_worker_ends_and_another_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with Builder(None, idle_s=0.01) as builder:
        builder.build_all([small()])
        deadline = time.monotonic() + LIMIT_S
        while any(seat.used for seat in builder._seats):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert builder.build_all([small()])


class Held:
    """Stands in for a seat: keeps the order of what it is given, and waits to be let on."""

    order: list[str]
    go: threading.Event
    begun: threading.Event

    def __init__(self, *_: object) -> None:
        self.used = False

    def cubin(self, source: Source) -> Cubin:
        type(self).begun.set()
        assert type(self).go.wait(LIMIT_S)
        type(self).order.append(source.name)
        return Cubin(source.name, source.arch, b"", "", 0.0)

    def leave(self) -> int:
        return 0

    def close(self) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> type[Held]:
    Held.order, Held.go, Held.begun = [], threading.Event(), threading.Event()
    monkeypatch.setattr(pool_module, "_Seat", Held)
    return Held


def test_what_somebody_waits_for_comes_before_what_is_built_ahead(held: type[Held]) -> None:
    with Builder(None) as builder:
        futures: list[Future[Cubin]] = [builder.submit(small(0), ahead=True)]
        assert held.begun.wait(LIMIT_S)
        futures += [builder.submit(small(number), ahead=True) for number in (1, 2, 3)]
        futures += [builder.submit(small(4)), builder.submit(small(5))]
        futures += [builder.submit(small(2))]  # was ahead of time, and is wanted now
        held.go.set()
        assert [future.result(LIMIT_S).name for future in futures][-1] == "small-2"
    assert held.order == [f"small-{number}" for number in (0, 4, 5, 2, 1, 3)]


def test_equal_sources_are_built_once_and_cancelled_ones_not_at_all(held: type[Held]) -> None:
    with Builder(None) as builder:
        first = builder.submit(small(0))
        assert held.begun.wait(LIMIT_S)
        one, two = builder.submit(small(1)), builder.submit(small(1))
        other = builder.submit(small(2))
        assert one.cancel()
        assert other.cancel()
        held.go.set()
        assert two.result(LIMIT_S).name == "small-1"
        assert first.result(LIMIT_S).name == "small-0"
        last = builder.submit(small(3))
        assert last.result(LIMIT_S).name == "small-3"
    assert held.order == ["small-0", "small-1", "small-3"]


def test_a_builder_may_be_closed_by_a_futures_callback(held: type[Held]) -> None:
    builder = Builder(None)
    done = threading.Event()
    future = builder.submit(small())

    def close(_: Future[Cubin]) -> None:
        builder.close()
        done.set()

    future.add_done_callback(close)
    held.go.set()
    assert done.wait(LIMIT_S)


def test_a_builder_wants_a_worker() -> None:
    with pytest.raises(ValueError, match="at least 1 worker"):
        Builder(None, 0)

"""A card for tests where there is none: ``fake_cuda.c`` under the real bindings; tiny programs."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from kernels import _cuda
from kernels.gpu.executor import Model
from kernels.gpu.lanes import Blocks
from kernels.program import Bucket, Launch, Pointer, Precision, Program, Role, Source, Target
from tests.kernels import shim

SOURCE = Path(__file__).with_name("fake_cuda.c")
USER_WIDTH, CANDIDATE_WIDTH = 3, 5
SCORE_ARGUMENTS = tuple(
    Pointer(role)
    for role in (Role.USER, Role.CANDIDATE, Role.REQUEST_OF_ROW, Role.COUNTS, Role.SCORES)
)


@attrs.frozen(eq=False)
class FakeCuda:
    """What a test sees of the fake, and brings about."""

    path: Path
    library: Any

    @property
    def cubin(self) -> bytes:
        """What stands for a cubin: the path of an object with kernels."""
        return bytes(self.path) + b"\0"

    @property
    def allocations(self) -> int:
        """Pieces of memory, modules, graphs, streams and events made so far."""
        return int(self.library.fake_allocations())

    @property
    def live(self) -> int:
        """Of these, modules aside, what was not freed."""
        return int(self.library.fake_live())

    @property
    def copied_bytes(self) -> int:
        return int(self.library.fake_copied())

    @property
    def launched(self) -> int:
        return int(self.library.fake_launched())

    def show(self, n_cards: int) -> None:
        """Let the driver show so many cards, up to eight."""
        self.library.fake_devices(n_cards)

    def contexts(self, card: int) -> int:
        """Primary contexts made on a card so far."""
        return int(self.library.fake_contexts(card))

    def fail(self, function: str, code: int) -> None:
        """Let a function of the driver fail from now on; ``""`` lets none."""
        self.library.fake_fail(function.encode(), code)

    def hold(self, on: bool = True) -> None:
        """Let no event complete."""
        self.library.fake_hold(int(on))

    @property
    def builder(self) -> FakeBuilder:
        """A new one, which is done at once."""
        return FakeBuilder(self.cubin)


@attrs.define(eq=False)
class FakeBuilder:
    """Stands for the compiler: what it compiles beyond ``n_at_once`` sources waits for a test."""

    cubin: bytes
    n_at_once: int = 1 << 30
    closed: bool = False
    waiting: list[Future[bytes]] = attrs.field(factory=list)
    asked: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))

    def image(self, source: Source) -> Future[bytes]:
        future: Future[bytes] = Future()
        if self.n_at_once:
            self.n_at_once -= 1
            future.set_result(self.cubin)
        else:
            self.waiting.append(future)
            self.asked.release()
        return future

    def close(self) -> None:
        self.closed = True
        for future in self.waiting:
            future.cancel()


class ShimBuilder:
    """Compiles sources for the CPU: what is emitted runs on the fake card."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take what ``kernels.nvrtc.Builder`` takes."""

    def image(self, source: Source) -> Future[bytes]:
        future: Future[bytes] = Future()
        future.set_result(bytes(shim.compiled(source.text, optimize=1)[0]) + b"\0")
        return future

    def close(self) -> None:
        """There is nothing to end."""


def fake_library() -> Path:
    """Compile the fake, unless that was done; return its path."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"tensorbatch-fake-cuda-{digest}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / "fake.so"
            options = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"]
            command = ["cc", *options, "-o", str(made), str(SOURCE), "-ldl", "-lpthread"]
            subprocess.run(command, check=True, capture_output=True)
            made.rename(path)
    return path


@functools.cache
def _load() -> FakeCuda:
    path = fake_library()
    return FakeCuda(path, ctypes.CDLL(str(path)))


@pytest.fixture
def fake_cuda() -> Iterator[FakeCuda]:
    """A driver that shows one card, for this test alone.

    Once loaded it stays in the process, and shows no card outside of such tests.
    """
    pytest.importorskip("cuda.bindings.driver")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    if not _load.cache_info().currsize and _cuda.available() is None:
        pytest.skip("there is a real driver, which tests/gpu is for")
    fake = _load()
    fake.library.fake_enable(1)
    _forget()
    before = fake.live
    try:
        yield fake
        assert fake.live == before, "not everything was freed"
    finally:
        fake.hold(False)
        fake.library.fake_enable(0)
        _forget()


def _forget() -> None:
    _cuda.available.cache_clear()
    _cuda._library.cache_clear()


def score_program(
    bucket: Bucket,
    target: Target | None = None,
    **changes: Any,  # noqa: ANN401 - of each field's own type
) -> Program:
    """Return a program of one launch, of the fake's ``score`` kernel."""
    launch = Launch(0, "score", (8, 1, 1), 32, SCORE_ARGUMENTS, cluster=4, dependent=True)
    whole: dict[str, Any] = {
        "bucket": bucket,
        "precision": Precision.FP32,
        "input_dtype": np.dtype(np.float32),
        "user_width": USER_WIDTH,
        "candidate_width": CANDIDATE_WIDTH,
        "n_outputs": 1,
        "sources": (Source("score", "", "sm_90a"),),
        "launches": (launch,),
        "weights": np.arange(300, dtype=np.uint8),
        "scratch_bytes": 40,
    }
    return Program(**(whole | changes))


def score_model(
    max_rows: int = 300,
    max_requests: int = 20,
    compile_program: Callable[[Bucket, Target], Program] = score_program,
) -> Model:
    """Return a model whose scores are ``sum(candidate) + user[0]``."""
    blocks = Blocks(max_rows, max_requests, USER_WIDTH, CANDIDATE_WIDTH, 1, np.dtype(np.float32))
    return Model(name="tiny", blocks=blocks, compile=compile_program)

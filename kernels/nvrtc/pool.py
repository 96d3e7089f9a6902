"""Compiles many sources at once, in processes of its own: NVRTC runs one at a time in each.

    with Builder(Cache(folder), n_workers=4) as builder:
        cubins = builder.build_all(program.sources)

What the cache has costs no process. Processes start with the first source that it has not, and end
after some idle time, on ``close``, and with their parent, however that ends. A worker that dies is
replaced, and its source tried once more.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Final, Self

import attrs

from kernels.errors import CompileError, KernelsError
from kernels.nvrtc.cache import Cache
from kernels.nvrtc.compile import Cubin, unit_of
from kernels.nvrtc.worker import Settings, WorkerProcess
from kernels.program import Source

_ATTEMPTS: Final = 2


class _Seat:
    """A place for one worker process, which comes and goes. ``close`` may be called anywhere."""

    def __init__(self, settings: Settings, limit_s: float) -> None:
        self._settings = settings
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None
        self._closed = False

    @property
    def used(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def cubin(self, source: Source) -> Cubin:
        """Have a source compiled; by another process, if one dies.

        Raises:
            KernelsError: What the worker met, or the seat is closed.
            CompileError: Two processes died over it, or it takes too long.
        """
        for _ in range(_ATTEMPTS):
            with self._lock:
                if self._closed:
                    break
                if self._process is None:
                    self._process = WorkerProcess(self._settings)
            try:
                return self._process.cubin(source, self._limit_s)
            except TimeoutError as error:
                self.leave()
                problem = f"not compiled in {self._limit_s:g} s"
                raise CompileError(source.name, problem, source.text) from error
            except (EOFError, OSError):
                status = self.leave()
        if self._closed:
            raise KernelsError(f"{source.name}: the builder was closed before it was compiled")
        problem = f"the process that compiled it died twice, with exit status {status}"
        raise CompileError(source.name, problem, source.text)

    def leave(self) -> int:
        """End the process, if there is one; return its exit status."""
        with self._lock:
            process, self._process = self._process, None
        return 0 if process is None else process.close()

    def close(self) -> None:
        """Kill the process, and start no other."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()


@attrs.define(eq=False)
class _Job:
    """A source, and who waits for its cubin."""

    source: Source
    ahead: bool
    futures: list[Future[Cubin]] = attrs.field(factory=list)
    taken: bool = False


class Builder:
    """Compiles sources in worker processes. May be used from any thread.

    Args:
        cache: Where cubins are looked for and kept; None for nowhere.
        n_workers: Processes at most.
        niceness: Added to the workers' (see nice(2)), so that compiling yields to serving.
        limit_s: Time for one compilation, after which its process is killed.
        idle_s: Time after which an idle process ends; it holds some 100 MB.
    """

    def __init__(
        self,
        cache: Cache | None,
        n_workers: int = 1,
        *,
        niceness: int = 10,
        limit_s: float = 300.0,
        idle_s: float = 30.0,
    ) -> None:
        if n_workers < 1:
            raise ValueError(f"want at least 1 worker, got {n_workers}")
        self._cache = cache
        self._settings = Settings(cache, niceness)
        self._n_workers = n_workers
        self._limit_s = limit_s
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._queue: list[tuple[bool, int, _Job]] = []  # a heap; ahead-of-time work sorts last
        self._waiting: dict[Source, _Job] = {}
        self._n_idle = 0
        self._threads: list[threading.Thread] = []
        self._seats: list[_Seat] = []
        self._closed = False

    def submit(self, source: Source, *, ahead: bool = False) -> Future[Cubin]:
        """Return the cubin to come.

        Equal sources that wait are compiled once. The future may be cancelled until its turn. Its
        exceptions: CompileError, CompilerMissing, CacheError.

        Args:
            source: What to compile.
            ahead: Nobody waits for it yet: it comes after all that somebody waits for.

        Raises:
            KernelsError: The builder is closed.
        """
        future: Future[Cubin] = Future()
        with self._changed:
            if self._closed:
                raise KernelsError("the builder of kernels is closed")
            job = self._waiting.get(source)
            if job is None:
                job = self._waiting[source] = _Job(source, ahead)
                heapq.heappush(self._queue, (ahead, next(self._order), job))
            elif job.ahead and not ahead:  # its place among the others stays behind, and is skipped
                job.ahead = False
                heapq.heappush(self._queue, (False, next(self._order), job))
            job.futures.append(future)
            if self._n_idle < len(self._waiting) and len(self._threads) < self._n_workers:
                thread = threading.Thread(target=self._work, name="kernel build", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return future

    def image(self, source: Source) -> Future[bytes]:
        """Return the cubin to come as bytes; as ``submit`` for somebody who waits."""
        image: Future[bytes] = Future()
        cubin = self.submit(source)

        def pass_on(done: Future[Cubin]) -> None:
            if image.set_running_or_notify_cancel():
                error = done.exception()
                if error is None:
                    image.set_result(done.result().image)
                else:
                    image.set_exception(error)

        cubin.add_done_callback(pass_on)
        return image

    def build_all(self, sources: Iterable[Source]) -> list[Cubin]:
        """Compile all sources and wait for them; the rest is given up when one fails.

        Raises:
            CompileError: One does not compile.
            CompilerMissing: There is no NVRTC.
            CacheError: The cache's folder cannot be used.
        """
        futures = [self.submit(source) for source in sources]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Kill the workers. What waits is cancelled; what was being compiled gets a KernelsError.

        Returns when nothing runs any more. Can be called twice.
        """
        with self._changed:
            self._closed = True
            jobs = [job for _, _, job in self._queue if not job.taken]
            self._queue.clear()
            self._waiting.clear()
            for seat in self._seats:
                seat.close()
            self._changed.notify_all()
        for job in jobs:
            for future in job.futures:
                future.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a future's callback may close us
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        """Serve jobs with one process, started when first needed: the life of a thread."""
        seat = _Seat(self._settings, self._limit_s)
        with self._changed:
            self._seats.append(seat)
        while True:
            job = self._take(self._idle_s if seat.used else None)
            if job is None:
                seat.leave()
                if self._closed:
                    return
                continue
            futures = [future for future in job.futures if future.set_running_or_notify_cancel()]
            if not futures:
                continue
            try:
                cubin = self._cached(job.source) or seat.cubin(job.source)
            except Exception as error:  # whoever waits is to see it
                for future in futures:
                    future.set_exception(error)
            else:
                for future in futures:
                    future.set_result(cubin)

    def _cached(self, source: Source) -> Cubin | None:
        return None if self._cache is None else self._cache.get(unit_of(source).key)

    def _take(self, patience_s: float | None) -> _Job | None:
        """Return the next job, or None if the builder is closed or nothing came in time."""
        with self._changed:
            self._n_idle += 1
            try:
                while not self._closed:
                    while self._queue:
                        _, _, job = heapq.heappop(self._queue)
                        if not job.taken:
                            job.taken = True
                            del self._waiting[job.source]
                            return job
                    if not self._changed.wait(patience_s):
                        return None
                return None
            finally:
                self._n_idle -= 1

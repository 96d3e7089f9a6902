"""The GPU executor: a model's dense graph on one card, on a few lanes.

Everything slow happens ahead: programs are compiled when the executor is opened, or by its own
thread while it serves, loaded and captured for each lane, and only then may a launch choose their
bucket. Until then it runs in a larger one. On a request's path nothing is compiled or allocated.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Protocol, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.device_tables import DeviceTables
from kernels.errors import CudaError, DeviceLost, KernelsError, LaunchFailed
from kernels.executor import Staging
from kernels.gpu.buckets import Cost, bucket_of
from kernels.gpu.device import Context, Device, Isolation
from kernels.gpu.filler import RowFiller, fill_source
from kernels.gpu.lanes import Blocks, Lane
from kernels.gpu.stock import BucketStock
from kernels.gpu.traffic import Statistics, Traffic
from kernels.lengths.columns import Shortened
from kernels.program import Bucket, Program, Source, Target
from kernels.store.table import StoredTable

log = logging.getLogger(__name__)

Compile: TypeAlias = Callable[[Bucket, Target], Program]
"""Makes the program of a bucket; called in a thread of the executor's own. Raises KernelsError."""


class Builder(Protocol):
    """Compiles sources, in workers of its own: that of ``kernels.nvrtc``."""

    def image(self, source: Source) -> Future[bytes]:
        """Return the cubin to come. Its exception is a KernelsError."""

    def close(self) -> None:
        """End the workers; what is being compiled fails or is cancelled."""


@attrs.frozen(kw_only=True)
class Model:
    """A dense graph as the executor needs it.

    Attributes:
        name: For messages.
        blocks: What is staged and what comes out, at the largest.
        compile: Makes the programs.
        cost: Of buckets; what is chosen among them by.
        table: Opens a table, or returns its rows, of those that the blocks say are to lie on
            the card.
    """

    name: str
    blocks: Blocks
    compile: Compile
    cost: Cost = attrs.field(factory=Cost)
    table: Callable[[str], StoredTable | NDArray[np.float32]] | None = None


class GpuExecutor:
    """Implements ``DenseExecutor``; launches can be queued without waiting for them, too.

    Args:
        model: What to run.
        builder: Compiles its kernels. Belongs to the executor, which closes it.
        n_lanes: Launches at once.
        mode: How lanes are kept apart.
        buckets: The buckets to have, or their rows, where they are to have as many requests as
            there may be; those without a length have the whole. The model's largest is always one
            of them. If None, powers of two at first, and as many that suit the traffic once that is
            known; twice as many, where sequences may be shorter.
        ahead: Whether all buckets are compiled before this returns, or only the largest.
        mapped: What kernels reach in the host's memory instead of in copies: ``inputs``,
            ``scores``.
        device: Index of the card.
        progress: Told what share of the buckets is ready, 0 to 1, whenever another one is; by the
            thread that opens the executor, or that which compiles later.

    Raises:
        CudaError: There is no driver or no such card, or its memory is full.
        KernelsError: The model cannot be compiled.
    """

    def __init__(
        self,
        model: Model,
        builder: Builder,
        n_lanes: int = 1,
        *,
        mode: Isolation = Isolation.STREAMS,
        buckets: Iterable[int | Bucket] | None = None,
        ahead: bool = True,
        mapped: Collection[str] = (),
        device: int = 0,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._model = model
        self._builder = builder
        self._progress = progress
        self._blocks = model.blocks
        blocks = model.blocks
        self._lost: DeviceLost | None = None
        self._closed = False
        self._running: list[int | None] = [None] * n_lanes
        # The length that was asked for, and the bucket that it is staged for; None for any of the
        # whole length.
        self._staged: list[tuple[int, Bucket | None]] = [(blocks.length, None)] * n_lanes
        self._prepare: Callable[[int], object] = lambda length: None
        self._traffic = Traffic(n_lanes)
        self._contexts: list[Context] = []
        self._table_places: list[tuple[Context, int]] = []
        self._lanes: list[Lane] = []
        self._filler: RowFiller | None = None
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        try:
            if n_lanes < 1:
                raise ValueError(f"want at least 1 lane, got {n_lanes}")
            largest = bucket_of(blocks.max_rows, blocks.max_requests, blocks.length)
            self._stock = BucketStock.of(largest, model.cost, buckets)
            card = Device.open(device)
            self._target = self._open_lanes(card, n_lanes, mode, mapped)
            self._filler = self._open_filler()
            others = self._stock.wanted[-2::-1]
            self._add([largest, *others] if ahead else [largest])
        except BaseException as error:
            if isinstance(error, DeviceLost):
                self._lost = error
            builder.close()
            self._free()
            raise
        self._worker = threading.Thread(
            target=self._work, name=f"{model.name} buckets", daemon=True
        )
        self._worker.start()
        if not ahead and others:
            self._tasks.put(lambda: self._add(others))

    @property
    def n_lanes(self) -> int:
        """Launches that may be under way at once."""
        return len(self._lanes)

    @property
    def max_rows(self) -> int:
        """Rows of the largest bucket: the most that one launch takes."""
        return self._blocks.max_rows

    @property
    def max_requests(self) -> int:
        """Requests of the largest bucket."""
        return self._blocks.max_requests

    @property
    def n_outputs(self) -> int:
        """Columns of the scores."""
        return self._blocks.n_outputs

    @property
    def tables(self) -> DeviceTables | None:
        """The tables on the card, which say what is staged."""
        return self._blocks.tables

    @property
    def sequences(self) -> Shortened | None:
        """The sequences that may be shorter than they are."""
        return self._blocks.sequences

    @property
    def filler(self) -> RowFiller | None:
        """Puts rows into the tables' slots; None where no table is hot. Lives until ``close``."""
        return self._filler

    def bucket(self, n_rows: int) -> int:
        """Return the rows of the bucket that ``n_rows`` runs in, of those that are ready."""
        found = self._stock.fit(n_rows, 1)
        return found.rows if found is not None else self._blocks.max_rows

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        """Return the pinned buffers of a lane. They belong to the caller while the lane is idle.

        Not to be used after ``close``.

        Args:
            lane: The lane.
            shape: Of what is to be staged and run next. The bucket that holds it says how long
                sequences are. Without it they have their whole length.
        """
        most = self._blocks.length
        if shape is None or not most:
            self._staged[lane] = most, None
            return self._lanes[lane].staging(most)
        length = max(shape.length, 1)
        bucket = self._stock.fit(shape.rows, shape.requests, length)
        self._staged[lane] = length, bucket
        return self._lanes[lane].staging(most if bucket is None else bucket.length)

    def prepare(self, call: Callable[[int], object]) -> None:
        """Call this with each length that buckets have, before anything is staged so.

        With those that are ready now; with others by the thread that compiles, when they come.
        """
        self._prepare = call
        for length in {bucket.length for bucket in self._stock.ready}:
            call(length)

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        """Run what was staged; wait until it is done, without the interpreter lock.

        Returns:
            float32 ``[n_rows, n_outputs]``, owned by the caller.

        Raises:
            LaunchFailed: The driver refused, or the executor is closed. The lane can be used on.
            DeviceLost: This process cannot use the card any more.
        """
        self.start(lane, n_requests, n_rows)
        return self.finish(lane)

    def start(self, lane: int, n_requests: int, n_rows: int) -> Bucket:
        """Queue what was staged and return at once; ``finish`` gives its scores.

        Returns:
            The bucket that it runs in.

        Raises:
            LaunchFailed: As ``run``; there is nothing to finish.
            DeviceLost: As ``run``.
        """
        self._check_open()
        length, bucket = self._staged[lane]
        if bucket is None or bucket.rows < n_rows or bucket.requests < n_requests:
            # Staged as for another batch, or for any.
            staged = self._blocks.length if bucket is None else bucket.length
            bucket = self._stock.of_length(staged, n_rows, n_requests)
        if bucket is None or n_rows < 1:
            raise self._failed(f"no bucket for {n_requests} requests, {n_rows} rows")
        try:
            self._lanes[lane].start(bucket, n_requests, n_rows)
        except CudaError as error:
            raise self._failed(f"{n_requests} requests, {n_rows} rows: {error}") from error
        except DeviceLost as error:
            self._lost = error
            raise
        self._running[lane] = n_rows
        n_launches = self._traffic.note(lane, n_rows, n_requests, length, bucket)
        if self._stock.is_look(n_launches):
            self._tasks.put(self._adapt)
        return bucket

    def finish(self, lane: int) -> NDArray[np.float32]:
        """Wait for what ``start`` queued on a lane; return as ``run`` does, and raise as it does.

        From any thread.
        """
        running, self._running[lane] = self._running[lane], None
        if running is None:
            raise self._failed(f"lane {lane} has nothing to finish")
        try:
            return self._lanes[lane].finish(running)
        except CudaError as error:
            raise self._failed(f"{running} rows: {error}") from error
        except DeviceLost as error:
            self._lost = error
            raise

    def measure(self) -> list[tuple[int, float]]:
        """Time a launch of each number of rows of a bucket: ``(rows, seconds)`` of each.

        For whoever predicts launch times. Overwrites the row indices of the first lane; no launch
        may be under way.
        """
        self.staging(0).request_of_row[:] = 0
        times = []
        whole = [each.rows for each in self._stock.ready if each.length == self._blocks.length]
        for n_rows in sorted(set(whole)):
            self.run(0, 1, n_rows)
            start = time.perf_counter()
            self.run(0, 1, n_rows)
            times.append((n_rows, time.perf_counter() - start))
        self._traffic.forget(0)
        return times

    def statistics(self) -> Statistics:
        """Return what was done so far, ``measure`` aside. From any thread."""
        return self._traffic.statistics(self._stock.ready)

    def close(self) -> None:
        """Wait for whatever compiles or runs, and free everything. Can be called twice.

        Once the card is lost, nothing is waited for or freed: every call of the driver would fail,
        and the end of the process frees it all.
        """
        if self._closed:
            return
        self._closed = True
        self._tasks.put(None)
        self._builder.close()
        if self._lost is None:
            self._worker.join()
        self._free()

    def settle(self) -> None:
        """Wait until no bucket is being compiled; for tests and benchmarks."""
        settled = threading.Event()
        self._tasks.put(settled.set)
        settled.wait()

    # Buckets

    def _add(self, buckets: Sequence[Bucket]) -> None:
        """Compile, load and capture; then let launches choose them. Not on a request's path."""
        started = time.perf_counter()
        name = self._model.name
        jobs = []
        for bucket in buckets:
            if self._closed:
                return
            program = self._model.compile(bucket, self._target)
            jobs.append((program, [self._builder.image(source) for source in program.sources]))
        for program, futures in jobs:
            cubins = [future.result() for future in futures]
            for lane in self._lanes:
                if self._closed:
                    return
                lane.add(program, cubins)
            self._prepare(program.bucket.length)
            self._stock.add(program.bucket)
            self._progress(self._stock.share)
            log.info(
                "%s: %s ready after %.1f s, %d of %d buckets",
                name,
                program.bucket,
                time.perf_counter() - started,
                len(self._stock.ready),
                len(self._stock.wanted),
            )

    def _adapt(self) -> None:
        """Have the buckets that suit the traffic so far."""
        missing = self._stock.missing(self._traffic.by_shape(self._stock.largest))
        if missing:
            self._add(missing)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except DeviceLost as error:
                # The next launch fails likewise, and tells who can replace the process.
                self._lost = error
            except (KernelsError, CancelledError):
                if not self._closed:
                    log.exception("%s: a bucket is missing, larger ones serve", self._model.name)

    # The card

    def _open_lanes(
        self, card: Device, n_lanes: int, mode: Isolation, mapped: Collection[str]
    ) -> Target:
        """Make the lanes; return what to compile for."""
        if mode is Isolation.CONTEXTS:
            for _ in range(n_lanes):
                context = Context(card, own=True)
                self._contexts.append(context)
                tables = self._upload_tables(context)
                self._lanes.append(Lane(context, context.stream, self._blocks, mapped, tables))
            return card.target()
        context = Context(card)
        self._contexts.append(context)
        tables = self._upload_tables(context)
        if mode is Isolation.GREEN:
            parts = context.partition(n_lanes)
            for number, part in enumerate(parts):
                lane = Lane(context, part.stream, self._blocks, mapped, tables, number)
                self._lanes.append(lane)
            return card.target(min(part.n_sms for part in parts))
        for number in range(n_lanes):
            lane = Lane(context, context.stream, self._blocks, mapped, tables, number)
            self._lanes.append(lane)
        return card.target()

    def _open_filler(self) -> RowFiller | None:
        """Return what puts rows into hot tables' slots, if there are any."""
        tables = self._blocks.tables
        if tables is None or not tables.hot:
            return None
        cubin = self._builder.image(fill_source(self._target.arch)).result()
        longest = max(table.dim for table in tables.hot) * tables.precision.item_bytes
        return RowFiller(self._table_places, cubin, longest)

    def _upload_tables(self, context: Context) -> int | None:
        """Copy the tables to the card, once a context; return where they lie."""
        tables, read = self._blocks.tables, self._model.table
        if tables is None or read is None:
            return None
        memory = context.allocate(tables.size_bytes)
        for offset, rows in tables.pieces(read):
            memory.write(rows, offset)
        self._table_places.append((context, memory.address))
        return memory.address

    def _free(self) -> None:
        if self._lost is not None:
            return
        if self._filler is not None:
            self._filler.close()
        for lane in self._lanes:
            lane.close()
        for context in self._contexts:
            context.close()

    def _check_open(self) -> None:
        if self._lost is not None:
            raise DeviceLost(str(self._lost))
        if self._closed:
            raise self._failed("the executor is closed")

    def _failed(self, problem: str) -> LaunchFailed:
        return LaunchFailed(f"{self._model.name}: {problem}")

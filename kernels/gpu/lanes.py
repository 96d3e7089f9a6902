"""A lane: a stream with staging of its own, and one captured graph for each bucket.

A launch is three to five calls of the driver: up to two copies of what was staged, of exactly the
rows that are used, one of spare rows, the graph (the launches of the program and the copy of its
scores), and an event. Nothing is allocated for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels import _cuda
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.executor import Bags, Spare, Staging
from kernels.gpu.device import Context
from kernels.gpu.loaded import CapturedGraph, LoadedProgram
from kernels.gpu.memory import DeviceMemory, PinnedMemory
from kernels.lengths.columns import Shortened
from kernels.program import Bucket, Program, Role, leading_dimension

T = TypeVar("T")

# Tensor maps want 16 bytes, and allocations are aligned so.
_ALIGNMENT: Final = 256


@attrs.frozen
class Blocks:
    """What a lane stages and gets: the sizes of a model's blocks at their largest.

    Attributes:
        user_width, candidate_width: Columns; with tables on the card, elements of a staged row.
        input_dtype: float16 or float32, of ``user`` and ``candidate``.
        tables: Those on the card.
        sequences: Those that may be shorter; None if there are none.
        shorter: Returns the blocks of a length, narrower in what depends on it.
    """

    max_rows: int
    max_requests: int
    user_width: int
    candidate_width: int
    n_outputs: int
    input_dtype: np.dtype[Any]
    tables: DeviceTables | None = None
    sequences: Shortened | None = None
    shorter: Callable[[int], Blocks] | None = None

    @property
    def length(self) -> int:
        """Steps of a bucket that has all of them; 0 if none may have fewer."""
        return 0 if self.sequences is None else self.sequences.most

    def at(self, length: int) -> Blocks:
        """Return the blocks of a length: a row is narrower, and there are as many."""
        if self.shorter is None or not 0 < length < self.length:
            return self
        return self.shorter(length)

    def offsets(self) -> dict[Role, int]:
        """Return where each input lies in a lane's memory, in the order in which they are copied.

        Counts, row indices and users come first: one copy takes them and the users in use.
        """
        item = self.input_dtype.itemsize
        sizes = {
            Role.COUNTS: 8,
            Role.REQUEST_OF_ROW: 4 * self.max_rows,
            Role.USER: self.max_requests * leading_dimension(self.user_width) * item,
            Role.CANDIDATE: self.max_rows * leading_dimension(self.candidate_width) * item,
        }
        offsets: dict[Role, int] = {}
        at = 0
        for role, size in sizes.items():
            offsets[role] = at
            at += -(-size // _ALIGNMENT) * _ALIGNMENT
        return offsets

    @property
    def input_bytes(self) -> int:
        """Size of a lane's inputs."""
        ld = leading_dimension(self.candidate_width)
        candidate = self.max_rows * ld * self.input_dtype.itemsize
        return self.offsets()[Role.CANDIDATE] + candidate

    @property
    def score_bytes(self) -> int:
        """Size of a lane's scores."""
        return self.max_rows * self.n_outputs * 4


@attrs.frozen(eq=False)
class _Layout:
    """How blocks of a length lie in a lane's memory.

    Attributes:
        user_bytes, candidate_bytes: From a row to the next.
        user_gaps, candidate_gaps: Columns of each row that nobody stages and kernels read as
            zeros; where blocks of different lengths take turns, they are zeroed for each launch.
    """

    staging: Staging
    user_bytes: int
    candidate_bytes: int
    user_gaps: tuple[NDArray[Any], ...] = ()
    candidate_gaps: tuple[NDArray[Any], ...] = ()


@attrs.define(eq=False)
class _Ready:
    program: LoadedProgram
    graph: CapturedGraph


class Lane:
    """One launch at a time. ``add`` may run in another thread meanwhile.

    Args:
        context: Where everything lives.
        make_stream: Makes the lane's streams: one to launch on, one to capture on.
        blocks: Sizes of what is staged.
        mapped: What kernels reach in the host's memory instead of in copies: ``inputs``,
            ``scores``.
        tables: Address of the tables in the context, if the blocks say that there are some.
        number: Of the lane among those that share these tables.
    """

    def __init__(
        self,
        context: Context,
        make_stream: Callable[[], _cuda.Stream],
        blocks: Blocks,
        mapped: Collection[str] = (),
        tables: int | None = None,
        number: int = 0,
    ) -> None:
        self._context = context
        self._tables = tables
        self._number = number
        self._blocks = blocks
        self._copy_inputs = "inputs" not in mapped
        self._copy_scores = "scores" not in mapped
        self._ready: dict[Bucket, _Ready] = {}
        self._layouts: dict[int, _Layout] = {}
        self._owned = contextlib.ExitStack()
        context.make_current()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._owned.close)
            self._stream = self._made(make_stream(), _cuda.destroy_stream)
            self._capture_stream = self._made(make_stream(), _cuda.destroy_stream)
            self._event = self._made(_cuda.create_event(), _cuda.destroy_event)
            self._allocate()
            on_failure.pop_all()

    def _allocate(self) -> None:
        """Allocate inputs and scores on both sides, and say where everything lies."""
        blocks = self._blocks
        offsets = blocks.offsets()
        pinned = self._pinned(blocks.input_bytes)
        scores = self._pinned(blocks.score_bytes)
        self._host_inputs = pinned.address
        self._inputs = self._device(blocks.input_bytes) if self._copy_inputs else pinned.address
        self._host_scores = scores.address
        self._scores_at = self._device(blocks.score_bytes) if self._copy_scores else scores.address
        self._buffers = {role: self._inputs + at for role, at in offsets.items()}
        self._buffers[Role.SCORES] = self._scores_at
        if self._tables is not None:
            self._buffers[Role.TABLES] = self._tables
        self._user_at, self._candidate_at = offsets[Role.USER], offsets[Role.CANDIDATE]
        self._pinned_inputs = pinned
        self._counts = pinned.array((2,), np.int32, offsets[Role.COUNTS])
        self._request_of_row = pinned.array(
            (blocks.max_rows,), np.int32, offsets[Role.REQUEST_OF_ROW]
        )
        self._scores = scores.array((blocks.max_rows, blocks.n_outputs), np.float32)
        self._spare = self._make_spare()
        self._layouts[blocks.length] = self._laid_out(blocks.length)

    def staging(self, length: int) -> Staging:
        """Return the buffers, laid out for the programs of a length that were added."""
        return self._layouts[length].staging

    def _laid_out(self, length: int) -> _Layout:
        blocks = self._blocks.at(length)
        tables, item = blocks.tables, blocks.input_dtype.itemsize
        user, user_bags, user_gaps = self._block(
            Role.USER, blocks.max_requests, blocks.user_width, tables.user if tables else None
        )
        candidate, candidate_bags, candidate_gaps = self._block(
            Role.CANDIDATE,
            blocks.max_rows,
            blocks.candidate_width,
            tables.candidate if tables else None,
        )
        staging = Staging(
            user,
            candidate,
            self._request_of_row,
            user_bags,
            candidate_bags,
            length,
            self._spare,
        )
        steps = leading_dimension(blocks.user_width), leading_dimension(blocks.candidate_width)
        if blocks.sequences is None:
            user_gaps = candidate_gaps = ()
        return _Layout(staging, steps[0] * item, steps[1] * item, user_gaps, candidate_gaps)

    def add(self, program: Program, cubins: Sequence[bytes]) -> None:
        """Load and capture a program; from then on its bucket can be launched.

        Raises:
            CudaError: It does not load.
        """
        length = program.bucket.length
        if length not in self._layouts:
            self._layouts[length] = self._laid_out(length)
        loaded = LoadedProgram(self._context, program, cubins, buffers=self._buffers)

        def queue() -> None:
            loaded.launch(self._capture_stream)
            if self._copy_scores:
                _cuda.copy_to_host(
                    self._host_scores,
                    self._scores_at,
                    program.bucket.rows * program.n_outputs * 4,
                    self._capture_stream,
                )

        try:
            graph = CapturedGraph(self._context, self._capture_stream, queue)
        except BaseException:
            loaded.close()
            raise
        self._ready[program.bucket] = _Ready(loaded, graph)

    def start(self, bucket: Bucket, n_requests: int, n_rows: int) -> None:
        """Queue a launch of what was staged; return before it has run.

        Raises:
            CudaError: The driver refuses.
            DeviceLost: CUDA cannot be used any more.
        """
        self._context.make_current()
        self._counts[:] = n_rows, n_requests
        # Rows that are padding must not point past the bucket's users.
        self._request_of_row[n_rows : bucket.rows] = 0
        layout = self._layouts[bucket.length]
        for gap in layout.user_gaps:
            gap[:n_requests] = 0
        for gap in layout.candidate_gaps:
            gap[:n_rows] = 0
        if self._copy_inputs:
            head = self._user_at + n_requests * layout.user_bytes
            _cuda.copy_to_device(self._inputs, self._host_inputs, head, self._stream)
            if layout.candidate_bytes:
                at = self._candidate_at
                size = n_rows * layout.candidate_bytes
                _cuda.copy_to_device(self._inputs + at, self._host_inputs + at, size, self._stream)
        if self._spare is not None and self._spare.n_bytes:
            assert self._tables is not None
            to, size = self._tables + self._spare.at, self._spare.n_bytes
            _cuda.copy_to_device(to, self._host_spare, size, self._stream)
        self._ready[bucket].graph.launch(self._stream)
        _cuda.event_record(self._event, self._stream)

    def finish(self, n_rows: int) -> NDArray[np.float32]:
        """Wait, asleep and without the interpreter lock, for what ``start`` queued.

        Returns:
            float32 ``[n_rows, n_outputs]``, owned by the caller.

        Raises:
            DeviceLost: A kernel broke, or the card did.
        """
        self._context.make_current()
        _cuda.event_synchronize(self._event)
        return self._scores[:n_rows].copy()

    def close(self) -> None:
        """Wait for what runs, and free everything. Views of the staging must not be used after."""
        self._context.make_current()
        _cuda.stream_synchronize(self._stream)
        for ready in self._ready.values():
            ready.graph.close()
            ready.program.close()
        self._ready.clear()
        self._owned.close()

    def _block(
        self, role: Role, n: int, width: int, side: GatheredSide | None
    ) -> tuple[NDArray[np.floating[Any]], Bags | None, tuple[NDArray[Any], ...]]:
        """Return the columns in use of a block in pinned memory, its rows' ids, and its gaps."""
        blocks = self._blocks
        whole = self._pinned_inputs.array(
            (n, leading_dimension(width)), blocks.input_dtype, blocks.offsets()[role]
        )
        gaps = [whole[:, width:]]
        bags = None
        if side is not None and side.lookups:
            tail = whole[:, side.ids_at : width]
            ids, weights = tail.view(np.int32), tail.view(np.float32)
            bags = Bags(ids[:, : side.n_ids], weights[:, side.n_ids :])
            gaps.append(whole[:, side.staged_width : side.ids_at])
            width = side.staged_width
        return whole[:, :width], bags, tuple(gap for gap in gaps if gap.shape[1])

    def _make_spare(self) -> Spare | None:
        """Return where rows go that no slot of a hot table has, if there are hot tables."""
        tables = self._blocks.tables
        if tables is None or not tables.spare.size_bytes:
            return None
        size = tables.spare.size_bytes
        pinned = self._pinned(size)
        self._host_spare = pinned.address
        return Spare(pinned.array((size,), np.uint8), tables.spare.offset + self._number * size)

    def _pinned(self, size_bytes: int) -> PinnedMemory:
        return self._made(PinnedMemory(size_bytes), PinnedMemory.free)

    def _device(self, size_bytes: int) -> int:
        return self._made(DeviceMemory.allocate(size_bytes), DeviceMemory.free).address

    def _made(self, thing: T, free: Callable[[T], None]) -> T:
        """Return a thing that is the lane's own from now on."""
        self._owned.callback(free, thing)
        return thing

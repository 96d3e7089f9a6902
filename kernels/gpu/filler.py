"""Rows into slots of tables on the card, beside the launches that read other slots.

A put is one launch, on a stream of its own: its kernel reads the rows where they lie in pinned
memory and writes each to its slot (``cuda/fill.cuh``). Who puts sees to it that nobody reads these
slots before the put is over: kernels read tables as memory that does not change while they run. In
a context of each lane's own, tables lie once in every context: a put goes to all, and is over when
it is everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels import _cuda
from kernels.gpu.device import Context
from kernels.gpu.memory import PinnedMemory
from kernels.hot import copy_rows
from kernels.program import Source

I64 = NDArray[np.int64]
T = TypeVar("T")

MOST_ROWS: Final = 4096
"""Of a put."""
MOST_BYTES: Final = 1 << 20
"""Of a put's rows; one row may be longer."""
N_BUFFERS: Final = 8
"""Puts under way at once: such as of two large batches, none of whose rows was there."""

_ENTRY: Final = "fill"
_GRID: Final = 64
_BLOCK: Final = 256
# As ``RowMove`` of fill.cuh.
_MOVE: Final = np.dtype([("to", "<u8"), ("source", "<u4"), ("bytes", "<u4")])
_MOVES_BYTES: Final = MOST_ROWS * _MOVE.itemsize


def fill_source(arch: str) -> Source:
    """Return the kernel, for a card."""
    text = (
        '#include "fill.cuh"\n'
        f"KERNEL void {_ENTRY}(u8* tables, const u8* sent, int n) {{\n"
        f"  fill_rows(tables, (const RowMove*)sent, sent + {_MOVES_BYTES}, n);\n"
        "}\n"
    )
    return Source("fill", text, arch)


@attrs.define(eq=False)
class _Place:
    """Tables in one context, and what is queued for them."""

    context: Context
    tables: int
    function: _cuda.Function
    stream: _cuda.Stream
    events: list[_cuda.Event]  # one a buffer


class RowFiller:
    """Puts rows into the tables of an executor. Used by one thread at a time.

    Args:
        places: Each context in which there are tables, and where these lie.
        cubin: Of ``fill_source``.
        row_bytes: Of the longest row.

    Raises:
        CudaError: The cubin does not load, or memory is full.
    """

    def __init__(self, places: Sequence[tuple[Context, int]], cubin: bytes, row_bytes: int) -> None:
        self.most_rows = max(min(MOST_ROWS, MOST_BYTES // row_bytes), 1)
        """How many rows, all as long as the longest, a put takes."""
        self._config = _cuda.launch_config(
            (_GRID, 1, 1), _BLOCK, shared_bytes=0, cluster=1, dependent=False
        )
        self._n_begun = self._n_done = 0
        self._places: list[_Place] = []
        self._owned = contextlib.ExitStack()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._owned.close)
            for context, tables in places:
                self._places.append(self._place(context, tables, cubin))
            size = _MOVES_BYTES + max(MOST_BYTES, row_bytes)
            self._buffers = [self._buffer(places[0][0], size) for _ in range(N_BUFFERS)]
            self._moves = [each.array((MOST_ROWS,), _MOVE) for each in self._buffers]
            self._rows = [
                each.array((size - _MOVES_BYTES,), np.uint8, _MOVES_BYTES) for each in self._buffers
            ]
            on_failure.pop_all()

    def put(self, to: I64, rows: NDArray[np.uint8], at: I64, sizes: I64) -> int | None:
        """Queue the writing of rows to their slots, and return at once.

        Args:
            to: int64 ``[n]``, bytes in the tables; ``n`` is at most ``most_rows``.
            rows: uint8 ``[n_bytes]``; copied.
            at: int64 ``[n]``, where each row begins in ``rows``.
            sizes: int64 ``[n]``, bytes of each.

        Returns:
            The put's number, which ascend from 0; None if too many are under way.

        Raises:
            CudaError: The driver refuses.
            DeviceLost: CUDA cannot be used any more.
            ValueError: There are too many rows.
        """
        number, n = self._n_begun, len(to)
        if n > self.most_rows:
            raise ValueError(f"want at most {self.most_rows} rows, got {n}")
        if number - self.n_done() >= N_BUFFERS:
            return None
        which = number % N_BUFFERS
        ends = np.cumsum(sizes)
        moves = self._moves[which][:n]
        moves["to"], moves["source"], moves["bytes"] = to, ends - sizes, sizes
        copy_rows(self._rows[which], ends - sizes, rows, at, sizes)
        self._n_begun += 1
        for place in self._places:
            place.context.make_current()
            values = (
                ctypes.c_uint64(place.tables),
                ctypes.c_uint64(self._buffers[which].address),
                ctypes.c_int32(n),
            )
            table = (ctypes.c_void_p * (len(values) + 1))(*map(ctypes.addressof, values))
            _cuda.launch(self._config, place.function, ctypes.addressof(table), place.stream)
            _cuda.event_record(place.events[which], place.stream)
        return number

    def n_done(self) -> int:
        """Return how many puts are over: those of lower numbers.

        Raises:
            DeviceLost: CUDA cannot be used any more.
        """
        while self._n_done < self._n_begun:
            which = self._n_done % N_BUFFERS
            for place in self._places:
                place.context.make_current()
                if not _cuda.event_done(place.events[which]):
                    return self._n_done
            self._n_done += 1
        return self._n_done

    def close(self) -> None:
        """Wait for what runs, and free everything."""
        for place in self._places:
            place.context.make_current()
            _cuda.stream_synchronize(place.stream)
        self._owned.close()

    def _place(self, context: Context, tables: int, cubin: bytes) -> _Place:
        context.make_current()
        stream = _cuda.create_stream()
        self._owned.callback(_destroy, context, stream, _cuda.destroy_stream)
        events = []
        for _ in range(N_BUFFERS):
            events.append(_cuda.create_event())
            self._owned.callback(_destroy, context, events[-1], _cuda.destroy_event)
        function = context.kernel(cubin, _ENTRY, shared_bytes=0, cluster=1)
        return _Place(context, tables, function, stream, events)

    def _buffer(self, context: Context, size_bytes: int) -> PinnedMemory:
        context.make_current()
        memory = PinnedMemory(size_bytes)
        self._owned.callback(_destroy, context, memory, PinnedMemory.free)
        return memory


def _destroy(context: Context, thing: T, how: Callable[[T], None]) -> None:
    context.make_current()
    how(thing)

"""A program in a context: its kernels, its weights, its buffers, ready to be queued on a stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels import _cuda
from kernels.gpu.device import Context
from kernels.gpu.memory import DeviceMemory
from kernels.program import (
    Argument,
    Launch,
    Pointer,
    Program,
    Role,
    TensorMap,
    leading_dimension,
)


class CapturedGraph:
    """Queued work that was recorded once, to be queued again by one call."""

    def __init__(self, context: Context, stream: _cuda.Stream, queue: Callable[[], None]) -> None:
        """Record what ``queue`` queues on ``stream``, which must be idle; nothing of it runs.

        Everything that it reads and writes must live until ``close``.
        """
        self._context = context
        context.make_current()
        _cuda.begin_capture(stream)
        try:
            queue()
        finally:
            graph = _cuda.end_capture(stream)
        try:
            self._handle: _cuda.GraphExec | None = _cuda.instantiate(graph)
        finally:
            _cuda.destroy_graph(graph)
        _cuda.upload_graph(self._handle, stream)
        _cuda.stream_synchronize(stream)

    def launch(self, stream: _cuda.Stream) -> None:
        """Queue it. The context must be current in this thread."""
        assert self._handle is not None
        _cuda.launch_graph(self._handle, stream)

    def close(self) -> None:
        """Free it, once it does not run any more. Can be called twice."""
        if self._handle is not None:
            self._context.make_current()
            handle, self._handle = self._handle, None
            _cuda.destroy_graph_exec(handle)


@attrs.define(eq=False)
class _Bound:
    """A launch with its arguments' values; ``keep`` holds what ``parameters`` points to."""

    config: _cuda.LaunchConfig
    function: _cuda.Function
    parameters: int
    keep: tuple[object, ...]


def block_bytes(program: Program, role: Role) -> int:
    """Return the size of a program's buffer."""
    bucket = program.bucket
    item = program.input_dtype.itemsize
    return {
        Role.USER: bucket.requests * leading_dimension(program.user_width) * item,
        Role.CANDIDATE: bucket.rows * leading_dimension(program.candidate_width) * item,
        Role.REQUEST_OF_ROW: bucket.rows * 4,
        Role.COUNTS: 8,
        Role.WEIGHTS: program.weights.nbytes,
        Role.TABLES: program.table_bytes,
        Role.SCRATCH: program.scratch_bytes,
        Role.SCORES: bucket.rows * program.n_outputs * 4,
    }[role]


class LoadedProgram:
    """A program with its kernels loaded and its arguments bound to buffers.

    Modules and weights are shared with every program of the context that has the same. One thread
    at a time may use it; only one launch of it may run at a time, as it has one set of buffers.

    Args:
        context: Where it runs.
        program: What the compiler made.
        cubins: One for each of ``program.sources``.
        buffers: Addresses of buffers that the caller owns, each at least as large as
            ``block_bytes`` says and kept until ``close``. What is not given is allocated here.

    Raises:
        CudaError: A cubin does not load, a launch asks for more than the card has, or memory is
            full.
    """

    def __init__(
        self,
        context: Context,
        program: Program,
        cubins: Sequence[bytes],
        *,
        buffers: Mapping[Role, int] | None = None,
    ) -> None:
        if len(cubins) != len(program.sources):
            raise ValueError(f"want {len(program.sources)} cubins, got {len(cubins)}")
        self.program = program
        self._context = context
        context.make_current()
        self._memory: dict[Role, DeviceMemory] = {}
        self._addresses = dict(buffers or {})
        self._addresses[Role.WEIGHTS] = context.weights(program.weights).address
        try:
            for role in Role:
                unused = role is Role.TABLES and not program.table_bytes
                if role not in self._addresses and not unused:
                    self._memory[role] = DeviceMemory.allocate(block_bytes(program, role))
                    self._addresses[role] = self._memory[role].address
            self._launches = [
                self._bind(launch, cubins[launch.source]) for launch in program.launches
            ]
        except BaseException:
            self.close()
            raise

    def address(self, role: Role) -> int:
        """Return where a buffer lies."""
        return self._addresses[role]

    def launch(self, stream: _cuda.Stream) -> None:
        """Queue the program's launches. The context must be current in this thread."""
        for bound in self._launches:
            _cuda.launch(bound.config, bound.function, bound.parameters, stream)

    def capture(self, stream: _cuda.Stream) -> CapturedGraph:
        """Record the program's launches as a graph, for the caller; ``stream`` must be idle."""
        return CapturedGraph(self._context, stream, lambda: self.launch(stream))

    def active_clusters(self, stream: _cuda.Stream) -> list[int]:
        """Return, for each launch, how many clusters (or blocks) the card holds at once."""
        self._context.make_current()
        counts = []
        for bound, launch in zip(self._launches, self.program.launches, strict=True):
            if launch.cluster > 1:
                counts.append(_cuda.max_active_clusters(bound.config, bound.function, stream))
            else:
                a_sm = _cuda.max_active_blocks(bound.function, launch.block, launch.shared_bytes)
                counts.append(a_sm * self._context.device.n_sms)
        return counts

    def write(
        self,
        user: NDArray[Any],
        candidate: NDArray[Any],
        request_of_row: NDArray[np.integer[Any]],
    ) -> None:
        """Fill the input buffers that were allocated here; for benchmarks and tests.

        Args:
            user: ``[n_requests, user width]``; converted to the program's dtype.
            candidate: ``[n_rows, candidate width]``.
            request_of_row: ``[n_rows]``.
        """
        self._context.make_current()
        program = self.program
        for role, block, most in (
            (Role.USER, user, program.bucket.requests),
            (Role.CANDIDATE, candidate, program.bucket.rows),
        ):
            padded = np.zeros((most, leading_dimension(block.shape[1])), program.input_dtype)
            padded[: len(block), : block.shape[1]] = block
            self._memory[role].write(padded)
        rows = np.zeros(program.bucket.rows, np.int32)
        rows[: len(request_of_row)] = request_of_row
        self._memory[Role.REQUEST_OF_ROW].write(rows)
        self._memory[Role.COUNTS].write(np.array([len(candidate), len(user)], np.int32))

    def poison(self, byte: int = 0xFF) -> None:
        """Fill scores that were allocated here with NaN, so that what is not written shows."""
        self._context.make_current()
        self._memory[Role.SCORES].fill(byte)

    def scores(self, n_rows: int) -> NDArray[np.float32]:
        """Return the scores that were allocated here: float32 ``[n_rows, n_outputs]``, a copy."""
        self._context.make_current()
        shape = (n_rows, self.program.n_outputs)
        return self._memory[Role.SCORES].read(shape, np.float32)

    def close(self) -> None:
        """Free the buffers that were allocated here, once no launch runs. Can be called twice."""
        self._context.make_current()
        for memory in self._memory.values():
            memory.free()
        self._memory.clear()

    def _bind(self, launch: Launch, cubin: bytes) -> _Bound:
        function = self._context.kernel(
            cubin, launch.entry, shared_bytes=launch.shared_bytes, cluster=launch.cluster
        )
        config = _cuda.launch_config(
            launch.grid,
            launch.block,
            shared_bytes=launch.shared_bytes,
            cluster=launch.cluster,
            dependent=launch.dependent,
        )
        values = [self._value(argument) for argument in launch.arguments]
        # One more than there are: a table of none has an address, too.
        table = (ctypes.c_void_p * (len(values) + 1))(*map(ctypes.addressof, values))
        return _Bound(config, function, ctypes.addressof(table), (table, *values))

    def _value(self, argument: Argument) -> Any:  # noqa: ANN401 - an object of ctypes
        if isinstance(argument, Pointer):
            return ctypes.c_uint64(self._addresses[argument.role] + argument.offset)
        if isinstance(argument, TensorMap):
            encoded = _cuda.encode_tensor_map(
                self._addresses[argument.pointer.role] + argument.pointer.offset,
                rows=argument.rows,
                columns=argument.columns,
                row_bytes=argument.row_bytes,
                box_rows=argument.box_rows,
                box_columns=argument.box_columns,
                swizzle_bytes=argument.swizzle_bytes,
                element_bytes=argument.element_bytes,
            )
            return (ctypes.c_uint8 * len(encoded)).from_buffer_copy(encoded)
        return ctypes.c_int32(argument)

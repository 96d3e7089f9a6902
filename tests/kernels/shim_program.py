"""Runs a whole ``Program`` on the CPU shim, as the device executor runs it on a card."""

from __future__ import annotations

import struct

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.program import Argument, Pointer, Program, Role, TensorMap, leading_dimension
from tests.kernels import shim


@attrs.frozen(eq=False)
class Batch:
    """What a batch brings.

    Attributes:
        candidate: float ``[rows, candidate_width]``.
        user: float ``[requests, user_width]``.
        request_of_row: int ``[rows]``; by default all rows are of request 0.
    """

    candidate: NDArray[np.float32]
    user: NDArray[np.float32] = attrs.field(factory=lambda: np.zeros((1, 0), np.float32))
    request_of_row: NDArray[np.int32] | None = None


def run_program(
    program: Program,
    batch: Batch,
    *,
    tables: NDArray[np.uint8] | None = None,
    seed: int = 0,
    races: bool = False,
    sanitize: bool = False,
    optimize: int = 1,
    scratch: NDArray[np.uint8] | None = None,
) -> NDArray[np.float32]:
    """Return the scores ``[rows, n_outputs]`` of a batch, which may be smaller than the bucket.

    Buffers have the bucket's sizes; what no row of the batch fills is NaN, and so are scores
    before they are written. ``scratch`` is what earlier batches left there, zeros by default, and
    ``tables`` the TABLES buffer; the other keywords are those of ``shim.build`` and ``launch``.

    Raises:
        ShimError: A kernel broke a rule.
    """
    rows, requests = len(batch.candidate), len(batch.user)
    bucket = program.bucket
    if scratch is None:
        scratch = scratch_of(program)
    request_of_row = np.zeros(bucket.rows, np.int32)
    if batch.request_of_row is not None:
        request_of_row[:rows] = batch.request_of_row
    scores = np.full((bucket.rows, program.n_outputs), np.nan, np.float32)
    weights = program.weights.copy()
    buffers: dict[Role, NDArray[np.generic]] = {
        Role.USER: _block(batch.user, bucket.requests, program.user_width, program),
        Role.CANDIDATE: _block(batch.candidate, bucket.rows, program.candidate_width, program),
        Role.REQUEST_OF_ROW: request_of_row,
        Role.COUNTS: np.array([rows, requests], np.int32),
        Role.WEIGHTS: weights,
        Role.TABLES: np.zeros(1, np.uint8) if tables is None else tables.copy(),
        Role.SCRATCH: scratch,
        Role.SCORES: scores,
    }
    for role in (Role.USER, Role.CANDIDATE, Role.REQUEST_OF_ROW, Role.COUNTS, Role.WEIGHTS):
        buffers[role].flags.writeable = False
    for launch in program.launches:
        entries = [each.entry for each in program.launches if each.source == launch.source]
        module = shim.build(
            program.sources[launch.source].text,
            entries=sorted(set(entries)),
            sanitize=sanitize,
            optimize=optimize,
        )
        arguments = [_argument(argument, buffers) for argument in launch.arguments]
        module.launch(
            launch.entry,
            launch.grid,
            launch.block,
            launch.cluster,
            launch.shared_bytes,
            arguments,
            seed=seed,
            races=races,
        )
    return scores[:rows]


def scratch_of(program: Program) -> NDArray[np.uint8]:
    """Return a program's scratch as a card has it before the first batch."""
    return np.zeros(max(16, program.scratch_bytes), np.uint8)


def _block(
    values: NDArray[np.float32], n: int, width: int, program: Program
) -> NDArray[np.generic]:
    """Lay a side's values out as the device has them: rows of ``ld`` columns, padded with zeros."""
    block = np.zeros((n, leading_dimension(width)), program.input_dtype)
    block[:, :width] = np.nan
    block[: len(values), :width] = values
    return block


def _argument(argument: Argument, buffers: dict[Role, NDArray[np.generic]]) -> shim.Arg:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, TensorMap):
        return tensor_map(argument, _bytes(argument.pointer, buffers).ctypes.data)
    return _bytes(argument, buffers)


def tensor_map(made: TensorMap, address: int) -> bytes:
    """Return a tensor map as ``wgmma_shim.h`` reads it; the matrix lies at ``address``."""
    fields = (address, made.rows, made.columns, made.row_bytes)
    box = (made.box_rows, made.box_columns, made.swizzle_bytes, made.element_bytes)
    return struct.pack("<16Q", *fields, *box, *[0] * 8)


def _bytes(pointer: Pointer, buffers: dict[Role, NDArray[np.generic]]) -> NDArray[np.uint8]:
    """Return a buffer from where a pointer points."""
    view: NDArray[np.uint8] = buffers[pointer.role].reshape(-1).view(np.uint8)[pointer.offset :]
    return view

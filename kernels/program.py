"""What the compiler makes of a dense graph for one bucket: sources, launches, buffers, weights.

A program is a plain value. ``kernels.nvrtc`` turns its sources into cubins, ``kernels.gpu`` puts it
on a card; neither knows how it came about.
"""

from __future__ import annotations

import enum
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray


class Precision(enum.StrEnum):
    """How values are stored between steps, and multiplied by weights; sums are fp32 in each.

    Tensor cores have no fp32. TF32 rounds both factors of a product to 11 significant bits, as many
    as fp16's; FP32 makes three such products of each, which is about as good as fp32.
    """

    FP16 = "fp16"
    BF16 = "bf16"
    TF32 = "tf32"
    FP32 = "fp32"

    @property
    def has_halves(self) -> bool:
        """Whether stored elements have 16 bits, not 32."""
        return self in (Precision.FP16, Precision.BF16)

    @property
    def item_bytes(self) -> int:
        """Size of a stored element."""
        return 2 if self.has_halves else 4

    @property
    def storage(self) -> str:
        """The dtype of stored elements; numpy has none of bf16's name."""
        return {"fp16": "float16", "bf16": "bfloat16"}.get(self.value, "float32")


@attrs.frozen
class Target:
    """A card, as far as the compiler cares.

    Attributes:
        arch: For NVRTC: ``sm_80``, ``sm_90a`` or ``sm_100``.
        n_sms: Multiprocessors.
        shared_bytes: Shared memory that one block may have.
    """

    arch: str
    n_sms: int
    shared_bytes: int


H100 = Target("sm_90a", 132, 232_448)
A100 = Target("sm_80", 108, 166_912)
B200 = Target("sm_100", 148, 232_448)
TARGETS = {target.arch: target for target in (A100, H100, B200)}


@attrs.frozen(order=True)
class Bucket:
    """A padded shape that a program is made for, or the shape of a batch.

    Attributes:
        rows: Candidates, at most.
        requests: Requests (users), at most.
        length: Steps of each sequence that may be shorter than it is (``kernels.lengths``), at
            most; 0 for all.
    """

    rows: int
    requests: int = 1
    length: int = 0

    def __str__(self) -> str:
        steps = f", {self.length} steps" if self.length else ""
        return f"{self.rows} rows of {self.requests} requests{steps}"


class Role(enum.StrEnum):
    """Who fills a buffer, and how it is laid out.

    USER, CANDIDATE: ``input_dtype`` ``[requests, ld]`` and ``[rows, ld]``, copied from staging;
    ``ld`` is the block's width rounded up to 8 elements, and columns past the width are zero.
    REQUEST_OF_ROW: int32 ``[rows]``. COUNTS: int32 ``[2]``: rows and requests of this batch.
    WEIGHTS: ``Program.weights``, written once. TABLES: those of ``kernels.device_tables``, written
    once; with them, USER and CANDIDATE rows hold ids as that module says. SCRATCH: a kernel's
    before another's, zeroed once.
    SCORES: float32 ``[rows, n_outputs]``.
    """

    USER = "user"
    CANDIDATE = "candidate"
    REQUEST_OF_ROW = "request_of_row"
    COUNTS = "counts"
    WEIGHTS = "weights"
    TABLES = "tables"
    SCRATCH = "scratch"
    SCORES = "scores"


@attrs.frozen
class Pointer:
    """A kernel's argument: the address of a buffer, ``offset`` bytes in."""

    role: Role
    offset: int = 0


@attrs.frozen
class TensorMap:
    """A kernel's argument: a 2-D tensor map of a row-major matrix, by value.

    What ``cuTensorMapEncodeTiled`` takes; the kernel declares it ``const __grid_constant__``.

    Attributes:
        pointer: The matrix; 16-byte aligned.
        rows, columns: Its size; what lies outside reads as zeros.
        row_bytes: From one row to the next; a multiple of 16.
        box_rows, box_columns: What one copy moves.
        swizzle_bytes: 128, 64, 32, or 0 for none.
        element_bytes: 2, or 1 for floats of eight bits.
    """

    pointer: Pointer
    rows: int
    columns: int
    row_bytes: int
    box_rows: int
    box_columns: int
    swizzle_bytes: int = 128
    element_bytes: int = 2


Argument: TypeAlias = Pointer | TensorMap | int
"""An address, a tensor map, or an int32 passed by value."""


@attrs.frozen
class Source:
    """CUDA C++ text of one module; it includes headers of ``kernels/cuda``.

    Attributes:
        name: For messages and file names.
        arch: What it is emitted for.
    """

    name: str
    text: str
    arch: str


@attrs.frozen
class Launch:
    """One kernel launch.

    Attributes:
        source: Index into ``Program.sources``.
        entry: The kernel's ``extern "C"`` name.
        grid: Blocks; a multiple of ``cluster``.
        block: Threads of a block.
        cluster: Blocks of a cluster; 1 means none.
        shared_bytes: Dynamic shared memory.
        dependent: Launched with programmatic stream serialisation: it may start before the launch
            ahead of it has ended, and waits in the kernel (``griddepcontrol.wait``).
    """

    source: int
    entry: str
    grid: tuple[int, int, int]
    block: int
    arguments: tuple[Argument, ...]
    cluster: int = 1
    shared_bytes: int = 0
    dependent: bool = False


@attrs.frozen
class WorkItem:
    """A step of a launch, for people.

    Attributes:
        flops: Multiply-adds times two, for one row.
    """

    title: str
    flops: int


@attrs.frozen
class Held:
    """A piece of a block's dynamic shared memory.

    Attributes:
        offset: In bytes from its start.
        first, last: Work items between which it is in use.
        width: Columns of a value; 0 for what is none.
    """

    name: str
    offset: int
    size_bytes: int
    first: int
    last: int
    width: int = 0


@attrs.frozen
class Crossing:
    """A value in device memory that a launch reads or writes.

    Attributes:
        name: Of the model's node.
        pointer: Where it lies, which tells it from others.
        lead: ``rows`` or ``requests``.
        columns: Of the matrix.
        used: Columns that the launch reads or writes; a column counts once.
        element: ``Float32``, ``Fp16`` or ``Bf16``.
        size_bytes: Of those columns, for the bucket's rows.
    """

    name: str
    pointer: Pointer
    lead: str
    columns: int
    used: int
    element: str
    size_bytes: int


@attrs.frozen(kw_only=True)
class LaunchFacts:
    """What one launch does, for whoever shows a plan; nothing runs by it.

    Attributes:
        kind: ``tile``, ``wide``, ``attention`` or ``encoder``.
        lead: What its rows are: ``rows`` or ``requests``.
        rows: Of the bucket.
        rows_run: The same in whole tiles.
        held: Of tiles.
        flops: In products of matrices, for the bucket.
        weights_bytes: That it reads, as they are packed; of a cluster's blocks together.
    """

    kind: str
    lead: str
    rows: int
    rows_run: int
    items: tuple[WorkItem, ...]
    held: tuple[Held, ...]
    reads: tuple[Crossing, ...]
    writes: tuple[Crossing, ...]
    flops: int
    weights_bytes: int


@attrs.frozen(eq=False)
class Program:
    """Everything that one bucket needs on a card.

    Attributes:
        input_dtype: float16 or float32, of the USER and CANDIDATE buffers.
        user_width, candidate_width: Columns of the blocks; 0 where a graph has no such input. With
            tables on the card, elements of a staged row.
        weights: Packed constants, one blob; offsets into it are 256-byte aligned.
        scratch_bytes: Size of the SCRATCH buffer.
        table_bytes: Size of the TABLES buffer.
        flops: Multiply-adds of the graph times two, for ``bucket.rows`` rows.
        bytes_moved: The least bytes through device memory: inputs, weights and scores once.
        notes: What a log says of how it came about, line by line.
        facts: Of each launch, for ``kernels.show``.
    """

    bucket: Bucket
    precision: Precision
    input_dtype: np.dtype[Any]
    user_width: int
    candidate_width: int
    n_outputs: int
    sources: tuple[Source, ...]
    launches: tuple[Launch, ...]
    weights: NDArray[np.uint8]
    scratch_bytes: int = 0
    table_bytes: int = 0
    flops: int = 0
    bytes_moved: int = 0
    notes: tuple[str, ...] = ()
    facts: tuple[LaunchFacts, ...] = ()


def leading_dimension(width: int) -> int:
    """Return the columns of a block's row on the device: ``width`` up to a multiple of 8."""
    return -(-width // 8) * 8

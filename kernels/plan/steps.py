"""Steps of a tile kernel, the values that they pass on, and where those lie in shared memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.plan.pack import F32, U8

_ALIGNMENT = 128


@attrs.define(eq=False)
class Value:
    """Columns of all rows of a tile, in chunks of 16 bytes.

    Attributes:
        halves: 16-bit elements, 8 to a chunk; else floats, 4 to a chunk.
        columns: What is written, zeros included; a multiple of a chunk's. Readers may raise it
            until the text of the steps is made.
        read_to: Columns that products on the tensor cores read: zeros from ``width`` on.
        offset: In bytes of shared memory; known once memory is allotted.
    """

    name: str
    halves: bool
    width: int
    columns: int = 0
    read_to: int = 0
    offset: int = -1

    def __attrs_post_init__(self) -> None:
        self.reserve(self.width)

    @property
    def per_chunk(self) -> int:
        """Elements of a chunk."""
        return 8 if self.halves else 4

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.columns // self.per_chunk

    def reserve(self, columns: int) -> None:
        """Make sure that the first ``columns`` columns exist."""
        chunks = -(-columns // self.per_chunk)
        self.columns = max(self.columns, chunks * self.per_chunk)

    def read_by_products(self, columns: int) -> None:
        """Make sure that the first ``columns`` columns exist, and are zeros where not written."""
        self.reserve(columns)
        self.read_to = max(self.read_to, columns)

    def size(self, rows: int) -> int:
        """Bytes for a tile of so many rows."""
        return -(-self.chunks * rows * 16 // _ALIGNMENT) * _ALIGNMENT


@attrs.define(eq=False)
class Stream:
    """Weights of one tensor-core Linear, as the producer streams them.

    Attributes:
        n: Columns.
        blocks: float32 ``[k_i, n]``, one for each source.
        inputs: Each source's value, and the column of it that it begins at.
        depth: Rows of weights that a step multiplies.
        join: A statement to run when all is multiplied and nothing is stored yet.
        awaited: The source, if any, that is gathered while the Linear multiplies: of it a block
            takes its own columns first, then the peers'. It comes last.
    """

    n: int
    blocks: tuple[F32, ...]
    inputs: tuple[tuple[Value, int], ...]
    depth: int = 32
    join: str = ""
    awaited: int | None = None

    @property
    def k(self) -> int:
        """Rows of weights."""
        return sum(len(block) for block in self.blocks)

    @property
    def order(self) -> list[int]:
        """The sources as they are multiplied."""
        return sorted(range(len(self.blocks)), key=lambda each: each == self.awaited)


@attrs.define(eq=False)
class Step:
    """What all threads of a block do between two barriers, or less.

    Attributes:
        title: For plans that people read.
        text: Makes the CUDA text, once memory is allotted.
        loads: Whether it only brings inputs in: it needs neither constants nor peers.
        stream: Of a tensor-core Linear.
        shared: Whether each block of a cluster makes a part of the result, which is gathered.
        flops: Multiply-adds times two, for one row.
    """

    title: str
    text: Callable[[], str]
    reads: Sequence[Value] = ()
    writes: Sequence[Value] = ()
    loads: bool = False
    stream: Stream | None = None
    shared: bool = False
    flops: int = 0

    def __attrs_post_init__(self) -> None:
        self.shared |= self.stream is not None

    @property
    def awaits(self) -> bool:
        """Whether it gathers, while it multiplies, what the step before it made."""
        return self.stream is not None and self.stream.awaited is not None


@attrs.define(eq=False)
class Constants:
    """Floats and ints that a tile kernel keeps in shared memory, or reads from global memory.

    Small tables lie in shared memory, a block of its own for each rank of the cluster.
    """

    cluster: int
    shared_limit: int = 16_384
    shared_size: int = 0
    _shared: list[tuple[NDArray[np.generic], ...]] = attrs.field(factory=list)
    _found: dict[bytes, int] = attrs.field(factory=dict)

    def add(self, array: NDArray[np.generic]) -> int | None:
        """Place 4-byte elements; return their offset, or None if they are too many for it."""
        key = array.tobytes()
        if key not in self._found:
            if self.shared_size + array.nbytes > self.shared_limit:
                return None
            self._found[key] = self.add_ranked((array,) * self.cluster)
        return self._found[key]

    def add_ranked(self, arrays: tuple[NDArray[np.generic], ...]) -> int:
        """Place one array for each rank, all of one size; return their offset."""
        offset = self.shared_size
        self._shared.append(arrays)
        self.shared_size += -(-arrays[0].nbytes // 16) * 16
        return offset

    def bytes(self, rank: int) -> U8:
        """Return a rank's block."""
        block = np.zeros(self.shared_size, np.uint8)
        offset = 0
        for arrays in self._shared:
            raw = np.ascontiguousarray(arrays[rank]).view(np.uint8).ravel()
            block[offset : offset + raw.size] = raw
            offset += -(-raw.size // 16) * 16
        return block


def order(steps: Sequence[Step]) -> list[Step]:
    """Put what is ready ahead of Linears: row programs run while the first weights arrive."""
    left, ordered = list(steps), list[Step]()
    writers = Counter(value for step in steps for value in step.writes)
    while left:
        ready = [step for step in left if not any(writers[value] for value in step.reads)]
        chosen = next((step for step in ready if step.stream is None), ready[0])
        left.remove(chosen)
        ordered.append(chosen)
        writers.subtract(chosen.writes)
    return ordered


def side_steps(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that neither feed a Linear of the tensor cores nor wait for one.

    Warps of their own can run them beside the Linears. They read what was loaded, and each other.
    """
    feeding, waiting = set[Value](), set[Value]()
    for step in reversed(steps):
        if step.stream is not None or not feeding.isdisjoint(step.writes):
            feeding.update(step.reads)
    loaded = {value for step in steps if step.loads for value in step.writes}
    found: list[Step] = []
    made = set[Value]()
    for step in steps:
        if step.shared or not waiting.isdisjoint(step.reads):
            waiting.update(step.writes)
        elif (
            not step.loads
            and step.writes  # what only copies needs all warps: three took 25 us longer than eight
            and feeding.isdisjoint(step.writes)
            and all(value in loaded or value in made for value in step.reads)
        ):
            found.append(step)
            made.update(step.writes)
    return found if any(step.stream is not None for step in steps) else []


def allot(
    steps: Sequence[Step],
    rows: int,
    *,
    gathers: bool,
    whole: bool = False,
    beside: Sequence[Step] = (),
    joined: int | None = None,
) -> int:
    """Give every value its offset; values that are not needed at once share memory.

    Args:
        steps: In the order in which they run; their values get their offsets.
        rows: Of the tile.
        beside: Steps that run at any time beside the others: what they touch is never overwritten.
        joined: The step, if any, that stores nothing before those have ended: what they read may
            be overwritten after it.
        gathers: Whether parts of a value come from other blocks. A block that is ahead writes
            them as soon as it has passed the gather before, for which it needs only those warps of
            this block that send; others may still be reading for steps since the gather before
            that one, where all warps met. So such a value lives from that gather on. And the
            copies of this block's own columns to others are known to have ended only when the
            next gather has: it lives until then.
        whole: Whether a block sends only once all its warps have come so far: then nobody still
            reads for steps before the gather that was passed.

    Returns:
        Bytes in all.
    """
    lives: dict[Value, tuple[int, int]] = {}
    gathered = [i for i, step in enumerate(steps) if gathers and step.shared]
    for index, step in enumerate(steps):
        birth = death = index
        if index in gathered:
            passed = [-1, -1, *(i for i in gathered if i < index)]
            birth = passed[-1 if whole else -2] + 1
            death = min((i for i in gathered if i > index), default=len(steps))
        for value in step.writes:
            first, last = lives.get(value, (birth, death))
            lives[value] = (min(first, birth), max(last, death))
        for value in step.reads:
            first, last = lives[value]
            lives[value] = (first, max(last, index))
    for step in beside:
        for value in step.reads:
            lives[value] = (0, len(steps) if joined is None else max(lives[value][1], joined))
        for value in step.writes:
            lives[value] = (0, len(steps))
    placed: list[Value] = []
    total = 0
    for value in sorted(lives, key=lambda each: -each.size(rows)):
        first, last = lives[value]
        taken = sorted(
            (other.offset, other.offset + other.size(rows))
            for other in placed
            if lives[other][0] <= last and first <= lives[other][1]
        )
        offset = 0
        for start, end in taken:
            if offset + value.size(rows) <= start:
                break
            offset = max(offset, end)
        value.offset = offset
        placed.append(value)
        total = max(total, offset + value.size(rows))
    return total


def needs_barrier(step: Step, earlier: Sequence[Step], rows: int) -> bool:
    """Whether a step must wait for steps since the last barrier to end in all warps."""

    def meets(a: Sequence[Value], b: Sequence[Value]) -> bool:
        return any(
            one.offset < two.offset + two.size(rows) and two.offset < one.offset + one.size(rows)
            for one in a
            for two in b
        )

    return any(
        meets(step.reads, other.writes)
        or meets(step.writes, other.reads)
        or meets(step.writes, other.writes)
        for other in earlier
    )

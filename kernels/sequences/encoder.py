"""ENCODER: its sizes, its packed weights, and the text and launch of its kernel."""

from __future__ import annotations

import attrs
import numpy as np

from kernels.ir.node import Encoder, Lead, Node, Op
from kernels.plan.matrix import Matrix
from kernels.program import Launch, Pointer, Precision, Target
from kernels.sequences import text
from kernels.sequences.pack import (
    U8,
    Floats,
    join,
    neighbours,
    pack_floats,
    pack_neighbours,
    pack_pairs,
    pack_transposed,
)


@attrs.frozen
class EncoderShape:
    """What a kernel is made for.

    Attributes:
        d: Columns of a step.
        f: Outputs of the first feed-forward layer.
        steps: Of the sequence, t.
    """

    precision: Precision
    d: int
    n_heads: int
    f: int
    steps: int
    activation: Op
    slope: float = 0.0
    epsilon_1: float = 1e-5
    epsilon_2: float = 1e-5

    @property
    def head_tiles(self) -> int:
        """Tiles of 8 columns that hold a head: one, or an even number."""
        tiles = -(-self.d // (8 * self.n_heads))
        return tiles if tiles == 1 else -(-tiles // 2) * 2

    @property
    def n_pairs(self) -> int:
        """Pairs of tiles that hold all heads."""
        return -(-self.n_heads * self.head_tiles // 2)

    def resident_bytes(self, resident: int) -> int:
        """Return the packed weights' size up to those that ``EncoderTile.resident`` says."""
        pieces = -(-self.d // 32)
        size = self.n_pairs * 64 + 6 * self.d * 4 + self.f * 4
        if resident >= 1:
            size += self.n_pairs * (2 * pieces * 1024 + 2 * (self.d // 16) * 512)
        if resident >= 2:
            size += self.f * (pieces * 64 + self.d * 2)
        return size

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weights, a multiple of 16."""
        return self.resident_bytes(2)

    def unsupported(self) -> str | None:
        """Return why no kernel can be made, or None."""
        if not self.precision.has_halves:
            return "fp32 storage"
        if self.d % 16 or self.d > 128 or self.d % self.n_heads:
            return f"width {self.d}: want a multiple of 16 and of the heads, 128 at most"
        if self.f % 16:
            return f"{self.f} inner columns: want a multiple of 16"
        if self.steps > 128:
            return f"{self.steps} steps: want 128 at most"
        if self.activation not in (*text.ACTIVATIONS, Op.LEAKY_RELU):
            return f"activation {self.activation}"
        return None


@attrs.frozen
class EncoderTile:
    """How a kernel cuts its work.

    Attributes:
        m_tiles: Tiles of 16 steps a warp, 1 or 2.
        warps: Of a block.
        resident: Which matrices are in shared memory: 0 none, 1 the attention's, 2 all.
        split: Warps that hold the same steps and share heads and inner columns; 1, 2 or 4.
    """

    m_tiles: int
    warps: int
    resident: int = 2
    split: int = 1

    def parts(self, shape: EncoderShape) -> int:
        """Return into how many parts the steps of a row are cut."""
        return -(-shape.steps // (16 * self.m_tiles))

    def groups(self, shape: EncoderShape) -> int:
        """Return the rows that a block has under way."""
        return self.warps // (self.parts(shape) * self.split)

    def shared_bytes(self, shape: EncoderShape) -> int:
        """Return the dynamic shared memory of a block."""
        weights = shape.resident_bytes(self.resident)
        exchange = self.parts(shape) * self.m_tiles * shape.n_pairs * 512
        if self.split > 1:
            exchange += self.parts(shape) * self.split * self.m_tiles * shape.d * 64
        return weights + self.groups(shape) * 2 * exchange


def choose_tile(shape: EncoderShape, rows: int, target: Target) -> EncoderTile:
    """Return how to cut the work of a bucket.

    Two tiles of steps a warp halve the loads of weights from shared memory, which else take longer
    than the products. Where a block has one row at most, several warps share its steps instead.

    Raises:
        ValueError: Shared memory does not hold the keys and values of a row.
    """
    tiles = -(-shape.steps // 16)
    few = rows <= target.n_sms
    wide = shape.d <= 64 and shape.steps <= 64 and tiles > 1 and not few
    m_tiles = 2 if wide else 1
    parts = -(-tiles // m_tiles)
    groups = 1 if few else min(max(1, 8 // parts), -(-rows // target.n_sms))
    splits = [split for split in (4, 2) if few and split * parts <= 8]
    for resident in (2, 1, 0):
        tried = [EncoderTile(m_tiles, split * parts, resident, split) for split in splits]
        tried += [EncoderTile(m_tiles, n * parts, resident) for n in range(groups, 0, -1)]
        for tile in tried:
            if tile.shared_bytes(shape) <= target.shared_bytes:
                return tile
    raise ValueError(f"an encoder of width {shape.d} does not fit {target.arch}'s shared memory")


def shape_of(node: Node, precision: Precision) -> EncoderShape:
    """Return the sizes of an ENCODER node; see ``EncoderShape.unsupported``."""
    arg = node.arg
    assert isinstance(arg, Encoder)
    steps, d = node.sources[0].dims
    return EncoderShape(
        precision,
        d,
        arg.n_heads,
        node.sources[7].dims[1],
        steps,
        arg.activation,
        arg.slope,
        arg.epsilon_1,
        arg.epsilon_2,
    )


def _heads(weight: Floats, shape: EncoderShape) -> Floats:
    """Spread the last axis, ``[n_heads, d / n_heads]``, over whole tiles a head and whole pairs."""
    size = shape.d // shape.n_heads
    spread = np.zeros((*weight.shape[:-1], shape.n_pairs * 16), weight.dtype)
    for head in range(shape.n_heads):
        start = head * shape.head_tiles * 8
        spread[..., start : start + size] = weight[..., head * size : (head + 1) * size]
    return spread


def pack_encoder(node: Node, precision: Precision) -> tuple[U8, EncoderShape]:
    """Return a node's weights in the order that ``encoder.cuh`` gives, and its sizes.

    Raises:
        ValueError: No kernel can be made for it.
    """
    shape, arg = shape_of(node, precision), node.arg
    assert isinstance(arg, Encoder)
    if why := shape.unsupported():
        raise ValueError(f"{node.name or node.op}: {why}")
    constants = [np.asarray(source.array, np.float64) for source in node.sources[1:]]
    w_qkv, b_qkv, w_o, b_o, gain_1, offset_1, w_1, b_1, w_2, b_2, gain_2, offset_2 = constants
    w_q, w_k, w_v = np.split(w_qkv, 3, 1)
    b_q, _, b_v = np.split(b_qkv, 3)  # a key's bias moves all scores of a query alike
    order = neighbours(shape.d)

    widths = [b_o + b_v @ w_o, gain_1, offset_1, b_2, gain_2, offset_2]
    blob = join(
        pack_floats(_heads(b_q * arg.scale, shape)),
        *(pack_floats(vector[order]) for vector in widths),
        pack_floats(b_1),
        pack_neighbours(_heads(w_q * arg.scale, shape), precision),
        pack_neighbours(_heads(w_k, shape), precision),
        pack_transposed(_heads(w_v, shape), precision),
        pack_pairs(_heads(w_o.T, shape).T[:, order], precision),
        pack_neighbours(w_1, precision),
        pack_pairs(w_2[:, order], precision),
    )
    assert blob.size == shape.weight_bytes
    return blob, shape


def config_text(shape: EncoderShape, tile: EncoderTile, name: str, barrier: int = 3) -> str:
    """Return the struct that makes ``EncoderBlock<name>``.

    Args:
        shape: The sizes.
        tile: The cut.
        name: Of the struct.
        barrier: The first of as many named barriers as a block has rows under way.
    """
    before, act = text.activation(shape.activation, shape.slope)
    epsilon_1, epsilon_2 = text.number(shape.epsilon_1), text.number(shape.epsilon_2)
    lines = [
        f"struct {name} {{",
        *(f"  {line}" for line in before),
        f"  typedef {text.STORAGE[shape.precision]} T;",
        f"  typedef {act} Act;",
        f"  static constexpr int D = {shape.d}, HEADS = {shape.n_heads};",
        f"  static constexpr int HEAD_TILES = {shape.head_tiles}, F = {shape.f};",
        f"  static constexpr int STEPS = {shape.steps}, MT = {tile.m_tiles}, SPLIT = {tile.split};",
        f"  static constexpr int WARPS = {tile.warps}, BARRIER = {barrier};",
        f"  static constexpr int RESIDENT = {tile.resident};",
        f"  static constexpr float EPSILON_1 = {epsilon_1}, EPSILON_2 = {epsilon_2};",
        "};",
    ]
    return "\n".join(lines)


@attrs.frozen
class EncoderKernel:
    """The kernel of an ENCODER as a launch.

    Attributes:
        text: CUDA C++; includes ``encoder.cuh``.
        entry: The kernel's name.
    """

    text: str
    entry: str
    shape: EncoderShape
    tile: EncoderTile
    x: Matrix
    output: Matrix

    def launch(
        self,
        source: int,
        rows: int,
        target: Target,
        *,
        counts: Pointer,
        weights: Pointer,
        request_of_row: Pointer,
        dependent: bool = True,
    ) -> Launch:
        """Return the launch.

        The kernel's parameters: counts, weights, request_of_row, x, output.

        Args:
            source: Index of the module in ``Program.sources``.
            rows: Rows of the output, in this bucket.
            target: The card.
            counts: Of the batch.
            weights: What ``pack_encoder`` made; 16-byte aligned.
            request_of_row: Read only where x has one row a request and the output one a candidate.
            dependent: Whether it may start before the launch ahead of it has ended.
        """
        blocks = -(-rows // self.tile.groups(self.shape))
        pointers = (counts, weights, request_of_row, self.x.pointer, self.output.pointer)
        return Launch(
            source=source,
            entry=self.entry,
            grid=(min(target.n_sms, blocks), 1, 1),
            block=self.tile.warps * 32,
            arguments=pointers,
            shared_bytes=self.tile.shared_bytes(self.shape),
            dependent=dependent,
        )


def emit_encoder(
    shape: EncoderShape, tile: EncoderTile, entry: str, *, x: Matrix, output: Matrix
) -> EncoderKernel:
    """Return the kernel for matrices in global memory.

    Args:
        shape: The sizes.
        tile: The cut; see ``choose_tile``.
        entry: The kernel's name.
        x: ``[., t d]``, a matrix of candidates or of requests.
        output: ``[., t d]`` in 16-bit storage; the kernel goes over its rows.

    Raises:
        ValueError: The output is not in that storage.
    """
    if output.element != text.STORAGE[shape.precision]:
        raise ValueError(f"{entry}: writes {shape.precision}, not {output.element}")
    count = "counts" if output.lead is Lead.ROWS else "counts + 1"
    sink = f"MatrixStepsSink<{output.ld}, {shape.d}, {text.flag(text.aligned(output, shape.d))}>"
    lines = [
        '#include "encoder.cuh"',
        config_text(shape, tile, "Config"),
        f"static_assert(EncoderBlock<Config>::SHARED_BYTES == {tile.shared_bytes(shape)}, "
        '"as launched");',
        f"KERNEL void __launch_bounds__({tile.warps * 32}, 1) {entry}(const int* counts, "
        "const u8* weights, const int* requests, const u8* x, u8* y) {",
        "  DYNAMIC_SHARED(shared);",
        f"  encoder_rows<Config>({count}, weights, shared,",
        f"      {text.steps(x, shape.d, shape.precision, output)}{{{{x, requests}}}},",
        f"      {sink}{{y}});",
        "}",
    ]
    return EncoderKernel("\n".join(lines) + "\n", entry, shape, tile, x, output)

"""TARGET_ATTENTION: its sizes, its packed weights, and the text and launch of its kernel."""

from __future__ import annotations

from typing import Final

import attrs
import numpy as np

from kernels.ir.node import Lead, Node, Op, TargetAttention
from kernels.plan.matrix import Matrix
from kernels.program import Launch, Pointer, Precision, Target
from kernels.sequences import text
from kernels.sequences.pack import U8, join, pack_floats, pack_neighbours, pack_plain, tiles_of

WARPS: Final = 8  # 255 registers a thread: a row's weights and fragments stay in them


@attrs.frozen
class AttentionShape:
    """What a kernel is made for.

    Attributes:
        d: Columns of the query and of a key.
        hidden: Outputs of the layers but the last; one or two.
        steps: Of the sequence, t.
    """

    precision: Precision
    d: int
    hidden: tuple[int, ...]
    steps: int
    activation: Op
    slope: float = 0.0
    softmax: bool = True
    masked: float = -1e30

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weights, a multiple of 16."""
        first = tiles_of(self.hidden[0])
        last = -(-tiles_of(self.hidden[-1]) // 2) * 256
        size = 3 * -(-self.d // 32) * first * 512 + last + first * 32 + 16
        if len(self.hidden) == 1:
            return size
        second = tiles_of(self.hidden[1])
        return size + -(-first // 2) * second * 256 + second * 32

    def shared_bytes(self, warps_per_row: int, warps: int = WARPS) -> int:
        """Return the dynamic shared memory of a block: weights, scratch, and a counter of rows."""
        first = tiles_of(self.hidden[0])
        folded = self._held + self.d // 16 * first * 2 <= 150
        warp = first * 32 + (0 if folded else self.d * 2) + -(-self.steps // 64) * 16
        if warps_per_row > 1:
            warp += self.d * 4 + 16
        return self.weight_bytes + warps * warp + 16

    @property
    def _held(self) -> int:
        """As ``HELD`` in target_attention.cuh: registers of a tile's keys and sums."""
        return self.d // 2 + (tiles_of(self.hidden[1]) * 4 if len(self.hidden) == 2 else 0)

    def unsupported(self) -> str | None:
        """Return why no kernel can be made, or None."""
        if not self.precision.has_halves:
            return "fp32 storage"
        if self.d % 16 or self.d > 128:
            return f"width {self.d}: want a multiple of 16, 128 at most"
        if len(self.hidden) not in (1, 2) or max(self.hidden) > 128:
            return f"layers {self.hidden}: want one or two of 128 outputs at most before the last"
        if self.steps > 512:
            return f"{self.steps} steps: want 512 at most"
        if self.activation not in (*text.ACTIVATIONS, Op.LEAKY_RELU):
            return f"activation {self.activation}"
        return None


def shape_of(node: Node, precision: Precision) -> AttentionShape:
    """Return the sizes of a TARGET_ATTENTION node; see ``AttentionShape.unsupported``."""
    arg = node.arg
    assert isinstance(arg, TargetAttention)
    steps, d = node.sources[1].dims
    hidden = tuple(node.sources[6 + 2 * i].dims[0] for i in range(arg.n_layers - 1))
    return AttentionShape(
        precision, d, hidden, steps, arg.activation, arg.slope, arg.softmax, arg.masked
    )


def pack_target_attention(node: Node, precision: Precision) -> tuple[U8, AttentionShape]:
    """Return a node's weights in the order that ``target_attention.cuh`` gives, and its sizes.

    Raises:
        ValueError: No kernel can be made for it.
    """
    shape = shape_of(node, precision)
    if why := shape.unsupported():
        raise ValueError(f"{node.name or node.op}: {why}")
    constants = [np.asarray(source.array, np.float32) for source in node.sources[3:]]
    *w_first, b_first = constants[:4]
    layers = list(zip(constants[4::2], constants[5::2], strict=True))
    parts = [pack_neighbours(weight, precision) for weight in w_first]
    floats = [pack_floats(b_first)]
    for weight, bias in layers[:-1]:
        parts.append(pack_plain(weight, precision))
        floats.append(pack_floats(bias))
    weight, bias = layers[-1]
    parts.append(pack_plain(np.repeat(weight, 8, 1), precision))
    floats.append(np.array([bias[0], 0, 0, 0], np.float32).view(np.uint8))
    blob = join(*parts, *floats)
    assert blob.size == shape.weight_bytes
    return blob, shape


def config_text(
    shape: AttentionShape,
    name: str,
    warps_per_row: int,
    *,
    warps: int = WARPS,
    ahead: bool = True,
    barrier: int = 3,
) -> str:
    """Return the struct that makes ``TargetAttention<name>``.

    Args:
        shape: The sizes.
        name: Of the struct.
        warps_per_row: 1, 2, 4 or 8; divides ``warps``.
        warps: That call it.
        ahead: Whether a thread has 255 registers, so that the next keys may be loaded early.
        barrier: The first of ``warps / warps_per_row`` named barriers that it uses.
    """
    before, act = text.activation(shape.activation, shape.slope)
    second = shape.hidden[1] if len(shape.hidden) == 2 else 0
    # A struct's own scope keeps a slope apart from another's.
    lines = [
        f"struct {name} {{",
        *(f"  {line}" for line in before),
        f"  typedef {text.STORAGE[shape.precision]} T;",
        f"  typedef {act} Act;",
        f"  static constexpr int D = {shape.d}, H1 = {shape.hidden[0]}, H2 = {second};",
        f"  static constexpr int STEPS = {shape.steps}, WARPS = {warps};",
        f"  static constexpr int WARPS_PER_ROW = {warps_per_row}, BARRIER = {barrier};",
        f"  static constexpr bool SOFTMAX = {text.flag(shape.softmax)};",
        f"  static constexpr bool AHEAD = {text.flag(ahead)};",
        f"  static constexpr float MASKED = {text.number(shape.masked)};",
        "};",
    ]
    return "\n".join(lines)


@attrs.frozen
class AttentionKernel:
    """The kernel of a TARGET_ATTENTION as a launch.

    Attributes:
        text: CUDA C++; includes ``target_attention.cuh``.
        entry: The kernel's name.
    """

    text: str
    entry: str
    shape: AttentionShape
    query: Matrix
    keys: Matrix
    mask: Matrix
    output: Matrix
    warps_per_row: int

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

        The kernel's parameters: counts, weights, request_of_row, query, keys, mask, output.

        Args:
            source: Index of the module in ``Program.sources``.
            rows: Rows of the output, in this bucket.
            target: The card.
            counts: Of the batch.
            weights: What ``pack_target_attention`` made; 16-byte aligned.
            request_of_row: Read only where a matrix has one row a request.
            dependent: Whether it may start before the launch ahead of it has ended.
        """
        groups = WARPS // self.warps_per_row
        return Launch(
            source=source,
            entry=self.entry,
            grid=(min(target.n_sms, -(-rows // groups)), 1, 1),
            block=WARPS * 32,
            arguments=(
                counts,
                weights,
                request_of_row,
                *(m.pointer for m in (self.query, self.keys, self.mask, self.output)),
            ),
            shared_bytes=self.shape.shared_bytes(self.warps_per_row),
            dependent=dependent,
        )


def choose_warps_per_row(rows: int, steps: int, target: Target) -> int:
    """Return how many warps share a row, so that the rows of a bucket occupy every warp once.

    A warp that shares a row builds the row's weights again: no more share one than are needed, nor
    than there are tiles of 16 steps.
    """
    share = 1
    while share < WARPS and rows * share * 2 <= target.n_sms * WARPS and share * 16 < steps:
        share *= 2
    return share


def emit_target_attention(
    shape: AttentionShape,
    entry: str,
    *,
    query: Matrix,
    keys: Matrix,
    mask: Matrix,
    output: Matrix,
    mask_test: str = "x > 0.5f",
    warps_per_row: int = 1,
    ahead: bool = True,
) -> AttentionKernel:
    """Return the kernel for matrices in global memory.

    Args:
        shape: The sizes.
        entry: The kernel's name.
        query: ``[., d]``, of candidates or of requests.
        keys: ``[., t d]``, likewise.
        mask: ``[., t]``, likewise.
        mask_test: C++ over ``x``, an element of ``mask`` as a float: true for a step that counts.
        output: ``[., d]``; the kernel goes over its rows.
        warps_per_row: 1, 2, 4 or 8; see ``choose_warps_per_row``.
        ahead: Whether the next keys are loaded early, where registers allow it.
    """
    sources = [
        text.vector(query, shape.precision, output),
        text.steps(keys, shape.d, shape.precision, output),
        text.mask(mask, output),
    ]
    values = [f"{kind}{{{{{name}, requests}}}}" for kind, name in zip(sources, "qkm", strict=True)]
    count = "counts" if output.lead is Lead.ROWS else "counts + 1"
    lines = [
        '#include "target_attention.cuh"',
        config_text(shape, "Config", warps_per_row, ahead=ahead),
        f"struct Test {{ static DEVICE bool of(float x) {{ return {mask_test}; }} }};",
        f"static_assert(TargetAttention<Config>::SHARED_BYTES + 16 == "
        f'{shape.shared_bytes(warps_per_row)}, "as launched");',
        f"KERNEL void __launch_bounds__({WARPS * 32}, 1) {entry}(const int* counts, "
        "const u8* weights, const int* requests, const u8* q, const u8* k, const u8* m, u8* y) {",
        "  DYNAMIC_SHARED(shared);",
        f"  target_attention_rows<Config>({count}, weights, shared,",
        "      " + ",\n      ".join([*values, f"{text.sink(output)}{{y}}"]) + ");",
        "}",
    ]
    return AttentionKernel(
        "\n".join(lines) + "\n", entry, shape, query, keys, mask, output, warps_per_row
    )

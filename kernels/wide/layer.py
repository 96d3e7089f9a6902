"""What a wide linear layer computes."""

from __future__ import annotations

import attrs

from kernels.ir.node import Op

K_TILE_BYTES = 128
"""Of a row of K that one stage of a kernel's ring holds: what wgmma's swizzle spans."""

COLUMN_PADDING = 256
"""The widest tile of columns: a bias is padded to it, and packed weights end with so many rows."""


@attrs.frozen
class Epilogue:
    """What is done to the sums (bias included): a struct as ``wide_epilogue.cuh`` describes it.

    Attributes:
        type_name: Of the struct; from the header or from ``text``.
        text: The struct's definition, put into the emitted module; empty if the header has it.
        n_staged: Matrices of Y's shape that the kernel reads for it.
        parameters: Further parameters of the kernel as ``(type, name)``, such as
            ``("const float*", "gain")``; the struct is made of them in this order.
        literals: Where there are no parameters: C++ expressions that the struct is made of.
    """

    type_name: str
    text: str = ""
    n_staged: int = 0
    parameters: tuple[tuple[str, str], ...] = ()
    literals: tuple[str, ...] = ()


CROSS = Epilogue("Cross", n_staged=2)
"""``x_0 * (sums + bias) + x``; staged: x_0, x."""


def activation(op: Op | None, slope: float = 0.0) -> Epilogue:
    """Return the epilogue that applies an activation.

    Args:
        op: RELU, SIGMOID, TANH, LEAKY_RELU, ELU, or None for none.
        slope: Of LEAKY_RELU and ELU.
    """
    match op:
        case None:
            return Epilogue("Activate<Identity>")
        case Op.RELU:
            return Epilogue("Activate<Relu>")
        case Op.SIGMOID:
            return Epilogue("Activate<Sigmoid>")
        case Op.TANH:
            return Epilogue("Activate<Tanh>")
        case Op.LEAKY_RELU:
            return Epilogue("ActivateLeakyRelu", literals=(f"{slope!r}f",))
        case Op.ELU:
            return Epilogue("ActivateElu", literals=(f"{slope!r}f",))
        case _:
            raise ValueError(f"no epilogue applies {op}")


@attrs.frozen
class WideLayer:
    """``Y[rows, n] = epilogue(sum_i X_i W_i + b)``, or ``groups`` such problems side by side.

    Group j reads columns ``[j k_i, (j + 1) k_i)`` of each X_i and writes columns
    ``[j n, (j + 1) n)`` of Y.

    Attributes:
        rows: Of the bucket; how many are real, the kernel reads from COUNTS.
        n: Columns of Y of one group.
        segments: The k_i.
        groups: Independent problems.
        epilogue: What is done to the sums.
        floats: Whether X, W and Y are 32-bit floats, which only kernels with mma.sync take.
        eights: Whether X and W are e4m3, sums scaled by column; else they are 16-bit floats.
        stores_halves, stores_eights: What Y is stored as: 16-bit floats, e4m3, or both.
    """

    rows: int
    n: int
    segments: tuple[int, ...]
    groups: int = 1
    epilogue: Epilogue = attrs.field(factory=lambda: activation(None))
    floats: bool = False
    eights: bool = False
    stores_halves: bool = True
    stores_eights: bool = False

    @property
    def element_bytes(self) -> int:
        """Size of an element of X and W."""
        return 1 if self.eights else 4 if self.floats else 2

    @property
    def k_tile(self) -> int:
        """Elements of a tile of K."""
        return K_TILE_BYTES // self.element_bytes

    @property
    def k(self) -> int:
        """Rows of W of one group."""
        return sum(self.segments)

    @property
    def k_tiles(self) -> int:
        """Tiles of K of one group; each segment starts one."""
        return sum(-(-k // self.k_tile) for k in self.segments)

    @property
    def n_padded(self) -> int:
        """Rows of packed W that a tile of K has."""
        return -(-self.n // 32) * 32

    @property
    def bias_columns(self) -> int:
        """Floats of packed bias that a group has."""
        return -(-self.n // COLUMN_PADDING) * COLUMN_PADDING

    @property
    def bias_offset(self) -> int:
        """Bytes from packed weights to packed bias."""
        return (self.groups * self.k_tiles * self.n_padded + COLUMN_PADDING) * K_TILE_BYTES

    @property
    def scale_offset(self) -> int:
        """Bytes from packed weights to what columns of the sums are multiplied by, with e4m3."""
        return self.bias_offset + self.groups * self.bias_columns * 4

    @property
    def out_scale_offset(self) -> int:
        """Bytes from packed weights to what Y is multiplied by before it is stored as e4m3."""
        return self.scale_offset + (self.groups * self.bias_columns * 4 if self.eights else 0)

    @property
    def flops(self) -> int:
        """Multiply-adds times two."""
        return 2 * self.rows * self.groups * self.k * self.n

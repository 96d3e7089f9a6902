"""What random graphs are made with: chances, names, and the values to build on."""

from __future__ import annotations

import random
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.ir.build import linear, make, reshape, scalar
from kernels.ir.node import Arg, DType, Lead, Node, Op, Shape, const

F32 = NDArray[np.float32]
_WIDTHS: Final = (1, 2, 3, 5, 7, 8, 12, 16, 24, 31, 32)
_ACTIVATIONS: Final = (Op.RELU, Op.RELU, Op.SIGMOID, Op.TANH, Op.LEAKY_RELU, Op.ELU, None)


@attrs.frozen(eq=False)
class History:
    """A history: ``keys [lead, t, d]``, ``mask`` bool ``[lead, t]``; nonempty: never all false."""

    keys: Node
    mask: Node
    nonempty: bool


@attrs.define(eq=False)
class Maker:
    """A graph in the making, and the chances that it takes.

    Attributes:
        chance: Decides the structure; ``numbers`` fills the weights.
        flats: Values ``[lead, w]`` to build on.
        fields: Values ``[lead, f, d]``, all of one ``d``.
        block: The block that is being made, for names.
    """

    chance: random.Random
    numbers: np.random.Generator
    smooth: bool
    flats: list[Node] = attrs.field(factory=list)
    fields: list[Node] = attrs.field(factory=list)
    sequences: list[History] = attrs.field(factory=list)
    block: str = ""

    def do(
        self,
        op: Op,
        *sources: Node,
        arg: Arg = None,
        shape: Shape | None = None,
        dtype: DType | None = None,
    ) -> Node:
        """Make a node, named after the block."""
        return make(op, *sources, arg=arg, shape=shape, dtype=dtype, name=f"{self.block}/{op}")

    def width(self) -> int:
        """Pick a width."""
        return self.chance.choice(_WIDTHS)

    def likely(self, probability: float = 0.5) -> bool:
        """Toss a coin."""
        return self.chance.random() < probability

    def array(self, *shape: int, scale: float = 1.0) -> F32:
        """Return normal numbers."""
        return (self.numbers.standard_normal(shape) * scale).astype(np.float32)

    def const(self, *shape: int, scale: float = 1.0) -> Node:
        """Return a constant of normal numbers."""
        return const(self.array(*shape, scale=scale), f"{self.block}/const")

    def parameters(self, k: int, n: int) -> tuple[Node, Node]:
        """Return weight and bias, scaled to keep the size of what they are applied to."""
        return self.const(k, n, scale=k**-0.5), self.const(n, scale=0.1)

    def linear(self, x: Node, n: int) -> Node:
        """Return a Linear on the last axis, as an importer makes it."""
        return linear(x, *self.parameters(x.dims[-1], n), name=f"{self.block}/linear")

    def activate(self, x: Node, *, always: bool = False) -> Node:
        """Apply a random activation, or none."""
        op = self.chance.choice(_ACTIVATIONS[:-1] if always else _ACTIVATIONS)
        if op is None:
            return x
        return self.do(op, x, arg=0.25 if op in (Op.LEAKY_RELU, Op.ELU) else None)

    def together(self, *nodes: Node) -> tuple[Node, ...]:
        """Return values that may meet: of rows, if any of them is."""
        if len({node.lead for node in nodes}) == 1:
            return nodes
        return tuple(
            self.do(Op.TO_ROWS, node) if node.lead is Lead.REQUESTS else node for node in nodes
        )

    def flat(self) -> Node:
        """Pick a value ``[lead, w]``, a late one rather than an early one."""
        at = max(self.chance.randrange(len(self.flats)), self.chance.randrange(len(self.flats)))
        return self.flats[at]

    def concat(self, *nodes: Node, axis: int = -1) -> Node:
        """Join values, of rows if any is."""
        if len(nodes) == 1:
            return nodes[0]
        return self.do(Op.CONCAT, *self.together(*nodes), arg=axis % len(nodes[0].shape))

    def some(self) -> Node:
        """Pick a value, or join up to three."""
        if not self.likely(0.4):
            return self.flat()
        return self.concat(*(self.flat() for _ in range(self.chance.randint(2, 3))))

    def some_fields(self) -> Node:
        """Pick fields ``[lead, f, d]``, or join those of both sides."""
        if len(self.fields) > 1 and self.likely(0.7):
            return self.concat(*self.fields, axis=1)
        return self.chance.choice(self.fields)

    def scaled(self, x: Node, factor: float) -> Node:
        """Multiply by a number."""
        return self.do(Op.MUL, x, scalar(factor, x))

    def flattened(self, x: Node) -> Node:
        """Return ``[lead, w]``."""
        return x if len(x.dims) == 1 else reshape(x, x.width)

"""Values that lie in global memory, as kernels address them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from kernels.ir.node import Lead, Node, Op
from kernels.plan.phases import consecutive_start
from kernels.program import Pointer, Precision

ELEMENTS: Final = {
    Precision.FP16: "Fp16",
    Precision.BF16: "Bf16",
    Precision.TF32: "Float32",
    Precision.FP32: "Float32",
}
"""The CUDA name of what values are stored as."""


@attrs.frozen
class Matrix:
    """A row-major matrix, one row a candidate or a request.

    Attributes:
        pointer: Where its first row begins.
        columns: That hold something.
        ld: Elements from one row to the next.
        element: ``Float32``, ``Fp16``, ``Bf16`` or ``E4m3``, the CUDA name of its elements.
    """

    pointer: Pointer
    lead: Lead
    columns: int
    ld: int
    element: str

    @property
    def element_bytes(self) -> int:
        """Size of an element."""
        return {"Float32": 4, "E4m3": 1}.get(self.element, 2)

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.ld * self.element_bytes


@attrs.frozen
class Columns:
    """Consecutive columns of a matrix.

    Attributes:
        requests: Whether a row of the batch finds its own through REQUEST_OF_ROW.
    """

    matrix: Matrix
    first: int
    width: int
    requests: bool

    def as_matrix(self) -> Matrix:
        """Return the columns as a matrix of its own; its lead is REQUESTS where rows are found."""
        matrix = self.matrix
        offset = matrix.pointer.offset + self.first * matrix.element_bytes
        return attrs.evolve(
            matrix,
            pointer=attrs.evolve(matrix.pointer, offset=offset),
            columns=self.width,
            lead=Lead.REQUESTS if self.requests else matrix.lead,
        )


def located(node: Node, matrices: Mapping[Node, Matrix]) -> Columns | None:
    """Return the columns of a matrix that a value is, if it lies in memory so."""
    first, width, requests = 0, node.width, False
    while node not in matrices:
        if node.op is Op.TO_ROWS:
            requests = True
        elif node.op is Op.SLICE:
            skipped = consecutive_start(node)
            if skipped is None:
                return None
            first += skipped
        elif node.op is not Op.RESHAPE:
            return None
        node = node.sources[0]
    return Columns(matrices[node], first, width, requests)

"""Values that lie in global memory, as kernels address them."""

from __future__ import annotations

import attrs

from kernels.ir.node import Lead
from kernels.program import Pointer, Role


@attrs.frozen
class Matrix:
    """A row-major matrix, one row a candidate or a request.

    Attributes:
        pointer: Where its first row begins.
        columns: That hold something.
        ld: Elements from one row to the next.
        element: ``Float32``, ``Fp16`` or ``Bf16``, the CUDA name of its elements.
    """

    pointer: Pointer
    lead: Lead
    columns: int
    ld: int
    element: str

    @property
    def element_bytes(self) -> int:
        """Size of an element."""
        return 4 if self.element == "Float32" else 2

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return self.ld * self.element_bytes


SCORES = Role.SCORES

"""What goes into the feature parser and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import FeatureError


class RawBlock(Protocol):
    """Raw columns of one side of one request; ``transport.messages.Block`` is one, see there."""

    @property
    def side(self) -> int: ...  # noqa: D102 - 0 user, 1 candidate
    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def values(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def row_splits(self) -> NDArray[np.int32] | None: ...  # noqa: D102
    @property
    def char_splits(self) -> NDArray[np.int32] | None: ...  # noqa: D102


@attrs.frozen(eq=False)
class RawRequest:
    """The features of one request, as they came."""

    n_candidates: int
    blocks: Sequence[RawBlock]


@attrs.frozen(kw_only=True, eq=False)
class SideMatrices:
    """One side of a parsed batch, ``n`` being its requests or its rows; layout by the manifest.

    Attributes:
        ids: int64 ``[n_ids, n]``, each within the rows of every table that it is looked up in.
        weights: float32 ``[n_weights, n]``.
        values: float32 ``[n, n_values]`` (rows first: they are copied into the block as they are).
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    values: NDArray[np.float32]


@attrs.frozen(kw_only=True, eq=False)
class ParsedBatch:
    """Requests as numbers. Requests that failed to parse are in ``failed`` and nowhere else.

    Attributes:
        parsed: int32 ``[K]``, indices of the requests that parsed, in order.
        n_rows: int32 ``[K]``, candidates of each.
        failed: Index of each other request, and what was wrong with it.
    """

    parsed: NDArray[np.int32]
    n_rows: NDArray[np.int32]
    user: SideMatrices
    candidate: SideMatrices
    failed: dict[int, FeatureError]

"""Lists of ids to ids side by side, with their length, mask and pooling weights."""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.features.faults import Mask
from kernels.features.feature import Feature
from kernels.features.hashing import I64

F32 = NDArray[np.float32]


@attrs.frozen(eq=False)
class Padded:
    """A list feature over ``n`` rows.

    Attributes:
        ids: int64 ``[width, n]``.
        lengths: int64 ``[n]``, entries that stayed.
        used: bool ``[width, n]``, where they are.
        too_long: bool ``[n]``, rows that had more than the feature keeps.
    """

    ids: I64
    lengths: I64
    used: Mask
    too_long: Mask

    def mask(self) -> F32:
        """Return 1 where there is an entry: float32 ``[width, n]``."""
        return self.used.astype(np.float32)

    def weights(self, pooling: str) -> F32:
        """Return what makes ``manifest.Lookup``'s pooling skip the padding."""
        if pooling == "max":
            weights = np.where(self.used, np.float32(0), np.float32(-np.inf))
            weights[:, self.lengths == 0] = 0
            return weights
        weights = self.mask()
        if pooling == "mean":
            weights /= np.maximum(self.lengths, 1).astype(np.float32)
        return weights


def rows_of(lengths: I64) -> I64:
    """Return the row of each entry, for rows of these lengths."""
    return np.repeat(np.arange(len(lengths)), lengths)


def pad(feature: Feature, ids: I64, rows: I64, n: int, drop: Mask | None) -> Padded:
    """Lay lists out as the feature's padding says.

    Args:
        feature: A multi or sequence feature.
        ids: int64 ``[n_entries]``, row after row.
        rows: int64 ``[n_entries]``, the row of each, ascending.
        n: Rows.
        drop: Entries to leave out first.
    """
    padding, width = feature.padding, feature.width
    assert padding is not None
    if drop is not None:
        ids, rows = ids[~drop], rows[~drop]
    lengths = np.bincount(rows, minlength=n)
    places = np.arange(len(ids)) - (np.cumsum(lengths) - lengths)[rows]
    kept = np.minimum(lengths, width)
    too_long = lengths > width
    if too_long.any():
        if padding.keep == "last":
            places -= (lengths - kept)[rows]
        stays = (places >= 0) & (places < width)
        ids, rows, places = ids[stays], rows[stays], places[stays]
    if padding.side == "left":
        places += (width - kept)[rows]
    padded = np.full((width, n), padding.pad, np.int64)
    padded[places, rows] = ids
    used = np.zeros((width, n), np.bool_)
    used[places, rows] = True
    return Padded(padded, kept, used, too_long)

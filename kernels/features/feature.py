"""What a feature spec says, as frozen values: ``FeatureSpec`` holds one ``Feature`` an output.

A client sends the *sent* features. The others (crosses, lengths, masks, weights) are derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Pooling, SideName

Kind = Literal["categorical", "numeric", "multi", "sequence", "cross", "length", "mask", "weight"]
Transform = Literal["raw", "log", "log_squared", "standardise", "bucketise"]
Substitute = int | Literal["error", "skip"]
Encoding = Literal["vocabulary", "hash", "identity", "key"]

#: The keys that there are: every int64.
KEYS: Final = (-(1 << 63), (1 << 63) - 1)

LIST_KINDS: Final = ("multi", "sequence")
SENT_KINDS: Final = ("categorical", "numeric", "multi", "sequence")


@attrs.frozen(kw_only=True)
class Encoder:
    """How one value becomes an id.

    Attributes:
        size: Lines of the vocabulary, buckets of the hash, or values of the identity; keys have no
            number, and 0 here.
        first_id: Id of the first line, bucket or value: ``identity`` maps ``x`` to
            ``first_id + x`` for ``0 <= x < size``. A key is what it is, any int64.
        missing: Id of NaN and the empty text; ``skip`` (lists only) drops the entry.
        unseen: Id of a value outside the vocabulary or the identity's range; same.
        vocabulary: The vocabulary's file, relative to the spec's folder.
    """

    encode: Encoding
    size: int
    first_id: int = 0
    missing: Substitute = "error"
    unseen: Substitute = "error"
    vocabulary: str | None = None


@attrs.frozen(kw_only=True)
class Numeric:
    """How one number becomes a float32 (``bucketise``: an id).

    ``missing`` replaces NaN before the transform, which is computed in float64:

    * ``raw``: x.
    * ``log``: ln(1 + max(x, 0)), as DLRM prepares Criteo's counts (Naumov et al. 2019, data_utils).
    * ``log_squared``: floor(ln(x)**2) where x > 2, else x, as the winners of the Criteo display
      advertising challenge did (Juan et al. 2014).
    * ``standardise``: (x - mean) / std.
    * ``bucketise``: first_id + the number of boundaries <= x.
    """

    transform: Transform
    missing: float | None = None
    mean: float = 0.0
    std: float = 1.0
    boundaries: tuple[float, ...] = ()
    first_id: int = 0


@attrs.frozen(kw_only=True)
class Padding:
    """How a list of ids becomes ``width`` ids side by side.

    Attributes:
        pad: Id in the unused places.
        side: Where these are. ``left``: the last entry is in the last place.
        keep: Which entries of a longer list stay; ``error`` refuses it.
    """

    pad: int
    side: Literal["left", "right"]
    keep: Literal["first", "last", "error"]


@attrs.frozen(kw_only=True)
class Feature:
    """One output of the feature parser: ``width`` columns of ids (int64) or numbers (float32).

    Attributes:
        dtype: ``int64`` for ids and lengths, ``float32`` for numbers, masks and weights.
        width: Columns that the parser makes; a list's maximum length.
        input: The graph input that it feeds.
        column: Its first column there.
        line: Of its header in ``features.toml``.
        ids: Lowest and highest id that it can give; None for numbers.
        of: A cross's members; the list that a length, mask or weight belongs to.
        table: With its own table outside the graph: that file. The graph input takes its rows.
        pooling: How a table's rows are pooled; ``none`` lays them side by side.
        dim: Columns of ``table``; None where the table was not read.
    """

    name: str
    side: SideName
    kind: Kind
    dtype: Literal["int64", "float32"]
    width: int
    input: str
    column: int
    line: int
    ids: tuple[int, int] | None = None
    encoder: Encoder | None = None
    numeric: Numeric | None = None
    padding: Padding | None = None
    of: tuple[str, ...] = ()
    buckets: int = 0
    first_id: int = 0
    missing: int | None = None
    table: str | None = None
    pooling: Pooling = "none"
    dim: int | None = None

    @property
    def sent(self) -> bool:
        """Whether clients send it; otherwise it is derived from others."""
        return self.kind in SENT_KINDS

    @property
    def keyed(self) -> bool:
        """Whether its ids are keys, to be looked up in tables of keys alone."""
        return self.encoder is not None and self.encoder.encode == "key"

    @property
    def weighted_pooling(self) -> Pooling:
        """How rows of its own table are pooled with the weights of its list, where it has such.

        A mean's weights are 1 / length each, which makes it their sum.
        """
        return "sum" if self.pooling == "mean" else self.pooling

    @property
    def graph_width(self) -> int | None:
        """Columns of its graph input that it fills; None if its table's dim is not known."""
        if self.table is None:
            return self.width
        if self.dim is None:
            return None
        return self.dim if self.pooling != "none" else self.width * self.dim

    def describe(self) -> dict[str, Any]:
        """Return what a client needs to know, as JSON-able values."""
        described: dict[str, Any] = {
            "name": self.name,
            "side": self.side,
            "kind": self.kind,
            "width": self.width,
        }
        if self.encoder is not None:
            described["encode"] = self.encoder.encode
            described["type"] = "number" if self.encoder.encode == "identity" else "text or integer"
            if self.encoder.encode == "identity":
                described["size"] = self.encoder.size
            described["optional"] = self.encoder.missing != "error"
        elif self.numeric is not None:
            described["type"] = "number"
            described["optional"] = self.numeric.missing is not None
        if self.padding is not None:
            described["keep"] = self.padding.keep
        return described


@attrs.frozen(kw_only=True, eq=False)
class FeatureSpec:
    """A whole ``features.toml``.

    Attributes:
        name: Of the file, for messages.
        folder: What its file names are relative to.
        features: In the file's order; derived weights of pooled lists follow their list, under the
            name ``LIST.weight``.
        vocabularies: File name to the hashes of its lines.
    """

    name: str
    folder: Path
    features: tuple[Feature, ...]
    vocabularies: Mapping[str, NDArray[np.uint64]]
    by_name: Mapping[str, Feature] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "by_name", {f.name: f for f in self.features})

    @property
    def members(self) -> frozenset[str]:
        """Names of the features that a derived feature reads; the graph need not take these."""
        return frozenset(name for feature in self.features for name in feature.of)

    @property
    def files(self) -> tuple[str, ...]:
        """The vocabulary files, relative to ``folder``: what a copy of the spec needs beside it."""
        return tuple(self.vocabularies)

    def describe(self) -> list[dict[str, Any]]:
        """Describe the features that clients send, as JSON-able values."""
        return [feature.describe() for feature in self.features if feature.sent]

"""The manifest: what a bundle holds, and how raw features become the dense graph's inputs.

A bundle is a folder::

    manifest.json    this module's Manifest
    features.toml    the feature spec, with its vocabulary files
    dense.onnx       the dense graph
    user.onnx        optional: computes ids, weights and values from user features
    candidate.onnx   optional: the same for what depends on a candidate
    tables/NAME.npy  one embedding table each, memory-mappable, or
    tables/NAME      the same as a folder of the table store, see ``kernels.store``
    placement.toml   optional: where the tables lie, see ``kernels.placement``

The *sparse half* takes features to three matrices for each side, one matrix row for each number a
request (user side) or candidate (candidate side) has, so that a feature's column stays contiguous:
``ids`` int64, ``weights`` float32, ``values`` float32. Lookups take ids (and weights) to pooled
rows. Pooled rows and values together are the side's *block*, float32 ``[n, width]``: first the
lookups' columns in the order of ``lookups``, then one column for each row of ``values``.

``dense.onnx`` takes ``user`` float32 ``[n_requests, user.width]``, ``candidate`` float32
``[n_rows, candidate.width]`` and ``request_of_row`` int64 ``[n_rows]``, and gives one float32
``[n_rows, sum of output widths]`` tensor named ``scores``.
"""

from __future__ import annotations

from typing import Final, Literal, cast

import attrs

from kernels.store.rows import RowType, row_bytes

SideName = Literal["user", "candidate"]
Pooling = Literal["none", "sum", "mean", "max"]


# What the manifests of bundles call fp32 that were built before tables had other row types.
_OLD_DTYPES: Final = {"float32": "fp32"}


def _row_type(name: str) -> str:
    return _OLD_DTYPES.get(name, name)


@attrs.frozen(kw_only=True)
class Table:
    """One embedding table: ``rows`` rows of ``dim`` numbers.

    Attributes:
        dtype: How rows are stored: ``fp32``, ``fp16``, ``bf16``, or ``int8`` with a scale a row.
        file: In ``tables/``: a ``.npy`` file, float32 ``[rows, dim]``, or a folder of the store.
        keyed: Whether rows are found by 64-bit keys instead of by their numbers.
        segments: Into how many a placement may divide it.
        version: Of a folder of the store, what its header says; else empty.
    """

    name: str
    rows: int
    dim: int
    dtype: str = attrs.field(converter=_row_type)
    file: str
    keyed: bool = False
    segments: int = 1
    version: str = ""

    @property
    def row_type(self) -> RowType:
        """``dtype``, of a table that was checked when its bundle was loaded."""
        return cast("RowType", self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row, its scale included."""
        return row_bytes(self.row_type, self.dim)

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows; keys and their index come on top."""
        return self.rows * self.row_bytes


@attrs.frozen(kw_only=True)
class Source:
    """Where one row of an ids, weights or values matrix comes from.

    Attributes:
        feature: A feature of the spec, or an output of the side's program if ``program``.
        column: Which of its columns.
        add: Added to the value (ids only): an offset into a table that several features share.
        program: Whether ``feature`` names a program's output.
    """

    feature: str
    column: int = 0
    add: int = 0
    program: bool = False


@attrs.frozen(kw_only=True)
class Lookup:
    """One cut edge: ids of one side to (pooled) rows of one table.

    For each request or candidate: ``none`` lays ``table[id]`` of its ``n_ids`` ids side by side
    (``width == n_ids * dim``); ``sum`` adds ``weight * table[id]``, weights being 1 without
    ``first_weight``; ``mean`` divides that sum by ``n_ids``; ``max`` takes the element-wise maximum
    of ``table[id] + weight``, weights being 0 without ``first_weight``.

    Attributes:
        first_id: First of ``n_ids`` consecutive rows of the side's ids matrix.
        first_weight: First of ``n_ids`` consecutive rows of its weights matrix, or None.
        offset: First column in the side's block.
        width: Columns there: ``dim``, or ``n_ids * dim`` unpooled.
        tensor: The tensor of the original graph that this replaces, for people.
    """

    side: SideName
    table: str
    tensor: str
    pooling: Pooling
    first_id: int
    n_ids: int
    first_weight: int | None
    offset: int
    width: int


@attrs.frozen(kw_only=True)
class SideLayout:
    """One side's matrices and block. ``width == sum(lookup widths) + len(values)``."""

    ids: tuple[Source, ...]
    weights: tuple[Source, ...]
    values: tuple[Source, ...]
    lookups: tuple[Lookup, ...]
    width: int
    program: str | None


@attrs.frozen(kw_only=True)
class Output:
    """One output of the model: ``width`` columns of ``scores`` from ``offset`` on.

    ``shape`` is what one row had in the original graph: ``()`` or ``(1,)`` or ``(2,)``, say.
    """

    name: str
    offset: int
    width: int
    shape: tuple[int, ...]


@attrs.frozen(kw_only=True)
class KeptTable:
    """A constant table that stays in the dense graph, and why.

    Attributes:
        positional: Whether what indexes it is the same for every row (a range of positions, say):
            such a table belongs in the dense graph, and is not counted as left behind.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    positional: bool


@attrs.frozen(kw_only=True)
class GpuSupport:
    """Whether GPU kernels can be compiled of the dense graph; the host executor runs any.

    Attributes:
        supported: Whether the compiler knows every operator of it. What a card has no room for is
            found out, and said, when it is opened there.
        reason: Why not: operator, node and model. Empty where it is supported.
    """

    supported: bool
    reason: str


# Of bundles built before the manifest said so.
UNKNOWN: Final = GpuSupport(
    supported=False, reason="the bundle does not say whether its graph compiles: build it again"
)


@attrs.frozen(kw_only=True)
class Manifest:
    """All that a node needs to know of a bundle.

    Attributes:
        format: Of this file; a reader refuses one that it does not know.
        model: Name of the ONNX file that it was built from, without its ending.
        version: SHA-256 over the contents of all the other files, in hexadecimal; of a loaded
            bundle, over a placement in its folder as well.
        gpu: Which executors can run the model. Where it is not supported, whoever asks for the
            GPU is told the reason; nothing falls back to the host by itself.
    """

    format: int
    model: str
    version: str
    tables: tuple[Table, ...]
    user: SideLayout
    candidate: SideLayout
    outputs: tuple[Output, ...]
    kept: tuple[KeptTable, ...]
    gpu: GpuSupport = UNKNOWN

    def side(self, name: SideName) -> SideLayout:
        """Return the layout of one side."""
        return self.user if name == "user" else self.candidate

"""What a model's requests ask of its tables: assumed from the manifest, or counted in a trace.

A trace is an ``.npz`` file of one of two kinds:

* recorded inputs, as ``kernels.bundle verify`` reads them: ``CASE/in/NAME``, graph inputs by name,
  with rows in dimension 0; rows that agree in all that the user side has are one request.
* counts: ``requests``, a number; and for each table ``TABLE/keys`` int64 ``[n]``, no key twice, and
  ``TABLE/counts`` int64 ``[n]``, how often each was looked up in these requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.load import SIDES
from kernels.bundle.manifest import Manifest, Table
from kernels.errors import LookupFailed, PlacementError
from kernels.features.feature import FeatureSpec
from kernels.placement.skew import F64, Zipf, fit_exponent
from kernels.store.partition import rows_per_segment, segment_of

I64 = NDArray[np.int64]

# MLPerf's recommendation load has 270 samples a query, small web traffic some tens.
ROWS_PER_REQUEST: Final = 100
SKEW: Final = 1.1
# Requests whose lookups travel together under load: the gateway sends each distinct key once.
BATCH_REQUESTS: Final = 8
_REQUESTS: Final = "requests"


@attrs.frozen(kw_only=True, eq=False)
class TableTraffic:
    """What requests ask of one table.

    Attributes:
        lookups: Rows of it that a request looks up, on average, each as often as it occurs.
        bag_bytes: Of the pooled rows that a request gets of it, float32.
        keys: How its keys are drawn.
        shares: float64 ``[segments]``, each segment's share of the lookups.
    """

    lookups: float
    bag_bytes: float
    keys: Zipf
    shares: F64

    def distinct(self, n_requests: float = BATCH_REQUESTS) -> float:
        """Return the distinct keys a request of batches of ``n_requests`` that travel together."""
        return self.keys.distinct(self.lookups * n_requests) / n_requests


@attrs.frozen(kw_only=True, eq=False)
class Traffic:
    """What requests ask of a model's tables.

    Attributes:
        rows_per_request: Candidates of a request, on average.
        tables: By name; every table of the manifest is there.
        source: Where this is known from, for people.
    """

    rows_per_request: float
    tables: Mapping[str, TableTraffic]
    source: str


def assume_traffic(
    manifest: Manifest,
    spec: FeatureSpec | None = None,
    *,
    rows_per_request: float = ROWS_PER_REQUEST,
    skew: float = SKEW,
) -> Traffic:
    """Return the traffic that a manifest lets expect, with keys by a power law.

    Tables of keys, and those whose ids are all hashes, have the same traffic in each segment. Other
    tables are taken to be sorted by frequency, as vocabularies usually are: the first segment has
    the hottest rows.

    Args:
        manifest: The model's.
        spec: Its features; without it, no ids count as hashes.
        rows_per_request: Candidates of a request.
        skew: The power law's exponent.
    """
    hashed = set() if spec is None else _hashed(manifest, spec)
    tables = {}
    for table in manifest.tables:
        keys = Zipf(table.rows, skew)
        lookups, bag_bytes = _demand(manifest, table.name, rows_per_request)
        tables[table.name] = TableTraffic(
            lookups=lookups,
            bag_bytes=bag_bytes,
            keys=keys,
            shares=_shares(table, keys, sorted_ids=table.name not in hashed and not table.keyed),
        )
    return Traffic(
        rows_per_request=rows_per_request,
        tables=tables,
        source=f"assumed: {rows_per_request:g} rows a request, keys by a power law of {skew:g}",
    )


def _demand(manifest: Manifest, name: str, rows_per_request: float) -> tuple[float, float]:
    lookups = bag_bytes = 0.0
    for side in SIDES:
        for lookup in manifest.side(side).lookups:
            if lookup.table == name:
                rows = rows_per_request if side == "candidate" else 1.0
                lookups += rows * lookup.n_ids
                bag_bytes += rows * lookup.width * 4
    return lookups, bag_bytes


def _hashed(manifest: Manifest, spec: FeatureSpec) -> set[str]:
    """Return the tables that only hashes are looked up in."""
    found: dict[str, bool] = {}
    for side in SIDES:
        layout = manifest.side(side)
        for lookup in layout.lookups:
            for source in layout.ids[lookup.first_id : lookup.first_id + lookup.n_ids]:
                feature = None if source.program else spec.by_name.get(source.feature)
                hashes = feature is not None and (
                    feature.kind == "cross"
                    or (feature.encoder is not None and feature.encoder.encode == "hash")
                )
                found[lookup.table] = found.get(lookup.table, True) and hashes
    return {name for name, hashes in found.items() if hashes}


def _shares(table: Table, keys: Zipf, *, sorted_ids: bool) -> F64:
    if not sorted_ids or not table.rows:
        return np.full(table.segments, 1.0 / table.segments, np.float64)
    return np.asarray(np.diff(keys.head(_segment_ends(table)), prepend=0.0), np.float64)


def _segment_ends(table: Table) -> F64:
    """Return the row after each segment of a dense table."""
    size = rows_per_segment(table.rows, table.segments)
    ends: F64 = np.minimum(np.arange(1.0, table.segments + 1) * size, table.rows)
    return ends


@attrs.frozen(kw_only=True, eq=False)
class Counts:
    """How often each key of each table was looked up.

    Attributes:
        n_requests: In so many requests.
        n_rows: With so many candidates; None where that is not known.
        tables: Distinct keys, int64 ``[n]``, and how often each, int64 ``[n]``; by table.
    """

    n_requests: float
    n_rows: float | None
    tables: Mapping[str, tuple[I64, I64]]


def counted_traffic(
    manifest: Manifest,
    counts: Counts,
    *,
    source: str,
    rows_per_request: float = ROWS_PER_REQUEST,
) -> Traffic:
    """Return the traffic that was counted.

    Each table's power law is fitted to its counts. Segments have the share that was counted, but
    for that of keys that were not seen yet, which are as many as were seen once (Good, "The
    population frequencies of species", Biometrika 1953): it is spread over all segments.

    Args:
        manifest: The model's.
        counts: Of its tables; one that is not there was not looked up.
        source: Where they are from, for people.
        rows_per_request: Candidates of a request where the counts do not say.

    Raises:
        PlacementError: They are not of this model.
    """
    if counts.n_rows is not None:
        rows_per_request = counts.n_rows / counts.n_requests
    known = {table.name for table in manifest.tables}
    if unknown := sorted(counts.tables.keys() - known):
        raise PlacementError(f"{source}: the model has no table {unknown[0]!r}")
    tables = {}
    for table in manifest.tables:
        keys, found = counts.tables.get(table.name, (np.empty(0, np.int64),) * 2)
        assumed = 0.0
        if len(found):
            assumed, bag_bytes = _demand(manifest, table.name, rows_per_request)
        lookups = float(found.sum()) / counts.n_requests
        tables[table.name] = TableTraffic(
            lookups=lookups,
            bag_bytes=bag_bytes * lookups / assumed if assumed else 0.0,
            keys=_fitted(table, found),
            shares=_counted_shares(table, keys, found, source),
        )
    return Traffic(
        rows_per_request=rows_per_request,
        tables=tables,
        source=f"{source}: {counts.n_requests:g} requests of {rows_per_request:g} rows",
    )


def _fitted(table: Table, found: I64) -> Zipf:
    if not len(found):
        return Zipf(table.rows, 0.0)
    n = max(table.rows, len(found))
    return Zipf(n, fit_exponent(np.sort(found)[::-1], n))


def _counted_shares(table: Table, keys: I64, found: I64, source: str) -> F64:
    uniform = np.full(table.segments, 1.0 / table.segments, np.float64)
    total = float(found.sum())
    if not total:
        return uniform
    try:
        segments = segment_of(keys, n_segments=table.segments, rows=table.rows, keyed=table.keyed)
    except LookupFailed as error:
        raise PlacementError(f"{source}: table {table.name!r}: {error}") from error
    seen = np.bincount(segments, weights=found, minlength=table.segments) / total
    unseen = float((found == 1).sum()) / total
    return np.asarray((1 - unseen) * seen + unseen * uniform, np.float64)


def read_counts(path: Path) -> Counts:
    """Read a trace of counts.

    Raises:
        PlacementError: It cannot be read, or is not what the module's head says.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
    except (OSError, ValueError) as error:
        raise PlacementError(f"{path}: not an .npz of arrays: {error}") from error
    requests = arrays.pop(_REQUESTS, None)
    if requests is None or requests.ndim or not np.isfinite(requests) or requests <= 0:
        raise PlacementError(f"{path}: requests: want how many were counted, got {requests!r}")
    tables: dict[str, tuple[I64, I64]] = {}
    for key in sorted(arrays):
        name, _, what = key.rpartition("/")
        if not name or what not in ("keys", "counts"):
            raise PlacementError(f"{path}: key {key!r} is neither TABLE/keys nor TABLE/counts")
        pair = [arrays.get(f"{name}/{each}") for each in ("keys", "counts")]
        for array in pair:
            if array is None or array.dtype != np.int64 or array.ndim != 1:
                raise PlacementError(f"{path}: {name}: want keys and counts, int64 [n]")
        keys, counts = pair
        assert keys is not None
        assert counts is not None
        if len(keys) != len(counts) or len(np.unique(keys)) != len(keys) or (counts < 1).any():
            raise PlacementError(
                f"{path}: {name}: want each key once, and for each a count of at least 1"
            )
        tables[name] = keys, counts
    return Counts(n_requests=float(requests), n_rows=None, tables=tables)


def write_counts(counts: Counts, path: Path) -> None:
    """Write a trace of counts."""
    arrays: dict[str, NDArray[np.generic]] = {_REQUESTS: np.asarray(counts.n_requests)}
    for name, (keys, found) in counts.tables.items():
        arrays[f"{name}/keys"], arrays[f"{name}/counts"] = keys, found
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type] # its stub takes keywords for options


def is_counts(path: Path) -> bool:
    """Say whether a trace is one of counts."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return _REQUESTS in content.files
    except (OSError, ValueError):
        return False

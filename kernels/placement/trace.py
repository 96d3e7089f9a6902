"""Counting keys in recorded inputs: what ``kernels.bundle plan --traffic`` reads.

``python -m kernels.bundle count BUNDLE/ --io PAIRS.npz -o COUNTS.npz`` writes the counts, which are
smaller than what was recorded and say nothing of who asked; see ``traffic.py`` for the format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.recorded import Cases, RecordedInputs, read_cases
from kernels.placement.traffic import (
    I64,
    ROWS_PER_REQUEST,
    Counts,
    Traffic,
    counted_traffic,
    is_counts,
    read_counts,
)


def count_cases(bundle: Bundle, cases: Cases) -> Counts:
    """Count the keys that recorded calls look up.

    Raises:
        BundleError: A call lacks an input of the bundle's.
    """
    inputs = RecordedInputs(bundle)
    ids: dict[str, list[I64]] = {}
    n_requests = n_rows = 0
    for name, case in sorted(cases.items()):
        rows = inputs.rows(name, case.inputs)
        n_requests += rows.n_requests
        n_rows += len(rows.request_of_row)
        for side in SIDES:
            matrices = rows.user if side == "user" else rows.candidate
            for lookup in bundle.manifest.side(side).lookups:
                found = matrices.ids[lookup.first_id : lookup.first_id + lookup.n_ids]
                ids.setdefault(lookup.table, []).append(found.reshape(-1))
    return Counts(
        n_requests=n_requests,
        n_rows=n_rows,
        tables={name: _counted(np.concatenate(found)) for name, found in ids.items()},
    )


def _counted(ids: I64) -> tuple[I64, I64]:
    keys, counts = np.unique(ids, return_counts=True)
    return keys, counts.astype(np.int64)


def read_traffic(
    bundle: Bundle, path: Path, *, rows_per_request: float = ROWS_PER_REQUEST
) -> Traffic:
    """Read a trace of either kind.

    Args:
        bundle: Whose tables it is of.
        path: The file.
        rows_per_request: Candidates of a request, where the trace does not say.

    Raises:
        BundleError: It is not of this bundle, or no trace.
        PlacementError: The same.
    """
    counts = read_counts(path) if is_counts(path) else count_cases(bundle, read_cases(path))
    return counted_traffic(
        bundle.manifest, counts, source=str(path), rows_per_request=rows_per_request
    )

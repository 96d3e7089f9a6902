"""A layout: requests whose blocks have the same names and types, and what to do with them.

``compile.py`` makes one for each sequence of forms that clients send, which are few.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.bundle.manifest import SideName
from kernels.errors import FeatureError
from kernels.features.blocks import RawRequest
from kernels.features.faults import CANDIDATE, USER, Faults
from kernels.features.feature import FeatureSpec
from kernels.features.gather import Form, gather
from kernels.features.hashing import I64
from kernels.features.steps import CrossStep, SideColumns, Step

SIDES: Final[tuple[SideName, SideName]] = ("user", "candidate")


@attrs.frozen(eq=False)
class Columns:
    """Both sides of some requests, as columns of features.

    Attributes:
        positions: Which of the requests these are.
        n_rows: int64, candidates of each.
    """

    positions: list[int]
    n_rows: I64
    user: SideColumns
    candidate: SideColumns

    def without(self, dropped: Collection[int]) -> Columns:
        """Return the columns without some requests, given by their places in ``positions``."""
        keep = np.ones(len(self.positions), np.bool_)
        keep[list(dropped)] = False
        rows = np.repeat(keep, self.n_rows)
        return Columns(
            [p for p, kept in zip(self.positions, keep.tolist(), strict=True) if kept],
            self.n_rows[keep],
            self.user.take(np.flatnonzero(keep)),
            self.candidate.take(np.flatnonzero(rows)),
        )


def merge(parts: Sequence[Columns]) -> Columns:
    """Return the columns of all parts, requests in the order of their positions."""
    if len(parts) == 1:
        return parts[0]
    positions = np.array([p for part in parts for p in part.positions], np.int64)
    n_rows = np.concatenate([part.n_rows for part in parts])
    order = np.argsort(positions)
    starts = np.cumsum(n_rows) - n_rows
    n_ordered = n_rows[order]
    ends = np.cumsum(n_ordered)
    rows = np.repeat(starts[order] - (ends - n_ordered), n_ordered) + np.arange(n_rows.sum())
    return Columns(
        positions[order].tolist(),
        n_ordered,
        SideColumns.join([part.user for part in parts]).take(order),
        SideColumns.join([part.candidate for part in parts]).take(rows),
    )


@attrs.frozen(kw_only=True, eq=False)
class Layout:
    """What to do with requests of one sequence of forms.

    Attributes:
        n_ids: Rows of each side's matrix of ids; ``n_numbers`` of the other.
        absent: What is wrong with a request that has candidates but lacks a feature of theirs.
        steps: Of each side.
        crosses: Run after the steps of both.
    """

    spec: FeatureSpec
    forms: Sequence[Form]
    n_ids: Mapping[int, int]
    n_numbers: Mapping[int, int]
    absent: FeatureError | None
    steps: Mapping[int, Sequence[Step]]
    crosses: Sequence[CrossStep]

    def encode(
        self, requests: Sequence[RawRequest], positions: list[int]
    ) -> tuple[Columns, dict[int, FeatureError]]:
        """Parse requests of this layout.

        Args:
            requests: The requests.
            positions: What each is known by in the answer.

        Returns:
            Those that parsed, and the problems of the others by position.
        """
        failed: dict[int, FeatureError] = {}
        if self.absent is not None:
            for position, request in zip(positions, requests, strict=True):
                if request.n_candidates:
                    failed[position] = self.absent
            requests = [request for request in requests if not request.n_candidates]
            positions = [position for position in positions if position not in failed]
        blocks, kept, problems = gather(self.forms, requests)
        failed.update((positions[k], error) for k, error in problems.items())
        n_rows = np.array([requests[k].n_candidates for k in kept], np.int64)
        columns = Columns(
            [positions[k] for k in kept],
            n_rows,
            SideColumns.empty(len(kept), self.n_ids[USER], self.n_numbers[USER]),
            SideColumns.empty(int(n_rows.sum()), self.n_ids[CANDIDATE], self.n_numbers[CANDIDATE]),
        )
        if not kept:
            return columns, failed
        faults = Faults(n_rows)
        for side, out in ((USER, columns.user), (CANDIDATE, columns.candidate)):
            for step in self.steps[side]:
                step.run(blocks, out, faults)
        self._cross(columns)
        if faults.errors:
            failed.update((columns.positions[k], error) for k, error in faults.errors.items())
            columns = columns.without(faults.errors)
        return columns, failed

    def _cross(self, columns: Columns) -> None:
        for step in self.crosses:
            out = columns.user if step.feature.side == "user" else columns.candidate
            hashes = []
            for name in step.feature.of:
                if self.spec.by_name[name].side == step.feature.side:
                    hashes.append(out.hashes[name])
                else:
                    hashes.append(np.repeat(columns.user.hashes[name], columns.n_rows))
            step.run(hashes, out)

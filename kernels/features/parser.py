"""The feature parser: raw requests to ids, weights and values, all of a batch at once.

Requests are grouped by *layout* (names and types of their blocks; clients send few), each group's
blocks are laid end to end (``gather.py``) and turned into columns of features by a few numpy calls
for all features that are alike (``steps.py``); then the columns of all groups become the matrices
of the manifest (``assemble.py``). Python's cost is per request and block; numpy's per batch.

A request that is wrong is reported by its feature and value, and does no harm to the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from kernels.bundle.load import Bundle
from kernels.bundle.manifest import Manifest, SideName
from kernels.errors import BundleError, FeatureError
from kernels.features.assemble import Assembler, wanted_features
from kernels.features.blocks import ParsedBatch, RawRequest
from kernels.features.compile import Plan, compile_layout
from kernels.features.faults import CANDIDATE, USER, Faults
from kernels.features.feature import FeatureSpec
from kernels.features.gather import FormKey, form_key
from kernels.features.layout import SIDES, Columns, Layout, merge
from kernels.features.program import Program, ProgramError
from kernels.features.spec import load_spec
from kernels.features.steps import SideColumns

MAX_CANDIDATES: Final = 10_000
_MAX_LAYOUTS: Final = 256  # a client that sends a new order of names each time costs no memory


class Parser:
    """Parses requests for one bundle. Not for use by several threads at a time.

    Args:
        spec: The bundle's feature spec.
        manifest: The bundle's manifest.
        programs: Serialised ONNX programs of the sides that have one.
        max_candidates: More in one request are refused.

    Raises:
        BundleError: Spec, manifest and programs do not fit together.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        manifest: Manifest,
        programs: Mapping[SideName, bytes],
        *,
        max_candidates: int = MAX_CANDIDATES,
    ) -> None:
        self.spec = spec
        self.manifest = manifest
        self.max_candidates = max_candidates
        for side in SIDES:
            if (manifest.side(side).program is None) is (side in programs):
                raise BundleError(f"the manifest and the programs disagree on the {side} side's")
        loaded = {side: Program(f"{side}.onnx", model) for side, model in programs.items()}
        plan = Plan.of(spec, wanted_features(spec, manifest, loaded))
        self._plan = plan
        self._sides = tuple(
            Assembler(plan, manifest, side, loaded.get(SIDES[side])) for side in (USER, CANDIDATE)
        )
        self._layouts: dict[tuple[FormKey, ...], Layout] = {}

    @classmethod
    def for_bundle(cls, bundle: Bundle, *, max_candidates: int = MAX_CANDIDATES) -> Parser:
        """Make the parser of a loaded bundle.

        Raises:
            SpecError: Its ``features.toml`` is wrong.
            BundleError: Its parts do not fit together.
        """
        spec = load_spec(bundle.spec_path, tables=False)
        programs = {side: model for side in SIDES if (model := bundle.program(side)) is not None}
        return cls(spec, bundle.manifest, programs, max_candidates=max_candidates)

    @property
    def n_layouts(self) -> int:
        """Layouts that are kept compiled."""
        return len(self._layouts)

    def parse(self, requests: Sequence[RawRequest]) -> ParsedBatch:
        """Parse a batch; nothing that a request holds makes this raise."""
        failed: dict[int, FeatureError] = {}
        groups: dict[tuple[FormKey, ...], list[int]] = {}
        for position, request in enumerate(requests):
            if not 0 <= request.n_candidates <= self.max_candidates:
                failed[position] = FeatureError(
                    "n_candidates", f"{request.n_candidates}: want 0 to {self.max_candidates}"
                )
                continue
            key = tuple([form_key(block) for block in request.blocks])
            groups.setdefault(key, []).append(position)
        parts = []
        with np.errstate(all="ignore"):  # every result is looked at for what errstate would warn of
            for key, positions in groups.items():
                try:
                    layout = self._layout(key)
                except FeatureError as error:
                    failed.update(dict.fromkeys(positions, error))
                    continue
                columns, problems = layout.encode([requests[p] for p in positions], positions)
                parts.append(columns)
                failed.update(problems)
            return self._assemble(merge(parts) if parts else self._nothing(), failed)

    def _layout(self, key: tuple[FormKey, ...]) -> Layout:
        layout = self._layouts.get(key)
        if layout is None:
            layout = compile_layout(self._plan, key)
            if len(self._layouts) >= _MAX_LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[key] = layout
        return layout

    def _nothing(self) -> Columns:
        plan = self._plan
        sides = [SideColumns.empty(0, plan.n_ids[s], plan.n_numbers[s]) for s in (USER, CANDIDATE)]
        return Columns([], np.empty(0, np.int64), *sides)

    def _assemble(self, columns: Columns, failed: dict[int, FeatureError]) -> ParsedBatch:
        """Run the programs and lay out the matrices, without the requests on which this fails."""
        while True:
            faults = Faults(columns.n_rows)
            try:
                outputs = [side.outputs(columns) for side in self._sides]
            except ProgramError:
                self._blame(columns, faults)
            else:
                user, candidate = (
                    side.assemble(columns, computed, faults)
                    for side, computed in zip(self._sides, outputs, strict=True)
                )
                if not faults.errors:
                    break
            failed.update((columns.positions[k], error) for k, error in faults.errors.items())
            columns = columns.without(faults.errors)
        return ParsedBatch(
            parsed=np.array(columns.positions, np.int32),
            n_rows=columns.n_rows.astype(np.int32),
            user=user,
            candidate=candidate,
            failed=failed,
        )

    def _blame(self, columns: Columns, faults: Faults) -> None:
        """Find the requests on which a program fails by running each alone; all, if none does."""
        everyone = range(len(columns.positions))
        for request in everyone:
            alone = columns.without([k for k in everyone if k != request])
            for side, assembler in zip(SIDES, self._sides, strict=True):
                try:
                    assembler.outputs(alone)
                except ProgramError as error:
                    faults.add(request, f"{side} features", f"the model cannot use them: {error}")
        if not faults.errors:
            for request in everyone:
                faults.add(request, "features", "the model cannot use them together")

"""Where a batch's parts and values go in the user and the candidate block.

A block of fewer steps (``kernels.lengths``) has a layout of its own: the same runs of columns, less
those of the steps that it lacks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.card_rows import CardLayout
from actors.fetch import FetchLayout
from actors.layouts import Layouts
from kernels.bundle.manifest import Manifest, SideLayout, SideName
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.lengths.columns import Shortened
from kernels.lengths.side import shorten_side
from kernels.lookup import ShardLayout
from kernels.shards import Run
from transport.messages import Batch

Runs: TypeAlias = tuple[Run, ...]


@attrs.frozen(eq=False)
class KeptIds:
    """Which of the ids and weights that come for the card are staged."""

    ids: slice | NDArray[np.intp]
    weights: slice | NDArray[np.intp]


@attrs.frozen(eq=False)
class Padding:
    """How to tell of a whole row whether all steps of its sequences are alike.

    Attributes:
        width: Columns of a staged row.
        columns: For each stretch, the first staged column, steps, and columns of each.
        ids: For each stretch that the card gathers, the first of its ids, and how many.
    """

    width: int
    columns: tuple[tuple[int, int, int], ...]
    ids: tuple[tuple[int, int], ...] = ()


_ALL_IDS: Final = KeptIds(slice(None), slice(None))


@attrs.frozen(eq=False)
class BlockLayout:
    """Where a model's parts and values go in the user and the candidate block.

    Columns are those that are staged: of the blocks, those that no table on the card gives.

    Attributes:
        parts: The layouts of what groups pool, in the order of a batch's parts.
        user_values: From the batch's user values to the user block.
        candidate_values: The same of candidates.
        device: How ids for the card come, as one more part.
        fetch: The tables that come as rows, and
        fetched: where their lookups go.
        replicas: How many shards can send each part.
        hot: The part that nobody but the executor itself makes; None if there is none.
        card: How that is staged, where hot rows lie on the executor's card.
        sequences: Those that may be shorter than they are; None if there are none.
        first_user_value: The column of the whole user block that the first value is.
        first_candidate_value: The same of candidates.
        user_ids, candidate_ids: What is staged of the ids for the card.
        padding: By the side and the steps of sequences that are alike where nobody has filled
            them, where that can be told.
        shorter: Makes the layout of a length.
    """

    parts: Sequence[tuple[ShardLayout, ShardLayout]]
    user_values: Runs
    candidate_values: Runs
    device: tuple[ShardLayout, ShardLayout] | None = None
    fetch: FetchLayout | None = None
    fetched: tuple[ShardLayout, ShardLayout] | None = None
    replicas: int = 1
    hot: int | None = None
    card: CardLayout | None = None
    sequences: Shortened | None = None
    first_user_value: int = 0
    first_candidate_value: int = 0
    user_ids: KeptIds = _ALL_IDS
    candidate_ids: KeptIds = _ALL_IDS
    padding: Mapping[tuple[str, int], Padding] = attrs.field(factory=dict)
    shorter: Callable[[int], BlockLayout] | None = None

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        layouts: Layouts,
        replicas: int = 1,
        sequences: Shortened | None = None,
        tables: DeviceTables | None = None,
    ) -> BlockLayout:
        """Make the layout of a model; shards without lookups send no part and are left out.

        Args:
            manifest: The model's.
            layouts: What its shards, and the card, are asked.
            replicas: How many shards can send each part.
            sequences: Those that may be shorter; where there are any, ``at`` makes more layouts.
            tables: What lies on the executor's card, if that has hot rows of cached tables.
        """
        card = None
        if tables is not None and layouts.fetch is not None and layouts.hot is not None:
            card = CardLayout.of(layouts.fetch, tables, layouts.hot)
        laid_out = functools.partial(_laid_out, manifest, layouts, replicas, card, sequences)
        if sequences is None:
            return laid_out(0)
        # There are as many lengths as buckets have, some: each layout is made once.
        return attrs.evolve(laid_out(sequences.most), shorter=functools.cache(laid_out))

    def at(self, length: int) -> BlockLayout:
        """Return the layout of blocks of a length."""
        if self.shorter is None or self.sequences is None or not 0 < length < self.sequences.most:
            return self
        return self.shorter(length)

    def expected(self, head: Batch) -> list[int]:
        """Return which parts a batch has: those of groups that pool, or have rows for it."""
        if self.fetch is None:
            return list(range(len(self.parts)))
        brings: list[bool] = (head.part_rows.sum(axis=1) > 0).tolist()
        return [
            index
            for index, (user, candidate) in enumerate(self.parts)
            if user.width or candidate.width or (index < len(brings) and brings[index])
        ]


@attrs.frozen(eq=False)
class _Side:
    """One side's block at a length.

    Attributes:
        kept: Columns of the whole block that it has: from, to (exclusive).
        gathered: What the card is asked, if tables lie there.
        whole: The same of the whole block.
    """

    kept: list[tuple[int, int]]
    gathered: GatheredSide | None
    whole: GatheredSide | None

    @classmethod
    def of(
        cls,
        name: SideName,
        side: SideLayout,
        whole: GatheredSide | None,
        tables: Iterable[str],
        hot: Sequence[str],
        sequences: Shortened | None,
        length: int,
    ) -> _Side:
        if sequences is None or length == sequences.most:
            return cls([(0, side.width)], whole, whole)
        kept = sequences.kept(name, side.width, length)
        if whole is None:
            return cls(kept, None, None)
        short = shorten_side(side, name, sequences, length)
        return cls(kept, GatheredSide.of(short, set(tables), hot), whole)

    def runs(self, runs: Iterable[Run]) -> Runs:
        """Return runs to the whole block as runs to what is staged."""
        found = []
        for run in runs:
            at = 0
            for start, stop in self.kept:
                low, high = max(run.block, start), min(run.block + run.width, stop)
                if low < high:
                    column = at + low - start
                    if self.gathered is not None:
                        column = self.gathered.staged_column(column)
                    found.append(Run(run.part + low - run.block, column, high - low))
                at += stop - start
        return tuple(found)

    def layout(self, layout: ShardLayout) -> ShardLayout:
        """Return a shard's layout with runs to what is staged."""
        return attrs.evolve(layout, runs=self.runs(layout.runs))

    def ids(self) -> KeptIds:
        """Return which of the ids that come for the card are staged."""
        if self.whole is self.gathered or self.whole is None or self.gathered is None:
            return _ALL_IDS
        whole, short = self.whole.layout, self.gathered.layout
        return KeptIds(
            np.searchsorted(whole.id_rows, short.id_rows),
            np.searchsorted(whole.weight_rows, short.weight_rows),
        )

    def padding(self, name: SideName, side: SideLayout, sequences: Shortened, most: int) -> Padding:
        """Return how to tell whether steps are alike, of the whole block.

        Raises:
            ValueError: It cannot be told of what the card gathers.
        """
        columns, ids = [], []
        whole = self.whole
        for stretch in sequences.of(name):
            if stretch.most != most:
                continue
            gathered = [
                lookup
                for lookup in (() if whole is None else whole.lookups)
                if lookup.offset < stretch.stop and stretch.start < lookup.offset + lookup.width
            ]
            if gathered:
                lookup = gathered[0]
                if (lookup.offset, lookup.width) != (stretch.start, stretch.stop - stretch.start):
                    raise ValueError(f"{lookup.tensor} is not all of its sequence")
                if whole is None or lookup.first_id >= len(whole.layout.id_rows):
                    raise ValueError(f"{lookup.table} is cached, and its rows are not told apart")
                ids.append((lookup.first_id, lookup.n_ids))
            else:
                start = stretch.start if whole is None else whole.staged_column(stretch.start)
                columns.append((start, most, stretch.each))
        width = side.width if whole is None else whole.staged_width
        return Padding(width, tuple(columns), tuple(ids))


def _laid_out(
    manifest: Manifest,
    layouts: Layouts,
    replicas: int,
    card: CardLayout | None,
    sequences: Shortened | None,
    length: int,
) -> BlockLayout:
    tables, device, fetch = layouts.device_tables, layouts.device, layouts.fetch
    whole = device or (None, None)
    hot: tuple[str, ...] = ()
    if card is not None and fetch is not None:
        hot = card.tables.names
        whole = card.user.gathered, card.candidate.gathered
        fetch = fetch.without(manifest, hot)
    user = _Side.of("user", manifest.user, whole[0], tables, hot, sequences, length)
    rows = _Side.of("candidate", manifest.candidate, whole[1], tables, hot, sequences, length)
    if card is not None and user.gathered is not None and rows.gathered is not None:
        card = card.shortened(user.gathered, rows.gathered)
    firsts = [side.width - len(side.values) for side in (manifest.user, manifest.candidate)]
    return BlockLayout(
        parts=[(user.layout(one), rows.layout(other)) for one, other in layouts.part_layouts()],
        user_values=user.runs([Run(0, firsts[0], len(manifest.user.values))]),
        candidate_values=rows.runs([Run(0, firsts[1], len(manifest.candidate.values))]),
        device=None if device is None else (device[0].layout, device[1].layout),
        fetch=fetch,
        fetched=None
        if fetch is None
        else (user.layout(fetch.pooled[0]), rows.layout(fetch.pooled[1])),
        replicas=replicas,
        hot=layouts.hot,
        card=card,
        sequences=sequences,
        first_user_value=firsts[0],
        first_candidate_value=firsts[1],
        user_ids=user.ids(),
        candidate_ids=rows.ids(),
        padding={} if sequences is None else _paddings(manifest, sequences, user, rows),
    )


def _paddings(
    manifest: Manifest, sequences: Shortened, user: _Side, rows: _Side
) -> dict[tuple[str, int], Padding]:
    found: dict[tuple[str, int], Padding] = {}
    sides: tuple[tuple[SideName, _Side], ...] = (("user", user), ("candidate", rows))
    for name, side in sides:
        for most in sequences.alike:
            # Where it cannot be told, such a request has every step.
            with contextlib.suppress(ValueError):
                found[name, most] = side.padding(name, manifest.side(name), sequences, most)
    return found

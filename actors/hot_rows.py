"""Hot rows beside an executor: of cached tables it sends itself what it has, and fetches the rest.

To a batch they are one more part, which the executor makes: of the rows that it holds, and of those
that it asks the groups of shards for. What is under way is not asked for again (``flights.py``): a
batch waits for it, if it lives as long as the batch and is no older than a row may be. What a shard
answers is for all who wait for it; a row that changed meanwhile is not kept.

Hot rows are kept on the executor's card, where kernels gather and pool them, or in the host's
memory if there is none: that is ``hot_kept.py``'s.

An update's rows are seen by a batch once they are fetched anew, each by itself: unlike those of
shards, of cached rows an answer may have some from before an update and some from after, within the
bound on their age.

Pure: events go in with the time at which they happen, what is to be done comes out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.asking import Asking, Nobody, Question
from actors.divided import Division
from actors.flights import Flight, Flights, Part
from actors.hot_kept import Fill, Kept, OnCard, OnHost
from actors.hot_table import Group, HotTable
from actors.parts import failed_part, keys_by_table
from kernels.errors import LookupFailed
from kernels.hot import HotStatistics
from transport.messages import LookupBatch, RowsPart

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@attrs.frozen
class Doubt:
    """Something to do: find out whether a replica lives, as it takes long to answer."""

    replica: str


Todo: TypeAlias = Question | RowsPart | Doubt | Fill
"""Something to do: ask a replica, take a part of a batch as if a shard had sent it, doubt, fill."""

# A flight outlives the batch that it is for by as much again, so that batches of the same budget
# that come meanwhile can wait for it.
_LIFETIME: Final = 2.0
_UNAVAILABLE: Final = "unavailable"
_NO_NUMBERS: Final = np.empty(0, np.int64)


class HotTables:
    """The cached tables of one version of a model, in one executor.

    Args:
        name: The executor's, to which answers come.
        model: The model's.
        version: Of its bundle.
        n_tables: How many fetched tables the model has.
        tables: Those of them that are cached.
        groups: The groups that have rows of these, by number.
        card: What keeps their rows on the executor's card, in the order of their numbers; without
            it, they are kept in the host's memory.

    Attributes:
        n_shared: How many keys waited for a flight on behalf of another batch.

    Raises:
        ValueError: A table's ``max_bytes`` have no room for any row.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        version: str,
        n_tables: int,
        tables: Sequence[HotTable],
        groups: Mapping[int, Group],
        card: OnCard | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._version = version
        self._n_tables = n_tables
        self._tables = sorted(tables, key=lambda each: each.number)
        self._numbers = np.array([each.number for each in self._tables], np.intp)
        self._card = card
        self._kept: Kept = card or OnHost([each.open() for each in self._tables])
        self._wire_bytes = np.array([each.table.row_bytes for each in self._tables], np.int64)
        self._division = Division([(each.table, each.group_of) for each in self._tables])
        self._stale_s = min((each.stale_s for each in tables), default=0.0)
        self._groups = groups
        self._asking = Asking()
        self._flights = Flights()
        self.n_shared = 0

    @property
    def dead(self) -> set[str]:
        """Replicas that are known to be dead; whoever learns that one lives takes it out."""
        return self._asking.replicas.dead

    @property
    def replicas(self) -> tuple[str, ...]:
        """The shards that have doubles: whether one of them lives decides who is asked."""
        groups = [group.replicas for group in self._groups.values() if len(group.replicas) > 1]
        return tuple(dict.fromkeys(name for names in groups for name in names))

    # Batches

    def ask(self, lookup: LookupBatch, now: float) -> list[Todo]:
        """Take what a batch wants of cached tables.

        Returns:
            The part, if all its rows are held; or else whom to ask for the others.
        """
        try:
            part, tables, keys, groups, to = self._missing(lookup, now)
        except (LookupFailed, ValueError) as error:
            return [failed_part(lookup, str(error), "internal")]
        if not len(keys):
            return [self._kept.complete(part)]
        budget_s = lookup.budget_us * 1e-6
        first = self._flights.next_number
        numbers = self._flights.claim(tables, keys, now + budget_s, now - self._stale_s)
        new = numbers >= first
        n_new = int(np.count_nonzero(new))
        if self._flights.next_number - first != n_new:
            self._flights.give_up(tables, keys, first)
            self._kept.release(part)
            return [failed_part(lookup, "a key came twice", "internal")]
        self.n_shared += len(new) - n_new
        until = now + _LIFETIME * budget_s
        flights = self._begin(tables[new], keys[new], groups[new], first, now, until)
        self._flights.wait(part, numbers, to)
        todo: list[Question | Nobody] = []
        for flight in flights:
            asked = [(self._groups[flight.group].replicas, self._lookup(flight))]
            todo += self._asking.begin(flight.first, asked, until, now)
        return self._settle(todo, now)

    def _missing(self, lookup: LookupBatch, now: float) -> tuple[Part, I64, I64, I64, I64]:
        """Begin a part of a batch, with the rows that are held.

        Returns:
            The part, and of the other rows tables, keys, groups and places in the part, int64
            ``[n]`` each, in the order of groups and tables.

        Raises:
            LookupFailed: A row number is outside its table.
            ValueError: The keys are not those of cached tables.
        """
        counts = np.array([len(keys) for keys in keys_by_table(lookup, self._n_tables)], np.int64)
        splits = _splits(counts[self._numbers])
        if splits[-1] != len(lookup.keys):
            raise ValueError(f"{len(lookup.keys) - splits[-1]} keys came of tables not cached here")
        part, misses, to = self._kept.begin(lookup, splits, now)
        if not len(misses):
            return part, *(_NO_NUMBERS,) * 4
        tables = np.searchsorted(splits, misses, side="right") - 1
        keys = lookup.keys[misses]
        try:
            groups = self._division.groups_of(tables, keys)
        except LookupFailed:
            self._kept.release(part)
            raise
        order = np.argsort(groups, kind="stable")
        return part, tables[order], keys[order], groups[order], to[order]

    def _begin(
        self, tables: I64, keys: I64, groups: I64, first: int, now: float, until: float
    ) -> list[Flight]:
        """Enter a flight to each group, for keys whose claims are numbered from ``first`` on."""
        flights = []
        starts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist()] if len(groups) else []
        for start, stop in itertools.pairwise([*starts, len(groups)]):
            sizes = self._kept.row_bytes[tables[start:stop]]
            ends = np.cumsum(sizes)
            group = int(groups[start])
            flight = Flight(
                first=first + start,
                group=group,
                tables=tables[start:stop],
                keys=keys[start:stop],
                sizes=sizes,
                at=ends - sizes,
                n_bytes=int(self._wire_bytes[tables[start:stop]].sum()),
                sent=now,
                until=until,
                late_at=now + self._groups[group].late_after.seconds,
            )
            self._flights.add(flight)
            flights.append(flight)
        return flights

    def _lookup(self, flight: Flight) -> LookupBatch:
        group = self._groups[flight.group]
        user_ids, user_weights, candidate_ids, candidate_weights = group.no_ids
        counts = np.bincount(self._numbers[flight.tables], minlength=self._n_tables)
        return LookupBatch(
            gateway=self._name,
            seq=flight.first,
            model=self._model,
            version=self._version,
            executor=self._name,
            part=0,
            budget_us=int((flight.until - flight.sent) * 1e6),
            user_ids=user_ids,
            user_weights=user_weights,
            candidate_ids=candidate_ids,
            candidate_weights=candidate_weights,
            keys=flight.keys,
            key_splits=_splits(counts).astype(np.int32),
        )

    # Answers

    def answered(self, answer: RowsPart, now: float) -> list[Todo]:
        """Take what a shard answered; return the parts that it completes, or whom to ask again."""
        flight = self._flights.get(answer.seq)
        if flight is None:
            return []
        code, message = answer.code, answer.message
        if code == "ok" and answer.rows.size != flight.n_bytes:
            code, message = "internal", f"{answer.rows.size} bytes came, not {flight.n_bytes}"
        if code != "ok":
            failed = self._asking.failed(flight.first, 0, answer.attempt, code, message, now)
            return self._settle(failed, now)
        took = now - flight.sent
        self._groups[flight.group].late_after.learn(took)
        self._asking.settled(flight.first, [answer.attempt], [took], now)
        kept = self._flights.end(flight)
        splits = _splits(np.bincount(flight.tables, minlength=len(self._tables)))
        rows = self._kept.stored(flight.tables, answer.rows)
        fills = self._kept.admit(flight, splits, rows, kept)
        return [*fills, *map(self._kept.complete, flight.land(rows))]

    def filled(self, fill: Fill) -> None:
        """Note that rows are in their slots: from now on, batches find them there."""
        assert self._card is not None
        self._card.arrived(fill)

    def lost(self, fill: Fill) -> None:
        """Note that rows do not get to their slots; whoever wants them next, fetches them."""
        assert self._card is not None
        self._card.arrived(fill, lost=True)

    def refused(self, question: Question, code: str, message: str, now: float) -> list[Todo]:
        """Note that a replica could not be told a question; return what is to be done instead."""
        return self._settle(self._asking.refused(question, code, message, now), now)

    def died(self, name: str, how: str, now: float) -> list[Todo]:
        """Note that a replica is dead, and how that is known; return what is to be done now."""
        return self._settle(self._asking.died(name, now, how), now)

    def _settle(self, todo: Sequence[Question | Nobody], now: float) -> list[Todo]:
        """Return what is to be done, once the flights that nobody can answer have failed."""
        done: list[Todo] = []
        for each in todo:
            if isinstance(each, Question):
                done.append(each)
                continue
            flight = self._flights.get(each.seq)
            if flight is None:
                continue
            self._asking.settled(flight.first, (), (), now)
            self._flights.end(flight)
            if each.code == _UNAVAILABLE and (rows := self._default_rows(flight)) is not None:
                kept = self._kept.stored(flight.tables, rows)
                done += map(self._kept.complete, flight.land(kept, degraded=True))
                continue
            shards = ", ".join(self._groups[flight.group].replicas)
            message = each.message or f"no shard answers: {shards}"
            failed = flight.fail()
            for part in failed:
                self._kept.release(part)
            done += [failed_part(part.lookup, message, each.code) for part in failed]
        return done

    def _default_rows(self, flight: Flight) -> U8 | None:
        """Return what stands for the rows of a flight, if anything may."""
        pieces = []
        for number, n in enumerate(np.bincount(flight.tables).tolist()):
            row = self._tables[number].default_row
            if row is None:
                return None
            pieces.append(np.tile(row, n))
        return np.concatenate(pieces)

    # Time

    def tick(self, now: float) -> list[Todo]:
        """Forget flights that nobody waits for, and ask others about those that are late."""
        todo: list[Question | Nobody] = []
        doubts: list[Todo] = []
        for flight in self._flights:
            if flight.until <= now:
                self._asking.settled(flight.first, (), (), now)
                self._flights.end(flight)
                for waiting in flight.waiting:
                    self._kept.release(waiting.part)
            elif flight.late_at <= now:
                flight.late_at = math.inf
                doubts += map(Doubt, self._asking.asked_of(flight.first, 0))
                todo += self._asking.late(flight.first, 0, now)
        return doubts + self._settle(todo, now)

    def wake_at(self) -> float | None:
        """Return when ``tick`` has something to do if nothing happens before, or None."""
        return min((min(each.until, each.late_at) for each in self._flights), default=None)

    # Updates and figures

    def changed(self, table: str, keys: I64) -> None:
        """Note that rows changed: no batch from now on gets what was asked for before."""
        for number, each in enumerate(self._tables):
            if each.table.name == table:
                self._kept.invalidate(number, keys)
                self._flights.changed(number, keys)

    def statistics(self) -> dict[str, HotStatistics]:
        """Return what was done so far, by table."""
        pairs = zip(self._tables, self._kept.statistics(), strict=True)
        return {each.table.name: figures for each, figures in pairs}


def _splits(counts: I64) -> I64:
    """Return where each stretch begins, of so many items each, and where the last one ends."""
    splits = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=splits[1:])
    return splits

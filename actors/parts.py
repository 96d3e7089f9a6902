"""Parts: what whoever holds tables answers lookups with, whatever it holds them in."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import trio
from numpy.typing import NDArray

from runtime.actor import Context
from runtime.metrics import Metrics
from transport.errors import Overloaded, Unavailable
from transport.messages import LookupBatch, RowsPart, ScoresBatch
from transport.values import ERROR_CODES

log = logging.getLogger(__name__)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


def keys_by_table(batch: LookupBatch, n_tables: int) -> list[I64]:
    """Return the keys that a lookup wants of each of a model's fetched tables.

    Raises:
        ValueError: The batch is not laid out for so many.
    """
    splits = batch.key_splits
    if not len(batch.keys):
        return [batch.keys] * n_tables
    if (
        len(splits) != n_tables + 1
        or splits[0] != 0
        or splits[-1] != len(batch.keys)
        or (np.diff(splits) < 0).any()
    ):
        raise ValueError(f"key_splits: do not divide keys of {n_tables} tables")
    return np.split(batch.keys, splits[1:-1])


def part_of(
    batch: LookupBatch, user: F32, candidate: F32, rows: U8, received_at: float, metrics: Metrics
) -> RowsPart:
    """Return the answer to a lookup, and count it.

    Args:
        batch: The lookup.
        user: Its pooled columns of the user side.
        candidate: The same of candidates.
        rows: The rows that it wants, as they are stored.
        received_at: When it came.
        metrics: Of the actor.
    """
    spent_us = int((trio.current_time() - received_at) * 1e6)
    metrics.count("batches")
    metrics.count("rows", batch.user_ids.size + batch.candidate_ids.size + batch.keys.size)
    metrics.observe("lookup_us", spent_us)
    return RowsPart(
        gateway=batch.gateway,
        seq=batch.seq,
        version=batch.version,
        part=batch.part,
        attempt=batch.attempt,
        user=user,
        candidate=candidate,
        rows=rows,
        lookup_us=spent_us,
    )


def failed_part(batch: LookupBatch, message: str, code: str = "unavailable") -> RowsPart:
    """Return the answer to a lookup that has no other."""
    empty = np.empty((0, 0), np.float32)
    return RowsPart(
        gateway=batch.gateway,
        seq=batch.seq,
        version=batch.version,
        part=batch.part,
        attempt=batch.attempt,
        user=empty,
        candidate=empty,
        code=code,
        message=message,
    )


def part_not_held(name: str, batch: LookupBatch, held: Iterable[tuple[str, str]]) -> RowsPart:
    """Return the answer of an actor that does not hold what a lookup is about.

    Args:
        name: The actor's.
        batch: The lookup.
        held: Models and versions that the actor holds.
    """
    versions = [version[:12] for model, version in held if model == batch.model]
    has = f"version {' and '.join(versions)}" if versions else "no such model"
    return failed_part(batch, f"{name}: {has}, not {batch.model} {batch.version[:12]}")


def send_part(context: Context, metrics: Metrics, batch: LookupBatch, part: RowsPart) -> None:
    """Send a part; one that cannot be delivered fails its requests at the gateway at once."""
    try:
        context.ref(batch.executor).tell(part)
    except (Overloaded, Unavailable) as error:
        metrics.count("undelivered")
        _tell_gateway(context, batch, error)


def _tell_gateway(context: Context, batch: LookupBatch, error: Overloaded | Unavailable) -> None:
    n_requests = batch.user_ids.shape[1]
    failure = ScoresBatch(
        seq=batch.seq,
        requests=np.arange(n_requests, dtype=np.int32),
        codes=np.full(n_requests, ERROR_CODES.index(error.code), np.uint8),
        scores=np.empty((0, 0), np.float32),
        message=f"{context.name} to {batch.executor}: {error}",
    )
    try:
        context.ref(batch.gateway).tell(failure)
    except (Overloaded, Unavailable) as second:
        log.warning("%s: batch %d: %s; then %s", context.name, batch.seq, error, second)

"""Hypothesis strategies for every message class."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transport import messages as m
from transport import updates, values
from transport import versions as v
from transport.codec import Packet

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
u32 = st.integers(0, 2**32 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
sizes = st.integers(0, 5)
NUMBERS = [
    np.dtype(c) for c in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "e", "f", "d")
]


def array(dtype: Any, *shape: int) -> st.SearchStrategy[Any]:  # noqa: ANN401
    return hnp.arrays(dtype, shape)


@st.composite
def blocks(draw: st.DrawFn) -> m.Block:
    side = draw(st.sampled_from([m.USER, m.CANDIDATE]))
    form = draw(st.integers(0, 3))
    n = draw(sizes)
    if form == 0:
        columns = tuple(draw(st.lists(names, min_size=1, max_size=4)))
        shape = (len(columns), n, *draw(st.lists(sizes, max_size=1)))
        dtype = draw(st.sampled_from(NUMBERS))
        return m.Block(side=side, names=columns, values=draw(array(dtype, *shape)))
    splits = array(np.int32, n + 1)
    return m.Block(
        side=side,
        names=(draw(names),),
        values=draw(array(np.uint8 if form & 2 else np.float32, draw(sizes))),
        row_splits=draw(splits) if form & 1 else None,
        char_splits=draw(splits) if form & 2 else None,
    )


@st.composite
def score_requests(draw: st.DrawFn) -> m.ScoreRequest:
    content: dict[str, Any]
    if draw(st.booleans()):
        content = {"rows": draw(st.binary(min_size=1, max_size=50))}
    else:
        content = {"blocks": tuple(draw(st.lists(blocks(), max_size=3)))}
    return m.ScoreRequest(
        request_id=draw(u64),
        model=draw(names),
        budget_us=draw(i64),
        n_candidates=draw(u32),
        **content,
    )


@st.composite
def score_replies(draw: st.DrawFn) -> m.ScoreReply:
    widths = tuple(draw(st.lists(sizes, max_size=3)))
    return m.ScoreReply(
        request_id=draw(u64),
        outputs=tuple(draw(names) for _ in widths),
        widths=widths,
        scores=draw(array(np.float32, draw(sizes), sum(widths))),
        degraded=draw(st.booleans()),
    )


@st.composite
def batches(draw: st.DrawFn) -> m.Batch:
    n_rows = np.array(draw(st.lists(sizes, max_size=4)), np.int32)
    return m.Batch(
        gateway=draw(names),
        seq=draw(u64),
        model=draw(names),
        version=draw(names),
        n_parts=draw(u32),
        n_rows=n_rows,
        budgets_us=draw(array(np.int64, len(n_rows))),
        user_values=draw(array(np.float32, len(n_rows), draw(sizes))),
        candidate_values=draw(array(np.float32, int(n_rows.sum()), draw(sizes))),
        user_slots=draw(array(np.int32, draw(sizes), len(n_rows))),
        user_slot_weights=draw(array(np.float32, draw(sizes), len(n_rows))),
        candidate_slots=draw(array(np.int32, draw(sizes), int(n_rows.sum()))),
        candidate_slot_weights=draw(array(np.float32, draw(sizes), int(n_rows.sum()))),
        part_rows=draw(array(np.int32, draw(sizes), draw(sizes))),
    )


@st.composite
def lookup_batches(draw: st.DrawFn) -> m.LookupBatch:
    n_users, n_rows = draw(sizes), draw(sizes)
    return m.LookupBatch(
        gateway=draw(names),
        seq=draw(u64),
        model=draw(names),
        version=draw(names),
        executor=draw(names),
        part=draw(u32),
        budget_us=draw(i64),
        user_ids=draw(array(np.int64, draw(sizes), n_users)),
        user_weights=draw(array(np.float32, draw(sizes), n_users)),
        candidate_ids=draw(array(np.int64, draw(sizes), n_rows)),
        candidate_weights=draw(array(np.float32, draw(sizes), n_rows)),
        attempt=draw(u32),
        keys=draw(array(np.int64, draw(sizes))),
        key_splits=draw(array(np.int32, draw(sizes))),
    )


@st.composite
def rows_parts(draw: st.DrawFn) -> m.RowsPart:
    return m.RowsPart(
        gateway=draw(names),
        seq=draw(u64),
        version=draw(names),
        part=draw(u32),
        user=draw(array(np.float32, draw(sizes), draw(sizes))),
        candidate=draw(array(np.float32, draw(sizes), draw(sizes))),
        rows=draw(array(np.uint8, draw(sizes))),
        attempt=draw(u32),
        degraded=draw(st.booleans()),
        lookup_us=draw(i64),
        code=draw(st.sampled_from(values.ERROR_CODES)),
        message=draw(text),
    )


@st.composite
def parts_late(draw: st.DrawFn) -> m.PartsLate:
    n = draw(sizes)
    return m.PartsLate(
        seq=draw(u64),
        parts=draw(array(np.int32, n)),
        attempts=draw(array(np.int32, n)),
        codes=draw(codes(n)),
        message=draw(text),
    )


def codes(n: int) -> st.SearchStrategy[values.U8]:
    known = st.integers(0, len(values.ERROR_CODES) - 1)
    return st.lists(known, min_size=n, max_size=n).map(lambda drawn: np.array(drawn, np.uint8))


@st.composite
def scores_batches(draw: st.DrawFn) -> m.ScoresBatch:
    k, n_parts = draw(sizes), draw(sizes)
    return m.ScoresBatch(
        seq=draw(u64),
        requests=draw(array(np.int32, k)),
        codes=draw(codes(k)),
        scores=draw(array(np.float32, draw(sizes), draw(sizes))),
        degraded=draw(array(np.uint8, draw(st.sampled_from([0, k])))),
        part_us=draw(array(np.int32, n_parts)),
        part_attempts=draw(array(np.int32, n_parts)),
        join_us=draw(i64),
        queue_us=draw(i64),
        compute_us=draw(i64),
        message=draw(text),
    )


@st.composite
def update_requests(draw: st.DrawFn) -> updates.UpdateRequest:
    n = draw(sizes)
    return updates.UpdateRequest(
        request_id=draw(u64),
        model=draw(names),
        table=draw(names),
        source=draw(text),
        position=draw(u64),
        keys=draw(array(np.int64, n)),
        rows=draw(array(np.float32, n, draw(sizes))),
    )


@st.composite
def update_batches(draw: st.DrawFn) -> updates.UpdateBatch:
    n = draw(sizes)
    return updates.UpdateBatch(
        updater=draw(names),
        model=draw(names),
        version=draw(names),
        table=draw(names),
        stream=draw(u64),
        number=draw(u64),
        previous=draw(u64),
        newest=draw(u64),
        age_us=draw(i64),
        dtype=draw(names),
        keys=draw(array(np.int64, n)),
        rows=draw(array(np.uint8, n, draw(sizes))),
    )


_version = {"deployment": u64, "model": names, "version": names}
version_messages: list[st.SearchStrategy[Any]] = [
    st.builds(v.LoadVersion, **_version, bundle=text),
    st.builds(v.UseVersion, **_version),
    st.builds(v.DropVersion, **_version),
    st.builds(v.VersionRequest, **_version),
    st.builds(v.EndDeployment, **_version),
    st.builds(
        v.VersionState,
        **_version,
        state=st.sampled_from(v.STATES),
        percent=u32,
        n_in_flight=u32,
        message=text,
        current=names,
        built_from=names,
        held=st.lists(names, max_size=3).map(tuple),
    ),
]

EACH: tuple[st.SearchStrategy[Any], ...] = (
    score_requests(),
    score_replies(),
    batches(),
    lookup_batches(),
    rows_parts(),
    parts_late(),
    scores_batches(),
    update_requests(),
    update_batches(),
    st.builds(
        updates.UpdateReply,
        request_id=u64,
        number=u64,
        applied=u64,
        position=u64,
        behind=st.lists(names, max_size=3).map(tuple),
    ),
    st.builds(
        updates.UpdateAck,
        replica=names,
        model=names,
        version=names,
        stream=u64,
        applied=u64,
        code=st.sampled_from(values.ERROR_CODES),
        message=text,
    ),
    st.builds(updates.SeedOrder, updater=names, model=names, version=names, peer=names),
    st.builds(updates.SeedRequest, model=names, version=names, snapshot=u64, offset=u64),
    st.builds(
        updates.SeedPart,
        snapshot=u64,
        offset=u64,
        size=u64,
        data=sizes.flatmap(lambda n: array("u1", n)),
    ),
    st.builds(
        updates.RowsChanged,
        model=names,
        version=names,
        table=names,
        keys=sizes.flatmap(lambda n: array("i8", n)),
    ),
    st.builds(
        m.ErrorReply,
        request_id=u64,
        code=st.sampled_from(values.ERROR_CODES[1:]),
        message=text,
        field=text,
    ),
    st.builds(m.ModelsRequest, request_id=u64),
    st.builds(m.ModelsReply, request_id=u64, models=text),
    st.builds(m.Ping, request_id=u64),
    st.builds(m.Watch, request_id=u64),
    st.builds(m.Pong, request_id=u64, status=names),
    st.builds(m.StatsRequest, request_id=u64, reset=st.booleans()),
    st.builds(m.StatsReply, request_id=u64, stats=text),
    *version_messages,
)
"""Of each class of messages."""

messages: st.SearchStrategy[m.Message] = st.one_of(*EACH)
packets = st.builds(Packet, to=text, ask_id=u64, message=messages)

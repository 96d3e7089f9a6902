"""Messages of live updates: from publishers to the updater, from it to shards, between replicas."""

from __future__ import annotations

import attrs
import numpy as np

from transport.values import ERROR_CODES, F32, I64, U8, matrix, require


@attrs.frozen(kw_only=True, eq=False)
class UpdateRequest:
    """Ask an updater to change rows of a table; without keys, only how far updates have come.

    Attributes:
        request_id: Chosen by the client, echoed in the reply; any uint64.
        source: Who publishes, if it wants to go on where it stood: any name, or ``""``.
        position: Where in what the source publishes, counting from 1 without a gap. An update at
            or before the source's last position is answered, and has no effect; one that follows a
            gap is refused as ``unavailable``, until what is missing has come. 0 for none.
        keys: int64 ``[n]``: row numbers of a dense table. Of a key that is there twice the last
            row counts.
        rows: float32 ``[n, dim]``; NaN is taken as it is.
    """

    request_id: int
    model: str
    table: str
    source: str = ""
    position: int = 0
    keys: I64 = attrs.field(validator=matrix(np.int64, 1))
    rows: F32 = attrs.field(validator=matrix(np.float32, 2))

    def __attrs_post_init__(self) -> None:
        n = len(self.keys)
        require(len(self.rows) == n, f"as many rows as keys, {n}, got {len(self.rows)}")


@attrs.frozen(kw_only=True)
class UpdateReply:
    """The answer to an ``UpdateRequest``: the update is durable, and will be applied.

    Attributes:
        number: Of the model's updates so far, of which this one is the last; they count from 1.
        applied: All replicas have applied the updates up to this number.
        position: The source's last one.
        behind: Names of the replicas that need more than the updater has kept, so that they must
            be seeded from another; ``applied`` leaves them out.
    """

    request_id: int
    number: int
    applied: int
    position: int
    behind: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class UpdateBatch:
    """Updater to shard: persist these rows, apply them at once, and say so.

    Number 0 asks only where the shard stands.

    Attributes:
        updater: Whom to tell, with an ``UpdateAck``.
        stream: Tells apart what counts its updates from 1.
        number: Of the update, among those of the stream.
        previous: The number of the update before it that had rows for this shard. A shard that
            has not applied that one, or has applied a later one, refuses.
        newest: The last number there is that has rows for this shard.
        age_us: For how long the updater has had it.
        dtype: Of the rows, as the table stores them.
        keys: int64 ``[n]``.
        rows: uint8 ``[n, bytes of a row]``.
    """

    updater: str
    model: str
    version: str
    table: str
    stream: int
    number: int
    previous: int
    newest: int
    age_us: int
    dtype: str
    keys: I64 = attrs.field(validator=matrix(np.int64, 1))
    rows: U8 = attrs.field(validator=matrix(np.uint8, 2))

    def __attrs_post_init__(self) -> None:
        n = len(self.keys)
        require(len(self.rows) == n, f"as many rows as keys, {n}, got {len(self.rows)}")


@attrs.frozen(kw_only=True)
class UpdateAck:
    """Shard to updater: how far it has come, whatever it was sent.

    Attributes:
        replica: The shard's name.
        stream: Of the last update that it applied; 0 if there is none.
        applied: That update's number. All before it that had rows for the shard are applied, too,
            and all of them are durable.
        code: ``ok``; or else what it was sent cannot be applied, and ``message`` says why:
            ``unavailable`` now, ``invalid`` ever.
    """

    replica: str
    model: str
    version: str
    stream: int
    applied: int
    code: str = "ok"
    message: str = ""

    def __attrs_post_init__(self) -> None:
        require(self.code in ERROR_CODES, f"a code, got {self.code!r:.40}")


@attrs.frozen(kw_only=True)
class SeedOrder:
    """Updater to shard: you need more than I have kept; take all that ``peer`` has."""

    updater: str
    model: str
    version: str
    peer: str


@attrs.frozen(kw_only=True)
class SeedRequest:
    """Shard to its peer, as an ask: send me a part of your snapshot.

    Attributes:
        snapshot: Which one: as in the ``SeedPart`` before; 0 for a new one.
        offset: Of the part's first byte.
    """

    model: str
    version: str
    snapshot: int
    offset: int


@attrs.frozen(kw_only=True, eq=False)
class SeedPart:
    """The answer to a ``SeedRequest``: ``data``, uint8 ``[n]``, of ``size`` bytes in all."""

    snapshot: int
    offset: int
    size: int
    data: U8 = attrs.field(validator=matrix(np.uint8, 1))


@attrs.frozen(kw_only=True, eq=False)
class RowsChanged:
    """Shard to executor: whoever keeps rows of these keys, int64 ``[n]``, has old ones."""

    model: str
    version: str
    table: str
    keys: I64 = attrs.field(validator=matrix(np.int64, 1))

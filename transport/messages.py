"""Every message that crosses a wire or a mailbox, as frozen values checked when they are made.

Client messages are ``ScoreRequest``, ``ScoreReply``, ``ErrorReply``, ``ModelsRequest``,
``ModelsReply``, ``Ping``, ``Pong``, ``UpdateRequest`` and ``UpdateReply``. The others travel
between actors. Between the gateway and its clients a message concerns one request; between actors
it carries a *batch*: the requests that the gateway had at hand at one time, as columns (``K``
requests, ``M`` rows, a row being one candidate of one request, in request order). A batch is known
by (``gateway``, ``seq``).

Times are durations: ``budget_us`` is what was left, in microseconds, when the message was sent.
Arrays that came off a wire are read-only views of the received frame and keep it alive.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs
import numpy as np

from transport.errors import LocalProtocolError
from transport.updates import (
    RowsChanged,
    SeedOrder,
    SeedPart,
    SeedRequest,
    UpdateAck,
    UpdateBatch,
    UpdateReply,
    UpdateRequest,
)
from transport.values import (
    ERROR_CODES,
    F32,
    I32,
    I64,
    NO_F32S,
    NO_I32,
    NO_I32S,
    NO_I64,
    NO_U8,
    U8,
    Array,
    matrix,
    require,
)
from transport.versions import (
    DropVersion,
    EndDeployment,
    LoadVersion,
    UseVersion,
    VersionRequest,
    VersionState,
)

USER: Final = 0
CANDIDATE: Final = 1
SIDES: Final = ("user", "candidate")


def _is_splits(value: Array) -> bool:
    return value.dtype == np.int32 and value.ndim == 1 and len(value) > 0


def _form(value: Array | None) -> str:
    return "absent" if value is None else f"{value.dtype} {value.shape}"


@attrs.frozen(kw_only=True, eq=False)
class Block:
    """Raw columns of one side of one request that share a type.

    Exactly one of these forms:

    * numbers: ``values`` of any integer, float or bool dtype, ``[n_names, n]``, or
      ``[n_names, n, width]`` for fixed-width features. ``n`` is 1 on the user side and the number
      of candidates on the candidate side. NaN means missing.
    * ragged numbers: one name; ``values [n_total]`` and ``row_splits int32 [n + 1]``: row ``i``
      holds ``values[row_splits[i]:row_splits[i + 1]]``.
    * strings: one name; ``values uint8 [n_bytes]`` (UTF-8) and
      ``char_splits int32 [n_strings + 1]``; the empty string means missing. With ``row_splits`` as
      well, each row holds a list of strings.

    Attributes:
        side: ``USER`` or ``CANDIDATE``.
        names: Feature names, one for each leading index of ``values``.

    Raises:
        LocalProtocolError: It has none of these forms. What the splits hold is not looked at, nor
            whether ``n`` is that of the request: the feature parser does, which can name the row.
    """

    side: int
    names: tuple[str, ...]
    values: Array
    row_splits: I32 | None = None
    char_splits: I32 | None = None

    def __attrs_post_init__(self) -> None:
        values, rows, chars, n_names = self.values, self.row_splits, self.char_splits, 1
        if rows is None and chars is None:
            ok = values.ndim in (2, 3)
            n_names = len(values) if ok else 0
        else:
            ok = values.ndim == 1 and (rows is None or _is_splits(rows))
            if chars is not None:
                ok = ok and values.dtype == np.uint8 and _is_splits(chars)
        if (
            not ok
            or type(self.names) is not tuple
            or len(self.names) != n_names
            or values.dtype.kind not in "fiub"
        ):
            raise LocalProtocolError(
                f"Block of {len(self.names)} names {self.names[:3]}: no form has values "
                f"{values.dtype} {values.shape}, row_splits {_form(rows)}, char_splits "
                f"{_form(chars)}"
            )


@attrs.frozen(kw_only=True, eq=False)
class ScoreRequest:
    """Ask for the scores of one user's candidates.

    Attributes:
        request_id: Chosen by the client, echoed in the reply; any uint64.
        model: Name of a model that the cluster serves.
        budget_us: Time left when it was sent, in microseconds.
        n_candidates: Rows to score; zero is answered with empty scores.
        blocks: The raw features, as columns.
        rows: Instead of ``blocks``: msgpack of ``[user_map, [candidate_map, ...]]``, for clients
            that have no columns. Only the gateway reads it, and turns it into columns there.
    """

    request_id: int
    model: str
    budget_us: int
    n_candidates: int
    blocks: tuple[Block, ...] = ()
    rows: bytes = b""


@attrs.frozen(kw_only=True, eq=False)
class ScoreReply:
    """The answer to a ``ScoreRequest``.

    Attributes:
        outputs: Names of the model's outputs; ``widths`` are their columns in ``scores``.
        scores: float32 ``[n_candidates, sum(widths)]``, candidates in the request's order.
        degraded: Whether rows of embedding tables that could not be had were replaced by the
            tables' default rows.
    """

    request_id: int
    outputs: tuple[str, ...]
    widths: tuple[int, ...]
    scores: F32 = attrs.field(validator=matrix(np.float32, 2))
    degraded: bool = False

    def __attrs_post_init__(self) -> None:
        if len(self.outputs) != len(self.widths) or sum(self.widths) != self.scores.shape[1]:
            raise LocalProtocolError(
                f"scores {self.scores.shape} are not of outputs {self.outputs} "
                f"with widths {self.widths}"
            )


@attrs.frozen(kw_only=True)
class ErrorReply:
    """The answer to a request that has no other.

    Attributes:
        code: One of ``ERROR_CODES`` except ``ok``.
        message: For a person; names what was wrong and where.
        field: The feature or request field at fault, or ``""``.
    """

    request_id: int
    code: str
    message: str
    field: str = ""

    def __attrs_post_init__(self) -> None:
        require(self.code in ERROR_CODES[1:], f"an error code, got {self.code!r:.40}")


@attrs.frozen(kw_only=True)
class ModelsRequest:
    """Ask a gateway which models it serves and what each wants."""

    request_id: int


@attrs.frozen(kw_only=True)
class ModelsReply:
    """``models`` is JSON: model name to ``{version, features: [{name, side, ...}], outputs}``."""

    request_id: int
    models: str


@attrs.frozen(kw_only=True)
class Ping:
    """Ask whether an actor is alive and ready."""

    request_id: int


@attrs.frozen(kw_only=True)
class Pong:
    """The answer to ``Ping``. ``status`` is ``ready``, ``starting`` or ``draining``."""

    request_id: int
    status: str


@attrs.frozen(kw_only=True)
class Watch:
    """Ask an actor for nothing: what comes back is that it has died, from whoever noticed."""

    request_id: int


@attrs.frozen(kw_only=True)
class StatsRequest:
    """Ask an actor for its counters; ``reset`` starts new histograms."""

    request_id: int
    reset: bool = False


@attrs.frozen(kw_only=True)
class StatsReply:
    """``stats`` is JSON: counter and histogram names to values; times in microseconds."""

    request_id: int
    stats: str


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """Gateway to executor: a batch begins; ``n_parts`` shards will send their ``RowsPart``.

    Tables that are *fetched* come as rows, each key's once; the executor pools them. Its T fetched
    tables' rows are put together by table: those of part 0, then of part 1 and so on.

    Attributes:
        n_rows: int32 ``[K]``, rows of each request.
        budgets_us: int64 ``[K]``, time left of each request when sent.
        user_values: float32 ``[K, n]``, the user side's value columns (numeric features, masks).
        candidate_values: float32 ``[M, n]``, the candidate side's.
        user_slots: int32 ``[n_user_slots, K]``, for each position of a bag of fetched lookups the
            row that it is, among those put together of its table.
        user_slot_weights: float32 ``[n, K]``, the weights of these lookups.
        candidate_slots: int32 ``[n_candidate_slots, M]``, the same of candidates.
        candidate_slot_weights: float32 ``[n, M]``.
        part_rows: int32 ``[n_parts, T]``, how many rows of each fetched table each part brings; of
            no parts where there are no fetched tables.
    """

    gateway: str
    seq: int
    model: str
    version: str
    n_parts: int
    n_rows: I32 = attrs.field(validator=matrix(np.int32, 1))
    budgets_us: I64 = attrs.field(validator=matrix(np.int64, 1))
    user_values: F32 = attrs.field(validator=matrix(np.float32, 2))
    candidate_values: F32 = attrs.field(validator=matrix(np.float32, 2))
    user_slots: I32 = attrs.field(default=NO_I32S, validator=matrix(np.int32, 2))
    user_slot_weights: F32 = attrs.field(default=NO_F32S, validator=matrix(np.float32, 2))
    candidate_slots: I32 = attrs.field(default=NO_I32S, validator=matrix(np.int32, 2))
    candidate_slot_weights: F32 = attrs.field(default=NO_F32S, validator=matrix(np.float32, 2))
    part_rows: I32 = attrs.field(default=NO_I32S, validator=matrix(np.int32, 2))

    def __attrs_post_init__(self) -> None:
        n_requests, n_rows = len(self.n_rows), int(self.n_rows.sum())
        require(
            len(self.budgets_us) == n_requests == len(self.user_values)
            and len(self.candidate_values) == n_rows
            and (n_requests == 0 or self.n_rows.min() >= 0),
            f"budgets and user values of {n_requests} requests and candidate values of {n_rows} "
            f"rows, got {len(self.budgets_us)}, {len(self.user_values)} and "
            f"{len(self.candidate_values)}",
        )


@attrs.frozen(kw_only=True, eq=False)
class LookupBatch:
    """Gateway to shard: look these up and send the rows to ``executor``.

    Gateway to executor, for the tables on its own card: look these up while you score.

    ``budget_us`` is that of the batch's most patient request. The shard knows from its placement
    which lookups of the bundle are its own, in which order their ids and weights come here: the
    ids of all its lookups, one row of the matrix for each position of a bag. Of tables that lie
    in several groups of shards, or are cached, it is asked for rows, by their keys.

    Attributes:
        part: The index of the shard's group among the batch's parts.
        attempt: Counts how often the gateway has asked for this part; echoed in the answer.
        user_ids: int64 ``[n_user_ids, K]``.
        user_weights: float32 ``[n_user_weights, K]``.
        candidate_ids: int64 ``[n_candidate_ids, M]``.
        candidate_weights: float32 ``[n_candidate_weights, M]``.
        keys: int64 ``[n]``, the keys (or row numbers) of the rows that are wanted, each once.
        key_splits: int32 ``[T + 1]``: those of the model's fetched table ``t`` are
            ``keys[key_splits[t]:key_splits[t + 1]]``; empty where there are no such tables.
    """

    gateway: str
    seq: int
    model: str
    version: str
    executor: str
    part: int
    budget_us: int
    user_ids: I64 = attrs.field(validator=matrix(np.int64, 2))
    user_weights: F32 = attrs.field(validator=matrix(np.float32, 2))
    candidate_ids: I64 = attrs.field(validator=matrix(np.int64, 2))
    candidate_weights: F32 = attrs.field(validator=matrix(np.float32, 2))
    attempt: int = 0
    keys: I64 = attrs.field(default=NO_I64, validator=matrix(np.int64, 1))
    key_splits: I32 = attrs.field(default=NO_I32, validator=matrix(np.int32, 1))


@attrs.frozen(kw_only=True, eq=False)
class RowsPart:
    """Shard to executor: the pooled rows of one shard's lookups, or why there are none.

    From the gateway, where no shard is left that could send it: the same of tables' default rows.

    Attributes:
        version: The ``LookupBatch``'s: an executor may hold several of its model.
        attempt: That of the ``LookupBatch``.
        code: ``ok``, or one of ``ERROR_CODES`` with ``message``; then the matrices are empty.
        user: float32 ``[K, n]``, the shard's columns of the user block.
        candidate: float32 ``[M, n]``, the shard's columns of the candidate block.
        rows: uint8 ``[n_bytes]``, the rows of ``LookupBatch.keys`` in their order, as they are
            stored: each as many bytes as its table's rows have.
        degraded: Whether these are default rows in place of rows that could not be had.
        lookup_us: Time the shard spent, from receipt to sending.
    """

    gateway: str
    seq: int
    version: str
    part: int
    user: F32 = attrs.field(validator=matrix(np.float32, 2))
    candidate: F32 = attrs.field(validator=matrix(np.float32, 2))
    rows: U8 = attrs.field(default=NO_U8, validator=matrix(np.uint8, 1))
    attempt: int = 0
    degraded: bool = False
    lookup_us: int = 0
    code: str = "ok"
    message: str = ""

    def __attrs_post_init__(self) -> None:
        require(self.code in ERROR_CODES, f"a code, got {self.code!r:.40}")


@attrs.frozen(kw_only=True, eq=False)
class PartsLate:
    """Executor to gateway: these parts of a batch have failed, or take longer than they use to.

    Attributes:
        parts: int32 ``[n]``, their indices.
        attempts: int32 ``[n]``, which attempt has failed; 0 of parts that are merely late.
        codes: uint8 ``[n]``, indices into ``ERROR_CODES``; ``ok`` of parts that are merely late.
        message: Why, where a code is not ok.
    """

    seq: int
    parts: I32 = attrs.field(validator=matrix(np.int32, 1))
    attempts: I32 = attrs.field(validator=matrix(np.int32, 1))
    codes: U8 = attrs.field(validator=matrix(np.uint8, 1))
    message: str = ""

    def __attrs_post_init__(self) -> None:
        n = len(self.parts)
        require(
            len(self.attempts) == n == len(self.codes),
            f"attempts and codes of {n} parts, got {len(self.attempts)} and {len(self.codes)}",
        )
        require(n == 0 or int(self.codes.max()) < len(ERROR_CODES), "known codes")


@attrs.frozen(kw_only=True, eq=False)
class ScoresBatch:
    """Executor to gateway: outcomes of some requests of a batch, each request exactly once.

    Attributes:
        requests: int32 ``[k]``, positions of the requests in their batch.
        codes: uint8 ``[k]``, indices into ``ERROR_CODES``.
        scores: float32 ``[rows of the ok requests, n_outputs]``, in the order of ``requests``.
        message: Why, where a code is not ok.
        degraded: uint8 ``[k]``, 1 where default rows stand for rows that could not be had; empty
            where none do.
        part_us: int32 ``[n_parts]``, how long after the batch each part came, by its index; -1
            where a batch has no such part. Empty if they did not all come, or have no replicas.
        part_attempts: int32 ``[n_parts]``, which attempt to get it was the first to succeed.
        join_us: From the batch's arrival to its last part, for these requests.
        queue_us: From then until their window was launched.
        compute_us: The launch.
    """

    seq: int
    requests: I32 = attrs.field(validator=matrix(np.int32, 1))
    codes: U8 = attrs.field(validator=matrix(np.uint8, 1))
    scores: F32 = attrs.field(validator=matrix(np.float32, 2))
    degraded: U8 = attrs.field(default=NO_U8, validator=matrix(np.uint8, 1))
    part_us: I32 = attrs.field(default=NO_I32, validator=matrix(np.int32, 1))
    part_attempts: I32 = attrs.field(default=NO_I32, validator=matrix(np.int32, 1))
    join_us: int = 0
    queue_us: int = 0
    compute_us: int = 0
    message: str = ""

    def __attrs_post_init__(self) -> None:
        k = len(self.requests)
        require(len(self.codes) == k, f"{k} codes, got {len(self.codes)}")
        require(
            k == 0 or int(self.codes.max()) < len(ERROR_CODES),
            f"codes below {len(ERROR_CODES)}",
        )
        require(len(self.degraded) in (0, k), f"{k} marks, got {len(self.degraded)}")
        require(len(self.part_us) == len(self.part_attempts), "times and attempts of all parts")


Message: TypeAlias = (
    ScoreRequest
    | ScoreReply
    | ErrorReply
    | ModelsRequest
    | ModelsReply
    | Ping
    | Pong
    | StatsRequest
    | StatsReply
    | Batch
    | LookupBatch
    | RowsPart
    | PartsLate
    | Watch
    | ScoresBatch
    | UpdateRequest
    | UpdateReply
    | UpdateBatch
    | UpdateAck
    | SeedOrder
    | SeedRequest
    | SeedPart
    | RowsChanged
    | LoadVersion
    | UseVersion
    | DropVersion
    | VersionRequest
    | EndDeployment
    | VersionState
)

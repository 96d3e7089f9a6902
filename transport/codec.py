"""The wire protocol: messages to frames and frames to messages, with no I/O anywhere.

This page is the protocol's specification; a client in any language can be written from it.

1. Transport
   ZeroMQ 4 (ZMTP 3). A server binds a ROUTER; a client connects a DEALER and exchanges multipart
   messages with it. There is no delimiter frame. Replies come in any order and are matched by
   ``request_id``. A client need not answer anything, and may leave at any time.

2. Frames
   All integers and floats in frames are little-endian.

   ===== ========================================================================================
   frame content
   ===== ========================================================================================
   0     3 bytes: ``"TB"`` (54 42), then the version, 01.
   1     The header: one msgpack array, below. At most 4 MiB, no maps, no extension types, at most
         4,096 items in an array, strings and bins at most 1 MiB each.
   2     The blob: all small arrays. Absent if the message has no arrays; else present, if only
         empty.
   3...  One frame for each large array, in the order of their descriptors.
   ===== ========================================================================================

3. Header
   ``[kind, to, ask_id, FIELD..., ARRAYS]``. ``to`` is the name of the actor that is meant, or
   ``""`` for whoever owns the socket: clients send ``""``. ``ask_id`` is 0 unless actors ask each
   other: clients send 0 and get 0. In every message that a client may send or get, the first FIELD
   is the ``request_id``. ARRAYS is an array of descriptors.

   ==== ============ =========================================================== ===================
   kind message      FIELDs                                                      arrays
   ==== ============ =========================================================== ===================
   1    ScoreRequest request_id, model, budget_us, n_candidates, schema          of blocks, or rows
   2    ScoreReply   request_id, outputs, widths, degraded (bool)                f4 [n, sum(widths)]
   3    ErrorReply   request_id, code, message, field                            none
   4    ModelsReq.   request_id                                                  none
   5    ModelsReply  request_id, models (JSON text)                              none
   6    Ping         request_id                                                  none
   7    Pong         request_id, status                                          none
   8    StatsRequest request_id, reset (bool)                                    none
   9    StatsReply   request_id, stats (JSON text)                               none
   16   UpdateReq.   request_id, model, table, source, position                  i8 [n], f4 [n, dim]
   17   UpdateReply  request_id, number, applied, position, behind               none
   64.. between actors: the table at the end of this module
   ==== ============ =========================================================== ===================

   ``request_id`` is a uint64, chosen by the client, unique among its requests in flight, not 0.
   ``budget_us`` is the time left in microseconds. ``outputs`` are names, ``widths`` the columns of
   ``scores`` that each has; ``degraded`` says that embedding rows could not be had, and that
   their tables' default rows stand for them. ``code`` is one of invalid, overloaded, deadline,
   unavailable and internal. Names are at most 255 characters.

4. Arrays
   A descriptor is ``[dtype, frame, offset, dimension, ...]`` with one to three dimensions, C
   order, dtype one of b1 u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8 (numpy's letters and sizes in bytes; b1
   is 0 or 1). Small arrays lie in the blob (frame 2) at multiples of 64 bytes, with anything in the
   gaps; the blob ends where its last array ends. Any other array is a frame of its own, at offset
   0, which it fills. Senders should put arrays of up to 65,536 bytes in the blob and no others. At
   most 1,024 arrays a message, 1 GiB an array.

5. Features
   ``schema`` is a bin that holds msgpack of its own: ``[[side, form, names], ...]``, one item a
   block, so that receivers can cache what it says by its bytes. ``side`` is 0 for the user, 1 for
   the candidates. ``n`` is 1 for the user and n_candidates for candidates. A block's arrays follow
   each other in ARRAYS:

   ==== ================ ==========================================================================
   form block            arrays
   ==== ================ ==========================================================================
   0    numbers          values [names, n] or [names, n, width] of one dtype; NaN is missing
   1    ragged numbers   values [total], row_splits i4 [n + 1]; one name
   2    strings          UTF-8 bytes u1 [total], char_splits i4 [n + 1]; one name; "" missing
   3    lists of strings bytes u1 [total], row_splits i4 [n + 1], char_splits i4; one name
   ==== ================ ==========================================================================

   Row ``i`` is ``values[row_splits[i]:row_splits[i + 1]]``, string ``j`` likewise. If the schema is
   an empty bin, the message has one array, u1 [size], that holds msgpack of ``[user, [candidate,
   ...]]``, each a map of feature names to null, a number, a string, or an array of one of these.
   This costs the server about forty times as much as columns.

6. Errors
   Whoever gets a message that breaks these rules answers ErrorReply with code ``invalid``, and the
   request's id if it could be read, else 0: then nothing on that connection will be understood. An
   ErrorReply is never answered. Servers drop the connection of a peer whose frame is larger than
   they allow (256 MiB by default).

7. Versions
   Receivers refuse a version that they do not know. Within version 1, kinds may be added.

8. Example
   Ping 7 is two frames: ``54 42 01`` and ``95 06 a0 00 07 90``. Score one candidate with features
   age (user) = 30.0 and price = 1.5 of model ``m``, budget 50 ms, as request 9::

       frame 0  54 42 01
       frame 1  [1, "", 0, 9, "m", 50000, 1, SCHEMA, [["f4", 2, 0, 1, 1], ["f4", 2, 64, 1, 1]]]
                SCHEMA is a bin of msgpack [[0, 0, ["age"]], [1, 0, ["price"]]]
       frame 2  00 00 f0 41, then 60 bytes of anything, then 00 00 c0 3f
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs
import numpy as np

from transport import _fields as f
from transport import _msgpack, messages, updates, versions
from transport._arrays import BLOB, LARGE_BYTES, Frame, pack_arrays, view_arrays
from transport._schema import make_blocks, pack_blocks, unpack_schema
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.messages import Message, ScoreReply, ScoreRequest
from transport.values import F32, Array

VERSION: Final = 1
PREFIX: Final = b"TB" + bytes([VERSION])
MAX_HEADER_BYTES: Final = 4 << 20
MAX_FRAMES: Final = BLOB + 1 + 1024
_FIRST_ACTOR_KIND: Final = 64


@attrs.frozen(eq=False)
class Packet:
    """A message and whom it is for.

    Attributes:
        to: The actor's name, or ``""`` for whoever owns the socket that it arrives on.
        ask_id: Chosen by the asker and echoed with the answer; 0 for a tell.
    """

    to: str
    ask_id: int
    message: Message


def encode(packet: Packet) -> list[Frame]:
    """Return the frames of a packet. Large arrays are not copied: leave them be until sent.

    Raises:
        LocalProtocolError: A field has the wrong type, or is more than the protocol allows.
    """
    message = packet.message
    layout = _BY_CLASS.get(type(message))
    if layout is None:
        raise LocalProtocolError(f"{type(message).__name__} is not a message")
    if not f.NAME.test(packet.to) or not f.U64.test(packet.ask_id):
        raise LocalProtocolError(f"want a name and an ask_id, got {packet.to!r}, {packet.ask_id!r}")
    scalars, arrays = layout.take(message)
    if isinstance(message, ScoreRequest):
        schema, arrays = _pack_features(message)
        scalars = (*scalars, schema)
    descriptors, frames = pack_arrays(arrays)
    header = _msgpack.pack([layout.kind, packet.to, packet.ask_id, *scalars, descriptors])
    if len(header) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"header of {len(header)} bytes; at most {MAX_HEADER_BYTES}")
    return [PREFIX, header, *frames]


class ScoreReplyEncoder:
    """Encodes one model's score replies: the frames of ``encode``, in a third of its time.

    Such replies differ by the request's id, the rows and the scores alone; all else is packed once.

    Args:
        outputs: As in ``ScoreReply``.
        widths: Likewise.
    """

    def __init__(self, outputs: tuple[str, ...], widths: tuple[int, ...]) -> None:
        self._outputs = outputs
        self._widths = widths
        self._n_columns = sum(widths)
        # Two headers that differ in one byte each, for the id and for the rows.
        header = self._header(0, 0)
        at_id = _first_difference(header, self._header(1, 0))
        at_rows = _first_difference(header, self._header(0, 1))
        self._head = header[:at_id]
        self._middle = header[at_id + 1 : at_rows]
        self._tail = header[at_rows + 1 :]

    def encode(self, request_id: int, scores: F32, *, degraded: bool = False) -> list[Frame]:
        """Return the frames of a reply to a client.

        Args:
            request_id: Of the request.
            scores: float32 ``[n, sum(widths)]``, C-ordered; copied unless large.
            degraded: As in ``ScoreReply``.
        """
        if degraded or scores.nbytes > LARGE_BYTES:
            return encode(Packet("", 0, self._reply(request_id, scores, degraded=degraded)))
        pack = _msgpack.pack
        header = b"".join(
            (self._head, pack(request_id), self._middle, pack(len(scores)), self._tail)
        )
        return [PREFIX, header, scores.tobytes()]

    def _header(self, request_id: int, n_rows: int) -> bytes:
        scores = np.empty((n_rows, self._n_columns), np.float32)
        return bytes(encode(Packet("", 0, self._reply(request_id, scores)))[1])

    def _reply(self, request_id: int, scores: F32, *, degraded: bool = False) -> ScoreReply:
        return ScoreReply(
            request_id=request_id,
            outputs=self._outputs,
            widths=self._widths,
            scores=scores,
            degraded=degraded,
        )


def decode(frames: Sequence[Frame]) -> Packet:
    """Return the packet in ``frames``; its arrays are read-only views of them.

    Args:
        frames: bytes, or anything with the buffer protocol.

    Raises:
        RemoteProtocolError: They hold none. Its ``request_id`` says whom to answer, if known.
    """
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise RemoteProtocolError(f"{len(frames)} frames; want 2 to {MAX_FRAMES}")
    frames = [frame if type(frame) is bytes else _bytes_view(frame) for frame in frames]
    if frames[0] != PREFIX:
        raise RemoteProtocolError(_describe_foreign(bytes(frames[0][:8])))
    if len(frames[1]) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"header of {len(frames[1])} bytes; at most {MAX_HEADER_BYTES}")
    header = _msgpack.unpack(frames[1])
    if type(header) is not tuple or len(header) < 4 or type(header[0]) is not int:
        raise RemoteProtocolError("header: want [kind, to, ask_id, ..., arrays]")
    try:
        return _read(header, frames)
    except LocalProtocolError as error:  # the message itself refuses what it was to hold
        raise RemoteProtocolError(str(error), _request_id(header)) from error
    except RemoteProtocolError as error:
        error.request_id = _request_id(header)
        raise


def _read(header: tuple[Any, ...], frames: Sequence[Frame]) -> Packet:
    kind, to, ask_id = header[:3]
    layout = _BY_KIND.get(kind)
    if layout is None:
        raise RemoteProtocolError(f"version {VERSION} has no message of kind {kind}")
    if not f.NAME.test(to) or not f.U64.test(ask_id):
        raise RemoteProtocolError(f"header: want a name and an ask_id, got {header[1:3]!r:.80}")
    arrays = view_arrays(header[-1], frames)
    if layout.cls is ScoreRequest:
        fields = layout.read(header[3:-2], ())
        _read_features(fields, header[-2], arrays)
        return Packet(to, ask_id, ScoreRequest(**fields))
    return Packet(to, ask_id, layout.cls(**layout.read(header[3:-1], arrays)))


def _pack_features(request: ScoreRequest) -> tuple[bytes, Sequence[Array]]:
    if not request.rows:
        return pack_blocks(request.blocks)
    if request.blocks:
        raise LocalProtocolError("ScoreRequest: blocks or rows, not both")
    if type(request.rows) is not bytes:
        raise LocalProtocolError("ScoreRequest.rows: want bytes")
    return b"", [np.frombuffer(request.rows, np.uint8)]


def _read_features(fields: dict[str, Any], schema: object, arrays: list[Array]) -> None:
    if type(schema) is not bytes:
        raise RemoteProtocolError("ScoreRequest: want the schema as a bin")
    if not schema:
        if len(arrays) != 1 or arrays[0].dtype != np.uint8 or arrays[0].ndim != 1:
            raise RemoteProtocolError("ScoreRequest: want rows as one u1 [size]")
        fields["rows"] = arrays[0].tobytes()
    else:
        fields["blocks"] = make_blocks(unpack_schema(schema), arrays)


def _request_id(header: tuple[Any, ...]) -> int | None:
    """Return the request id of a message between client and server, if there is one."""
    request_id = header[3]
    if not 0 < header[0] < _FIRST_ACTOR_KIND or not f.U64.test(request_id):
        return None
    return int(request_id)


def _first_difference(one: bytes, other: bytes) -> int:
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def _bytes_view(frame: Any) -> memoryview:  # noqa: ANN401 - anything with the buffer protocol
    return memoryview(frame).toreadonly().cast("B")


def _describe_foreign(start: bytes) -> str:
    if start[:2] == PREFIX[:2] and len(start) == len(PREFIX):
        return f"the peer speaks version {start[2]} of the protocol, this side only {VERSION}"
    return f"not this protocol: the first frame starts with {start.hex(' ') or 'nothing'}"


# A new kind is a new row; numbers are never used again. Kinds from 64 on travel between actors.
_BATCH: Final = {"gateway": f.NAME, "seq": f.U64}
_MODEL: Final = {"model": f.NAME, "version": f.NAME}
_LAYOUTS: Final = (
    f.Layout(
        1,
        ScoreRequest,
        {"request_id": f.U64, "model": f.NAME, "budget_us": f.I64, "n_candidates": f.U32},
    ),
    f.Layout(
        2,
        messages.ScoreReply,
        {"request_id": f.U64, "outputs": f.NAMES, "widths": f.SIZES, "degraded": f.BOOL},
        {"scores": ("f4", 2)},
    ),
    f.Layout(
        3,
        messages.ErrorReply,
        {"request_id": f.U64, "code": f.NAME, "message": f.TEXT, "field": f.TEXT},
    ),
    f.Layout(4, messages.ModelsRequest, {"request_id": f.U64}),
    f.Layout(5, messages.ModelsReply, {"request_id": f.U64, "models": f.TEXT}),
    f.Layout(6, messages.Ping, {"request_id": f.U64}),
    f.Layout(7, messages.Pong, {"request_id": f.U64, "status": f.NAME}),
    f.Layout(8, messages.StatsRequest, {"request_id": f.U64, "reset": f.BOOL}),
    f.Layout(9, messages.StatsReply, {"request_id": f.U64, "stats": f.TEXT}),
    f.Layout(
        16,
        updates.UpdateRequest,
        {
            "request_id": f.U64,
            "model": f.NAME,
            "table": f.NAME,
            "source": f.NAME,
            "position": f.U64,
        },
        {"keys": ("i8", 1), "rows": ("f4", 2)},
    ),
    f.Layout(
        17,
        updates.UpdateReply,
        {
            "request_id": f.U64,
            "number": f.U64,
            "applied": f.U64,
            "position": f.U64,
            "behind": f.NAMES,
        },
    ),
    f.Layout(
        64,
        messages.Batch,
        {**_BATCH, **_MODEL, "n_parts": f.U32},
        {
            "n_rows": ("i4", 1),
            "budgets_us": ("i8", 1),
            "user_values": ("f4", 2),
            "candidate_values": ("f4", 2),
            "user_slots": ("i4", 2),
            "user_slot_weights": ("f4", 2),
            "candidate_slots": ("i4", 2),
            "candidate_slot_weights": ("f4", 2),
            "part_rows": ("i4", 2),
        },
    ),
    f.Layout(
        65,
        messages.LookupBatch,
        {
            **_BATCH,
            **_MODEL,
            "executor": f.NAME,
            "part": f.U32,
            "attempt": f.U32,
            "budget_us": f.I64,
        },
        {
            "user_ids": ("i8", 2),
            "user_weights": ("f4", 2),
            "candidate_ids": ("i8", 2),
            "candidate_weights": ("f4", 2),
            "keys": ("i8", 1),
            "key_splits": ("i4", 1),
        },
    ),
    f.Layout(
        66,
        messages.RowsPart,
        {
            **_BATCH,
            "version": f.NAME,
            "part": f.U32,
            "attempt": f.U32,
            "degraded": f.BOOL,
            "lookup_us": f.I64,
            "code": f.NAME,
            "message": f.TEXT,
        },
        {"user": ("f4", 2), "candidate": ("f4", 2), "rows": ("u1", 1)},
    ),
    f.Layout(
        67,
        messages.ScoresBatch,
        {
            "seq": f.U64,
            "join_us": f.I64,
            "queue_us": f.I64,
            "compute_us": f.I64,
            "message": f.TEXT,
        },
        {
            "requests": ("i4", 1),
            "codes": ("u1", 1),
            "scores": ("f4", 2),
            "degraded": ("u1", 1),
            "part_us": ("i4", 1),
            "part_attempts": ("i4", 1),
        },
    ),
    f.Layout(
        68,
        messages.PartsLate,
        {"seq": f.U64, "message": f.TEXT},
        {"parts": ("i4", 1), "attempts": ("i4", 1), "codes": ("u1", 1)},
    ),
    f.Layout(69, messages.Watch, {"request_id": f.U64}),
    f.Layout(
        80,
        updates.UpdateBatch,
        {
            "updater": f.NAME,
            **_MODEL,
            "table": f.NAME,
            "stream": f.U64,
            "number": f.U64,
            "previous": f.U64,
            "newest": f.U64,
            "age_us": f.I64,
            "dtype": f.NAME,
        },
        {"keys": ("i8", 1), "rows": ("u1", 2)},
    ),
    f.Layout(
        81,
        updates.UpdateAck,
        {
            "replica": f.NAME,
            **_MODEL,
            "stream": f.U64,
            "applied": f.U64,
            "code": f.NAME,
            "message": f.TEXT,
        },
    ),
    f.Layout(82, updates.SeedOrder, {"updater": f.NAME, **_MODEL, "peer": f.NAME}),
    f.Layout(83, updates.SeedRequest, {**_MODEL, "snapshot": f.U64, "offset": f.U64}),
    f.Layout(
        84,
        updates.RowsChanged,
        {**_MODEL, "table": f.NAME},
        {"keys": ("i8", 1)},
    ),
    f.Layout(
        85,
        updates.SeedPart,
        {"snapshot": f.U64, "offset": f.U64, "size": f.U64},
        {"data": ("u1", 1)},
    ),
    f.Layout(70, versions.LoadVersion, {"deployment": f.U64, **_MODEL, "bundle": f.TEXT}),
    f.Layout(71, versions.UseVersion, {"deployment": f.U64, **_MODEL}),
    f.Layout(72, versions.DropVersion, {"deployment": f.U64, **_MODEL}),
    f.Layout(73, versions.VersionRequest, {"deployment": f.U64, **_MODEL}),
    f.Layout(74, versions.EndDeployment, {"deployment": f.U64, **_MODEL}),
    f.Layout(
        75,
        versions.VersionState,
        {
            "deployment": f.U64,
            **_MODEL,
            "state": f.NAME,
            "percent": f.U32,
            "n_in_flight": f.U32,
            "message": f.TEXT,
            "current": f.NAME,
            "built_from": f.NAME,
            "held": f.NAMES,
        },
    ),
)
_BY_KIND: Final = {layout.kind: layout for layout in _LAYOUTS}
_BY_CLASS: Final[dict[type, f.Layout]] = {layout.cls: layout for layout in _LAYOUTS}

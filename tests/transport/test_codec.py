from __future__ import annotations

import typing
from typing import Any

import attrs
import msgpack
import numpy as np
import pytest
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st

from tests.transport.strategies import EACH, messages, packets
from transport import _schema, values
from transport import messages as m
from transport.codec import MAX_FRAMES, PREFIX, Packet, ScoreReplyEncoder, decode, encode
from transport.errors import LocalProtocolError, RemoteProtocolError


def same(a: Any, b: Any) -> bool:  # noqa: ANN401
    if isinstance(a, np.ndarray):
        # Bytes, as NaN differs from itself.
        return bool(a.dtype == b.dtype) and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if attrs.has(type(a)):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in attrs.fields(type(a))
        )
    return type(a) is type(b) and bool(a == b)


def request(**changes: object) -> m.ScoreRequest:
    values: dict[str, Any] = {
        "request_id": 9,
        "model": "m",
        "budget_us": 50_000,
        "n_candidates": 1,
        "blocks": (
            m.Block(side=m.USER, names=("age",), values=np.array([[30.0]], np.float32)),
            m.Block(side=m.CANDIDATE, names=("price",), values=np.array([[1.5]], np.float32)),
        ),
    }
    return m.ScoreRequest(**(values | changes))


def raw(header: object, *frames: bytes) -> list[bytes]:
    return [PREFIX, msgpack.packb(header), *frames]


SCHEMA = msgpack.packb([[0, 0, ["age"]], [1, 0, ["price"]]])
ARRAYS = [["f4", 2, 0, 1, 1], ["f4", 2, 64, 1, 1]]
BLOB = bytes.fromhex("0000f041") + bytes(60) + bytes.fromhex("0000c03f")
REQUEST = [1, "", 0, 9, "m", 50_000, 1, SCHEMA, ARRAYS]


@given(packets)
def test_decode_inverts_encode(packet: Packet) -> None:
    assert same(decode([bytes(frame) for frame in encode(packet)]), packet)


@given(messages)
def test_decode_takes_any_buffers(message: m.Message) -> None:
    frames = [memoryview(bytearray(frame)) for frame in encode(Packet("a", 1, message))]
    assert same(decode(frames).message, message)


def test_every_message_class_is_among_those_tested() -> None:
    first = settings(phases=[Phase.generate], max_examples=1, database=None)
    drawn = {type(find(each, lambda message: True, settings=first)) for each in EACH}
    assert drawn == set(typing.get_args(m.Message))


def test_the_examples_of_the_specification_hold() -> None:
    ping = encode(Packet("", 0, m.Ping(request_id=7)))
    assert [bytes(frame) for frame in ping] == [b"TB\x01", bytes.fromhex("9506a0000790")]
    frames = encode(Packet("", 0, request()))
    assert [bytes(frame) for frame in frames] == raw(REQUEST, BLOB)


def test_arrays_are_aligned_read_only_views_of_the_frames() -> None:
    frames = [bytes(frame) for frame in encode(Packet("", 0, request()))]
    message = decode(frames).message
    assert isinstance(message, m.ScoreRequest)
    for block in message.blocks:
        assert not block.values.flags.writeable
        assert np.shares_memory(block.values, np.frombuffer(frames[2], np.uint8))
    first, second = (block.values.ctypes.data for block in message.blocks)
    assert second - first == 64


def test_a_large_array_travels_in_its_own_frame_without_a_copy() -> None:
    large = np.arange(40_000, dtype=np.float32).reshape(1, -1)
    small = np.ones((1, 40_000), np.bool_)
    blocks = tuple(m.Block(side=m.CANDIDATE, names=("a",), values=v) for v in (large, small, large))
    frames = encode(Packet("", 0, request(blocks=blocks)))
    assert [len(frame) for frame in frames[2:]] == [40_000, 160_000, 160_000]
    assert np.shares_memory(large, np.frombuffer(frames[3], np.uint8))
    decoded = decode(frames).message
    assert isinstance(decoded, m.ScoreRequest)
    assert same(decoded.blocks, blocks)
    assert np.shares_memory(large, decoded.blocks[0].values)
    assert not decoded.blocks[0].values.flags.writeable


def test_an_unaligned_frame_is_copied_once() -> None:
    frames = [bytes(frame) for frame in encode(Packet("", 0, request()))]
    buffer = bytearray(len(frames[2]) + 64)
    start = (1 - np.frombuffer(buffer, np.uint8).ctypes.data) % 64
    buffer[start : start + len(frames[2])] = frames[2]
    message = decode([*frames[:2], memoryview(buffer)[start : start + len(frames[2])]]).message
    assert isinstance(message, m.ScoreRequest)
    assert [float(block.values[0, 0]) for block in message.blocks] == [30.0, 1.5]
    assert all(b.values.flags.aligned and not b.values.flags.writeable for b in message.blocks)


@pytest.mark.parametrize("values", [np.ones((2, 3), ">f8"), np.ones((3, 2), np.int16).T])
def test_other_byte_orders_and_layouts_are_brought_into_line(values: values.Array) -> None:
    block = m.Block(side=m.CANDIDATE, names=("a", "b"), values=values)
    decoded = decode(encode(Packet("", 0, request(blocks=(block,))))).message
    assert isinstance(decoded, m.ScoreRequest)
    got = decoded.blocks[0].values
    np.testing.assert_array_equal(got, values)
    assert got.dtype.kind == values.dtype.kind
    assert got.dtype.isnative
    assert got.flags.c_contiguous


def test_equal_schemas_give_the_same_names() -> None:
    first, second = (decode(raw(REQUEST, BLOB)).message for _ in range(2))
    assert isinstance(first, m.ScoreRequest)
    assert isinstance(second, m.ScoreRequest)
    assert [b.names for b in first.blocks] == [("age",), ("price",)]
    assert all(a.names is b.names for a, b in zip(first.blocks, second.blocks, strict=True))


def test_schema_caches_are_bounded() -> None:
    for n in range(_schema.MAX_CACHED + 10):
        block = m.Block(side=0, names=(f"n{n}",), values=np.zeros((1, 1)))
        decode(encode(Packet("", 0, request(blocks=(block,)))))
    assert len(_schema._packed) == len(_schema._unpacked) == _schema.MAX_CACHED
    before = list(_schema._unpacked)
    names = tuple(f"{i:0200}" for i in range(500))
    block = m.Block(side=0, names=names, values=np.zeros((500, 1)))
    assert decode(encode(Packet("", 0, request(blocks=(block,))))).message is not None
    assert list(_schema._unpacked) == before


@st.composite
def damaged(draw: st.DrawFn) -> list[bytes]:
    frames = [bytes(frame) for frame in encode(draw(packets))]
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(["flip", "cut", "drop", "double", "swap", "grow", "random"]))
        i = draw(st.integers(0, len(frames) - 1)) if frames else 0
        if not frames or how == "random":
            frames.insert(i, draw(st.binary(max_size=80)))
        elif how == "flip" and frames[i]:
            bit = draw(st.integers(0, len(frames[i]) * 8 - 1))
            changed = bytearray(frames[i])
            changed[bit // 8] ^= 1 << bit % 8
            frames[i] = bytes(changed)
        elif how == "cut":
            frames[i] = frames[i][: draw(st.integers(0, len(frames[i])))]
        elif how == "drop":
            del frames[i]
        elif how == "double":
            frames.insert(i, frames[i])
        elif how == "swap":
            frames[0], frames[i] = frames[i], frames[0]
        else:
            frames[i] += draw(st.binary(min_size=1, max_size=70))
    return frames


def decodes_or_refuses(frames: list[bytes]) -> None:
    try:
        packet = decode(frames)
    except RemoteProtocolError:
        return
    # What was let through is a message that would be let through again.
    assert same(decode(encode(packet)), packet)


@settings(max_examples=400)
@given(damaged())
def test_damaged_frames_raise_remote_protocol_error_and_nothing_else(frames: list[bytes]) -> None:
    decodes_or_refuses(frames)


scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(["f4", "i4", "u1", "b1", "ok", "invalid"]),
)
lists = st.lists(scalars, max_size=5)
hostile_values = st.one_of(
    scalars, lists, st.lists(lists, max_size=3), st.dictionaries(scalars, scalars, max_size=2)
)


@settings(max_examples=200)
@given(
    st.sampled_from([*range(11), *range(64, 69)]),
    st.lists(hostile_values, max_size=10),
    st.lists(st.binary(max_size=200), max_size=3),
)
def test_well_formed_nonsense_is_refused(kind: int, fields: list[Any], blobs: list[bytes]) -> None:
    decodes_or_refuses(raw([kind, "", 0, *fields], *blobs))


@settings(max_examples=300)
@given(st.data())
@example(None)
def test_one_field_of_nonsense_is_refused(data: Any) -> None:  # noqa: ANN401
    if data is None:
        header, frames = list(REQUEST), [BLOB]
        header[-1] = [["f4", 2, 0, 2**31, 2**31, 0]]
    else:
        _, packed, *frames = (bytes(f) for f in encode(data.draw(packets)))
        header = list(msgpack.unpackb(packed))
        target = header
        while True:
            i = data.draw(st.integers(0, len(target) - 1))
            if isinstance(target[i], list) and target[i] and data.draw(st.booleans()):
                target = target[i]
                continue
            target[i] = data.draw(hostile_values)
            break
    decodes_or_refuses(raw(header, *frames))


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_random_frames_are_refused(frames: list[bytes], prefixed: bool) -> None:
    if prefixed:
        frames.insert(0, PREFIX)
    decodes_or_refuses(frames)


def changed(index: int, value: object) -> list[bytes]:
    header = list(REQUEST)
    header[index] = value
    return raw(header, BLOB)


DEEP = b"\x91" * 2000 + b"\x90"
BOMB = b"\xdd\xff\xff\xff\xff" * 200
RAGGED = msgpack.packb([[0, 1, ["a"]]] * 2)
THREE_NAMES = msgpack.packb([[0, 0, ["a", "b"]], [0, 0, ["c"]]])
ONE = [["f4", 2, 0, 1, 1]]
INTS = [["i4", 2, 0, 1, 1]]
CASES: dict[str, tuple[list[bytes], str]] = {
    "no frames": ([], "0 frames"),
    "prefix alone": ([PREFIX], "1 frames"),
    "too many frames": ([PREFIX, b"\x90", *[b""] * MAX_FRAMES], "frames; want"),
    "foreign version": ([b"TB\x02", *raw(REQUEST, BLOB)[1:]], "speaks version 2"),
    "foreign protocol": ([b"GET / HTTP/1.1", b""], "not this protocol: .* 47 45 54"),
    "empty header": ([PREFIX, b""], "not msgpack"),
    "deep nesting": ([PREFIX, DEEP], "not msgpack"),
    "array bomb": ([PREFIX, BOMB], "not msgpack"),
    "map": ([PREFIX, msgpack.packb({1: 2})], "not msgpack"),
    "timestamp": ([PREFIX, bytes.fromhex("d6ff00000000")], "not msgpack"),
    "trailing bytes": ([PREFIX, msgpack.packb(REQUEST) + b"\x00", BLOB], "not msgpack"),
    "bad utf-8": ([PREFIX, b"\x95\x06\xa1\xff\x00\x07\x90"], "not msgpack"),
    "not an array": (raw(7), "header: want"),
    "short array": (raw([6, "", 0]), "header: want"),
    "kind is text": (changed(0, "1"), "header: want"),
    "kind is a bool": (changed(0, True), "header: want"),
    "unknown kind": (changed(0, 33), "no message of kind 33"),
    "large header": ([PREFIX, bytes(5 << 20)], "header of"),
    "to is a number": (changed(1, 3), "want a name"),
    "ask_id is negative": (changed(2, -1), "want a name and an ask_id"),
    "request_id is negative": (changed(3, -1), r"ScoreRequest.request_id: want .*, got -1"),
    "model is bytes": (changed(4, b"m"), "ScoreRequest.model"),
    "model is long": (changed(4, "m" * 300), "ScoreRequest.model"),
    "budget is NaN": (changed(5, float("nan")), "ScoreRequest.budget_us"),
    "budget is huge": (changed(5, 2**64 - 1), "ScoreRequest.budget_us"),
    "negative candidates": (changed(6, -1), "ScoreRequest.n_candidates"),
    "schema is text": (changed(7, "x"), "schema as a bin"),
    "schema is not msgpack": (changed(7, b"\xc1"), "not msgpack"),
    "schema bomb": (changed(7, BOMB), "not msgpack"),
    "schema side": (changed(7, msgpack.packb([[2, 0, ["a"]]])), "block 0: side 2"),
    "schema form": (changed(7, msgpack.packb([[0, 4, ["a"]]])), "block 0: form 4"),
    "schema names": (changed(7, msgpack.packb([[0, 0, [""]]])), "block 0: '' is not a name"),
    "schema without names": (changed(7, msgpack.packb([[0, 0, []]])), "array of names"),
    "schema of more": (changed(7, RAGGED), "2 arrays; its schema has 4"),
    "fewer names than rows": (changed(7, THREE_NAMES), "no form"),
    "rows of two arrays": (changed(7, b""), "rows as one u1"),
    "unknown dtype": (changed(8, [["O8", 2, 0, 1]]), "no dtype 'O8'"),
    "descriptor is a map": (changed(8, 4), "array descriptors"),
    "no dimension": (changed(8, [["f4", 2, 0]]), "want .dtype"),
    "four dimensions": (changed(8, [["f4", 2, 0, 1, 1, 1, 1]]), "want .dtype"),
    "negative dimension": (changed(8, [["f4", 2, 0, -1, -1]]), "dimension -1"),
    "huge dimension": (changed(8, [["f4", 2, 0, 2**63, 2]]), "dimension 9223372036854775808"),
    "product overflows": (changed(8, [["f4", 2, 0, 2**30, 2**30, 2**30]]), "more than"),
    "empty product overflows": (changed(8, [["f4", 2, 0, 2**30, 2**30, 0]]), "more than"),
    "out of bounds": (changed(8, [["f4", 2, 64, 2, 1]]), "bytes 64 to 72 of frame 2, which has 68"),
    "offset beyond": (changed(8, [["f4", 2, 2**63, 1, 1]]), "bytes"),
    "negative offset": (changed(8, [["f4", 2, -64, 1, 1]]), "bad frame or offset"),
    "unaligned": (changed(8, [["f4", 2, 4, 1, 1]]), "not aligned"),
    "frame 0": (changed(8, [["u1", 0, 0, 3]]), "bad frame"),
    "frame 4 first": (changed(8, [["u1", 4, 0, 3]]), "not next"),
    "absent frame": (changed(8, [["u1", 3, 0, 3]]), "no frame 3"),
    "blob is longer": (raw(REQUEST, BLOB + b"x"), "frame 2 has 69 bytes"),
    "blob is shorter": (raw(REQUEST, BLOB[:-1]), "frame 2, which has 67"),
    "blob is absent": (raw(REQUEST), "no frame 2"),
    "frame too many": (raw(REQUEST, BLOB, b"x"), "4 frames, of which the header knows 3"),
    "blob without arrays": (raw([6, "", 0, 7, []], b"x"), "3 frames"),
    "bool of 2": (raw([*REQUEST[:-1], [["b1", 2, 0, 1, 1]] * 2], b"\x02"), "neither 0 nor 1"),
    "field too many": (raw([6, "", 0, 7, 8, []]), "Ping: 2 fields; want 1"),
    "array too many": (raw([6, "", 0, 7, [["u1", 2, 0, 1]]], b"x"), "Ping: 1 arrays; want 0"),
    "unknown code": (raw([3, "", 0, 7, "sad", "", "", []]), "error code, got 'sad'"),
    "widths differ": (raw([2, "", 0, 7, ["a"], [2], False, ONE], bytes(4)), "widths"),
    "scores of ints": (raw([2, "", 0, 7, ["a"], [1], False, INTS], bytes(4)), "want float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hostile_input_is_refused_with_what_was_wrong(case: str) -> None:
    frames, match = CASES[case]
    with pytest.raises(RemoteProtocolError, match=match):
        decode(frames)


@pytest.mark.parametrize(
    ("case", "request_id"),
    [
        ("model is bytes", 9),
        ("out of bounds", 9),
        ("unknown kind", 9),
        ("fewer names than rows", 9),
        ("to is a number", 9),
        ("frame too many", 9),
        ("request_id is negative", None),
        ("trailing bytes", None),
        ("foreign version", None),
    ],
)
def test_the_error_knows_the_request_where_it_could_be_read(
    case: str, request_id: int | None
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(CASES[case][0])
    assert caught.value.request_id == request_id


def test_a_broken_message_between_actors_names_no_request() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(raw([64, "", 0, 5, []]))
    assert caught.value.request_id is None


@pytest.mark.parametrize(
    "message",
    [
        m.Ping(request_id=-1),
        m.Ping(request_id=2**64),
        m.Ping(request_id=True),
        m.Ping(request_id=np.int64(3)),  # type: ignore[arg-type]
        request(model="m" * 300),
        request(model="\ud800"),
        request(budget_us=1.5),
        request(rows=b"\x90"),
        request(blocks=(), rows="x"),
        request(blocks=(m.Block(side=3, names=("a",), values=np.zeros((1, 1))),)),
        request(blocks=(m.Block(side=0, names=("a" * 300,), values=np.zeros((1, 1))),)),
        request(blocks=(m.Block(side=0, names=("a",), values=np.zeros((1, 1), np.longdouble)),)),
        request(blocks=(m.Block(side=0, names=("a",), values=np.zeros((1, 1))),) * 1025),
        m.StatsReply(request_id=1, stats="x" * (2 << 20)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_the_protocol_does_not_allow_is_not_encoded(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(Packet("", 0, message))


def test_only_messages_are_encoded_and_only_to_names() -> None:
    with pytest.raises(LocalProtocolError, match="dict is not a message"):
        encode(Packet("", 0, {}))  # type: ignore[arg-type]
    with pytest.raises(LocalProtocolError, match="ask_id"):
        encode(Packet("", -1, m.Ping(request_id=1)))


@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 40, 127, 128, 255, 256, 20_000, 70_000]),
    st.lists(st.tuples(st.text(max_size=40), st.integers(0, 3)), max_size=3),
    st.booleans(),
)
def test_the_score_reply_encoder_makes_the_frames_that_encode_makes(
    request_id: int, n_rows: int, outputs: list[tuple[str, int]], degraded: bool
) -> None:
    names = tuple(name for name, _ in outputs)
    widths = tuple(width for _, width in outputs)
    scores = np.full((n_rows, sum(widths)), 0.5, np.float32)
    reply = m.ScoreReply(
        request_id=request_id, outputs=names, widths=widths, scores=scores, degraded=degraded
    )
    got = ScoreReplyEncoder(names, widths).encode(request_id, scores, degraded=degraded)
    assert [bytes(frame) for frame in got] == [
        bytes(frame) for frame in encode(Packet("", 0, reply))
    ]

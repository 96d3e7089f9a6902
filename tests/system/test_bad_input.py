"""What a client can do to a node: nothing, but get a clear answer and see others served on."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import msgpack
import numpy as np
import pytest
import zmq

from kernels.bundle.build import BuildOptions, build_bundle
from tests import tiny
from tests.system.cluster_help import Node, serving
from transport.blocking import BlockingClient
from transport.codec import PREFIX, Packet, decode, encode
from transport.columns import blocks_from_columns
from transport.messages import (
    CANDIDATE,
    USER,
    Block,
    ErrorReply,
    Message,
    Ping,
    Pong,
    ScoreReply,
    ScoreRequest,
)

BUDGET_S = 30.0
PATIENCE_MS = 30_000
Frames = Sequence[bytes]

USER_COLUMNS: dict[str, Any] = {"user_id": 3, "history": [1, 2, 3], "age": 33.0}
CANDIDATES: dict[str, Any] = {
    "item_id": [0, 16, 5],
    "genre": ["crime", "été", "drama"],
    "price": [1.5, -0.25, 4.0],
}
CLICKS = tiny.click(
    {"user_id": 3, "history": [1, 2, 3], "age": 33.0},
    {"item_id": [0, 16, 5], "genre": [2, 4, 0], "price": [1.5, -0.25, 4.0]},
)


@attrs.frozen(eq=False)
class Served:
    """A node that serves the tiny model, and an honest client of it."""

    node: Node
    pid: int
    client: BlockingClient
    context: zmq.Context[zmq.Socket[bytes]]

    def check_serves(self) -> None:
        """A good request gets the right scores, from the process that was there at first."""
        scores = self.client.score(
            model="tiny", user=USER_COLUMNS, candidates=CANDIDATES, budget=BUDGET_S
        )
        np.testing.assert_allclose(scores.scores, CLICKS, rtol=1e-4, atol=1e-6)
        assert self.node.pid() == self.pid, self.node.out.read_text()

    @contextmanager
    def peer(self) -> Iterator[Peer]:
        """Connect as somebody who may send anything; afterwards the node must serve on."""
        with self.context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(self.node.address)
            yield Peer(dealer)
        self.check_serves()


@attrs.frozen(eq=False)
class Peer:
    """A connection that sends whatever it is told to."""

    dealer: zmq.Socket[bytes]

    def send(self, frames: Frames) -> None:
        self.dealer.send_multipart(frames)

    def answer(self) -> Message:
        assert self.dealer.poll(PATIENCE_MS), "there was no answer"
        return decode(self.dealer.recv_multipart()).message

    def ask(self, message: Message) -> Message:
        self.send(frames_of(message))
        return self.answer()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve until the module's last test, then drain: exit code 0, and no restart on the way."""
    folder: Path = tmp_path_factory.mktemp("served")
    model, spec = tiny.write_model(folder / "model")
    build_bundle(model, spec, folder / "tiny", BuildOptions())
    with serving({"tiny": folder / "tiny"}, folder) as node:
        with BlockingClient(node.address) as client, zmq.Context() as context:
            yield Served(node, node.pid(), client, context)
        assert node.stop() == 0, node.out.read_text()
        assert "restart" not in node.out.read_text()
        assert "Traceback" not in node.out.read_text()


def frames_of(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(Packet(to="", ask_id=0, message=message))]


def request(
    user: Mapping[str, Any] | None = None,
    candidates: Mapping[str, Any] | None = None,
    **fields: object,
) -> ScoreRequest:
    """Make the good request with some columns replaced, each of the length that it has.

    A column that is None is left out. The clients would refuse some of these themselves.
    """
    blocks: list[Block] = []
    changed = {**USER_COLUMNS, **(user or {})}
    blocks += blocks_from_columns(USER, {k: v for k, v in changed.items() if v is not None}, 1)
    for name, column in {**CANDIDATES, **(candidates or {})}.items():
        if column is not None:
            blocks += blocks_from_columns(CANDIDATE, {name: column}, len(column))
    settings: dict[str, Any] = {
        "request_id": 77,
        "model": "tiny",
        "budget_us": 30_000_000,
        "n_candidates": 3,
    }
    return ScoreRequest(**{**settings, "blocks": tuple(blocks), **fields})


def rows(*items: object, **fields: object) -> ScoreRequest:
    return request(None, None, blocks=(), rows=msgpack.packb(items), **fields)


GOOD_ROW = {"item_id": 5, "genre": "drama", "price": 4.0}
LIMIT = 10**6

WRONG = {
    "unknown model": (request(model="huge"), "model", "no model 'huge' here; there are tiny"),
    "unknown feature": (request(candidates={"colour": [1, 2, 3]}), "colour", "no such feature"),
    "feature left out": (request(candidates={"item_id": None}), "item_id", "is missing"),
    "wrong side": (request(user={"price": 1.0}, candidates={"price": None}), "price", "candidate"),
    "text for a number": (request(candidates={"price": ["1", "2", "3"]}), "price", "got text"),
    "text for an id": (request(user={"user_id": "3"}), "user_id", "want numbers, got text"),
    "number for text": (request(candidates={"genre": [1, 2.5, 3]}), "genre", "not an integer"),
    "list for a number": (request(user={"age": [1.0, 2.0]}), "age", "1"),
    "number for a list": (request(user={"history": "abc"}), "history", "want numbers, got text"),
    "a column too short": (request(candidates={"price": [1.0, 2.0]}), "price", "2"),
    "a column too long": (request(candidates={"genre": ["crime"] * 4}), "genre", "4"),
    "NaN for an id": (request(candidates={"item_id": [0, np.nan, 1]}), "item_id", "candidate 1"),
    "an id too large": (request(candidates={"item_id": [0, 1, 17]}), "item_id", "outside 0 to 16"),
    "a negative id": (request(user={"user_id": -1}), "user_id", "-1 is outside 0 to 10"),
    "an id in a list": (request(user={"history": [1, 99]}), "history", "99 is outside 0 to 16"),
    "an id of 64 bits": (request(user={"user_id": 2**64 - 1}), "user_id", "outside 0 to 10"),
    "infinity": (request(candidates={"price": [1.0, np.inf, 0.0]}), "price", "not finite"),
    "10^6 candidates": (
        request(
            candidates={
                "item_id": np.zeros(LIMIT, np.int64),
                "price": np.zeros(LIMIT),
                "genre": np.zeros(LIMIT, np.int64),
            },
            n_candidates=LIMIT,
        ),
        "n_candidates",
        "1000000",
    ),
    "rows of nothing": (request(blocks=(), rows=b"\xc1"), "rows", "want [user, [candidate"),
    "rows cut off": (
        request(blocks=(), rows=msgpack.packb([USER_COLUMNS, [GOOD_ROW]])[:-3]),
        "rows",
        "want [user",
    ),
    "rows of another number": (rows(USER_COLUMNS, [GOOD_ROW]), "n_candidates", "there are 1 rows"),
    "rows that are no maps": (
        rows(USER_COLUMNS, [1, 2, 3]),
        "candidates",
        "candidate 0: want a map",
    ),
    "a user that is no map": (rows([1], [GOOD_ROW] * 3), "user", "want a map"),
    "rows with maps in them": (
        rows(USER_COLUMNS, [GOOD_ROW, {**GOOD_ROW, "price": {"a": {"b": [1]}}}, GOOD_ROW]),
        "price",
        "candidate 1",
    ),
    "rows with lists of lists": (
        rows({**USER_COLUMNS, "history": [[[[1]]]]}, [GOOD_ROW] * 3),
        "history",
        "list",
    ),
    "rows nested deeply": (
        request(blocks=(), rows=b"\x92\x80\x93" + b"\x91" * 5000 + b"\x00"),
        "rows",
        "want [user",
    ),
    "rows with bytes": (rows({**USER_COLUMNS, "age": b"\xff"}, [GOOD_ROW] * 3), "age", "bytes"),
    "rows with numbers for names": (rows(USER_COLUMNS, [{7: 7}] * 3), "rows", "int is not allowed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_request_is_told_by_field(served: Served, case: str) -> None:
    asked, field, words = WRONG[case]
    with served.peer() as peer:
        answer = peer.ask(asked)
    assert isinstance(answer, ErrorReply), answer
    assert (answer.request_id, answer.code, answer.field) == (77, "invalid", field), answer
    assert words in answer.message
    assert field.removesuffix("s") in answer.message


def test_no_candidates_get_no_scores(served: Served) -> None:
    nobody: dict[str, Any] = {name: [] for name in CANDIDATES}
    with served.peer() as peer:
        for asked in (request(candidates=nobody, n_candidates=0), rows({}, [], n_candidates=0)):
            answer = peer.ask(asked)
            assert isinstance(answer, ScoreReply), answer
            assert (answer.request_id, answer.outputs, answer.scores.shape) == (
                77,
                ("click",),
                (0, 1),
            )


def test_good_rows_are_scored(served: Served) -> None:
    candidates = [{n: column[i] for n, column in CANDIDATES.items()} for i in range(3)]
    with served.peer() as peer:
        answer = peer.ask(rows(USER_COLUMNS, candidates))
    assert isinstance(answer, ScoreReply), answer
    np.testing.assert_allclose(answer.scores[:, 0], CLICKS, rtol=1e-4, atol=1e-6)


def test_a_request_cut_off_anywhere_is_refused(served: Served) -> None:
    prefix, header, blob = frames_of(request())
    with served.peer() as peer:
        for size in range(len(header)):
            peer.send([prefix, header[:size], blob])
            assert_invalid(peer.answer(), request_id=0)
        for size in (0, 1, 63, 64, 65, len(blob) // 2, len(blob) - 1):
            peer.send([prefix, header, blob[:size]])
            assert_invalid(peer.answer(), request_id=77)
        peer.send([prefix, header])
        assert_invalid(peer.answer(), request_id=77)
        for size in range(len(prefix)):
            peer.send([prefix[:size], header, blob])
            assert_invalid(peer.answer(), request_id=0, words="not this protocol")
        peer.send([prefix])
        assert_invalid(peer.answer(), request_id=0, words="1 frames")


def assert_invalid(answer: Message, request_id: int, words: str = "") -> None:
    assert isinstance(answer, ErrorReply), answer
    assert (answer.request_id, answer.code) == (request_id, "invalid"), answer
    assert answer.message
    assert words in answer.message


def test_random_frames_are_refused_one_by_one(served: Served) -> None:
    rng = random.Random(7)
    with served.peer() as peer:
        for _ in range(300):
            n_frames = rng.randrange(1, 6)
            noise = [rng.randbytes(rng.randrange(200)) for _ in range(n_frames)]
            peer.send(noise)
            assert_invalid(peer.answer(), request_id=0)
            peer.send([PREFIX, *noise])
            assert_invalid(peer.answer(), request_id=0)


def test_a_request_with_any_byte_changed_is_answered(served: Served) -> None:
    rng = random.Random(8)
    prefix, header, blob = frames_of(request())
    with served.peer() as peer:
        for at in range(len(header)):
            damaged = bytearray(header)
            damaged[at] ^= rng.randrange(1, 256)
            peer.send([prefix, bytes(damaged), blob])
            assert isinstance(peer.answer(), (ErrorReply, ScoreReply)), at


def test_a_large_frame_of_garbage_is_refused(served: Served) -> None:
    with served.peer() as peer:
        peer.send([PREFIX, bytes(32 << 20)])
        assert_invalid(peer.answer(), request_id=0, words="header of 33554432 bytes")
        peer.send([*frames_of(request()), bytes(32 << 20)])
        assert_invalid(peer.answer(), request_id=77)


def test_a_frame_over_the_limit_costs_its_sender_the_connection(served: Served) -> None:
    # ZMTP 3.1, RFC 37: greetings, then a command of each side, then messages.
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    prefix, ping = frames_of(Ping(request_id=5))
    host, port = served.node.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_MS / 1000) as peer:
        peer.sendall(greeting)
        read_until(peer, b"READY")
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
        peer.sendall(b"\x01" + bytes([len(prefix)]) + prefix + b"\x00" + bytes([len(ping)]) + ping)
        read_until(peer, b"ready")  # the answer: this connection is in order
        peer.sendall(b"\x02" + (1 << 40).to_bytes(8, "big"))
        try:
            while peer.recv(4096):
                pass
        except ConnectionResetError:
            pass  # a way to end it as well
    served.check_serves()


def read_until(peer: socket.socket, end: bytes) -> None:
    seen = b""
    while end not in seen:
        more = peer.recv(4096)
        assert more, "the node closed the connection"
        seen += more


def test_another_version_is_refused_by_name(served: Served) -> None:
    _, header, blob = frames_of(request())
    with served.peer() as peer:
        peer.send([b"TB\x09", header, blob])
        assert_invalid(peer.answer(), request_id=0, words="version 9")


def test_an_error_is_never_answered_and_other_replies_are_refused(served: Served) -> None:
    with served.peer() as peer:
        peer.send(frames_of(ErrorReply(request_id=5, code="internal", message="no, you are")))
        assert peer.ask(Ping(request_id=6)) == Pong(request_id=6, status="ready")
        assert_invalid(peer.ask(Pong(request_id=7, status="ready")), 7, words="cannot send Pong")


def test_clients_that_vanish_or_never_read_do_not_hold_up_others(served: Served) -> None:
    frames = frames_of(request())
    with served.peer() as deaf:
        for _ in range(2000):
            deaf.send(frames)
        for _ in range(3):
            with served.context.socket(zmq.DEALER) as gone:
                gone.sndhwm = 0
                gone.linger = PATIENCE_MS  # all of it leaves, and nobody is there for the answers
                gone.connect(served.node.address)
                for _ in range(1000):
                    gone.send_multipart(frames)
            served.check_serves()

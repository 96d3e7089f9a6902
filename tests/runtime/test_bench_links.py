"""The benchmark over real sockets: requests for any model, a gateway that is a thread, a peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import pytest
import zmq
from onnx import TensorProto, helper, numpy_helper

from kernels.features.spec import load_spec, parse_spec
from runtime import cluster_file
from runtime.bench import contenders, procs, wires
from runtime.bench.__main__ import main
from runtime.bench.bundles import build_inferred, split_spec
from runtime.bench.links import ID_BASE, Prepared
from runtime.bench.load import closed_loop
from runtime.bench.pool import Pool, Wanted, make_pool, read_wanted
from runtime.bench.topologies import cluster_text
from runtime.bench.traffic import parse_sizes
from runtime.bench.whole import WholeModel
from tests import tiny
from transport.codec import Packet, decode, encode
from transport.messages import (
    CANDIDATE,
    USER,
    ErrorReply,
    Message,
    ModelsReply,
    ModelsRequest,
    Ping,
    Pong,
    ScoreReply,
    ScoreRequest,
    StatsReply,
    StatsRequest,
)

WANTED = [
    Wanted(name="age", side=USER, kind="numeric", width=1, n_ids=0),
    Wanted(name="city", side=USER, kind="categorical", width=1, n_ids=3, words=("a", "bé", "cc")),
    Wanted(name="last", side=USER, kind="sequence", width=4, n_ids=9),
    Wanted(name="item", side=CANDIDATE, kind="categorical", width=1, n_ids=50),
    Wanted(name="price", side=CANDIDATE, kind="numeric", width=1, n_ids=0),
    Wanted(name="vector", side=CANDIDATE, kind="numeric", width=3, n_ids=0),
    Wanted(name="tags", side=CANDIDATE, kind="multi", width=2, n_ids=2, words=("x", "yy")),
]


def pool_of(wanted: list[Wanted], n: int = 20, sizes: str = "lognormal:5,1,20") -> Pool:
    return make_pool(
        wanted,
        model="m",
        n=n,
        sizes=parse_sizes(sizes),
        skew=1.05,
        budget_us=50_000,
        rng=np.random.default_rng(5),
    )


def test_requests_hold_every_feature_once_and_within_its_range() -> None:
    for request in pool_of(WANTED).requests:
        names = [name for block in request.blocks for name in block.names]
        assert sorted(names) == sorted(w.name for w in WANTED)
        for block in request.blocks:
            n = 1 if block.side == USER else request.n_candidates
            if block.char_splits is not None:
                text = block.values.tobytes()
                words = [
                    text[a:b].decode()
                    for a, b in zip(block.char_splits, block.char_splits[1:], strict=False)
                ]
                assert set(words) <= {"a", "bé", "cc", "x", "yy"}
                assert block.char_splits[-1] == len(text)
            if block.row_splits is not None:
                assert len(block.row_splits) == n + 1
                assert np.diff(block.row_splits).min() >= 0
                assert np.diff(block.row_splits).max() <= 4
            elif block.char_splits is None:
                assert block.values.shape[:2] == (len(block.names), n)
            if "item" in block.names:
                items = block.values[block.names.index("item")]
                assert (items == np.floor(items)).all()
                assert items.min() >= 0
                assert items.max() < 50


def test_numbers_of_one_side_share_a_block() -> None:
    wanted = [
        Wanted(name=f"f{k}", side=CANDIDATE, kind="numeric", width=1, n_ids=k) for k in range(16)
    ]
    (request,) = pool_of(wanted, n=1).requests
    (block,) = request.blocks
    assert block.values.dtype == np.float32
    assert len(block.names) == 16


def test_ids_that_float32_cannot_hold_travel_as_float64() -> None:
    wanted = [Wanted(name="id", side=CANDIDATE, kind="categorical", width=1, n_ids=1 << 25)]
    (request,) = pool_of(wanted, n=1).requests
    assert request.blocks[0].values.dtype == np.float64


def test_features_are_read_from_what_a_gateway_says() -> None:
    wanted = read_wanted(
        [
            {"name": "a", "side": "user", "kind": "numeric", "width": 2, "type": "number"},
            {
                "name": "b",
                "side": "candidate",
                "kind": "categorical",
                "width": 1,
                "encode": "identity",
                "size": 7,
            },
            {"name": "c", "side": "user", "kind": "multi", "width": 3, "encode": "vocabulary"},
            {"name": "d", "side": "user", "kind": "sequence", "width": 4, "encode": "key"},
        ],
        {"c": ["u", "v"]},
    )
    assert [(w.side, w.n_ids, w.width, w.words) for w in wanted] == [
        (USER, 0, 2, ()),
        (CANDIDATE, 7, 1, ()),
        (USER, 2, 3, ("u", "v")),
        (USER, 1_000_000, 4, ()),
    ]


def test_a_vocabulary_that_only_the_bundle_has_is_asked_for_by_name() -> None:
    described = {"name": "c", "side": "user", "kind": "multi", "width": 3, "encode": "vocabulary"}
    with pytest.raises(ValueError, match=r"'c'.*--bundle"):
        read_wanted([described], {})


def test_prepared_requests_decode_to_the_pools_with_another_id() -> None:
    pool = pool_of(WANTED)
    for request, prepared in zip(pool.requests, wires.prepare(pool.requests), strict=True):
        header = prepared.head + (ID_BASE | 77).to_bytes(8, "big") + prepared.tail
        read = decode([*prepared.before, header, *prepared.after]).message
        assert isinstance(read, ScoreRequest)
        assert read.request_id == ID_BASE | 77
        assert (read.model, read.budget_us) == ("m", 50_000)
        assert read.n_candidates == request.n_candidates
        for got, sent in zip(read.blocks, request.blocks, strict=True):
            assert got.names == sent.names
            np.testing.assert_array_equal(got.values, sent.values)


def test_an_id_that_is_not_once_in_the_frames_is_no_place_to_write() -> None:
    mark = (9).to_bytes(8, "big")
    for frames in ([b"none"], [mark, mark], [mark + mark]):
        with pytest.raises(ValueError, match="once"):
            Prepared.of(frames, 9)


@attrs.define
class Gateway:
    """A gateway in a thread: scores are the sums of each candidate's numbers, times two."""

    context: zmq.Context[zmq.Socket[bytes]]
    refuse: Callable[[int], str | None] = lambda k: None
    n_requests: int = 0
    address: str = ""

    def serve(self, bound: threading.Event, stop: threading.Event) -> None:
        with self.context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            self.address = f"tcp://127.0.0.1:{port}"
            bound.set()
            while not stop.is_set():
                if socket.poll(20):
                    identity, *frames = socket.recv_multipart()
                    reply = self.answer(decode(frames).message)
                    if reply is not None:
                        socket.send_multipart([identity, *encode(Packet("", 0, reply))])

    def answer(self, message: Message) -> Message | None:
        if isinstance(message, ScoreRequest):
            self.n_requests += 1
            code = self.refuse(self.n_requests)
            if code == "lost":
                return None
            if code is not None:
                return ErrorReply(request_id=message.request_id, code=code, message="no")
            (block,) = [block for block in message.blocks if block.side == CANDIDATE]
            scores = 2 * block.values.sum(axis=0, dtype=np.float32).reshape(-1, 1)
            return ScoreReply(
                request_id=message.request_id, outputs=("y",), widths=(1,), scores=scores
            )
        if isinstance(message, ModelsRequest):
            features = [
                {"name": "u", "side": "user", "kind": "numeric", "width": 1},
                {"name": "a", "side": "candidate", "kind": "numeric", "width": 1},
                {"name": "b", "side": "candidate", "kind": "numeric", "width": 1},
            ]
            models = json.dumps({"m": {"version": "1", "features": features, "outputs": []}})
            return ModelsReply(request_id=message.request_id, models=models)
        if isinstance(message, StatsRequest):
            stats = {"gateway": {"parse_us": {"n": 1, "mean": 5.0, "p99": 9.0}}}
            return StatsReply(request_id=message.request_id, stats=json.dumps(stats))
        assert isinstance(message, Ping)
        return Pong(request_id=message.request_id, status="ready")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    bound, stop = threading.Event(), threading.Event()
    with zmq.Context() as context:
        server = Gateway(context)
        thread = threading.Thread(target=server.serve, args=(bound, stop))
        thread.start()
        assert bound.wait(5)
        yield server
        stop.set()
        thread.join()


def run(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, Any], str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == (status != 2)
    return status, json.loads(lines[0]) if lines else {}, err


KEYS = [
    "model",
    "topology",
    "load",
    "sizes",
    "budget_ms",
    "seconds",
    "sent",
    "ok",
    "shed",
    "expired",
    "failed",
    "lost",
    "requests_per_s",
    "rows_per_s",
    "goodput_per_s",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "generator_cpu_s_per_1000",
    "cpu_s_per_1000",
    "stages_us",
    "machine",
]


def test_an_open_loop_against_a_gateway_gives_one_line_and_a_plot(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "latency.svg"
    arguments = ["--connect", gateway.address, "--rate", "400", "--duration", "0.5"]
    arguments += ["--warmup", "0", "--sizes", "3", "--plot", str(picture)]
    status, line, _ = run(arguments, capsys)
    assert status == 0
    assert not [key for key in KEYS if key not in line]
    assert line["sent"] == line["ok"] == gateway.n_requests
    assert 120 < line["sent"] < 280
    assert line["rows_per_s"] == pytest.approx(3 * line["requests_per_s"], rel=0.01)
    assert line["stages_us"] == {"gateway.parse": {"mean": 5.0, "p99": 9.0}}
    assert {"cores", "python", "versions"} <= line["machine"].keys()
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_refusals_and_losses_are_counted_for_what_they_are(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {0: "overloaded", 1: "deadline", 2: "internal", 3: "lost"}
    gateway.refuse = lambda k: codes.get(k % 10)
    arguments = ["--connect", gateway.address, "--rate", "400", "--duration", "0.25"]
    arguments += ["--warmup", "0", "--budget-ms", "10", "--seed", "3"]
    status, line, _ = run(arguments, capsys)
    assert status == 1
    tenth = line["sent"] / 10
    for name in ("shed", "expired", "failed", "lost"):
        assert line[name] == pytest.approx(tenth, abs=1), name
    assert line["ok"] == line["sent"] - sum(
        line[name] for name in ("shed", "expired", "failed", "lost")
    )


def test_a_closed_loop_says_how_many_clients_it_had(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--connect", gateway.address, "--clients", "8", "--duration", "0.3"]
    status, line, _ = run([*arguments, "--warmup", "0"], capsys)
    assert status == 0
    assert (line["load"], line["clients"]) == ("closed", 8)
    assert line["requests_per_s"] > 50


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "want --connect"),
        (["--connect", "ADDRESS", "--model", "x"], "serves: m"),
        (["--connect", "ADDRESS", "--sizes", "many"], "'many'"),
        (["--connect", "ADDRESS", "--peers"], "--peers run the whole model"),
        (["--bundle", "b", "--onnx", "m", "--peers", "loop,gunicorn"], "'gunicorn'"),
        (["--connect", "ADDRESS", "--rate", "-1"], "--rate"),
        (["--user-columns", "3"], "--onnx"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_one_line(
    arguments: list[str], problem: str, gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [gateway.address if word == "ADDRESS" else word for word in arguments]
    status, _, err = run(filled, capsys)
    assert status == 2
    assert problem in err
    assert err.count("\n") == 1


SPEC = """
version = 1
[features.u]
side = "user"
kind = "numeric"
input = "X"
[features.c]
side = "candidate"
kind = "categorical"
encode = "identity"
size = 5
first_id = 1
input = "X"
column = 1
[features.d]
side = "candidate"
kind = "numeric"
input = "X"
column = 2
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose score is 100 u + 10 c + d, of one matrix X."""
    weights = numpy_helper.from_array(np.array([[100], [10], [1]], np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "w"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [weights],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "sum.onnx")
    (tmp_path / "features.toml").write_text(SPEC)
    return tmp_path / "sum.onnx"


def whole_and_pool(model: Path) -> tuple[WholeModel, Pool]:
    spec = load_spec(model.with_name("features.toml"))
    wanted = read_wanted(spec.describe(), {})
    return WholeModel.open(model, spec), pool_of(wanted)


def test_the_whole_models_scores_are_those_of_the_requests_features(model: Path) -> None:
    whole, pool = whole_and_pool(model)
    assert whole.leading_user_columns() == 1
    for request in pool.requests:
        values = {
            name: values
            for block in request.blocks
            for name, values in zip(block.names, block.values, strict=True)
        }
        want = 100 * values["u"] + 10 * (values["c"] + 1) + values["d"]
        scores = whole.run(whole.inputs(request))
        np.testing.assert_allclose(scores[:, 0], want, rtol=1e-6)


@pytest.mark.parametrize("most", [1, 4])
def test_the_peer_loop_scores_every_request_as_the_whole_model_does(model: Path, most: int) -> None:
    whole, pool = whole_and_pool(model)
    order = [k % len(pool.requests) for k in range(100)]
    with contenders.zeromq_loop(model, whole, 1, pool, most=most) as peer:
        link = peer.connect(order, 1)
        record = closed_loop(link, 8, most=100, duration_s=10, drain_s=1)
        link.close()
        assert peer.pid is not None
        assert set(procs.cpu_seconds(peer.pid)) == {"server"}
    assert record.codes.tolist() == [0] * 100
    for index, answer in link.kept.items():
        want = whole.run(whole.inputs(pool.requests[order[index]]))
        np.testing.assert_allclose(peer.scores(answer), want, rtol=1e-6)
    assert len(link.kept) == 100


def test_a_model_that_requests_cannot_feed_is_refused_by_feature(model: Path) -> None:
    path = model.with_name("features.toml")
    path.write_text(
        SPEC.replace(
            'kind = "numeric"\ninput = "X"\ncolumn = 2',
            'kind = "numeric"\ntransform = "log"\ninput = "X"\ncolumn = 2',
        )
    )
    with pytest.raises(ValueError, match="'d'"):
        WholeModel.open(model, load_spec(path))


def test_processes_are_listed_with_their_time_and_parent() -> None:
    mine = {process.pid: process for process in procs.list_processes()}[os.getpid()]
    assert mine.parent == os.getppid()
    assert mine.cpu_s == pytest.approx(procs.own_cpu_seconds(), abs=1)
    assert "python" in mine.command


def test_cpu_time_is_told_by_stage() -> None:
    child = "import time; print('up', flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys\n"
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}, '--node', 'gateway'],"
        " stdout=subprocess.PIPE)\n"
        "c.stdout.readline(); print('up', file=sys.stderr, flush=True)\n"
        "try: sys.stdin.read()\n"
        "finally: c.kill(); c.wait(); c.stdout.close()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process:
        process.stderr.readline()
        seconds = procs.cpu_seconds(process.pid)
        process.stdin.close()
        process.wait()
    assert set(seconds) == {"supervisor", "gateway"}


@pytest.mark.parametrize(("topology", "n_nodes"), [("all-in-one", 1), ("spread", 4)])
def test_cluster_files_are_those_that_a_node_reads(
    topology: str, n_nodes: int, tmp_path: Path
) -> None:
    text = cluster_text(tmp_path / "DeepFM", topology, 2, "tcp://127.0.0.1:7400", tmp_path / "run")
    cluster = cluster_file.loads(text, tmp_path / "cluster.toml")
    assert len(cluster.nodes) == n_nodes
    assert cluster.models["DeepFM"].bundle == tmp_path / "DeepFM"
    assert cluster.node_of("gateway").actors[0].options == {"listen": "tcp://127.0.0.1:7400"}


def test_a_bare_model_becomes_a_bundle_whose_first_columns_are_the_users(tmp_path: Path) -> None:
    onnx_path, _ = tiny.write_model(tmp_path / "model")
    bundle = build_inferred(onnx_path, 2 + tiny.HISTORY, tmp_path / "built")
    spec = load_spec(bundle / "features.toml", tables=False)
    assert {f.name: (f.side, f.width) for f in spec.features} == {
        "user_id": ("user", 1),
        "history": ("user", tiny.HISTORY),
        "age": ("user", 1),
        "item_id": ("candidate", 1),
        "genre": ("candidate", 1),
        "price": ("candidate", 1),
    }
    assert bundle.name == "tiny"
    whole = WholeModel.open(onnx_path, spec)
    (request,) = pool_of(read_wanted(spec.describe(), {}), n=1, sizes="3").requests
    values = {
        name: values
        for block in request.blocks
        for name, values in zip(block.names, block.values, strict=True)
    }
    user = {"history": [int(id_) for id_ in values["history"][0]], "age": values["age"][0]}
    want = tiny.click(
        {**user, "user_id": int(values["user_id"][0])},
        {
            "item_id": values["item_id"].astype(int),
            "genre": values["genre"].astype(int),
            "price": values["price"],
        },
    )
    np.testing.assert_allclose(whole.run(whole.inputs(request))[:, 0], want, rtol=1e-4)


@pytest.mark.parametrize("columns", [0, 3, 99])
def test_a_border_within_a_feature_or_outside_the_model_is_refused(
    columns: int, tmp_path: Path
) -> None:
    onnx_path, _ = tiny.write_model(tmp_path / "model")
    with pytest.raises(ValueError, match="--user-columns"):
        build_inferred(onnx_path, columns, tmp_path / "built")


def test_numbers_that_a_model_takes_together_are_features_of_their_own() -> None:
    text = 'version = 1\n[features.a]\nside = "user"\nkind = "numeric"\nwidth = 3\ninput = "X"\n'
    split = split_spec(parse_spec(text, Path()), 1)
    features = parse_spec(split, Path()).features
    assert [(f.name, f.column, f.side) for f in features] == [
        ("X[0]", 0, "user"),
        ("X[1]", 1, "candidate"),
        ("X[2]", 2, "candidate"),
    ]

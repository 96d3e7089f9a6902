"""What does a deployment do to those who ask meanwhile? ``python -m tests.bench.bench_swap``.

A cluster of four processes (gateway, two shards, an executor) serves requests of 100 candidates
that arrive at random at ``--rate``; two bundles, whose scores differ, are deployed in turn
(``python -m actors.deploy``, on the same machine). Quiet periods and swaps alternate, so both see
the same neighbours. A swap is all of the command's time, from its start to its end. Latency
counts from when a request was due. Each answer is compared with both versions in numpy.

Prints one JSON line: p50 and p99 in ms, quiet and during swaps, and their ratio; answers that
failed or were no one version's; each node's memory that is no file's, in MiB, after each swap.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import trio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.store.scale import memory_mb
from tests.system.cluster_help import Node, serving
from tests.system.deploy_faults import ONCE, deploy
from transport.client import Client
from transport.errors import RequestError, TransportError

HIDDEN = 256
N_REQUESTS, N_CANDIDATES = 64, 100

FEATURES = """\
version = 1
[features.user_id]
side = "user"
kind = "categorical"
encode = "identity"
size = {rows}
[features.item_id]
side = "candidate"
kind = "categorical"
encode = "identity"
size = {rows}
[features.price]
side = "candidate"
kind = "numeric"
"""


def weights(seed: int, rows: int, dim: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {
        "users": (rows, dim),
        "items": (rows, dim),
        "w1": (2 * dim + 1, HIDDEN),
        "w2": (HIDDEN, HIDDEN),
        "w3": (HIDDEN, 1),
    }
    return {name: 0.2 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def build(folder: Path, arrays: dict[str, NDArray[np.float32]]) -> Path:
    def tensor(name: str, dtype: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, ["batch", 1])

    nodes = [
        helper.make_node("Gather", ["users", "user_id"], ["user_rows"]),
        helper.make_node("Gather", ["items", "item_id"], ["item_rows"]),
        helper.make_node("Flatten", ["user_rows"], ["user"]),
        helper.make_node("Flatten", ["item_rows"], ["item"]),
        helper.make_node("Concat", ["user", "item", "price"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("MatMul", ["r2", "w3"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["click"]),
    ]
    ints, floats = TensorProto.INT64, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "swap",
        [tensor("user_id", ints), tensor("item_id", ints), tensor("price", floats)],
        [tensor("click", floats)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "swap.onnx")
    (folder / "features.toml").write_text(FEATURES.format(rows=len(arrays["users"])))
    build_bundle(folder / "swap.onnx", folder / "features.toml", folder / "bundle", BuildOptions())
    (folder / "swap.onnx").unlink()
    return folder / "bundle"


@attrs.frozen(eq=False)
class Question:
    """A request, and what each version answers."""

    user: dict[str, Any]
    candidates: dict[str, Any]
    want: Sequence[NDArray[np.float64]]


def questions(versions: Sequence[dict[str, NDArray[np.float32]]]) -> list[Question]:
    rng = np.random.default_rng(0)
    rows = len(versions[0]["users"])
    asked = []
    for _ in range(N_REQUESTS):
        user, items = int(rng.integers(rows)), rng.integers(0, rows, N_CANDIDATES)
        prices = rng.random(N_CANDIDATES, np.float32)
        want = []
        for arrays in versions:
            w = {name: arrays[name].astype(np.float64) for name in ("w1", "w2", "w3")}
            users = np.tile(arrays["users"][user], (N_CANDIDATES, 1))
            x = np.concatenate([users, arrays["items"][items], prices[:, None]], axis=1)
            h = np.maximum(np.maximum(x @ w["w1"], 0) @ w["w2"], 0)
            want.append((1 / (1 + np.exp(-(h @ w["w3"]))))[:, 0])
        asked.append(Question({"user_id": user}, {"item_id": items, "price": prices}, want))
    return asked


@attrs.define(eq=False)
class Measured:
    """Latencies in seconds, by phase, and what went wrong."""

    phase: str = "warm"
    seconds: dict[str, list[float]] = attrs.field(factory=dict)
    failed: list[str] = attrs.field(factory=list)
    n_mixed: int = 0
    by_version: list[int] = attrs.field(factory=lambda: [0, 0])


async def load(client: Client, asked: list[Question], rate: float, measured: Measured) -> None:
    """Ask at random times until cancelled."""
    rng = np.random.default_rng(1)
    due = trio.current_time()
    async with trio.open_nursery() as nursery:
        while True:
            due += rng.exponential(1 / rate)
            await trio.sleep_until(due)
            question = asked[int(rng.integers(len(asked)))]
            nursery.start_soon(ask, client, question, due, measured)


async def ask(client: Client, question: Question, due: float, measured: Measured) -> None:
    phase = measured.phase
    try:
        scores = await client.score(
            model="m", user=question.user, candidates=question.candidates, budget=1.0
        )
    except (RequestError, TransportError) as error:
        measured.failed.append(f"{type(error).__name__}: {error}")
        return
    measured.seconds.setdefault(phase, []).append(trio.current_time() - due)
    found = [np.allclose(scores.scores, want, atol=1e-4) for want in question.want]
    if sum(found) == 1:
        measured.by_version[found.index(True)] += 1
    else:
        measured.n_mixed += 1


def anonymous_mib(node: Node) -> dict[str, float]:
    """Return each node's resident memory that is no file's."""
    return {name: memory_mb(pid)["anonymous"] for name, pid in node.pids().items()}


async def measure(
    node: Node, bundles: list[Path], asked: list[Question], options: argparse.Namespace
) -> dict[str, Any]:
    measured = Measured()
    memory, swaps = [anonymous_mib(node)], []
    async with (
        Client.connect(node.address, policy=ONCE) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(load, client, asked, options.rate, measured)
        await trio.sleep(3)
        for number in range(options.swaps):
            measured.phase = "quiet"
            await trio.sleep(options.quiet_s)
            measured.phase, begun = "swap", trio.current_time()
            done = await deploy(node, bundles[(number + 1) % 2])
            assert done.returncode == 0, done.stderr
            swaps.append(trio.current_time() - begun)
            memory.append(anonymous_mib(node))
        measured.phase = "after"
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    line: dict[str, Any] = {}
    for phase in ("quiet", "swap"):
        times = np.array(measured.seconds[phase]) * 1e3
        p50, p99 = np.percentile(times, [50, 99])
        line[phase] = {
            "n": len(times),
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
            "most_ms": round(float(times.max()), 2),
        }
    line["p99_ratio"] = round(line["swap"]["p99_ms"] / line["quiet"]["p99_ms"], 2)
    return line | {
        "failed": len(measured.failed),
        "failures": sorted(set(measured.failed))[:5],
        "mixed": measured.n_mixed,
        "answers_by_version": measured.by_version,
        "swap_s": [round(each, 2) for each in swaps],
        "anonymous_mib": {name: [each.get(name) for each in memory] for name in memory[0]},
    }


def main() -> int:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_swap")
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--quiet-s", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--rows", type=int, default=200_000, help="of each of two tables")
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    versions = [weights(seed, options.rows, options.dim) for seed in (1, 2)]
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        bundles = [build(Path(folder) / str(n), each) for n, each in enumerate(versions)]
        asked = questions(versions)
        del versions
        with serving({"m": bundles[0]}, Path(folder), apart=True) as node:
            line = trio.run(measure, node, bundles, asked, options)
    about = {"cpu": platform.processor() or platform.machine(), **vars(options)}
    sys.stdout.write(json.dumps(about | line) + "\n")
    return 0 if not line["failed"] and not line["mixed"] else 1


if __name__ == "__main__":
    sys.exit(main())

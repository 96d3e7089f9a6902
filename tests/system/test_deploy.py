"""Deployments on clusters of processes: under load, with a bad bundle, and with deaths."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.swaps import SEEDS, build, version
from tests.system.cluster_help import Node, serving
from tests.system.deploy_faults import (
    COMMAND,
    PATIENCE_S,
    all_serve,
    deploy,
    play,
    under_load,
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def cluster(bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster of a gateway, two shards and an executor, each a process."""
    with serving({"m": bundles[0]}, tmp_path_factory.mktemp("deploy"), apart=True) as node:
        yield node


async def place(cluster: Node, bundles: list[Path], at: int) -> None:
    """Have a bundle served, whatever a test before has left."""
    done = await deploy(cluster, bundles[at])
    assert done.returncode == 0, done.stderr


async def test_swaps_under_load_lose_and_mix_nothing(cluster: Node, bundles: list[Path]) -> None:
    await place(cluster, bundles, 0)
    async with under_load(cluster) as load:
        for at in (1, 0, 1):
            before = len(load.seeds)
            done = await deploy(cluster, bundles[at])
            assert done.returncode == 0, done.stderr
            assert f"m: serves version {version(bundles[at])[:12]}\n".encode() in done.stdout
            assert len(load.seeds) > before
        await trio.sleep(0.1)
    assert not load.failed
    assert load.seeds[0] == SEEDS[0]
    assert load.seeds[-1] == SEEDS[1]
    await all_serve(cluster, bundles[1])
    again = await deploy(cluster, bundles[1])
    assert again.returncode == 0
    assert b"is what it serves already" in again.stdout


async def test_a_bundle_that_one_cannot_serve_is_served_by_none(
    cluster: Node, bundles: list[Path], tmp_path: Path
) -> None:
    await place(cluster, bundles, 0)
    bad = tmp_path / "bundle"
    shutil.copytree(bundles[1], bad)
    (bad / "dense.onnx").write_bytes(b"\x08\x07nonsense")
    async with under_load(cluster) as load:
        done = await deploy(cluster, bad)
    assert done.returncode == 1
    assert b"error: executor-m: " in done.stderr
    assert b"dense.onnx" in done.stderr
    assert done.stderr.endswith(b"; nothing has changed\n")
    assert not load.failed
    assert set(load.seeds) == {SEEDS[0]}
    await all_serve(cluster, bundles[0])


@pytest.mark.parametrize(
    ("victim", "step"),
    [(COMMAND, b": loaded"), ("shard-0", b"is loaded by")],
)
async def test_a_death_on_the_way_leaves_one_version_in_the_end(
    cluster: Node, bundles: list[Path], victim: str, step: bytes
) -> None:
    await place(cluster, bundles, 0)
    await play(cluster, bundles, 0, victim, step)


async def test_a_node_comes_back_with_what_was_deployed(
    bundles: list[Path], tmp_path: Path
) -> None:
    with serving({"m": bundles[0]}, tmp_path) as node:  # a single node is reached as well
        done = await deploy(node, bundles[1])
        assert done.returncode == 0, done.stderr
        os.kill(node.pid(), signal.SIGKILL)
        with trio.fail_after(PATIENCE_S):
            while b"SIGKILL" not in await trio.Path(node.out).read_bytes():  # noqa: ASYNC110
                await trio.sleep(0.01)
        await all_serve(node, bundles[1])
    assert f"serves {bundles[1]}, which was deployed, and not {bundles[0]}" in node.out.read_text()

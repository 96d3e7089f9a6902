"""The command line of ``actors.deploy``, where there is no cluster; with one: ``tests/system``."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.deploy import main

CLUSTER = """\
[cluster]
run_folder = "run"
[models.m]
bundle = "old"
shards = ["shard-0"]
executors = ["executor-0"]
[nodes.node.actors.gateway]
class = "actors.gateway.Gateway"
[nodes.node.actors.shard-0]
class = "actors.shard.EmbeddingShard"
[nodes.node.actors.executor-0]
class = "actors.executor.Executor"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    return tmp_path / "cluster.toml"


@pytest.mark.parametrize(
    ("change", "arguments", "code", "problem"),
    [
        (("[cluster]", "[cluster"), [], 2, "no TOML"),
        (("", ""), ["--patience", "-1"], 2, "--patience: want seconds, got -1"),
        (("[models.m]", "[models.n]"), [], 1, "there is no model 'm'; there are n"),
        (("", ""), ["--without", "gateway"], 1, "no shard or executor 'gateway'; there are shard"),
        (("", ""), ["--patience", "0"], 1, "gateway does not answer (gateway: no answer within"),
    ],
)
def test_what_cannot_be_deployed_is_told_in_one_line(
    change: tuple[str, str],
    arguments: list[str],
    code: int,
    problem: str,
    cluster: Path,
    tiny_bundle: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cluster.write_text(cluster.read_text().replace(*change, 1))
    assert main([str(cluster), "m", str(tiny_bundle), *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert problem in err
    assert err.count("\n") == 1


def test_a_bundle_that_is_none_is_told_before_anybody_is_asked(
    cluster: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(cluster), "m", str(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert err == f"error: {tmp_path}: not a bundle, it has no manifest.json; nothing has changed\n"

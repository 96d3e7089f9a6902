from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cluster_file import load, loads
from runtime.errors import TopologyError

GOOD = """\
[cluster]
name = "films"
drain_s = 3

[models.films]
bundle = "bundle"
shards = ["shard-0"]
executors = ["executor-0"]

[nodes.gateway]
bind = "tcp://10.0.0.1:7500"
[nodes.gateway.actors.gateway]
class = "actors.gateway.Gateway"
mailbox = 128
listen = "tcp://127.0.0.1:7400"
[nodes.shard-0.actors.shard-0]
class = "actors.shard.EmbeddingShard"
[nodes.executor-0]
mps = 50
[nodes.executor-0.actors.executor-0]
class = "actors.executor.Executor"
gpu.mode = "green"
gpu.buckets = [64, { rows = 512, requests = 16 }]
"""


def test_a_cluster_file_becomes_a_topology(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(GOOD)
    topology = load(path)
    assert topology.name == "films"
    assert topology.drain_s == 3.0
    assert [node.name for node in topology.nodes] == ["gateway", "shard-0", "executor-0"]
    assert topology.models["films"].bundle == tmp_path / "bundle"
    films = topology.models["films"]
    assert films.shards == films.replicas_of(0) == ("shard-0",)
    assert (films.replicas, films.missing, films.placement) == (1, "fail", None)
    gateway = topology.node("gateway").actors[0]
    assert gateway.class_name == "actors.gateway.Gateway"
    assert gateway.mailbox == 128
    assert gateway.options == {"listen": "tcp://127.0.0.1:7400"}
    assert topology.node_of("shard-0").name == "shard-0"
    executor = topology.node("executor-0")
    assert executor.mps == 50
    assert executor.actors[0].options == {
        "gpu": {"mode": "green", "buckets": [64, {"rows": 512, "requests": 16}]}
    }
    assert topology.node("gateway").mps is None
    assert topology.address("gateway") == "tcp://10.0.0.1:7500"
    assert topology.address("shard-0") == f"ipc://{topology.run_folder}/shard-0.ipc"
    assert topology.run_folder.name.startswith("films-")


def test_the_name_is_that_of_the_file_unless_given_and_the_run_folder_may_be_chosen() -> None:
    text = '[cluster]\nrun_folder = "run"\n[nodes.a.actors.b]\nclass = "x.Y"\n'
    topology = loads(text, Path("/somewhere/small.toml"))
    assert topology.name == "small"
    assert topology.run_folder == Path("/somewhere/run")


REPLICATED = """\
[models.films]
bundle = "bundle"
shards = ["a", "b", "c", "d"]
executors = ["e"]
replicas = 2
missing = "default"
placement = "plans/films.toml"
[nodes.one.actors]
a.class = "x.Y"
b.class = "x.Y"
e.class = "x.Y"
[nodes.two.actors]
c.class = "x.Y"
d.class = "x.Y"
"""


def test_replicas_of_a_group_are_on_nodes_of_their_own(tmp_path: Path) -> None:
    model = loads(REPLICATED, tmp_path / "cluster.toml").models["films"]
    assert (model.n_groups, model.replicas, model.missing) == (2, 2, "default")
    assert [model.replicas_of(group) for group in range(2)] == [("a", "c"), ("b", "d")]
    assert [model.group_of(shard) for shard in "abcd"] == [0, 1, 0, 1]
    assert model.placement == tmp_path / "plans" / "films.toml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("replicas = 2", "replicas = 0", ":5: [models.films] replicas: want at least 1, got 0"),
        ("replicas = 2", "replicas = '2'", ":5: [models.films] replicas: want a whole number"),
        ("replicas = 2", "replicas = 3", ":5: [models.films] replicas: 4 shards cannot be 3 repl"),
        ("replicas = 2", "replicas = 4", ":3: [models.films] shards: 'a' and 'b', replicas of gr"),
        ('"a", "b"', '"b", "c"', "shards: actor 'c' is named twice"),
        ('"b", "c"', '"c", "b"', ":3: [models.films] shards: 'a' and 'b', replicas of group 0, a"),
        ('"default"', '"zeros"', ':6: [models.films] missing: want "fail" or "default", got'),
        ("placement = ", "placed = ", ":7: [models.films] placed: is unknown; there are bundle,"),
    ],
)
def test_a_mistake_about_replicas_is_told(old: str, new: str, message: str) -> None:
    assert old in REPLICATED
    with pytest.raises(TopologyError) as caught:
        loads(REPLICATED.replace(old, new, 1), Path("cluster.toml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("drain_s = 3", "drain_s = 'x'", ":3: [cluster] drain_s: want a number, got 'x'"),
        ("drain_s = 3", "drains = 3", ":3: [cluster] drains: is unknown; there are name, run_f"),
        ("drain_s = 3", "drain_s = -1", ":3: [cluster] drain_s: want seconds, got -1.0"),
        ('name = "films"', 'name = "a/b"', ":2: [cluster] name: 'a/b' is no name"),
        ('bundle = "bundle"', "", ":5: [models.films] bundle: is missing: want a text"),
        ('["shard-0"]', "[]", ":7: [models.films] shards: want at least one actor"),
        ('["shard-0"]', '"shard-0"', ":7: [models.films] shards: want a list of texts, got 'sh"),
        ('["shard-0"]', '["shard-1"]', ":7: [models.films] shards: there is no actor 'shard-1';"),
        ('["shard-0"]', '["shard-0", "shard-0"]', "shards: actor 'shard-0' is named twice"),
        ("mailbox = 128", "mailbox = 0", ":14: [nodes.gateway.actors.gateway] mailbox: want a c"),
        ("mailbox = 128", "mailbox = true", "mailbox: want a whole number, got True"),
        ("[nodes.gateway]", "[nodes]\nextra = 3\n[nodes.gateway]", ":11: [nodes] extra: want a t"),
        ("tcp://10.0.0.1:7500", "10.0.0.1", ":11: [nodes.gateway] bind: want tcp://HOST:PORT or"),
        ("actors.executor-0]", "actors.gateway]", "node 'gateway' has an actor of that name alr"),
        ("mps = 50", "mps = 0", ":19: [nodes.executor-0] mps: want a percentage, 1 to 100, got 0"),
        ("mps = 50", "mps = 50.0", ":19: [nodes.executor-0] mps: want a whole number, got 50.0"),
        ("[cluster]", "[cluster", "no TOML:"),
        ("[cluster]", "[klaster]", ":1: [klaster]"),
    ],
)
def test_a_mistake_is_told_with_its_line_table_and_key(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(TopologyError) as caught:
        loads(GOOD.replace(old, new, 1), Path("cluster.toml"))
    assert str(caught.value).startswith("cluster.toml:")
    assert message in str(caught.value)


def test_a_cluster_has_nodes_and_a_node_has_actors() -> None:
    with pytest.raises(TopologyError, match="at least one node"):
        loads("", Path("cluster.toml"))
    with pytest.raises(TopologyError, match="at least one actor"):
        loads("[nodes.a]", Path("cluster.toml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"absent\.toml: cannot be read"):
        load(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TopologyError, match=r"binary\.toml: cannot be read"):
        load(tmp_path / "binary.toml")

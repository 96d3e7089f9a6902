from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import TopologyError
from runtime.topology import ActorSpec, NodeSpec, Topology, all_in_one, default_run_folder, spread


def test_all_in_one_is_one_node_whose_gateway_stops_first(tmp_path: Path) -> None:
    topology = all_in_one(tmp_path / "films", executor={"n_lanes": 2})
    assert [node.name for node in topology.nodes] == ["node"]
    assert [actor.name for actor in topology.nodes[0].actors] == [
        "gateway",
        "shard-0",
        "executor-0",
    ]
    assert topology.models["films"].bundle == (tmp_path / "films").resolve()
    assert topology.nodes[0].actors[0].options == {}
    assert topology.nodes[0].actors[2].options == {"n_lanes": 2}


def test_spread_puts_each_actor_in_a_node_of_its_own(tmp_path: Path) -> None:
    topology = spread(tmp_path, listen="tcp://127.0.0.1:7400", model="films", n_shards=3)
    names = ["gateway", "shard-0", "shard-1", "shard-2", "executor-0"]
    assert [node.name for node in topology.nodes] == names
    assert topology.models["films"].shards == ("shard-0", "shard-1", "shard-2")
    assert topology.nodes[0].actors[0].options == {"listen": "tcp://127.0.0.1:7400"}
    assert len({topology.address(name) for name in names}) == 5


def test_clusters_of_one_name_have_run_folders_of_their_own(tmp_path: Path) -> None:
    one = default_run_folder("films", tmp_path / "a.toml")
    other = default_run_folder("films", tmp_path / "b.toml")
    assert one != other
    assert one == default_run_folder("films", tmp_path / "a.toml")


def test_a_socket_path_that_the_kernel_would_refuse_is_refused_with_advice() -> None:
    nodes = tuple(
        NodeSpec(name=name, actors=(ActorSpec(name=name, class_name="x.Y"),)) for name in "ab"
    )
    with pytest.raises(TopologyError, match="choose a shorter one"):
        Topology(name="t", nodes=nodes, run_folder=Path("/" + "x" * 120))

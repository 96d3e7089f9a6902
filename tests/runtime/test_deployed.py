from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.compose import check_bundles
from runtime.deployed import Deployed, Deployments, deployments_file, has_deployed
from runtime.errors import StartError
from runtime.topology import ActorSpec, ModelSpec, NodeSpec, Topology

FIRST, SECOND = Path("/bundles/1"), Path("/bundles/2")


def topology(folder: Path, bundle: Path = FIRST) -> Topology:
    actors = tuple(ActorSpec(name=name, class_name="x.Y") for name in ("shard", "executor"))
    model = ModelSpec(name="m", bundle=bundle, shards=("shard",), executors=("executor",))
    return Topology(
        name="t",
        nodes=(NodeSpec(name="n", actors=actors),),
        models={"m": model},
        run_folder=folder,
    )


def both(current: str = "1") -> Deployed:
    return Deployed(instead_of=FIRST, current=current, bundles={"1": FIRST, "2": SECOND})


def test_what_was_written_down_is_read_again(tmp_path: Path) -> None:
    file = deployments_file(topology(tmp_path), "n")
    kept = Deployments(topology(tmp_path), file)
    assert kept.get("shard", "m") is None
    kept.put("shard", "m", both())
    kept.put("executor", "m", both("2"))
    again = Deployments(topology(tmp_path), file)
    assert again.get("shard", "m") == both()
    assert again.get("executor", "m") == both("2")
    assert has_deployed(topology(tmp_path), "m")
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_what_the_topology_says_is_no_news(tmp_path: Path) -> None:
    file = deployments_file(topology(tmp_path), "n")
    kept = Deployments(topology(tmp_path), file)
    kept.put("shard", "m", both())
    kept.put("shard", "m", Deployed(instead_of=FIRST, current="1", bundles={"1": FIRST}))
    assert kept.get("shard", "m") is None
    assert not has_deployed(topology(tmp_path), "m")


def test_another_bundle_in_the_topology_makes_it_void(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = deployments_file(topology(tmp_path), "n")
    Deployments(topology(tmp_path), file).put("shard", "m", both("2"))
    changed = topology(tmp_path, Path("/bundles/3"))
    assert Deployments(changed, file).get("shard", "m") is None
    assert "the cluster file has changed since /bundles/2 was deployed" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "actors": {"shard": {"m": {}}}}']
)
def test_a_damaged_file_is_told_and_counts_as_none(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = deployments_file(topology(tmp_path), "n")
    file.write_text(text)
    assert Deployments(topology(tmp_path), file).get("shard", "m") is None
    assert f"{file} cannot be read" in caplog.text


def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    kept = Deployments(topology(tmp_path), tmp_path / "absent" / "file")
    with pytest.raises(OSError, match="absent"):
        kept.put("shard", "m", both())
    assert kept.get("shard", "m") is None


def test_without_a_file_it_is_kept_in_memory(tmp_path: Path) -> None:
    kept = Deployments(topology(tmp_path))
    kept.put("shard", "m", both())
    assert kept.get("shard", "m") == both()
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_is_not_needed_any_more_may_be_gone(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="model m: there is no bundle /bundles/1"):
        check_bundles(topology(tmp_path))
    Deployments(topology(tmp_path), deployments_file(topology(tmp_path), "n")).put(
        "shard", "m", both("2")
    )
    check_bundles(topology(tmp_path))
    document = json.loads(deployments_file(topology(tmp_path), "n").read_text())
    assert document["actors"]["shard"]["m"]["current"] == "2"

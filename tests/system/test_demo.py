"""The demo as a user runs it: a process that starts a cluster of processes."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from examples import demo
from examples.movielens.catalogue import read_users
from runtime import cluster_file

ROOT = Path(__file__).parents[2]
_LONG_ENOUGH_S = 120.0


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def port_of(output: str) -> int:
    found = re.search(r"tcp://127\.0\.0\.1:(\d+)", output)
    assert found, output
    return int(found[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_demo_ranks_films_as_torch_does_and_says_where_time_goes() -> None:
    process = start("-m", "examples.demo")
    output, errors = process.communicate(timeout=_LONG_ENOUGH_S)
    assert process.returncode == 0, errors
    assert errors == ""
    for user in read_users():
        assert user["name"].capitalize() in output
    places = [int(place) for place in re.findall(r"^ +(\d+)   0\.\d{3}   \S", output, re.MULTILINE)]
    assert places == list(range(1, 11)) * len(read_users())
    error = re.search(r"max abs error (\S+) over 6,728 scores", output)
    assert error
    assert float(error[1]) < 1e-5
    for figure in ("throughput", "latency", "requests a window", *demo.STAGES):
        assert re.search(rf"^  {figure.removesuffix('_us')} .*\d", output, re.MULTILINE), figure
    assert "\033" not in output
    assert all(len(line) <= 100 for line in output.splitlines())
    assert not listens(port_of(output))


def test_scores_that_are_not_those_of_torch_fail_the_demo() -> None:
    patch = (
        "import sys; from examples import demo;"
        "right = demo.read_expected(); right[2, 5] += 2e-4;"
        "demo.read_expected = lambda: right; sys.exit(demo.main())"
    )
    process = start("-c", patch)
    output, errors = process.communicate(timeout=_LONG_ENOUGH_S)
    assert process.returncode == 1
    assert "scores differ from torch's by up to 0.000" in errors
    assert "Traceback" not in errors
    assert not listens(port_of(output))


def test_ctrl_c_ends_the_demo_and_its_cluster() -> None:
    process = start("-u", "-m", "examples.demo")
    assert process.stdout is not None
    port = port_of(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=_LONG_ENOUGH_S)
    assert (process.returncode, errors) == (130, "")
    assert not listens(port)


def test_a_cluster_that_cannot_start_is_reported_with_what_it_said() -> None:
    patch = (
        "import sys; from pathlib import Path; from examples import demo;"
        "text = demo._cluster_text;"
        "demo._cluster_text = lambda address: text(address).replace('Gateway', 'Gatewya');"
        "sys.exit(demo.main())"
    )
    process = start("-c", patch)
    _, errors = process.communicate(timeout=_LONG_ENOUGH_S)
    assert process.returncode == 1
    assert "demo failed: the cluster did not start" in errors
    assert "Gatewya" in errors
    assert "Traceback" not in errors


def test_the_demos_cluster_is_that_of_the_cluster_file_but_for_its_address(tmp_path: Path) -> None:
    shipped = cluster_file.load(ROOT / "examples" / "movielens" / "cluster.toml")
    file = tmp_path / "own.toml"
    file.write_text(demo._cluster_text("tcp://127.0.0.1:1"))
    own = cluster_file.load(file)
    assert own.models == shipped.models
    assert [node.name for node in own.nodes] == [node.name for node in shipped.nodes]
    assert sum(len(node.actors) for node in own.nodes) == demo.N_ACTORS
    [listen] = {a.options["listen"] for n in own.nodes for a in n.actors if "listen" in a.options}
    assert listen == "tcp://127.0.0.1:1"


def test_a_changed_cluster_file_is_not_taken_for_the_demos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "LISTEN", "tcp://127.0.0.1:7411")
    with pytest.raises(demo.DemoFailed, match=r"cluster\.toml: want tcp://127\.0\.0\.1:7411 once"):
        demo._cluster_text("tcp://127.0.0.1:1")

"""The example in JavaScript speaks the protocol that the codec does."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.transport.fake_gateway import refuse
from tests.transport.film_gateway import ROOT, run_with_films, serve_films

EXAMPLES = ROOT / "examples"
CLIENT = ["node", "examples/client.mjs"]


def node_has_packages() -> bool:
    if shutil.which("node") is None:
        return False
    script = "await import('zeromq'); await import('@msgpack/msgpack');"
    command = ["node", "--input-type=module", "--eval", script]
    return subprocess.run(command, cwd=EXAMPLES, capture_output=True, timeout=60).returncode == 0


pytestmark = pytest.mark.skipif(
    not node_has_packages(), reason="needs node, and npm install in examples/"
)


def test_the_example_asks_by_columns_and_by_rows() -> None:
    result, seen = run_with_films(CLIENT, serve_films)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:2] == ["movielens v7", "film 50: 0.0500"]
    assert len(result.stdout.splitlines()) == 6
    _, columns, rows = seen
    assert [block.names for block in columns.blocks] == [("age",), ("item_id", "year")]
    assert not columns.rows
    assert not rows.blocks
    assert rows.rows


def test_the_example_shows_what_the_server_refused() -> None:
    result, _ = run_with_films(CLIENT, serve_films, refuse("overloaded"))
    assert result.returncode != 0
    assert re.search("Error: overloaded: so overloaded", result.stderr)


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "client.mjs").read_text().splitlines()) < 80

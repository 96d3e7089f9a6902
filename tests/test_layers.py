"""Imports point downwards: a package imports itself and those below it, and no other of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "transport": set(),
    "kernels": set(),
    "runtime": {"transport", "kernels"},
    "actors": {"transport", "kernels", "runtime"},
}
OURS = {*MAY_IMPORT, "examples", "tests"}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_downwards(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & OURS <= MAY_IMPORT[package] | {package}, path


def test_kernels_know_no_event_loop() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not imported(path) & {"trio", "zmq", "asyncio", "msgpack"}, path

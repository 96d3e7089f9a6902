"""Imports point downwards: a package imports itself and those below it, and no other of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
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


def test_every_module_imports_without_a_driver() -> None:
    """No module asks for ``libcuda`` or for CUDA's packages when it is imported."""
    files = [path.relative_to(ROOT) for name in MAY_IMPORT for path in (ROOT / name).rglob("*.py")]
    names = [".".join(file.with_suffix("").parts) for file in files if file.name != "__main__.py"]
    script = (
        "import ctypes, importlib, sys\n"
        "def refuse(name, *rest, load=ctypes.CDLL.__init__, **options):\n"
        "    assert 'libcuda' not in str(rest[:1]), rest\n"
        "    return load(name, *rest, **options)\n"
        "ctypes.CDLL.__init__ = refuse\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'cuda']\n"
    )
    # Peers of benchmarks need what they measure.
    peers = ("peer_mosec", "peer_torch", "torch_models")
    names = [name.removesuffix(".__init__") for name in names if not name.endswith(peers)]
    ran = subprocess.run(
        [sys.executable, "-c", script, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr

"""Bundles of the zoo's models, each built once for all tests."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import zoo


@pytest.fixture(scope="session")
def zoo_built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], zoo.Built]:
    """Return a function that builds a model by name, unless some test has, here or beside."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # what the processes of one run have in common
        folder = folder.parent
    folder = folder / "zoo"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def built(name: str) -> zoo.Built:
        [model] = zoo.models(zoo.ZOO, f"^{re.escape(name)}$")
        path = folder / name
        if not path.exists():
            made = Path(tempfile.mkdtemp(prefix="building-", dir=folder), "bundle")
            result = zoo.build(model, made)
            assert isinstance(result, zoo.Built), result.problem
            try:
                made.rename(path)
            except OSError:  # another process was faster
                assert path.exists()
        return zoo.open_built(model, path)

    return built

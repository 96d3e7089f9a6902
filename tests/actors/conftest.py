from __future__ import annotations

from pathlib import Path

import pytest

from kernels.bundle.build import BuildOptions, build_bundle
from tests import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``tests.tiny``, built once."""
    folder = tmp_path_factory.mktemp("tiny")
    model, features = tiny.write_model(folder)
    build_bundle(model, features, folder / "bundle", BuildOptions())
    return folder / "bundle"

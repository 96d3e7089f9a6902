"""Every model of the zoo through a node process and a client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kernels.bundle.build import BuildOptions, build_bundle
from tests import zoo
from tests.system.cluster_help import NotReady

needs_zoo = pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")


@needs_zoo
def test_every_model_of_the_zoo_is_served_as_it_was_recorded() -> None:
    chosen = zoo.models(zoo.ZOO)
    results = zoo.check(chosen, zoo.served)
    failed = {r.name: r.problem or r.left for r in results if not r.ok}
    assert not failed
    assert [result.name for result in results] == [model.name for model in chosen]
    # Recorded at 1 and 37 rows, but at 2 for the model that was exported without a batch of 1.
    assert all(set(result.max_abs) in ({1, 37}, {2, 37}) for result in results)


@needs_zoo
def test_one_candidate_of_a_model_without_a_batch_of_one_is_scored(tmp_path: Path) -> None:
    (model,) = zoo.models(zoo.ZOO, "^deepctr_DCNMix.dynamo$")
    built = zoo.build(model, tmp_path / "m0")
    assert isinstance(built, zoo.Built)
    case = built.cases["b37_0"]
    columns = zoo.columns_of(built.features, case.inputs)
    with zoo.served({"m0": built.path}) as score:
        alone = score("m0", {name: column[:1] for name, column in columns.items()}, 1)
    for output in built.manifest.outputs:
        want = case.outputs[output.name][:1].reshape(alone[output.name].shape)
        np.testing.assert_allclose(alone[output.name], want, rtol=model.rtol, atol=model.atol)


@needs_zoo
def test_models_that_cannot_be_served_are_reported_and_the_others_run() -> None:
    chosen = zoo.models(zoo.ZOO, "^deepctr_(WDL|DCN|MLR).dynamo$")

    @contextmanager
    def refusing(bundles: Mapping[str, Path]) -> Iterator[zoo.Scorer]:
        """Name the first model that is to blame, but not the second."""
        if "m0" in bundles:
            raise NotReady("m0 is bad", frozenset({"executor-m0"}))
        if "m2" in bundles:
            raise NotReady("one is bad", frozenset())
        with zoo.served(bundles) as score:
            yield score

    first, second, third = zoo.check(chosen, refusing)
    assert first.problem == "NotReady: m0 is bad"
    assert second.ok
    assert third.problem == "NotReady: one is bad"


@needs_zoo
def test_sequences_that_are_all_empty_do_not_end_the_executor(tmp_path: Path) -> None:
    [model] = zoo.models(zoo.ZOO, "deepctr_DIEN_GRU.legacy")
    build_bundle(model.file, None, tmp_path / "bundle", BuildOptions(infer=True))
    script = (
        "import sys; from pathlib import Path; from kernels.bundle.load import load_bundle;"
        "from kernels.host import HostExecutor;"
        "executor = HostExecutor(load_bundle(Path(sys.argv[1])), max_rows=8, max_requests=2);"
        "staging = executor.staging(0); staging.user[:] = 0; staging.candidate[:] = 0;"
        "staging.request_of_row[:] = 0; print(executor.run(0, 1, 5).shape)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "bundle")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "(5, 1)"), ran.stderr

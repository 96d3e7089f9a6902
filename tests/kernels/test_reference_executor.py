"""The reference executor against the host executor, on one graph with a user side."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from kernels.errors import GraphError, LaunchFailed
from kernels.executor import DenseExecutor
from kernels.host import HostExecutor
from kernels.reference_executor import ReferenceExecutor
from tests.kernels.test_host import write_bundle

NODES = [
    helper.make_node("Gather", ["user", "request_of_row"], ["of_row"]),
    helper.make_node("Concat", ["of_row", "candidate"], ["both"], axis=1),
    helper.make_node("MatMul", ["both", "weight"], ["scores"]),
]


def test_it_scores_as_the_host_does_on_each_lane(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, NODES)
    executors: list[DenseExecutor] = [
        HostExecutor(bundle, 2, max_rows=8, max_requests=3),
        ReferenceExecutor(bundle, 2, max_rows=8, max_requests=3),
    ]
    scores = []
    for executor in executors:
        assert (executor.n_lanes, executor.max_rows, executor.max_requests) == (2, 8, 3)
        assert executor.n_outputs == 2
        for lane in range(2):
            random = np.random.default_rng(lane)
            staging = executor.staging(lane)
            staging.user[:2] = random.normal(size=(2, 3))
            staging.candidate[:5] = random.normal(size=(5, 5))
            staging.request_of_row[:5] = [1, 0, 0, 1, 0]
        scores.append([executor.run(lane, 2, 5) for lane in range(2)])
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    assert scores[1][0].dtype == np.float32
    assert executors[1].bucket(5) == 5


def test_closed_it_runs_no_more_and_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    executor = ReferenceExecutor(write_bundle(tmp_path, NODES))
    executor.close()
    with pytest.raises(LaunchFailed, match="tiny: the executor is closed"):
        executor.run(0, 1, 1)
    with pytest.raises(ValueError, match="at least 1 of each"):
        ReferenceExecutor(write_bundle(tmp_path, NODES), 0)
    nodes = [*NODES[:2], helper.make_node("NonZero", ["both"], ["scores"])]
    with pytest.raises(GraphError, match="tiny: "):
        ReferenceExecutor(write_bundle(tmp_path, nodes))

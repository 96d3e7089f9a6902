from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kernels.bundle.load import Bundle
from kernels.bundle.manifest import Manifest, Output, SideLayout, Source
from kernels.errors import BundleError, LaunchFailed
from kernels.executor import DenseExecutor
from kernels.host import HostExecutor

USER_WIDTH, CANDIDATE_WIDTH = 3, 5
WEIGHT = np.arange(16, dtype=np.float32).reshape(8, 2) / 10


def side(width: int) -> SideLayout:
    values = tuple(Source(feature=f"v{i}") for i in range(width))
    return SideLayout(ids=(), weights=(), values=values, lookups=(), width=width, program=None)


def write_bundle(
    folder: Path,
    nodes: list[onnx.NodeProto],
    *,
    user_width: int = USER_WIDTH,
    inputs: tuple[str, ...] = ("user", "candidate", "request_of_row"),
    output: str = "scores",
) -> Bundle:
    types = {
        "user": helper.make_tensor_value_info("user", TensorProto.FLOAT, ["K", user_width]),
        "candidate": helper.make_tensor_value_info(
            "candidate", TensorProto.FLOAT, ["M", CANDIDATE_WIDTH]
        ),
        "request_of_row": helper.make_tensor_value_info("request_of_row", TensorProto.INT64, ["M"]),
        "surprise": helper.make_tensor_value_info("surprise", TensorProto.DOUBLE, ["M"]),
    }
    graph = helper.make_graph(
        nodes,
        "dense",
        [types[name] for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["M", 2])],
        [onnx.numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    (folder / "dense.onnx").write_bytes(model.SerializeToString())
    np.save(folder / "sample.npy", np.zeros((1, USER_WIDTH + CANDIDATE_WIDTH), np.float32))
    manifest = Manifest(
        format=1,
        model="tiny",
        version="v",
        tables=(),
        user=side(USER_WIDTH),
        candidate=side(CANDIDATE_WIDTH),
        outputs=(
            Output(name="click", offset=0, width=1, shape=()),
            Output(name="buy", offset=1, width=1, shape=(1,)),
        ),
        kept=(),
    )
    return Bundle(path=folder, manifest=manifest)


def two_outputs(last: str = "scores") -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", ["user", "request_of_row"], ["u"], axis=0),
        helper.make_node("Concat", ["u", "candidate"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "weight"], [last]),
    ]


def candidates_only() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["five"], value_ints=[5]),
        helper.make_node("Slice", ["weight", "zero", "five"], ["w"]),
        helper.make_node("MatMul", ["candidate", "w"], ["scores"]),
    ]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path, two_outputs())


def stage(
    executor: DenseExecutor, lane: int, n_requests: int, n_rows: int, seed: int
) -> NDArray[np.float32]:
    """Fill a lane's staging at random; return the scores that it must give."""
    rng = np.random.default_rng(seed)
    staging = executor.staging(lane)
    staging.user[:n_requests] = rng.standard_normal((n_requests, USER_WIDTH))
    staging.candidate[:n_rows] = rng.standard_normal((n_rows, CANDIDATE_WIDTH))
    staging.request_of_row[:n_rows] = np.sort(rng.integers(0, n_requests, n_rows))
    user = staging.user[staging.request_of_row[:n_rows]]
    return (np.hstack([user, staging.candidate[:n_rows]]) @ WEIGHT).astype(np.float32)


def test_scores_are_those_of_the_graph_for_exactly_the_rows_that_were_staged(
    bundle: Bundle,
) -> None:
    executor: DenseExecutor = HostExecutor(bundle, max_rows=64, max_requests=8)
    assert (executor.n_lanes, executor.max_rows, executor.max_requests) == (1, 64, 8)
    assert executor.n_outputs == 2
    for seed, (n_requests, n_rows) in enumerate([(1, 1), (8, 64), (3, 17), (1, 64), (8, 8)]):
        want = stage(executor, 0, n_requests, n_rows, seed)
        scores = executor.run(0, n_requests, n_rows)
        assert scores.shape == (n_rows, 2)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)


def test_scores_outlive_the_next_launch_and_the_executor(bundle: Bundle) -> None:
    executor = HostExecutor(bundle, max_rows=64, max_requests=8)
    want = stage(executor, 0, 4, 40, seed=1)
    scores = executor.run(0, 4, 40)
    stage(executor, 0, 4, 40, seed=2)
    executor.run(0, 4, 40)
    executor.close()
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)


def test_lanes_run_at_the_same_time_each_on_its_own_staging(bundle: Bundle) -> None:
    executor = HostExecutor(bundle, n_lanes=3, max_rows=64, max_requests=8)
    errors: list[float] = []

    def work(lane: int) -> None:
        for seed in range(30):
            want = stage(executor, lane, 5, 50, seed=100 * lane + seed)
            errors.append(float(np.abs(executor.run(lane, 5, 50) - want).max()))

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 90
    assert max(errors) < 1e-4


def test_staging_starts_at_whole_cache_lines(bundle: Bundle) -> None:
    executor = HostExecutor(bundle, n_lanes=2, max_rows=7, max_requests=3)
    for lane in range(2):
        staging = executor.staging(lane)
        for array, shape in (
            (staging.user, (3, USER_WIDTH)),
            (staging.candidate, (7, CANDIDATE_WIDTH)),
            (staging.request_of_row, (7,)),
        ):
            assert array.shape == shape
            assert array.ctypes.data % 64 == 0


def test_a_bucket_holds_its_rows_and_is_at_most_a_quarter_larger(bundle: Bundle) -> None:
    executor = HostExecutor(bundle, max_rows=1000)
    buckets = [executor.bucket(n_rows) for n_rows in range(1, 1001)]
    assert all(
        n_rows <= bucket <= max(1.25 * n_rows, n_rows)
        for n_rows, bucket in enumerate(buckets, start=1)
    )
    assert buckets == sorted(buckets)
    assert all(executor.bucket(bucket) == bucket for bucket in buckets)
    assert buckets[-1] == 1000
    assert len(set(buckets)) < 40


def test_a_row_of_a_request_that_is_not_there_is_an_error_and_the_lane_serves_on(
    bundle: Bundle,
) -> None:
    executor = HostExecutor(bundle, max_rows=8, max_requests=4)
    stage(executor, 0, 4, 8, seed=0)
    executor.staging(0).request_of_row[5] = 4
    with pytest.raises(LaunchFailed, match=r"tiny: 4 requests, 8 rows: .*Gather"):
        executor.run(0, 4, 8)
    want = stage(executor, 0, 4, 8, seed=1)
    np.testing.assert_allclose(executor.run(0, 4, 8), want, rtol=1e-5, atol=1e-5)


def test_a_closed_executor_refuses_to_run(bundle: Bundle) -> None:
    executor = HostExecutor(bundle)
    executor.close()
    with pytest.raises(LaunchFailed, match="tiny: the executor is closed"):
        executor.run(0, 1, 1)


def test_launches_are_measured_up_to_the_largest(bundle: Bundle) -> None:
    executor = HostExecutor(bundle, max_rows=40)
    executor.staging(0).request_of_row[:] = 200  # left over from a larger launch
    times = executor.measure()
    assert [n_rows for n_rows, _ in times] == [1, 4, 16, 40]
    assert all(seconds > 0 for _, seconds in times)


def test_a_graph_without_user_features_has_no_such_inputs(tmp_path: Path) -> None:
    executor = HostExecutor(
        write_bundle(tmp_path, candidates_only(), inputs=("candidate",)), max_rows=8
    )
    stage(executor, 0, 1, 8, seed=0)
    want = executor.staging(0).candidate @ WEIGHT[:5]
    np.testing.assert_allclose(executor.run(0, 1, 8), want, rtol=1e-5, atol=1e-5)


def test_a_damaged_graph_is_an_error_that_names_the_bundle(bundle: Bundle) -> None:
    (bundle.path / "dense.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=rf"{bundle.path}: dense.onnx does not load"):
        HostExecutor(bundle)


def test_a_graph_that_the_manifest_does_not_describe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="4 columns of user, the manifest says 3"):
        HostExecutor(write_bundle(tmp_path, candidates_only(), user_width=4))
    with pytest.raises(BundleError, match=r"gives \['other'\], not \['scores'\]"):
        HostExecutor(write_bundle(tmp_path, two_outputs("other"), output="other"))
    inputs = ("user", "candidate", "request_of_row", "surprise")
    with pytest.raises(BundleError, match=r"an input surprise of tensor\(double\)"):
        HostExecutor(write_bundle(tmp_path, two_outputs(), inputs=inputs))


def test_a_graph_that_gives_scores_of_another_shape_is_an_error(tmp_path: Path) -> None:
    nodes = [*two_outputs("both"), helper.make_node("Transpose", ["both"], ["scores"])]
    with pytest.raises(BundleError, match=r"dense.onnx: tiny: scores are \(2, 1024\)"):
        HostExecutor(write_bundle(tmp_path, nodes))


def test_sizes_below_one_are_errors(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="max_rows=0"):
        HostExecutor(bundle, max_rows=0)


def test_a_graph_that_fails_on_one_row_alone_gets_a_companion(tmp_path: Path) -> None:
    squeezed = [  # rank 2 from two rows on, rank 1 for a row alone, which Transpose refuses
        *two_outputs("both"),
        helper.make_node("Squeeze", ["both"], ["squeezed"]),
        helper.make_node("Transpose", ["squeezed"], ["turned"], perm=[1, 0]),
        helper.make_node("Transpose", ["turned"], ["scores"], perm=[1, 0]),
    ]
    executor = HostExecutor(write_bundle(tmp_path, squeezed), max_rows=8, max_requests=2)
    for n_rows in (1, 2, 8):
        want = stage(executor, 0, 1, n_rows, seed=n_rows)
        np.testing.assert_allclose(executor.run(0, 1, n_rows), want, rtol=1e-5, atol=1e-5)

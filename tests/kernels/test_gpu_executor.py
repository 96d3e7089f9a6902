"""The GPU executor over the real bindings and a fake driver."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from kernels.errors import CudaError, DeviceLost, LaunchFailed
from kernels.gpu import stock
from kernels.gpu.buckets import Cost
from kernels.gpu.device import Isolation
from kernels.gpu.executor import GpuExecutor, Model
from kernels.program import Bucket, Launch, Pointer, Program, Role, Target
from tests.kernels.gpu_help import FakeBuilder, FakeCuda, fake_cuda, score_model, score_program

__all__ = ["fake_cuda"]
LAUNCH_FAILED, OUT_OF_MEMORY, INVALID_VALUE = 719, 2, 1


def stage(executor: GpuExecutor, lane: int, n_requests: int, n_rows: int) -> np.ndarray:
    """Stage random parts; return the scores that they should get."""
    rng = np.random.default_rng([n_requests, n_rows, lane])
    user, candidate = rng.random((n_requests, 3)), rng.random((n_rows, 5))
    request_of_row = rng.integers(0, n_requests, n_rows)
    staging = executor.staging(lane)
    staging.user[:n_requests] = user
    staging.candidate[:n_rows] = candidate
    staging.request_of_row[:n_rows] = request_of_row
    scores: np.ndarray = candidate.sum(1) + user[request_of_row, 0]
    return scores


@pytest.mark.parametrize("mode", list(Isolation))
@pytest.mark.parametrize("mapped", [(), ("inputs",), ("inputs", "scores")])
def test_every_lane_scores_every_size(
    fake_cuda: FakeCuda, mode: Isolation, mapped: tuple[str, ...]
) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, 3, mode=mode, mapped=mapped)
    assert (executor.n_lanes, executor.max_rows, executor.max_requests) == (3, 300, 20)
    assert executor.n_outputs == 1
    for n_requests, n_rows in ((20, 300), (1, 1), (20, 37), (3, 64), (5, 65), (20, 299)):
        for lane in range(3):
            expected = stage(executor, lane, n_requests, n_rows)
            scores = executor.run(lane, n_requests, n_rows)
            assert scores.shape == (n_rows, 1)
            np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-6)
    executor.close()
    executor.close()


def test_lanes_are_queued_apart_from_waiting(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, 2)
    expected = [stage(executor, lane, 4, 70) for lane in range(2)]
    for lane in range(2):
        executor.start(lane, 4, 70)
    for lane in (1, 0):
        np.testing.assert_allclose(executor.finish(lane)[:, 0], expected[lane], rtol=1e-6)
    with pytest.raises(LaunchFailed, match="tiny: lane 1 has nothing to finish"):
        executor.finish(1)
    executor.close()


def test_scores_belong_to_the_caller(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder)
    expected = stage(executor, 0, 1, 8)
    scores = executor.run(0, 1, 8)
    stage(executor, 0, 2, 9)
    executor.run(0, 2, 9)
    executor.close()
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-6)


def test_a_launch_allocates_nothing_and_copies_what_is_used(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder)
    stage(executor, 0, 20, 300)
    executor.run(0, 20, 300)
    before, copied = fake_cuda.allocations, fake_cuda.copied_bytes
    stage(executor, 0, 2, 10)
    executor.run(0, 2, 10)
    assert fake_cuda.allocations == before
    # Counts, the row indices of the largest bucket, 2 users and 10 rows of 8 floats.
    assert fake_cuda.copied_bytes - copied == 256 + 1280 + (2 + 10) * 32
    executor.close()


def test_padding_rows_point_at_the_first_user(fake_cuda: FakeCuda) -> None:
    arguments = (Pointer(Role.REQUEST_OF_ROW), Pointer(Role.SCORES), 64)

    def sum_of_indices(bucket: Bucket, target: Target) -> Program:
        launches = (Launch(0, "tail", (1, 1, 1), 32, arguments),)
        return score_program(bucket, launches=launches)

    model = score_model(64, 20, sum_of_indices)
    executor = GpuExecutor(model, fake_cuda.builder)
    executor.staging(0).request_of_row[:] = 7
    assert executor.run(0, 8, 3)[0, 0] == 21
    executor.close()


def test_float16_staging_converts_what_is_assigned(fake_cuda: FakeCuda) -> None:
    model = score_model()
    half = attrs.evolve(model.blocks, input_dtype=np.dtype(np.float16))
    executor = GpuExecutor(attrs.evolve(model, blocks=half), fake_cuda.builder)
    staging = executor.staging(0)
    assert (staging.user.shape, staging.candidate.shape) == ((20, 3), (300, 5))
    staging.candidate[:2] = np.array([[1, 2, 3, 4, 5], [0.1, 0, 0, 0, 9]], np.float32)
    assert staging.candidate.dtype == np.float16
    assert staging.candidate[1, 0] == np.float16(0.1)
    executor.close()


def test_buckets_are_given_and_times_key_on_them(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, buckets=[48, 150])
    assert [executor.bucket(n) for n in (1, 48, 49, 150, 151, 300)] == [48, 48, 150, 150, 300, 300]
    assert [n_rows for n_rows, _ in executor.measure()] == [48, 150, 300]
    assert executor.statistics().launches == 0
    for beyond in (301, Bucket(300, 21), Bucket(0, 1)):
        with pytest.raises(ValueError, match="want buckets of 1 to 300 rows and 1 to 20 requests"):
            GpuExecutor(score_model(), fake_cuda.builder, buckets=[beyond])
    executor.close()


def test_a_batch_runs_in_the_cheapest_bucket_for_its_rows_and_requests(
    fake_cuda: FakeCuda,
) -> None:
    model = attrs.evolve(score_model(), cost=Cost(1.0, 10.0))
    given: list[int | Bucket] = [Bucket(200, 2), Bucket(64, 20), 150]
    executor = GpuExecutor(model, fake_cuda.builder, buckets=given)
    for n_requests, n_rows, want in (
        (1, 10, Bucket(200, 2)),  # 220 of cost, and 64 rows of 20 requests take 264
        (3, 10, Bucket(64, 20)),
        (3, 65, Bucket(150, 20)),
        (2, 200, Bucket(200, 2)),
        (3, 200, Bucket(300, 20)),
    ):
        expected = stage(executor, 0, n_requests, n_rows)
        assert executor.start(0, n_requests, n_rows) == want
        np.testing.assert_allclose(executor.finish(0)[:, 0], expected, rtol=1e-6)
    assert [n_rows for n_rows, _ in executor.measure()] == [64, 150, 200, 300]
    executor.close()


def test_statistics_count_padding(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, 2, buckets=[50, 100])
    for lane, n_requests, n_rows in ((0, 1, 40), (1, 2, 60), (0, 3, 100)):
        executor.run(lane, n_requests, n_rows)
    statistics = executor.statistics()
    assert (statistics.launches, statistics.requests) == (3, 6)
    assert (statistics.rows, statistics.rows_run) == (200, 250)
    assert statistics.padding == pytest.approx(0.2)
    assert (statistics.requests_run, statistics.padding_requests) == (60, 0.9)
    assert statistics.launches_by_bucket == {Bucket(50, 20): 1, Bucket(100, 20): 2}
    assert statistics.buckets == (Bucket(50, 20), Bucket(100, 20), Bucket(300, 20))
    executor.close()


def test_a_missing_bucket_runs_in_a_larger_one_until_it_is_compiled(fake_cuda: FakeCuda) -> None:
    build = FakeBuilder(fake_cuda.cubin, n_at_once=1)
    executor = GpuExecutor(score_model(), build, buckets=[64, 128], ahead=False)
    for _ in range(2):
        assert build.asked.acquire(timeout=10)
    assert executor.bucket(10) == 300
    expected = stage(executor, 0, 2, 10)
    np.testing.assert_allclose(executor.run(0, 2, 10)[:, 0], expected, rtol=1e-6)
    for future in build.waiting:
        future.set_result(fake_cuda.cubin)
    executor.settle()
    assert executor.bucket(10) == 64
    stage(executor, 0, 2, 10)
    np.testing.assert_allclose(executor.run(0, 2, 10)[:, 0], expected, rtol=1e-6)
    assert executor.statistics().launches_by_bucket == {Bucket(64, 20): 1, Bucket(300, 20): 1}
    executor.close()


def test_a_bucket_that_does_not_compile_is_logged_and_larger_ones_serve(
    fake_cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    build = FakeBuilder(fake_cuda.cubin, n_at_once=1)
    executor = GpuExecutor(score_model(), build, buckets=[64], ahead=False)
    assert build.asked.acquire(timeout=10)
    build.waiting[0].set_exception(CudaError("no such instruction"))
    executor.settle()
    assert "a bucket is missing, larger ones serve" in caplog.text
    assert executor.bucket(10) == 300
    executor.close()


def test_closing_gives_up_what_is_being_compiled(
    fake_cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    build = FakeBuilder(fake_cuda.cubin, n_at_once=1)
    executor = GpuExecutor(score_model(), build, buckets=[64], ahead=False)
    assert build.asked.acquire(timeout=10)
    executor.close()
    assert build.closed
    assert not caplog.records


def test_buckets_adapt_to_the_traffic(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "_LOOK_AFTER", 10)
    executor = GpuExecutor(score_model(), fake_cuda.builder)
    assert executor.bucket(70) == 128
    for _ in range(10):
        executor.run(0, 1, 70)
    executor.settle()
    assert executor.bucket(70) == 80
    executor.close()
    model = attrs.evolve(score_model(), cost=Cost(1.0, 1.0))
    users = GpuExecutor(model, fake_cuda.builder)
    for _ in range(10):
        assert users.start(0, 1, 70) == Bucket(128, 20)
        users.finish(0)
    users.settle()
    assert users.start(0, 1, 70) == Bucket(80, 16)
    users.finish(0)
    users.close()
    fixed = GpuExecutor(score_model(), fake_cuda.builder, buckets=[128])
    for _ in range(10):
        fixed.run(0, 1, 70)
    fixed.settle()
    assert fixed.bucket(70) == 128
    fixed.close()


def test_what_the_driver_refuses_fails_one_launch(fake_cuda: FakeCuda) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder)
    fake_cuda.fail("cuGraphLaunch", INVALID_VALUE)
    with pytest.raises(LaunchFailed, match="tiny: 1 requests, 5 rows: cuGraphLaunch"):
        executor.run(0, 1, 5)
    fake_cuda.fail("", 0)
    executor.run(0, 1, 5)
    with pytest.raises(LaunchFailed, match="no bucket for 1 requests, 301 rows"):
        executor.run(0, 1, 301)
    executor.close()
    with pytest.raises(LaunchFailed, match="the executor is closed"):
        executor.run(0, 1, 5)


@pytest.mark.parametrize("function", ["cuGraphLaunch", "cuEventSynchronize"])
def test_a_sticky_error_loses_the_device_for_good(fake_cuda: FakeCuda, function: str) -> None:
    executor = GpuExecutor(score_model(), fake_cuda.builder, 2)
    fake_cuda.fail(function, LAUNCH_FAILED)
    with pytest.raises(DeviceLost, match=f"{function}: CUDA_ERROR_LAUNCH_FAILED"):
        executor.run(0, 1, 5)
    fake_cuda.fail("", 0)
    with pytest.raises(DeviceLost):
        executor.run(1, 1, 5)
    live = fake_cuda.live
    executor.close()
    assert fake_cuda.live == live, "nothing more is asked of the driver"
    executor._lost = None
    executor._free()


def test_failing_to_open_frees_everything(fake_cuda: FakeCuda) -> None:
    for function in ("cuGraphInstantiateWithFlags", "cuMemAlloc", "cuModuleLoadData"):
        fake_cuda.fail(function, OUT_OF_MEMORY)
        with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
            GpuExecutor(score_model(), fake_cuda.builder, 2, mode=Isolation.GREEN)
    fake_cuda.fail("", 0)

    def broken(bucket: Bucket, target: Target) -> Program:
        raise CudaError("not today")

    model: Model = score_model(compile_program=broken)
    builder = fake_cuda.builder
    with pytest.raises(CudaError, match="not today"):
        GpuExecutor(model, builder)
    assert builder.closed
    with pytest.raises(ValueError, match="at least 1 lane"):
        GpuExecutor(score_model(), fake_cuda.builder, 0)


def test_partitions_are_compiled_for_their_size(fake_cuda: FakeCuda) -> None:
    targets = set()

    def compile_program(bucket: Bucket, target: Target) -> Program:
        targets.add(target.n_sms)
        return score_program(bucket)

    model = score_model(compile_program=compile_program)
    GpuExecutor(model, fake_cuda.builder, 4, mode=Isolation.GREEN).close()
    assert targets == {32}
    GpuExecutor(model, fake_cuda.builder, 4).close()
    assert targets == {32, 132}

"""Contexts, memory and loaded programs on a card."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kernels import _cuda
from kernels.errors import CudaError
from kernels.gpu.device import Context, Device, time_launches
from kernels.gpu.loaded import LoadedProgram
from kernels.gpu.memory import DeviceMemory, PinnedMemory
from kernels.program import Bucket, Launch, Pointer, Role, TensorMap
from tests.gpu.programs import BLOCK, SCORES, cubin, program, score_program

pytestmark = pytest.mark.gpu


@pytest.fixture(params=[False, True], ids=["primary", "own"])
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    made = Context(Device.open(), own=request.param)
    yield made
    made.close()


@pytest.fixture
def stream(context: Context) -> Iterator[_cuda.Stream]:
    made = context.stream()
    yield made
    context.make_current()
    _cuda.destroy_stream(made)


def inputs(n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n_rows)
    return rng.random((4, 3)), rng.random((n_rows, 5)), rng.integers(0, 4, n_rows)


def test_the_card_can_be_compiled_for() -> None:
    device = Device.open()
    assert device.n_sms > 8
    assert device.shared_bytes > 90_000
    assert device.target().arch in ("sm_80", "sm_90a", "sm_100")


@pytest.mark.parametrize("n_rows", [1, 37, 64, 100])
def test_a_program_runs_directly_and_captured(
    context: Context, stream: _cuda.Stream, n_rows: int
) -> None:
    target = context.device.target()
    loaded = LoadedProgram(context, score_program(Bucket(100, 4), target), [cubin(target.arch)])
    user, candidate, request_of_row = inputs(n_rows)
    expected = candidate.sum(1) + user[request_of_row, 0]
    loaded.write(user, candidate, request_of_row)
    loaded.poison()
    loaded.launch(stream)
    _cuda.stream_synchronize(stream)
    np.testing.assert_allclose(loaded.scores(n_rows)[:, 0], expected, rtol=1e-5)
    loaded.poison()
    graph = loaded.capture(stream)
    assert np.isnan(loaded.scores(n_rows)).all()
    graph.launch(stream)
    _cuda.stream_synchronize(stream)
    np.testing.assert_allclose(loaded.scores(n_rows)[:, 0], expected, rtol=1e-5)
    times = time_launches(context, stream, lambda: graph.launch(stream), n_repeats=20)
    assert len(times) == 20
    assert all(0 < seconds < 0.01 for seconds in times)
    graph.close()
    loaded.close()


def test_a_dependent_launch_sees_what_the_one_ahead_wrote(
    context: Context, stream: _cuda.Stream
) -> None:
    target = context.device.target()
    scratch, counts = Pointer(Role.SCRATCH), Pointer(Role.COUNTS)
    launches = [
        Launch(0, "first", (4, 1, 1), BLOCK, (Pointer(Role.CANDIDATE), counts, scratch)),
        Launch(0, "second", (4, 1, 1), BLOCK, (scratch, counts, SCORES), dependent=True),
    ]
    made = program(Bucket(256, 4), target, launches)
    loaded = LoadedProgram(context, made, [cubin(target.arch)])
    graph = loaded.capture(stream)
    for seed in range(5):
        user, _, request_of_row = inputs(256)
        candidate = np.random.default_rng(seed).random((256, 5))
        loaded.write(user, candidate, request_of_row)
        loaded.poison()
        graph.launch(stream)
        _cuda.stream_synchronize(stream)
        np.testing.assert_allclose(loaded.scores(256)[:, 0], 2 * candidate[:, 0] + 1, rtol=1e-5)
    graph.close()
    loaded.close()


@pytest.mark.parametrize("cluster", [2, 8, 16])
def test_clusters_with_much_shared_memory(
    context: Context, stream: _cuda.Stream, cluster: int
) -> None:
    target = context.device.target()
    if target.arch == "sm_80":
        pytest.skip("the card has no clusters")
    shared_bytes = 200_000 if cluster < 16 else 100_000
    launch = Launch(
        0,
        "ranks",
        (2 * cluster, 1, 1),
        32,
        (SCORES, cluster, shared_bytes),
        cluster=cluster,
        shared_bytes=shared_bytes,
    )
    loaded = LoadedProgram(context, program(Bucket(64, 1), target, [launch]), [cubin(target.arch)])
    assert loaded.active_clusters(stream)[0] >= 1
    loaded.poison()
    graph = loaded.capture(stream)
    graph.launch(stream)
    _cuda.stream_synchronize(stream)
    ranks = loaded.scores(2 * cluster)[:, 0].tolist()
    assert ranks == [float(rank) for rank in range(cluster)] * 2
    graph.close()
    loaded.close()


def test_tensor_maps_are_encoded(context: Context) -> None:
    context.make_current()
    memory = DeviceMemory.allocate(1 << 16)
    shape = {"rows": 128, "columns": 64, "row_bytes": 128, "box_rows": 64}
    for swizzle, columns in ((128, 64), (64, 32), (32, 16), (0, 64)):
        encoded = _cuda.encode_tensor_map(
            memory.address, **shape, box_columns=columns, swizzle_bytes=swizzle
        )
        assert len(encoded) == 128
        assert any(encoded)
    with pytest.raises(CudaError, match="INVALID_VALUE"):
        _cuda.encode_tensor_map(memory.address + 8, **shape, box_columns=64, swizzle_bytes=128)
    memory.free()


def test_a_tensor_map_is_an_argument(context: Context, stream: _cuda.Stream) -> None:
    """By value, behind others: the addresses after it must not move."""
    target = context.device.target()
    if target.arch == "sm_80":
        pytest.skip("the card has no tensor maps")
    tensor = TensorMap(Pointer(Role.WEIGHTS), 4, 8, 16, 4, 8, swizzle_bytes=0)
    launch = Launch(0, "tensor", (1, 1, 1), 32, (tensor, SCORES))
    made = program(
        Bucket(64, 1), target, [launch], weights=np.arange(32, dtype=np.uint16).view("u1")
    )
    loaded = LoadedProgram(context, made, [cubin(target.arch)])
    loaded.poison()
    loaded.launch(stream)
    _cuda.stream_synchronize(stream)
    np.testing.assert_array_equal(loaded.scores(32)[:, 0], np.arange(32))
    loaded.close()


def test_memory_goes_there_and_back(context: Context) -> None:
    context.make_current()
    memory = DeviceMemory.allocate(1000)
    assert not memory.read((1000,), np.uint8).any()
    values = np.random.default_rng(0).random(100)
    memory.write(values, offset=8)
    np.testing.assert_array_equal(memory.read((100,), np.float64, offset=8), values)
    pinned = PinnedMemory(4096)
    assert not pinned.array((4096,), np.uint8).any()
    pinned.array((4,), np.float32, 256)[:] = 2.5
    assert pinned.array((2,), np.float32, 264).tolist() == [2.5, 2.5]
    pinned.free()
    memory.free()


def test_a_cubin_for_another_card_is_refused(context: Context) -> None:
    other = "sm_80" if context.device.target().arch != "sm_80" else "sm_90a"
    context.make_current()
    with pytest.raises(CudaError, match="cuModuleLoadData"):
        context.kernel(cubin(other), "score", shared_bytes=0, cluster=1)

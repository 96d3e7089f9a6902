"""Seam, contexts and loaded programs, over the real bindings and a fake driver."""

from __future__ import annotations

import threading

import attrs
import numpy as np
import pytest

from kernels import _cuda
from kernels.errors import CudaError, DeviceLost
from kernels.gpu.device import Context, Device, time_launches
from kernels.gpu.loaded import LoadedProgram
from kernels.gpu.memory import DeviceMemory, PinnedMemory
from kernels.program import Bucket, Launch, Pointer, Role, TensorMap
from tests.kernels.gpu_help import FakeCuda, fake_cuda, score_program

__all__ = ["fake_cuda"]
BUCKET = Bucket(64, 4)


def inputs(n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n_rows)
    return rng.random((4, 3)), rng.random((n_rows, 5)), rng.integers(0, 4, n_rows)


def expected(user: np.ndarray, candidate: np.ndarray, request_of_row: np.ndarray) -> np.ndarray:
    scores: np.ndarray = candidate.sum(1) + user[request_of_row, 0]
    return scores


def test_without_a_driver_it_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(_cuda, "_library", no_library)
    _cuda.available.cache_clear()
    try:
        with pytest.raises(CudaError, match="no NVIDIA driver on this machine"):
            Device.open()
    finally:
        _cuda.available.cache_clear()


def test_a_card_and_its_target(fake_cuda: FakeCuda) -> None:
    device = Device.open()
    assert (device.name, device.capability, device.n_sms) == ("Fake H100", (9, 0), 132)
    assert device.target().arch == "sm_90a"
    assert device.target(16).n_sms == 16
    with pytest.raises(CudaError, match="no card 3: this machine shows 1"):
        Device.open(3)
    with pytest.raises(CudaError, match=r"capability 7\.5"):
        attrs.evolve(device, capability=(7, 5)).target()


@pytest.mark.parametrize("own", [False, True])
def test_a_program_runs_directly_and_captured(fake_cuda: FakeCuda, own: bool) -> None:
    context = Context(Device.open(), own=own)
    stream = context.stream()
    loaded = LoadedProgram(context, score_program(BUCKET), [fake_cuda.cubin])
    given = inputs(10)
    loaded.write(*given)
    loaded.poison()
    loaded.launch(stream)
    np.testing.assert_allclose(loaded.scores(10)[:, 0], expected(*given), rtol=1e-6)
    assert np.isnan(loaded.scores(11)[10])
    loaded.poison()
    graph = loaded.capture(stream)
    assert np.isnan(loaded.scores(10)).all(), "capturing runs nothing"
    graph.launch(stream)
    np.testing.assert_allclose(loaded.scores(10)[:, 0], expected(*given), rtol=1e-6)
    assert loaded.active_clusters(stream) == [17]
    times = time_launches(context, stream, lambda: graph.launch(stream), n_repeats=3)
    assert times == [pytest.approx(0.0025)] * 3
    graph.close()
    loaded.close()
    _cuda.destroy_stream(stream)
    context.close()


def test_weights_and_modules_are_shared_by_content(fake_cuda: FakeCuda) -> None:
    context = Context(Device.open())
    first = LoadedProgram(context, score_program(BUCKET), [fake_cuda.cubin])
    before = fake_cuda.allocations
    second = LoadedProgram(context, score_program(Bucket(128, 4)), [fake_cuda.cubin])
    assert first.address(Role.WEIGHTS) == second.address(Role.WEIGHTS)
    assert first.address(Role.SCRATCH) != second.address(Role.SCRATCH)
    other = score_program(BUCKET, weights=np.zeros(300, np.uint8))
    third = LoadedProgram(context, other, [fake_cuda.cubin])
    assert third.address(Role.WEIGHTS) != first.address(Role.WEIGHTS)
    # For each of two: five inputs and outputs, scratch, the streams that zero them; one blob.
    assert fake_cuda.allocations - before == 2 * 2 * 6 + 2
    for loaded in (first, second, third):
        loaded.close()
    context.close()


def test_arguments_are_addresses_numbers_and_tensor_maps(fake_cuda: FakeCuda) -> None:
    shape = {"rows": 64, "columns": 8, "row_bytes": 32, "box_rows": 16, "box_columns": 8}
    arguments = (Pointer(Role.REQUEST_OF_ROW, 8), Pointer(Role.SCORES), 3)
    program = score_program(BUCKET, launches=(Launch(0, "tail", (1, 1, 1), 32, arguments),))
    context = Context(Device.open())
    loaded = LoadedProgram(context, program, [fake_cuda.cubin])
    given = inputs(10)
    loaded.write(*given)
    stream = context.stream()
    loaded.launch(stream)
    assert loaded.scores(1)[0, 0] == given[2][2:5].sum()
    loaded.close()
    encoded = _cuda.encode_tensor_map(4096, **shape, swizzle_bytes=128)
    assert np.frombuffer(encoded, np.uint64)[:8].tolist() == [4096, 64, 8, 32, 16, 8, 128, 2]
    with pytest.raises(CudaError, match="cuTensorMapEncodeTiled: CUDA_ERROR_INVALID_VALUE"):
        _cuda.encode_tensor_map(4096, **(shape | {"row_bytes": 20}), swizzle_bytes=64)
    swizzled = TensorMap(Pointer(Role.WEIGHTS), **shape)
    launch = Launch(0, "score", (1, 1, 1), 32, (swizzled,))
    LoadedProgram(context, score_program(BUCKET, launches=(launch,)), [fake_cuda.cubin]).close()
    _cuda.destroy_stream(stream)
    context.close()


def test_a_broken_cubin_is_an_error_and_leaks_nothing(fake_cuda: FakeCuda) -> None:
    context = Context(Device.open())
    with pytest.raises(CudaError, match="cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE"):
        LoadedProgram(context, score_program(BUCKET), [b"nothing\0"])
    launch = attrs.evolve(score_program(BUCKET).launches[0], entry="missing")
    with pytest.raises(CudaError, match="cuModuleGetFunction: CUDA_ERROR_NOT_FOUND"):
        LoadedProgram(context, score_program(BUCKET, launches=(launch,)), [fake_cuda.cubin])
    context.close()


def test_a_kernel_that_breaks_loses_the_device(fake_cuda: FakeCuda) -> None:
    context = Context(Device.open())
    stream = context.stream()
    launch = attrs.evolve(score_program(BUCKET).launches[0], entry="trap")
    loaded = LoadedProgram(context, score_program(BUCKET, launches=(launch,)), [fake_cuda.cubin])
    with pytest.raises(DeviceLost, match="cuLaunchKernelEx: CUDA_ERROR_LAUNCH_FAILED"):
        loaded.launch(stream)
    loaded.close()
    _cuda.destroy_stream(stream)
    context.close()


def test_waiting_for_an_event_lets_other_threads_run(fake_cuda: FakeCuda) -> None:
    context = Context(Device.open())
    stream = context.stream()
    event = _cuda.create_event()
    _cuda.event_record(event, stream)
    assert _cuda.event_done(event)
    fake_cuda.hold()
    assert not _cuda.event_done(event)
    # This thread alone can end the wait: that it gets to run shows that the lock is free.
    waiting = threading.Thread(target=_cuda.event_synchronize, args=(event,), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    fake_cuda.hold(False)
    waiting.join()
    _cuda.destroy_event(event)
    _cuda.destroy_stream(stream)
    context.close()


def test_partitions_are_whole_steps_of_multiprocessors(fake_cuda: FakeCuda) -> None:
    context = Context(Device.open())
    parts = context.partition(8)
    assert [part.n_sms for part in parts] == [16] * 8
    streams = [part.stream() for part in parts]
    with pytest.raises(CudaError, match="too few for 20 parts of at least 8"):
        context.partition(20)
    for stream in streams:
        _cuda.destroy_stream(stream)
    context.close()


def test_memory_is_zeroed_and_bounded(fake_cuda: FakeCuda) -> None:
    context = Context(Device.open())
    context.make_current()
    memory = DeviceMemory.allocate(64)
    assert not memory.read((64,), np.uint8).any()
    memory.write(np.arange(4, dtype=np.int32), offset=8)
    assert memory.read((2,), np.int32, offset=12).tolist() == [1, 2]
    with pytest.raises(ValueError, match="do not fit"):
        memory.write(np.zeros(65, np.uint8))
    pinned = PinnedMemory(64)
    block = pinned.array((2, 8), np.float16, offset=32)
    assert not block.any()
    block[:, :5] = 1.5
    assert pinned.array((8,), np.float16, offset=32).tolist() == [1.5] * 5 + [0.0] * 3
    with pytest.raises(ValueError, match="do not fit"):
        pinned.array((3, 8), np.float16, offset=32)
    for each in (memory, pinned):
        each.free()
        each.free()
    context.close()

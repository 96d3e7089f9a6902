"""Rows put into slots of tables on the card: the kernel on the CPU, and the puts under way."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.errors import DeviceLost
from kernels.gpu.device import Context, Device
from kernels.gpu.filler import MOST_BYTES, MOST_ROWS, N_BUFFERS, RowFiller, fill_source
from kernels.gpu.memory import DeviceMemory
from kernels.nvrtc.compile import compile_source
from kernels.program import TARGETS
from tests.kernels import shim
from tests.kernels.gpu_help import FakeCuda, fake_cuda

__all__ = ["fake_cuda"]
runs_here = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))
SIZE = 1 << 16
LAUNCH_FAILED = 719


@pytest.mark.parametrize("arch", list(TARGETS))
def test_it_compiles_for_every_card_without_spills(arch: str) -> None:
    assert not compile_source(fill_source(arch)).problems


@runs_here
@pytest.mark.parametrize("sizes", [(16,), (64, 128), (2,), (4, 12), (6, 16, 40, 2, 2048, 700)])
def test_each_row_comes_to_its_place_and_nothing_else_changes(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(sizes))
    module = shim.build(fill_source("sm_90a").text, entries=["fill"])
    for n in (0, 1, 37):
        row_bytes = rng.choice(sizes, n).astype(np.int64)
        # Places at multiples of the rows' bytes, no two of which overlap.
        to = -(-rng.permutation(64)[:n] * 4096 // row_bytes) * row_bytes
        ends = np.cumsum(row_bytes)
        moves = np.zeros(MOST_ROWS, [("to", "<u8"), ("source", "<u4"), ("bytes", "<u4")])
        moves["to"][:n], moves["source"][:n], moves["bytes"][:n] = to, ends - row_bytes, row_bytes
        rows = rng.integers(0, 256, int(row_bytes.sum()) + 16).astype(np.uint8)
        sent = np.concatenate([moves.view(np.uint8), rows])
        tables = rng.integers(0, 256, 65 * 4096).astype(np.uint8)
        want = tables.copy()
        for at, end, size in zip(to.tolist(), ends.tolist(), row_bytes.tolist(), strict=True):
            want[at : at + size] = rows[end - size : end]
        module.launch("fill", 2, 64, args=[tables, sent, n])
        np.testing.assert_array_equal(tables, want)


class Places:
    """Tables in some contexts."""

    def __init__(self, cubin: bytes, n: int, row_bytes: int) -> None:
        self.contexts = [Context(Device.open(), own=True) for _ in range(n)]
        self.tables: list[DeviceMemory] = [each.allocate(SIZE) for each in self.contexts]
        pairs = zip(self.contexts, self.tables, strict=True)
        places = [(context, tables.address) for context, tables in pairs]
        self.filler = RowFiller(places, cubin, row_bytes)

    def held(self, which: int, at: int, size: int) -> bytes:
        return ctypes.string_at(self.tables[which].address + at, size)

    def close(self) -> None:
        self.filler.close()
        for context in self.contexts:
            context.close()


def cubin() -> bytes:
    """What stands for the kernel's cubin: the path of an object."""
    return bytes(shim.compiled(fill_source("sm_90a").text)[0]) + b"\0"


@pytest.fixture
def places(fake_cuda: FakeCuda) -> Iterator[Places]:
    if shim.available() is not None:
        pytest.skip(str(shim.available()))
    made = Places(cubin(), 2, 64)
    yield made
    made.close()


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def test_a_put_goes_to_every_context(places: Places) -> None:
    rows = np.arange(200, dtype=np.uint8)
    number = places.filler.put(numbers(640, 0), rows, numbers(100, 3), numbers(64, 16))
    assert number == 0
    assert places.filler.n_done() == 1
    for which in range(2):
        assert places.held(which, 640, 64) == bytes(rows[100:164])
        assert places.held(which, 0, 16) == bytes(rows[3:19])
        assert places.held(which, 16, 48) == bytes(48)


def test_puts_are_over_in_their_order_and_no_more_are_taken_than_there_is_room_for(
    places: Places, fake_cuda: FakeCuda
) -> None:
    rows = np.zeros(64, np.uint8)

    def put() -> int | None:
        return places.filler.put(numbers(64), rows, numbers(0), numbers(64))

    fake_cuda.hold()
    assert [put() for _ in range(N_BUFFERS + 2)] == [*range(N_BUFFERS), None, None]
    assert places.filler.n_done() == 0
    allocations = fake_cuda.allocations
    fake_cuda.hold(False)
    assert places.filler.n_done() == N_BUFFERS
    assert [put() for _ in range(20)] == list(range(N_BUFFERS, N_BUFFERS + 20))
    assert fake_cuda.allocations == allocations


def test_a_put_has_no_more_rows_than_fit(places: Places) -> None:
    assert places.filler.most_rows == MOST_ROWS
    n = MOST_ROWS + 1
    zeros = np.zeros(n, np.int64)
    with pytest.raises(ValueError, match=f"want at most {MOST_ROWS} rows, got {n}"):
        places.filler.put(zeros, np.zeros(64, np.uint8), zeros, zeros + 2)


def test_a_row_longer_than_a_put_usually_is_goes_alone(fake_cuda: FakeCuda) -> None:
    if shim.available() is not None:
        pytest.skip(str(shim.available()))
    made = Places(cubin(), 1, MOST_BYTES // 2 + 2)
    assert made.filler.most_rows == 1
    made.close()
    made = Places(cubin(), 1, 2 * MOST_BYTES)
    assert made.filler.most_rows == 1
    made.close()


def test_a_card_that_is_lost_is_told(places: Places, fake_cuda: FakeCuda) -> None:
    places.filler.put(numbers(0), np.zeros(64, np.uint8), numbers(0), numbers(64))
    fake_cuda.fail("cuEventQuery", LAUNCH_FAILED)
    with pytest.raises(DeviceLost):
        places.filler.n_done()
    fake_cuda.fail("", 0)

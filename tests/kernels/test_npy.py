from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.npy import map_npy


def test_headers_are_parsed_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the parser of CPython 3.11 may fail in two threads at once."""
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    load, inside, others = np.load, threading.Lock(), []
    started = threading.Barrier(4)

    def alone(*args: Any, **options: Any) -> NDArray[Any]:  # noqa: ANN401
        others.append(not inside.acquire(blocking=False))
        array: NDArray[Any] = load(*args, **options)
        if not others[-1]:
            inside.release()
        return array

    def work() -> None:
        started.wait()
        for _ in range(20):
            map_npy(tmp_path / "a.npy")

    monkeypatch.setattr(np, "load", alone)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert others == [False] * 80


def test_what_is_mapped_cannot_be_written(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    array = map_npy(tmp_path / "a.npy")
    assert array.shape == (3, 4)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    (tmp_path / "b.npy").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="pickle"):
        map_npy(tmp_path / "b.npy")

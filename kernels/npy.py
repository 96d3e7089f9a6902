"""Arrays in ``.npy`` files, mapped into memory: by any number of threads at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# numpy reads a file's header as Python text, and to parse that in two threads at once may fail in
# CPython 3.11 ("AST constructor recursion depth mismatch": a shard died of it at its start).
_PARSING: Final = threading.Lock()


def map_npy(path: Path) -> NDArray[Any]:
    """Map an array, read-only.

    Raises:
        OSError, ValueError: It cannot be read, or is no array.
    """
    with _PARSING:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array

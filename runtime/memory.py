"""Freed memory goes back to the system, where the C library would keep it for later."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return what has been freed to the system, as far as it can be: in a thread, takes a while.

    glibc keeps what was freed in the middle of its arenas, and what is opened in one thread after
    the other is spread over many: a process that opens a dense graph every few minutes holds half
    again as much as it needs. Other C libraries are left alone.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:  # noqa: ANN401 - ctypes has no type for it
    return getattr(ctypes.CDLL(None), "malloc_trim", None)

"""What the store's tests share."""

from __future__ import annotations

import pytest

from kernels.store import _c

HAS_C = _c.store() is not None
needs_c = pytest.mark.skipif(not HAS_C, reason="no C compiler")
BOTH = [pytest.param(True, id="C", marks=needs_c), pytest.param(False, id="numpy")]

"""What messages are made of: types of arrays, codes of errors, and the checks of their fields."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from transport.errors import LocalProtocolError

Array: TypeAlias = NDArray[Any]
F32: TypeAlias = NDArray[np.float32]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
U8: TypeAlias = NDArray[np.uint8]

OK: Final = 0
ERROR_CODES: Final = ("ok", "invalid", "overloaded", "deadline", "unavailable", "internal")


def matrix(dtype: type[np.generic], ndim: int) -> Any:  # noqa: ANN401 - an attrs validator
    """Return a check for arrays of one dtype and so many dimensions."""
    want = np.dtype(dtype)

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401
        if not isinstance(value, np.ndarray) or value.dtype != want or value.ndim != ndim:
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value)
            raise LocalProtocolError(
                f"{type(instance).__name__}.{attribute.name}: want {want} of {ndim} dimensions, "
                f"got {got}"
            )

    return check


def require(condition: object, want: str) -> None:
    """Refuse a message that is not what is wanted.

    Raises:
        LocalProtocolError: The condition does not hold.
    """
    if not condition:
        raise LocalProtocolError(f"want {want}")


def empty(dtype: type[np.generic], ndim: int) -> Any:  # noqa: ANN401 - of any dtype
    """Return a read-only array without elements: the default of a field."""
    array = np.empty((0,) * ndim, dtype)
    array.flags.writeable = False
    return array


NO_U8: Final[U8] = empty(np.uint8, 1)
NO_I32: Final[I32] = empty(np.int32, 1)
NO_I64: Final[I64] = empty(np.int64, 1)
NO_I32S: Final[I32] = empty(np.int32, 2)
NO_F32S: Final[F32] = empty(np.float32, 2)

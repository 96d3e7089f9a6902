"""Types of header fields, and the layout of each message class in terms of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import attrs
import numpy as np

from transport._arrays import DTYPES
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.values import Array

_MAX_NAME: Final = 255
_MAX_TEXT: Final = 1 << 20
_MAX_DIMENSION: Final = 1 << 30


@attrs.frozen(eq=False)
class FieldType:
    """A type that a header field may have.

    Attributes:
        want: What it is, for error messages.
        test: Whether a value is of it. Exact types: a bool is no integer here.
    """

    want: str
    test: Callable[[Any], bool]


U64: Final = FieldType(
    "an integer from 0 to 2**64 - 1", lambda v: type(v) is int and 0 <= v < 1 << 64
)
U32: Final = FieldType(
    "an integer from 0 to 2**32 - 1", lambda v: type(v) is int and 0 <= v < 1 << 32
)
I64: Final = FieldType(
    "an integer of 64 bits", lambda v: type(v) is int and -(1 << 63) <= v < 1 << 63
)
BOOL: Final = FieldType("a bool", lambda v: type(v) is bool)
NAME: Final = FieldType(
    f"a string of at most {_MAX_NAME} characters", lambda v: type(v) is str and len(v) <= _MAX_NAME
)
TEXT: Final = FieldType(
    f"a string of at most {_MAX_TEXT} bytes",
    lambda v: type(v) is str and (len(v) <= _MAX_TEXT >> 2 or len(v.encode()) <= _MAX_TEXT),
)
NAMES: Final = FieldType("an array of names", lambda v: type(v) is tuple and all(map(NAME.test, v)))
SIZES: Final = FieldType(
    "an array of sizes",
    lambda v: type(v) is tuple and all(type(n) is int and 0 <= n <= _MAX_DIMENSION for n in v),
)


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) == 1:
        get = attrgetter(names[0])
        return lambda message: (get(message),)
    return attrgetter(*names) if names else lambda message: ()


@attrs.define(eq=False)
class Layout:
    """How one class of messages travels.

    Attributes:
        kind: Its number on the wire.
        scalars: Header fields in order.
        arrays: Arrays in order, each with its dtype's code and number of dimensions.
    """

    kind: int
    cls: type[Any]
    scalars: Mapping[str, FieldType]
    arrays: Mapping[str, tuple[str, int]] = attrs.field(factory=dict)
    _tests: list[Callable[[Any], bool]] = attrs.field(init=False)
    _names: tuple[str, ...] = attrs.field(init=False)
    _shapes: list[tuple[str, np.dtype[Any], int]] = attrs.field(init=False)
    _scalars_of: Callable[[Any], tuple[Any, ...]] = attrs.field(init=False)
    _arrays_of: Callable[[Any], tuple[Any, ...]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tests = [field.test for field in self.scalars.values()]
        self._names = tuple(self.scalars)
        self._shapes = [(name, DTYPES[code], ndim) for name, (code, ndim) in self.arrays.items()]
        self._scalars_of = _getter(tuple(self.scalars))
        self._arrays_of = _getter(tuple(self.arrays))

    def take(self, message: object) -> tuple[tuple[Any, ...], Sequence[Array]]:
        """Return a message's scalars and arrays, checked.

        Raises:
            LocalProtocolError: A scalar has the wrong type. Arrays are checked when it is made.
        """
        scalars = self._scalars_of(message)
        for index, test in enumerate(self._tests):
            if not test(scalars[index]):
                name, want = list(self.scalars.items())[index]
                raise LocalProtocolError(_complaint(self, name, want, scalars[index]))
        return scalars, self._arrays_of(message)

    def read(self, scalars: Sequence[Any], arrays: Sequence[Array]) -> dict[str, Any]:
        """Return the arguments of ``cls``.

        Raises:
            RemoteProtocolError: There are too many or too few, or one has the wrong type.
        """
        tests, shapes = self._tests, self._shapes
        if len(scalars) != len(tests):
            raise RemoteProtocolError(
                f"{self.cls.__name__}: {len(scalars)} fields; want {len(tests)}"
            )
        if len(arrays) != len(shapes):
            raise RemoteProtocolError(
                f"{self.cls.__name__}: {len(arrays)} arrays; want {len(shapes)}"
            )
        values = {}
        for name, test, scalar in zip(self._names, tests, scalars, strict=True):
            if not test(scalar):
                raise RemoteProtocolError(_complaint(self, name, self.scalars[name], scalar))
            values[name] = scalar
        if not shapes:
            return values
        for (name, dtype, ndim), array in zip(shapes, arrays, strict=True):
            if array.dtype != dtype or array.ndim != ndim:
                raise RemoteProtocolError(
                    f"{self.cls.__name__}.{name}: want {dtype} of {ndim} dimensions, "
                    f"got {array.dtype} of {array.ndim}"
                )
            values[name] = array
        return values


def _complaint(layout: Layout, name: str, field: FieldType, value: object) -> str:
    return f"{layout.cls.__name__}.{name}: want {field.want}, got {value!r:.80}"

"""Actors' options: a table of the topology file becomes a frozen, checked value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from runtime.errors import StartError

T = TypeVar("T")


def read_options(cls: type[T], context_name: str, options: Mapping[str, Any]) -> T:
    """Make an attrs class out of an actor's options.

    Raises:
        StartError: An option is unknown, or its validator refused it; names actor and option.
    """
    known = {field.name for field in attrs.fields(cls)}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            there_are = ", ".join(sorted(known)) or "none"
            raise StartError(f"actor {context_name}: no option {name!r}; there are {there_are}")
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise StartError(
            f"actor {context_name}: {error.args[0] if error.args else error}"
        ) from error

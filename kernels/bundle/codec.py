"""The manifest as JSON: ``dumps`` and ``loads``, which checks every field's type."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import attrs

from kernels.bundle.manifest import Manifest
from kernels.errors import BundleError

FORMAT = 1


def dumps(manifest: Manifest) -> str:
    """Return the text of ``manifest.json``: the same manifest gives the same bytes."""
    return json.dumps(attrs.asdict(manifest), indent=1, sort_keys=True) + "\n"


def loads(text: str) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        BundleError: It is not JSON, has another format, or a field is missing or of a wrong type.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise BundleError(f"manifest.json is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise BundleError("manifest.json does not hold an object")
    if raw.get("format") != FORMAT:
        raise BundleError(f"manifest.json has format {raw.get('format')!r}; this reads {FORMAT}")
    manifest = structure(raw, Manifest, "manifest")
    assert isinstance(manifest, Manifest)
    return manifest


def structure(value: object, kind: Any, where: str) -> object:  # noqa: ANN401 - a type
    """Turn JSON into the annotated type: attrs classes, tuples, literals, unions and scalars.

    Raises:
        BundleError: It does not fit; ``where`` begins the message.
    """
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        (kind,) = (option for option in options if option is not type(None))
        return structure(value, kind, where)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise BundleError(f"{where}: {value!r} is none of {typing.get_args(kind)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise BundleError(f"{where}: want a list, got {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(structure(each, item, f"{where}[{i}]") for i, each in enumerate(value))
    if attrs.has(kind):
        return _structure_object(value, kind, where)
    if type(value) is not kind:
        raise BundleError(f"{where}: want {kind.__name__}, got {value!r}")
    return value


def _structure_object(value: object, kind: Any, where: str) -> object:  # noqa: ANN401 - a type
    if not isinstance(value, dict):
        raise BundleError(f"{where}: want an object, got {value!r}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise BundleError(f"{where}: unknown fields {unknown}")
    fields = {}
    for field in attrs.fields(kind):
        if field.name in value:
            fields[field.name] = structure(
                value[field.name], hints[field.name], f"{where}.{field.name}"
            )
        elif field.default is attrs.NOTHING:
            raise BundleError(f"{where}: {field.name} is missing")
    return kind(**fields)

"""Bundles for the benchmark: one built of a bare model, and what requests need to know of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.features.feature import Feature, FeatureSpec
from kernels.features.spec import load_spec


def vocabularies(spec: FeatureSpec) -> dict[str, list[str]]:
    """Return the lines of each vocabulary, by the name of the feature that has it."""
    return {
        feature.name: (spec.folder / feature.encoder.vocabulary)
        .read_text(encoding="utf-8")
        .splitlines()
        for feature in spec.features
        if feature.encoder is not None and feature.encoder.vocabulary is not None
    }


def split_spec(spec: FeatureSpec, user_columns: int) -> str:
    """Return a ``features.toml`` like an inferred one, whose first columns are the user's.

    Each number becomes a feature of its own, as a client would have it that has them by name.

    Args:
        spec: Of identity ids and raw numbers only.
        user_columns: How many columns, in the order of the spec.

    Raises:
        ValueError: The border lies within a feature, or leaves one side empty.
    """
    columns = sum(feature.width for feature in spec.features)
    if not 0 < user_columns < columns:
        raise ValueError(f"--user-columns: want 1 to {columns - 1}, got {user_columns}")
    lines = ["version = 1"]
    first = 0
    for feature in spec.features:
        if feature.encoder is not None and first < user_columns < first + feature.width:
            raise ValueError(
                f"--user-columns: {user_columns} lies within feature {feature.name!r}, columns "
                f"{first} to {first + feature.width - 1}"
            )
        for name, column, width in _parts(feature):
            side = "user" if first < user_columns else "candidate"
            lines += ["", f"[features.{json.dumps(name, ensure_ascii=False)}]", f'side = "{side}"']
            if feature.encoder is None:
                lines.append('kind = "numeric"')
            else:
                lines += ['kind = "categorical"', 'encode = "identity"']
                lines.append(f"size = {feature.encoder.size}")
            quoted = json.dumps(feature.input, ensure_ascii=False)
            lines += [f"width = {width}", f"input = {quoted}", f"column = {column}"]
            first += width
    return "\n".join([*lines, ""])


def _parts(feature: Feature) -> Iterator[tuple[str, int, int]]:
    """Yield name, first column and width of what a feature becomes."""
    if feature.encoder is not None or feature.width == 1:
        yield feature.name, feature.column, feature.width
        return
    for k in range(feature.column, feature.column + feature.width):
        yield f"{feature.input}[{k}]", k, 1


def build_inferred(onnx: Path, user_columns: int, folder: Path) -> Path:
    """Build a bundle of a bare model, with inferred features; return its path within ``folder``.

    Raises:
        GraphError: The model cannot be used, or not cut.
        ValueError: ``user_columns`` does not fit its features.
    """
    inferred = folder / "inferred" / onnx.stem
    build_bundle(onnx, None, inferred, BuildOptions(infer=True, check=False))
    text = split_spec(load_spec(inferred / "features.toml", tables=False), user_columns)
    features = folder / "features.toml"
    features.write_text(text, encoding="utf-8")
    bundle = folder / onnx.stem
    build_bundle(onnx, features, bundle, BuildOptions())
    return bundle

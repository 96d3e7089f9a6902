"""The kinds of feature that are computed from others: cross, length, mask and weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from kernels.features.feature import LIST_KINDS, Feature
from kernels.features.section import Section
from kernels.features.sent import SpecFolder, finish


def read_derived(
    section: Section, kind: str, folder: SpecFolder, read: Mapping[str, Feature]
) -> Feature:
    """Read a cross, length or mask whose members are in ``read``; notes problems in ``section``."""
    if kind == "cross":
        return _cross(section, folder, read)
    name = section.text("of")
    parent = read.get(name)
    if parent is None or parent.kind not in LIST_KINDS:
        section.problem(f"want the name of a multi or sequence feature, got {name!r}", "of")
    side = "user" if parent is None else parent.side
    width = parent.width if parent is not None else 1
    if kind == "length":
        return finish(
            section, folder, kind="length", side=side, width=1, ids=(0, width), of=(name,)
        )
    return finish(section, folder, kind="mask", side=side, width=width, ids=None, of=(name,))


def weight_of(feature: Feature) -> Feature:
    """Return the weights that pool a list's entries without its padding."""
    return Feature(
        name=f"{feature.name}.weight",
        side=feature.side,
        kind="weight",
        dtype="float32",
        width=feature.width,
        input="",
        column=0,
        line=feature.line,
        of=(feature.name,),
        pooling=feature.pooling,
    )


def _cross(section: Section, folder: SpecFolder, read: Mapping[str, Feature]) -> Feature:
    names = section.texts("of")
    if len(names) < 2 or len(set(names)) < len(names):
        section.problem("want at least two features, each once", "of")
    members = [read[name] for name in names if name in read]
    for name in names:
        if name not in read:
            section.problem(f"there is no feature {name!r}", "of")
    for member in members:
        if member.kind not in ("categorical", "numeric") or member.ids is None:
            section.problem(
                f"{member.name!r} is {member.kind}: want categorical or bucketised features", "of"
            )
        elif member.width != 1:
            section.problem(f"{member.name!r} has width {member.width}: want 1", "of")
    side: Literal["user", "candidate"] = "user"
    if any(member.side == "candidate" for member in members):
        side = "candidate"
    first_id = section.integer("first_id", 0)
    buckets = section.integer("buckets", low=1)
    ids = [first_id, first_id + buckets - 1]
    missing = section.integer("missing") if section.has("missing") else None
    if missing is not None:
        ids.append(missing)
    return finish(
        section,
        folder,
        kind="cross",
        side=side,
        width=1,
        ids=(min(ids), max(ids)),
        of=names,
        buckets=buckets,
        first_id=first_id,
        missing=missing,
    )

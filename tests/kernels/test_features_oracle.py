"""The parser agrees with ``features_oracle`` on random specs and requests, good and damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.features.blocks import ParsedBatch, RawRequest
from kernels.features.feature import Feature, FeatureSpec
from kernels.features.parser import Parser
from kernels.features.spec import parse_spec
from tests.kernels.features_help import Block, splits, whole_manifest
from tests.kernels.features_oracle import Expected, Oracle

WORDS = ["a", "bb", "ccc", "7", "-3", "über", "eightchr", "more than eight", "10000000", "x" * 40]
VOCABULARY = [word.encode() for word in WORDS[:7]]
MAX_CANDIDATES = 6
FILE = "words.txt"


@st.composite
def features(draw: st.DrawFn, name: str) -> str:
    """One feature that clients send, as TOML."""
    kind = draw(st.sampled_from(["categorical", "numeric", "multi", "sequence"]))
    lines = [f"[features.{name}]", f'kind = "{kind}"']
    lines.append(f'side = "{draw(st.sampled_from(["user", "candidate"]))}"')
    if kind == "numeric":
        transform = draw(
            st.sampled_from(["raw", "raw", "log", "log_squared", "standardise", "bucketise"])
        )
        lines.append(f'transform = "{transform}"')
        if transform == "standardise":
            lines += ["mean = 1.5", "std = 0.25"]
        if transform == "bucketise":
            lines += ["boundaries = [-1, 0.5, 3]", f"first_id = {draw(st.integers(0, 2))}"]
        if draw(st.booleans()):
            lines.append(f"missing = {draw(st.sampled_from([0.0, -1, 2.5]))}")
    else:
        encode = draw(st.sampled_from(["vocabulary", "hash", "identity", "key"]))
        lines.append(f'encode = "{encode}"')
        sizes = {"vocabulary": f'vocabulary = "{FILE}"', "hash": "buckets = 11"}
        big = draw(st.sampled_from([9, 2**25]))
        if encode != "key":
            lines.append(sizes.get(encode, f"size = {big}"))
            lines.append(f"first_id = {draw(st.sampled_from([0, 1, 5]))}")
        choices = ["1", "30", '"error"'] + (['"skip"'] if kind != "categorical" else [])
        for key in ("missing", "unseen") if encode in ("vocabulary", "identity") else ("missing",):
            if draw(st.booleans()):
                lines.append(f"{key} = {draw(st.sampled_from(choices))}")
    if kind in ("multi", "sequence"):
        lines.append(f"max_length = {draw(st.integers(1, 3))}")
        lines.append(f"pad = {draw(st.integers(0, 2))}")
        lines.append(f'pad_side = "{draw(st.sampled_from(["left", "right"]))}"')
        if draw(st.booleans()):
            lines.append(f'keep = "{draw(st.sampled_from(["first", "last", "error"]))}"')
        if draw(st.booleans()):
            lines.append('table = "t"')
            lines.append(f'pooling = "{draw(st.sampled_from(["none", "sum", "mean", "max"]))}"')
    elif draw(st.booleans()):
        lines.append(f"width = {draw(st.integers(1, 3))}")
    return "\n".join(lines)


@st.composite
def specs(draw: st.DrawFn) -> str:
    """A whole ``features.toml``."""
    n = draw(st.integers(1, 6))
    parts = ["version = 1"]
    lists, members = [], []
    for k in range(n):
        text = draw(features(f"f{k}"))
        parts.append(text)
        if "max_length" in text:
            lists.append(f"f{k}")
        elif ("numeric" not in text or "bucketise" in text) and "width" not in text:
            members.append(f"f{k}")
    for name in lists:
        if draw(st.booleans()):
            parts.append(f'[features.{name}_length]\nkind = "length"\nof = "{name}"')
        if draw(st.booleans()):
            parts.append(f'[features.{name}_mask]\nkind = "mask"\nof = "{name}"')
    if len(members) > 1:
        cross = f'[features.cross]\nkind = "cross"\nof = {members}\nbuckets = 13\nfirst_id = 2'
        parts.append(cross + draw(st.sampled_from(["", "\nmissing = 0", "\nmissing = 40"])))
    return "\n".join(parts)


def numbers(feature: Feature, *, right: bool) -> st.SearchStrategy[Any]:
    """Values; wrong ones among them unless they are to be ``right``."""
    if feature.numeric is not None:
        good = st.floats(-10, 50, width=16)
        return good if right else good | st.sampled_from([np.nan, np.inf, -np.inf, 1e300, 1e30])
    assert feature.encoder is not None
    few = st.just(7) if feature.encoder.encode == "vocabulary" else st.integers(0, 8)
    odd = [np.nan, -3, 9, 7, 0.5, 1e7, 2**24, 2**24 + 1.0, 1e300, np.inf]
    return few if right else few | few | st.sampled_from(odd)


@st.composite
def feature_blocks(draw: st.DrawFn, feature: Feature, n: int, *, right: bool) -> Block:
    """The column of one feature, in any form that fits it."""
    side = 0 if feature.side == "user" else 1
    listed = feature.kind in ("multi", "sequence")
    text = feature.encoder is not None and feature.encoder.encode != "identity"
    form = draw(st.sampled_from(["fixed", "ragged", "text"] if text else ["fixed", "ragged"]))
    most = feature.width if right else 4
    widths = st.integers(0, most) if listed else st.just(feature.width)
    row_splits = splits(draw(st.lists(widths, min_size=n, max_size=n)))
    total = int(row_splits[-1])
    if form == "text":
        values = st.sampled_from(WORDS[:7] if right else [*WORDS, ""])
        words = [w.encode() for w in draw(st.lists(values, min_size=total, max_size=total))]
        plain = (listed or feature.width == 1) and total == n and draw(st.booleans())
        return Block(
            side=side,
            names=(feature.name,),
            values=np.frombuffer(b"".join(words), np.uint8),
            char_splits=splits([len(w) for w in words]),
            row_splits=None if plain else row_splits,
        )
    shape: tuple[int, ...] = (total,)
    if form == "fixed":
        width = draw(st.integers(1, most)) if listed else feature.width
        shape = (1, n) if width == 1 and draw(st.booleans()) else (1, n, width)
        total = n * width
    drawn = draw(st.lists(numbers(feature, right=right), min_size=total, max_size=total))
    dtype = draw(st.sampled_from("fdliBeL" if right else ["f", "d", "l", "B", "?", "e", "L", ">f"]))
    return Block(
        side=side,
        names=(feature.name,),
        values=to_array(drawn, dtype).reshape(shape),
        row_splits=None if form == "fixed" else row_splits,
    )


def to_array(values: list[Any], dtype: str) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        array = np.array(values, np.float64)
        if np.dtype(dtype).kind in "iu":
            array = np.nan_to_num(np.clip(array, -100, 200), nan=3)
        return array.astype(dtype)


@st.composite
def requests(draw: st.DrawFn, spec: FeatureSpec) -> RawRequest:
    """One request, its blocks in any order: right (or nearly), or wrong in any way."""
    right = draw(st.booleans())
    n = draw(st.integers(0, MAX_CANDIDATES))
    blocks = []
    for feature in spec.features:
        if feature.sent and (right or draw(st.integers(0, 9))):
            rows = 1 if feature.side == "user" else n
            blocks.append(draw(feature_blocks(feature, rows, right=right)))
    blocks = join(draw(st.permutations(blocks))) if draw(st.booleans()) else blocks
    if right or not blocks:
        return RawRequest(n, blocks)
    harm = draw(st.integers(0, 7))
    if harm == 0:
        return RawRequest(draw(st.sampled_from([n - 1, n + 1, -1, 2**40])), blocks)
    if harm == 1:
        return RawRequest(n, [*blocks, blocks[0]])
    if harm < 5:
        at = draw(st.integers(0, len(blocks) - 1))
        blocks = [*blocks[:at], draw(damaged(blocks[at])), *blocks[at + 1 :]]
    return RawRequest(n, blocks)


def join(blocks: list[Block]) -> list[Block]:
    """Put fixed numbers of one side, type and shape into one block."""
    together: dict[Any, list[Block]] = {}
    for block in blocks:
        alone = block.row_splits is not None or block.char_splits is not None
        key = id(block) if alone else (block.side, block.values.dtype, block.values.shape)
        together.setdefault(key, []).append(block)
    return [
        attrs.evolve(
            group[0],
            names=tuple(name for block in group for name in block.names),
            values=np.concatenate([block.values for block in group]),
        )
        for group in together.values()
    ]


@st.composite
def damaged(draw: st.DrawFn, block: Block) -> Block:
    """The block with something wrong, or perhaps still right."""
    change = draw(st.integers(0, 8))
    values = block.values
    if change == 0:
        return attrs.evolve(block, side=draw(st.sampled_from([0, 1, 2, -1])))
    if change == 1:
        return attrs.evolve(block, names=("stranger", *block.names[1:]))
    if change == 2:
        return attrs.evolve(block, values=values[..., : max(0, values.shape[-1] - 1)])
    if change == 3:
        return attrs.evolve(block, values=values.astype("S3"))
    if change == 4:
        return attrs.evolve(block, values=values[None])
    if change == 5 and block.char_splits is not None and len(values):
        broken = values.copy()
        broken[draw(st.integers(0, len(values) - 1))] = 0xC3
        return attrs.evolve(block, values=broken)
    if change == 6 and block.row_splits is not None:
        return attrs.evolve(block, row_splits=draw(bad_splits(block.row_splits)))
    if change == 7 and block.char_splits is not None:
        return attrs.evolve(block, char_splits=draw(bad_splits(block.char_splits)))
    return attrs.evolve(block, names=(*block.names, "another"))


@st.composite
def bad_splits(draw: st.DrawFn, good: NDArray[np.int32]) -> NDArray[np.int32]:
    if draw(st.booleans()):
        return good[:-1]
    broken = good.copy()
    broken[draw(st.integers(0, len(good) - 1))] = draw(st.integers(-2, 9))
    return broken


@st.composite
def batches(draw: st.DrawFn) -> tuple[str, list[RawRequest], list[str]]:
    """A spec, requests of it (some alike), and an order for the manifest."""
    text = draw(specs())
    spec = read(text)
    some = draw(st.lists(requests(spec), min_size=1, max_size=4))
    order = draw(st.permutations([feature.name for feature in spec.features]))
    return text, draw(st.permutations(some + some[:2])), order


def read(text: str) -> FeatureSpec:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(b"\n".join(VOCABULARY))
        return parse_spec(text, Path(folder), tables=False)


def check(
    parsed: ParsedBatch, spec: FeatureSpec, expected: list[Expected], order: list[str]
) -> None:
    failed = {k for k, each in enumerate(expected) if each.wrong}
    assert set(parsed.failed) == failed, (parsed.failed, expected)
    for k in failed:
        assert parsed.failed[k].field in expected[k].wrong
    good = [k for k in range(len(expected)) if k not in failed]
    assert parsed.parsed.tolist() == good
    for side, matrices in (("user", parsed.user), ("candidate", parsed.candidate)):
        want: dict[str, list[list[Any]]] = {"ids": [], "weights": [], "values": []}
        for name in order:
            feature = spec.by_name[name]
            if feature.side == side:
                rows = [row for k in good for row in expected[k].columns[name]]
                what = "ids" if feature.dtype == "int64" else "values"
                what = "weights" if feature.kind in ("mask", "weight") else what
                want[what] += [[row[c] for row in rows] for c in range(feature.width)]
        n = matrices.ids.shape[1]
        assert matrices.ids.dtype == np.int64
        assert matrices.ids.tolist() == want["ids"]
        assert matrices.values.dtype == matrices.weights.dtype == np.float32
        assert matrices.values.flags.c_contiguous
        weights = np.array(want["weights"], np.float32).reshape(len(want["weights"]), n)
        values = np.array(want["values"], np.float32).reshape(len(want["values"]), n)
        np.testing.assert_allclose(matrices.weights, weights, rtol=1e-6)
        np.testing.assert_allclose(matrices.values.T, values, rtol=1e-6, atol=1e-30)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches())
def test_the_parser_agrees_with_the_oracle(batch: tuple[str, list[RawRequest], list[str]]) -> None:
    text, raw, order = batch
    spec = read(text)
    oracle = Oracle(spec, {FILE: VOCABULARY}, MAX_CANDIDATES)
    parser = Parser(spec, whole_manifest(spec, order), {}, max_candidates=MAX_CANDIDATES)
    expected = [oracle.parse(request) for request in raw]
    check(parser.parse(raw), spec, expected, order)
    check(parser.parse(raw[::-1]), spec, expected[::-1], order)  # with the layouts compiled

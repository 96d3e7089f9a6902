"""The blocks of many requests of one layout, checked for shape and laid end to end.

All requests here have the same *forms*: blocks of the same sides, names and types in the same
order. Each block becomes one array over the rows of all requests, a row being a request on the user
side and a candidate on the other. Requests whose arrays do not have the shapes that they should
are left out, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import FeatureError
from kernels.features.blocks import RawBlock, RawRequest
from kernels.features.faults import USER
from kernels.features.hashing import I64, MAX_TEXT_BYTES, U64, hash_texts

# side, names, dtype.char of values, ndim of values, width if three-dimensional else 0, whether it
# has row splits, whether it has char splits: a tuple, as making it is on the path of each request
FormKey: TypeAlias = tuple[int, tuple[str, ...], str, int, int, bool, bool]


def form_key(block: RawBlock) -> FormKey:
    """Return what decides how a block is read."""
    values = block.values
    ndim = values.ndim
    return (
        block.side,
        block.names,
        values.dtype.char,
        ndim,
        values.shape[2] if ndim == 3 else 0,
        block.row_splits is not None,
        block.char_splits is not None,
    )


@attrs.frozen(kw_only=True)
class Form:
    """How the blocks at one position of a layout are read.

    Attributes:
        ndim: Of fixed numbers: ``[n_names, n]`` or ``[n_names, n, width]``.
        ragged: Whether there are row splits.
        text: Whether there are char splits.
        each: Entries that each row must have where the block is ragged; None for a list.
    """

    side: int
    names: tuple[str, ...]
    ndim: int
    ragged: bool
    text: bool
    each: int | None


@attrs.define(eq=False)
class Gathered:
    """One block position over all rows. What does not apply is None.

    Attributes:
        matrix: Fixed numbers, ``[n_names * width, n]``.
        entries: Ragged numbers of all rows, ``[n_entries]``.
        lengths: int64 ``[n]``, entries of each row, where it is ragged.
        hashes: uint64, of each text; the empty one is 0.
    """

    matrix: NDArray[Any] | None = None
    entries: NDArray[Any] | None = None
    lengths: I64 | None = None
    hashes: U64 | None = None
    texts: Texts | None = None
    first_text: int = 0

    def show(self, position: int) -> str:
        """Return one text, for a person."""
        assert self.texts is not None
        return self.texts.show(self.first_text + position)


class Texts:
    """All texts of a batch in one buffer, hashed at once."""

    def __init__(self, parts: Sequence[NDArray[np.uint8]], lengths: I64) -> None:
        self.data = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self.lengths = lengths
        self.starts = np.cumsum(lengths) - lengths

    def hash(self) -> U64:
        """Return uint64 ``[n_texts]``; texts that are too long hash as if they were empty."""
        lengths = self.lengths
        if len(lengths) and int(lengths.max()) > MAX_TEXT_BYTES:
            lengths = np.where(lengths > MAX_TEXT_BYTES, 0, lengths)
        return hash_texts(self.data, self.starts, lengths)

    def bad(self) -> dict[int, str]:
        """Return the texts that are not text, and why."""
        if not len(self.lengths):
            return {}
        found = {
            k: f"a text of {self.lengths[k]} bytes, over the limit of {MAX_TEXT_BYTES}"
            for k in np.flatnonzero(self.lengths > MAX_TEXT_BYTES).tolist()
        }
        if not self._is_utf8():
            for k in range(len(self.lengths)):
                try:
                    self._bytes(k).decode()
                except UnicodeDecodeError as error:
                    found[k] = f"{self._bytes(k)[:40]!r} is not UTF-8: {error.reason}"
        return found

    def _is_utf8(self) -> bool:
        """All of it is, and no text begins inside a character."""
        try:
            self.data.tobytes().decode()
        except UnicodeDecodeError:
            return False
        first = self.data[self.starts[self.lengths > 0]]
        return not ((first & 0xC0) == 0x80).any()

    def _bytes(self, k: int) -> bytes:
        start = int(self.starts[k])
        return self.data[start : start + int(self.lengths[k])].tobytes()

    def show(self, k: int) -> str:
        """Return a text, for a person."""
        text = self._bytes(k).decode(errors="replace")
        return repr(text if len(text) <= 60 else text[:57] + "...")


def gather(
    forms: Sequence[Form], requests: Sequence[RawRequest]
) -> tuple[list[Gathered], list[int], dict[int, FeatureError]]:
    """Lay the blocks of requests end to end.

    Returns:
        The blocks; the positions of the requests that are in them; the problems of the others.
    """
    failed: dict[int, FeatureError] = {}
    for position, request in enumerate(requests):
        n_candidates = request.n_candidates
        for form, block in zip(forms, request.blocks, strict=True):
            n = 1 if form.side == USER else n_candidates
            if form.ragged or form.text:
                problem = _ragged_problem(block, n)
            elif block.values.shape[:2] == (len(form.names), n):
                continue
            else:
                problem = _shape_problem(form, block, n)
            if problem:
                field = form.names[0] if form.names else "blocks"
                failed.setdefault(position, FeatureError(field, problem))
    kept = [p for p in range(len(requests)) if p not in failed]
    while kept:
        gathered, found = _lay(forms, [requests[p] for p in kept])
        if not found:
            return gathered, kept, failed
        failed.update((kept[p], error) for p, error in found.items())
        kept = [p for p in kept if p not in failed]
    return [], [], failed


def _shape_problem(form: Form, block: RawBlock, n: int) -> str:
    want = f"want {n} values, one for each candidate" if form.side else "want 1 value"
    shape = block.values.shape
    if shape[0] != len(form.names):
        return f"its block has {len(form.names)} names and {shape[0]} rows of values"
    return f"{want}, got {shape[1]}"


def _ragged_problem(block: RawBlock, n: int) -> str:
    splits = block.char_splits if block.row_splits is None else block.row_splits
    for name, each in (("row_splits", block.row_splits), ("char_splits", block.char_splits)):
        if each is not None and (each.ndim != 1 or each.dtype.kind not in "iu" or not len(each)):
            return f"{name}: want int32 [n + 1], got {each.dtype} {list(each.shape)}"
    assert splits is not None
    if len(splits) != n + 1:
        return f"want {n} values, got {len(splits) - 1}"
    return ""


def _lay(
    forms: Sequence[Form], requests: Sequence[RawRequest]
) -> tuple[list[Gathered], dict[int, FeatureError]]:
    """Return the blocks over these requests, or (any, problems)."""
    gathered = [Gathered() for _ in forms]
    failed: dict[int, FeatureError] = {}
    if any(form.ragged or form.text for form in forms):
        _lay_ragged(forms, requests, gathered, failed)
        if failed:
            return gathered, failed
    for b, form in enumerate(forms):
        if form.text:
            continue
        parts = [request.blocks[b].values for request in requests]
        if form.ragged:
            entries = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if form.each is None:
                gathered[b].entries = entries
            else:
                gathered[b].matrix = entries.reshape(-1, form.each).T
        else:
            values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            if form.ndim == 3:
                n_names, n, width = values.shape
                values = values.transpose(0, 2, 1).reshape(n_names * width, n)
            gathered[b].matrix = values
    return gathered, failed


def _lay_ragged(
    forms: Sequence[Form],
    requests: Sequence[RawRequest],
    gathered: list[Gathered],
    failed: dict[int, FeatureError],
) -> None:
    """Check all splits and texts of the batch at once, and lay the texts."""

    def fail(b: int, request: int, problem: str) -> None:
        failed.setdefault(request, FeatureError(forms[b].names[0], problem))

    ragged = [b for b, form in enumerate(forms) if form.ragged]
    if ragged:
        blocks = [request.blocks[b] for b in ragged for request in requests]
        limits = [
            len(block.values) if block.char_splits is None else len(block.char_splits) - 1
            for block in blocks
        ]
        lengths, bad = _lengths([block.row_splits for block in blocks], limits)
        for k in bad:
            fail(ragged[k // len(requests)], k % len(requests), _splits_problem("row", limits[k]))
        if not bad:
            _set_lengths(forms, requests, gathered, ragged, lengths, fail)
    texts = [b for b, form in enumerate(forms) if form.text]
    if texts:
        blocks = [request.blocks[b] for b in texts for request in requests]
        limits = [len(block.values) for block in blocks]
        lengths, bad = _lengths([block.char_splits for block in blocks], limits)
        for k in bad:
            fail(texts[k // len(requests)], k % len(requests), _splits_problem("char", limits[k]))
        if not bad and not failed:
            _lay_texts(requests, gathered, texts, lengths, fail)


def _splits_problem(what: str, limit: int) -> str:
    return f"{what}_splits: want offsets that begin with 0, never fall, and end with {limit}"


def _lengths(splits: Sequence[Any], limits: Sequence[int]) -> tuple[I64, list[int]]:
    """Return the lengths that splits give, end to end, and which of the splits are wrong."""
    together = np.concatenate(splits).astype(np.int64)
    ends = np.cumsum([len(each) for each in splits])
    lengths = np.empty(len(together), np.int64)
    np.subtract(together[1:], together[:-1], out=lengths[:-1])
    lengths[ends - 1] = 0
    starts = np.concatenate([[0], ends[:-1]])
    bad = (together[starts] != 0) | (together[ends - 1] != np.array(limits))
    falls = lengths < 0
    if falls.any():
        bad[np.searchsorted(ends, np.flatnonzero(falls), side="right")] = True
    inner = np.ones(len(together), np.bool_)
    inner[ends - 1] = False
    return lengths[inner], np.flatnonzero(bad).tolist()


def _set_lengths(
    forms: Sequence[Form],
    requests: Sequence[RawRequest],
    gathered: list[Gathered],
    ragged: Sequence[int],
    lengths: I64,
    fail: Any,  # noqa: ANN401 - a local function of the caller
) -> None:
    """Deal the row lengths out to the blocks; rows of fixed width must have that many entries."""
    at = 0
    n_rows = np.array([request.n_candidates for request in requests])
    for b in ragged:
        counts = np.ones_like(n_rows) if forms[b].side == USER else n_rows
        n = int(counts.sum())
        mine = gathered[b].lengths = lengths[at : at + n]
        at += n
        each = forms[b].each
        if each is not None and (mine != each).any():
            ends = np.cumsum(counts)
            for row in np.flatnonzero(mine != each).tolist():
                request = int(np.searchsorted(ends, row, side="right"))
                where = ""
                if forms[b].side != USER:
                    where = f" (candidate {row - int(ends[request] - counts[request])})"
                fail(b, request, f"want {each} values, got {int(mine[row])}{where}")


def _lay_texts(
    requests: Sequence[RawRequest],
    gathered: list[Gathered],
    blocks: Sequence[int],
    lengths: I64,
    fail: Any,  # noqa: ANN401 - a local function of the caller
) -> None:
    parts = [request.blocks[b].values for b in blocks for request in requests]
    counts = [
        len(splits) - 1
        for b in blocks
        for request in requests
        if (splits := request.blocks[b].char_splits) is not None
    ]
    texts = Texts(parts, lengths)
    ends = np.cumsum(counts)
    for text, problem in texts.bad().items():
        k = int(np.searchsorted(ends, text, side="right"))
        fail(blocks[k // len(requests)], k % len(requests), problem)
    hashes = texts.hash()
    starts = np.concatenate([[0], ends])[:: len(requests)].tolist()
    for b, start, end in zip(blocks, starts, starts[1:], strict=False):
        gathered[b].texts, gathered[b].first_text = texts, start
        gathered[b].hashes = hashes[start:end]

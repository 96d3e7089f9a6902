"""Vocabulary files: one value a line, UTF-8; line ``n`` (from 0) is id ``first_id + n``.

A value is known by its 64-bit hash: a text that is not in a vocabulary of a million lines is taken
for one that is with probability 5e-14. Two lines with one hash are refused when the file is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernels.errors import SpecError
from kernels.features.hashing import I64, MAX_TEXT_BYTES, U8, U64, hash_texts

_NEWLINE = ord("\n")
_RETURN = ord("\r")


def read_vocabulary(path: Path) -> U64:
    """Return the hashes of a vocabulary file's lines, in order.

    A million lines take about half a second.

    Raises:
        SpecError: The file is missing, empty or not UTF-8, a line is empty, too long or there
            twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path}:{line}: not UTF-8") from error
    if not content:
        raise SpecError(f"{path}: a vocabulary has at least one line")
    data = np.frombuffer(content if content.endswith(b"\n") else content + b"\n", np.uint8)
    starts, lengths = _lines(data)
    for wrong, problem in (
        (lengths == 0, "an empty line: the empty text means a missing value"),
        (lengths > MAX_TEXT_BYTES, f"longer than {MAX_TEXT_BYTES} bytes"),
    ):
        if wrong.any():
            raise SpecError(f"{path}:{int(wrong.argmax()) + 1}: {problem}")
    hashes = hash_texts(data, starts, lengths)
    _refuse_duplicates(path, hashes, data, starts, lengths)
    return hashes


def _lines(data: U8) -> tuple[I64, I64]:
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts
    lengths -= (lengths > 0) & (data[ends - 1] == _RETURN)
    return starts, lengths


def _refuse_duplicates(path: Path, hashes: U64, data: U8, starts: I64, lengths: I64) -> None:
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(same):
        return
    first, second = (int(order[same[0] + k]) for k in (0, 1))
    texts = [data[starts[n] : starts[n] + lengths[n]].tobytes().decode() for n in (first, second)]
    if texts[0] == texts[1]:
        raise SpecError(f"{path}:{second + 1}: {texts[1]!r} is on line {first + 1} already")
    raise SpecError(
        f"{path}:{second + 1}: {texts[1]!r} has the hash of {texts[0]!r} on line {first + 1}: "
        "spell one of them differently"
    )


class VocabularyIndex:
    """Many vocabularies in one hash table, so that one search serves all of a batch's columns.

    Open addressing with linear probing, at most a quarter full: 48 to 96 bytes a line.
    """

    def __init__(self, vocabularies: list[U64]) -> None:
        self._salts = _SPREAD * np.arange(1, len(vocabularies) + 1, dtype=np.uint64)
        sizes = [len(hashes) for hashes in vocabularies]
        n_slots = 1 << max(4, (4 * sum(sizes) - 1).bit_length())
        self._mask = np.uint64(n_slots - 1)
        self._keys = np.zeros(n_slots, np.uint64)
        self._lines = np.full(n_slots, -1, np.int32)
        for salt, hashes in zip(self._salts, vocabularies, strict=True):
            self._insert(hashes ^ salt, np.arange(len(hashes)))

    def _insert(self, keys: U64, lines: I64) -> None:
        slots = keys & self._mask
        while len(keys):
            free = self._lines[slots] < 0
            self._keys[slots[free]] = keys[free]  # where several want one slot, the last is in
            self._lines[slots[free]] = lines[free]
            in_place = (self._keys[slots] == keys) & (self._lines[slots] == lines)
            keys, lines, slots = keys[~in_place], lines[~in_place], slots[~in_place]
            slots = (slots + np.uint64(1)) & self._mask

    def find(self, hashes: U64, which: int | I64) -> I64:
        """Return the line of each hash in the vocabulary ``which`` (an index), or -1.

        Args:
            hashes: uint64 ``[...]``.
            which: Index of the vocabulary, or int64 that broadcasts against ``hashes``.
        """
        keys = hashes ^ self._salts[which]
        slots = keys & self._mask
        lines = self._lines[slots]
        miss = (self._keys[slots] != keys) & (lines >= 0)
        while miss.any():
            slots[miss] = (slots[miss] + np.uint64(1)) & self._mask
            lines = self._lines[slots]
            miss = (self._keys[slots] != keys) & (lines >= 0)
        found: I64 = lines.astype(np.int64)
        return found


_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: keeps vocabularies apart

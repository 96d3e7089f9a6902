from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.errors import SpecError
from kernels.features.vocabulary import VocabularyIndex, read_vocabulary
from tests.kernels.features_oracle import murmur64a


def write(folder: Path, content: bytes) -> Path:
    path = folder / "words.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"a\nb\nc", b"a\nb\nc\n", b"a\r\nb\r\nc\r\n"])
def test_each_line_is_a_value_however_lines_end(tmp_path: Path, content: bytes) -> None:
    hashes = read_vocabulary(write(tmp_path, content))
    assert hashes.tolist() == [murmur64a(text) for text in (b"a", b"b", b"c")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "words.txt: a vocabulary has at least one line"),
        (b"a\n\nb", "words.txt:2: an empty line"),
        (b"a\n\r\nb", "words.txt:2: an empty line"),
        (b"a\nb\nc\nb\n", "words.txt:4: 'b' is on line 2 already"),
        (b"a\nb\n\xff\n", "words.txt:3: not UTF-8"),
        (b"a\n" + b"x" * 2000, "words.txt:2: longer than 1024 bytes"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_vocabulary(write(tmp_path, content))
    assert problem in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.txt: No such file"):
        read_vocabulary(tmp_path / "nowhere.txt")


def test_an_index_finds_every_line_of_every_vocabulary_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    vocabularies = [
        np.unique(rng.integers(1, 2**63, n).astype(np.uint64)) for n in (1, 5000, 300, 4000)
    ]
    index = VocabularyIndex(vocabularies)
    for which, hashes in enumerate(vocabularies):
        assert index.find(hashes, which).tolist() == list(range(len(hashes)))
        assert (index.find(hashes + np.uint64(1), which) == -1).all()
        other = vocabularies[which - 1]
        assert (index.find(other, which) == -1).all()


def test_columns_of_different_vocabularies_are_found_in_one_search() -> None:
    a, b = np.array([10, 20], np.uint64), np.array([20, 30], np.uint64)
    index = VocabularyIndex([a, b])
    hashes = np.array([[20, 30], [20, 30]], np.uint64)
    assert index.find(hashes, np.array([[0], [1]])).tolist() == [[1, -1], [0, 1]]

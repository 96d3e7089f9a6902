"""Criteo's rows, as they stand in the file, through a served DeepFM: equal to the whole model.

What is expected comes from the documents alone: MurmurHash64A and the transforms are written out
here again in plain Python, and ONNX Runtime runs the model uncut.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from tests.system.cluster_help import serving
from transport.blocking import BlockingClient

SHARED = Path(__file__).parents[2].parent / "shared"
CRITEO = SHARED / "data" / "criteo_sample.csv"
ZOO = SHARED / "zoo"
MODEL = ZOO / "models" / "deepctr_DeepFM.dynamo.onnx"
BUDGET_S = 30.0

pytestmark = pytest.mark.skipif(
    not (CRITEO.exists() and MODEL.exists()), reason="no data and zoo beside the checkout"
)

_WORD = (1 << 64) - 1


def murmur(text: str) -> int:
    """MurmurHash64A with seed 0, from its public definition."""
    data, m, r = text.encode(), 0xC6A4A7935BD1E995, 47
    h = len(data) * m & _WORD
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        k = int.from_bytes(data[at : at + 8], "little") * m & _WORD
        k = (k ^ k >> r) * m & _WORD
        h = (h ^ k) * m & _WORD
    if data[whole:]:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & _WORD
    h = (h ^ h >> r) * m & _WORD
    return h ^ h >> r


def missing_id(vocab: int) -> int:
    return vocab // 2


def features_toml(vocabs: dict[str, int], dense: list[str]) -> str:
    lines = ["version = 1"]
    for column, (name, vocab) in enumerate(vocabs.items()):
        lines += [f"[features.{name}]", 'side = "candidate"', 'kind = "categorical"']
        lines += ['encode = "hash"', f"buckets = {vocab}", f"missing = {missing_id(vocab)}"]
        lines += ['input = "X"', f"column = {column}"]
    for column, name in enumerate(dense, len(vocabs)):
        lines += [f"[features.{name}]", 'side = "candidate"', 'kind = "numeric"']
        lines += ['transform = "log"', "missing = 0.0", 'input = "X"', f"column = {column}"]
    return "\n".join([*lines, ""])


@attrs.frozen(eq=False)
class Criteo:
    """The rows as text, what the model says to them, and a client of the node that serves it."""

    rows: list[dict[str, str]]
    categorical: list[str]
    dense: list[str]
    want: NDArray[np.float32]
    client: BlockingClient

    def value(self, row: dict[str, str], name: str) -> str | float | None:
        """Return a field as a client sends it: text as it stands, a number or None."""
        if name in self.dense:
            return float(row[name]) if row[name] else None
        return row[name]


@pytest.fixture(scope="module")
def criteo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Criteo]:
    folder = tmp_path_factory.mktemp("criteo")
    entries = json.loads((ZOO / "MANIFEST.json").read_text())["entries"]
    (entry,) = (each for each in entries if each["name"] == "deepctr_DeepFM")
    columns = entry["inputs"][0]["columns"]
    vocabs = {each["name"]: each["vocab"] for each in columns if each["kind"] == "cat"}
    dense = [each["name"] for each in columns if each["kind"] == "dense"]
    (folder / "features.toml").write_text(features_toml(vocabs, dense))
    with CRITEO.open(newline="") as file:
        rows = list(csv.DictReader(file))
    x = [
        [
            *(murmur(row[c]) % v if row[c] else missing_id(v) for c, v in vocabs.items()),
            *(math.log(1 + max(float(row[i] or 0), 0)) for i in dense),
        ]
        for row in rows
    ]
    session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    want = session.run(None, {"X": np.array(x, np.float32)})[0][:, 0]
    build_bundle(MODEL, folder / "features.toml", folder / "deepfm", BuildOptions())
    with (
        serving({"deepfm": folder / "deepfm"}, folder) as node,
        BlockingClient(node.address) as client,
    ):
        yield Criteo(rows, list(vocabs), dense, want, client)


def test_the_sample_has_what_is_hard(criteo: Criteo) -> None:
    assert murmur("17") == 0x7777C5CF4CE97DE8
    assert murmur("tensorbatch") == 0x2F91CEFBB0048F3F
    assert len(criteo.rows) == 200
    assert (len(criteo.categorical), len(criteo.dense)) == (26, 13)
    assert any(not row[name] for row in criteo.rows for name in criteo.categorical)
    assert any(not row[name] for row in criteo.rows for name in criteo.dense)
    assert any(row[name].startswith("-") for row in criteo.rows for name in criteo.dense)
    assert np.ptp(criteo.want) > 0.1  # scores that tell rows apart


def test_all_rows_as_candidates_of_one_request(criteo: Criteo) -> None:
    columns = {
        name: [criteo.value(row, name) for row in criteo.rows]
        for name in (*criteo.categorical, *criteo.dense)
    }
    scores = criteo.client.score(model="deepfm", user={}, candidates=columns, budget=BUDGET_S)
    np.testing.assert_allclose(scores.scores, criteo.want, rtol=1e-4, atol=1e-6)


def test_each_row_as_a_request_of_its_own_that_leaves_out_what_is_missing(criteo: Criteo) -> None:
    for row, want in zip(criteo.rows, criteo.want, strict=True):
        candidate = {
            name: criteo.value(row, name)
            for name in (*criteo.categorical, *criteo.dense)
            if row[name]
        }
        scores = criteo.client.score(
            model="deepfm", user={}, candidates=[candidate], budget=BUDGET_S
        )
        np.testing.assert_allclose(scores.scores, [want], rtol=1e-4, atol=1e-6)

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.errors import StoreError
from kernels.halves import to_bf16
from kernels.store import sources as sources_module
from kernels.store.sources import open_source

ROWS = np.random.default_rng(0).standard_normal((50, 3), np.float32)
KEYS = np.arange(50) * 3


def write_safetensors(path: Path, arrays: dict[str, tuple[str, NDArray[Any]]]) -> None:
    """As the format's specification says; the header may be padded with blanks."""
    header: dict[str, Any] = {"__metadata__": {"made": "by hand"}}
    data = b""
    for name, (kind, array) in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def all_rows(text: str) -> NDArray[np.float32]:
    return np.concatenate(list(open_source(text, matrix=True).rows()))


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", ">f4"])
def test_rows_of_npy_files_come_in_pieces(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_BLOCK_BYTES", 100)
    np.save(tmp_path / "rows.npy", ROWS.astype(dtype))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(ROWS.astype(dtype)))
    for name in ("rows", "fortran"):
        source = open_source(f"{tmp_path}/{name}.npy", matrix=True)
        pieces = list(source.rows())
        assert [len(piece) for piece in pieces] == [8] * 6 + [2]
        np.testing.assert_array_equal(np.concatenate(pieces), ROWS.astype(dtype))
        assert {piece.dtype for piece in pieces} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", ["<i8", "<u8", "<i4", "<u4"])
def test_keys_of_any_integers_keep_their_value_or_their_bits(dtype: str, tmp_path: Path) -> None:
    keys = np.array([0, 5, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    np.save(tmp_path / "keys.npy", keys)
    source = open_source(f"{tmp_path}/keys.npy", matrix=False)
    (got,) = source.keys(4)
    want = keys.view(np.int64) if dtype == "<u8" else keys.astype(np.int64)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(StoreError, match=r"keys\.npy: want integers \[5\]"):
        list(source.keys(5))


def test_arrays_of_safetensors_files(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(
        file,
        {
            "half": ("F16", ROWS.astype(np.float16)),
            "keys": ("I64", KEYS),
            "brain": ("BF16", to_bf16(ROWS)),
            "tiny": ("F8_E4M3", np.zeros(3, np.uint8)),
            "full": ("F32", ROWS),
            "nothing": ("F32", ROWS[:0]),
        },
    )
    np.testing.assert_array_equal(all_rows(f"{file}:full"), ROWS)
    np.testing.assert_array_equal(all_rows(f"{file}:half"), ROWS.astype(np.float16))
    np.testing.assert_allclose(all_rows(f"{file}:brain"), ROWS, rtol=2**-8)
    assert open_source(f"{file}:nothing", matrix=True).array.shape == (0, 3)
    np.testing.assert_array_equal(
        np.concatenate(list(open_source(str(file), matrix=False).keys(50))), KEYS
    )
    with pytest.raises(StoreError, match=r"arrays, as .*: brain, full, half, nothing"):
        open_source(str(file), matrix=True)
    with pytest.raises(StoreError, match="no array named 'tiny', but brain"):
        open_source(f"{file}:tiny", matrix=True)
    with pytest.raises(StoreError, match=r"keys: want floats \[rows, dim\], got int64"):
        all_rows(f"{file}:keys")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_safetensors_file_is_a_store_error_if_any(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("s") / "m.safetensors"
    write_safetensors(file, {"a": ("F32", ROWS[:2]), "b": ("I64", KEYS[:3])})
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 49))
        raw[at] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    with contextlib.suppress(StoreError):
        list(open_source(f"{file}:a", matrix=True).rows())


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16"])
def test_initialisers_of_onnx_files(kind: str, external: bool, tmp_path: Path) -> None:
    kinds: dict[str, NDArray[Any]] = {
        "FLOAT": ROWS,
        "FLOAT16": ROWS.astype(np.float16),
        "BFLOAT16": to_bf16(ROWS),
    }
    tensor = onnx.TensorProto(
        name="emb.weight",
        dims=ROWS.shape,
        data_type=getattr(onnx.TensorProto, kind),
        raw_data=kinds[kind].tobytes(),
    )
    other = onnx.numpy_helper.from_array(np.ones(3, np.float32), "bias")
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3])
    node = onnx.helper.make_node("Identity", ["bias"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [out], [tensor, other])
    file = tmp_path / "model.onnx"
    onnx.save(
        onnx.helper.make_model(graph),
        file,
        save_as_external_data=external,
        location="weights",
        size_threshold=0,
    )
    got = all_rows(str(file))
    np.testing.assert_allclose(got, ROWS, rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(got, all_rows(f"{file}:emb.weight"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.npy", None, "there is no such file"),
        ("missing.npy:x", None, "there is no such file"),
        ("rows.csv", b"1,2", r"ends in \.npy, \.safetensors, \.onnx"),
        ("rows.npy", b"", "is damaged"),
        ("rows.npy", b"not an array", "is damaged"),
        ("rows.onnx", b"\xff\xff", "not an ONNX model"),
    ],
)
def test_a_source_that_is_none_is_an_error_that_names_it(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=message) as raised:
        open_source(f"{tmp_path}/{name}", matrix=True)
    assert name.partition(":")[0] in str(raised.value)

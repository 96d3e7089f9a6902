"""Tables of the store in place of a model's own: ``kernels.bundle build --table NAME=FOLDER``.

A model is exported with a few rows where a table would not fit into it; the table itself was built
by ``kernels.store``. What the cut needs to know of it is in its header. The bundle gets the table's
files as hard links where the file system has them, and as copies otherwise: they are never changed,
as a new version of a table has files of new names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from kernels.errors import GraphError, StoreError
from kernels.graph.model import Array, Graph, attribute, reads
from kernels.npy import map_npy
from kernels.store.header import HEADER_NAME, header_text, is_table, read_header
from kernels.store.table import StoredTable

Stores = Mapping[str, StoredTable]
I64 = NDArray[np.int64]

# Keys of a table that a check draws from.
_KEYS_MOST: Final = 1024
# A table may be replaced between reading its header and linking its files.
_TRIES: Final = 5


def open_stores(graph: Graph, folders: Mapping[str, Path]) -> dict[str, StoredTable]:
    """Open the tables that take the place of a graph's constants; reads none of their rows.

    Args:
        graph: Before it is simplified.
        folders: Of the tables, by the constants' names.

    Raises:
        GraphError: There is no such constant, or it is no table of the same dimension.
        StoreError: A folder is not a table's.
    """
    stores = {}
    for name, folder in folders.items():
        array = graph.constants.get(name)
        if array is None or array.ndim < 2 or array.dtype.kind != "f" or not len(array):
            tables = [k for k, a in graph.constants.items() if a.ndim > 1 and a.dtype.kind == "f"]
            raise GraphError(
                f"{graph.name}: {name!r} is no table of it; there are "
                f"{', '.join(map(repr, sorted(tables))) or 'none'}"
            )
        stores[name] = StoredTable.open(folder)
        dim, wanted = stores[name].header.dim, int(np.prod(array.shape[1:]))
        if dim != wanted:
            raise GraphError(
                f"{graph.name}: table {name!r} has {wanted} numbers a row, and {folder} has {dim}"
            )
    return stores


def sample_keys(table: StoredTable) -> I64:
    """Return some of a table's keys (or row numbers), of its first segment that has any."""
    for segment in table.segments:
        if table.header.segments[segment].rows:
            return table.keys_of(segment)[:_KEYS_MOST]
    return np.empty(0, np.int64)


def open_rows(path: Path) -> StoredTable | Array:
    """Open a table that a feature brings: a ``.npy`` file, mapped, or a folder of the store."""
    if is_table(path):
        return StoredTable.open(path)
    return map_npy(path)


def fetch_rows(table: StoredTable | Array, ids: Array) -> Array:
    """Return the rows of ids of any shape: float32 ``[*ids.shape, ...]``."""
    if not isinstance(table, StoredTable):
        return np.asarray(table[ids].astype(np.float32))
    flat = np.ascontiguousarray(ids.reshape(-1), np.int64)
    return table.fetch(flat).reshape(*ids.shape, table.header.dim)


def adopt(source: Path, target: Path) -> Literal["linked", "copied"]:
    """Make ``target`` a table of the same rows as ``source``, and say how.

    Raises:
        StoreError: ``source`` is no table, or is being replaced again and again.
        OSError: ``target`` cannot be written.
    """
    for _ in range(_TRIES):
        header = read_header(source)
        names = [header.rows_file(i) for i in range(header.n_segments)]
        if header.keyed:
            names += [header.index_file(i) for i in range(header.n_segments)]
        (target / Path(names[0]).parent).mkdir(parents=True)
        try:
            linked = [_link(source / name, target / name) for name in names]
        except FileNotFoundError as error:
            shutil.rmtree(target)
            if read_header(source).version == header.version:
                raise StoreError(f"{error.filename} is missing") from error
            continue
        (target / HEADER_NAME).write_text(header_text(header), encoding="utf-8")
        return "linked" if all(linked) else "copied"
    raise StoreError(f"{source}: is being replaced faster than it can be linked")


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        return False
    return True


def whole_model(path: Path, stores: Stores, keys: Mapping[str, I64]) -> bytes:
    """Return a model's file with some rows of its stored tables in it, found by their keys.

    Each ``Gather`` of such a table is given, in place of a key, its place among ``keys``; all else
    of the model sees keys as they are.

    Args:
        path: The model.
        stores: The tables, by the names of the constants that they replace.
        keys: int64 ``[n]`` of each, ascending; at least one. Others get any row.

    Raises:
        GraphError: A table is used by something else than a Gather of rows, or the model is too
            large to be held in one piece.
    """
    model = onnx.load(str(path))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    tables = {each.name: each for each in model.graph.initializer}
    for name, store in stores.items():
        if name not in tables:
            raise GraphError(f"{path}: table {name!r} is no initializer, so it cannot be checked")
        placeholder = onnx.numpy_helper.to_array(tables[name])
        rows = store.fetch(keys[name]).reshape(-1, *placeholder.shape[1:])
        tables[name].CopyFrom(onnx.numpy_helper.from_array(rows.astype(placeholder.dtype), name))
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(keys[name][np.newaxis], f"{name}/keys")
        )
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([-1, 1], np.int64), _COLUMN)
    )
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for name in stores.keys() & set(reads(node)):
            is_gather = node.op_type == "Gather" and not attribute(node, "axis", 0)
            if not is_gather or node.input[0] != name:
                raise GraphError(
                    f"{path}: {node.op_type} {node.name!r} takes all of table {name!r}, of which "
                    "there is no more than its rows"
                )
            nodes += _places(name, node, len(nodes))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    try:
        serialised: bytes = model.SerializeToString()
    except ValueError as error:
        raise GraphError(f"{path}: too large to be checked in one piece: {error}") from error
    return serialised


_COLUMN: Final = "stored tables/column"


def _places(name: str, gather: onnx.NodeProto, number: int) -> list[onnx.NodeProto]:
    """Return nodes that find a Gather's keys, and let it read what they find."""
    ids = gather.input[1]

    def tensor(what: str) -> str:
        return f"{name}/{number}/{what}"

    def node(op: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        return onnx.helper.make_node(op, inputs, [tensor(output)], **attributes)

    found = [
        node("Cast", [ids], "ids", to=onnx.TensorProto.INT64),
        node("Reshape", [tensor("ids"), _COLUMN], "column"),
        node("Equal", [tensor("column"), f"{name}/keys"], "equal"),
        node("Cast", [tensor("equal")], "number", to=onnx.TensorProto.FLOAT),
        node("ArgMax", [tensor("number")], "flat", axis=1, keepdims=0),
        node("Shape", [ids], "shape"),
        node("Reshape", [tensor("flat"), tensor("shape")], "places"),
    ]
    gather.input[1] = tensor("places")
    return found

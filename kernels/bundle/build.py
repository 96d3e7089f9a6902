"""Building a bundle: ONNX file and feature spec in, folder out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import numpy as np

from kernels.bundle import codec
from kernels.bundle.check import check_cut
from kernels.bundle.cut import Cut, make_cut
from kernels.bundle.infer import infer_features
from kernels.bundle.inputs import Shapes, cover, open_shapes
from kernels.bundle.manifest import GpuSupport, KeptTable, Manifest
from kernels.bundle.plan import make_plan
from kernels.bundle.stores import Stores, adopt, open_stores
from kernels.compiler import compile_graph
from kernels.errors import BundleError, GraphError
from kernels.features.spec import FeatureSpec, load_spec
from kernels.graph.facts import Facts, Kind
from kernels.graph.fold import simplify
from kernels.graph.model import Array, Graph, load_graph
from kernels.ir.onnx_import import import_dense
from kernels.program import TARGETS, Bucket
from kernels.store.header import HEADER_NAME
from kernels.store.table import StoredTable

# Rows of a table converted and written at a time: some megabytes for any usual dimension.
_CHUNK_ROWS = 1 << 16


@attrs.frozen(kw_only=True)
class BuildOptions:
    """How a bundle is built.

    Attributes:
        infer: Derive identity features for the columns that the spec leaves out.
        check: Run the cut against the whole model before it is written.
        force: Replace what is at the bundle's path.
        shapes: Dimensions of one row, for inputs that leave them open and no feature describes.
        tables: Folders of tables of the store, by the initializers that they take the place of:
            the model has a few rows of these, or all.
    """

    infer: bool = False
    check: bool = True
    force: bool = False
    shapes: Shapes = attrs.field(factory=dict)
    tables: Mapping[str, Path] = attrs.field(factory=dict)


def build_bundle(
    model: Path,
    features: Path | None,
    target: Path,
    options: BuildOptions,
    tell: Callable[[str], object] = lambda text: None,
) -> Manifest:
    """Cut a model and write the bundle.

    It is written beside ``target`` and renamed, so ``target`` is never half a bundle.

    Args:
        model: An ONNX file.
        features: The feature spec; None to infer one.
        target: The bundle's folder.
        options: How.
        tell: Called with what became of each table of the store: whether its files were linked.

    Raises:
        GraphError: The model cannot be used, or not cut.
        SpecError: ``features`` is wrong.
        StoreError: A table of the store is not there, or damaged.
        BundleError: ``target`` exists (and ``force`` was not given) or cannot be written.
    """
    if target.exists() and not options.force:
        raise BundleError(f"{target} exists already (--force replaces it)")
    if target.exists() and not (target / "manifest.json").is_file():
        raise BundleError(f"{target} is not a bundle, so it is not replaced")
    graph = load_graph(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True
        ) as folder:
            made = Path(folder) / "bundle"
            made.mkdir()
            manifest = _build(graph, model, features, made, options, tell)
            _replace(made, target)
    except OSError as error:
        raise BundleError(f"{target}: cannot be written: {error}") from error
    return manifest


def _build(
    graph: Graph,
    model: Path,
    features: Path | None,
    made: Path,
    options: BuildOptions,
    tell: Callable[[str], object],
) -> Manifest:
    given = None if features is None else load_spec(features)
    shapes = dict(options.shapes) if given is None else open_shapes(graph, given, options.shapes)
    stores = open_stores(graph, options.tables)
    positional: dict[str, KeptTable] = {}
    facts = simplify(graph, shapes, lambda graph, facts: _note_positional(graph, facts, positional))
    for name in stores.keys() - graph.constants.keys():
        raise GraphError(f"{graph.name}: nothing takes rows of table {name!r} as it is")
    spec = _write_spec(graph, facts, shapes, given, features, made, stores, infer=options.infer)
    inputs = cover(graph, spec, shapes)
    plan = make_plan(graph, facts, inputs, spec, stores)
    cut = make_cut(plan, spec, tuple(positional.values()))
    user = np.zeros((1, cut.user.width), np.float32)
    candidate = np.zeros((1, cut.candidate.width), np.float32)
    if options.check:
        checked = check_cut(model, cut, inputs, spec, plan)
        user, candidate = checked.user, checked.candidate
    _write(cut, made, tell)
    np.save(made / "sample.npy", np.concatenate([user, candidate], axis=1))
    manifest = Manifest(
        format=codec.FORMAT,
        model=model.stem,
        version=_version(made),
        tables=cut.tables,
        user=cut.user,
        candidate=cut.candidate,
        outputs=cut.outputs,
        kept=cut.kept,
        gpu=gpu_support(cut.dense.SerializeToString(), model.stem),
    )
    (made / "manifest.json").write_text(codec.dumps(manifest), encoding="utf-8")
    return manifest


# A bucket like those that serve; whether a graph compiles hardly depends on it.
_TRIAL = Bucket(rows=64, requests=8)


def gpu_support(dense: bytes, model: str) -> GpuSupport:
    """Say whether a serialised dense graph compiles for every card that kernels are made for."""
    try:
        graph = import_dense(dense, model)
        for target in TARGETS.values():
            compile_graph(graph, _TRIAL, target)
    except GraphError as error:
        return GpuSupport(supported=False, reason=str(error))
    return GpuSupport(supported=True, reason="")


def _note_positional(graph: Graph, facts: Facts, found: dict[str, KeptTable]) -> None:
    """Note the tables that are indexed alike for every row, before folding hides them."""
    for node in graph.nodes:
        table = graph.constants.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.ndim < 2 or table.dtype.kind != "f":
            continue
        index = graph.constants.get(node.input[1])
        several = index is None or index.size > 1
        if facts.kinds[node.input[1]] <= Kind.BATCH and several:
            found[node.input[0]] = KeptTable(
                name=node.input[0],
                shape=tuple(table.shape),
                reason="indexed by a range of positions, alike for every row",
                positional=True,
            )


def _write_spec(
    graph: Graph,
    facts: Facts,
    shapes: Shapes,
    given: FeatureSpec | None,
    features: Path | None,
    made: Path,
    stores: Stores,
    *,
    infer: bool,
) -> FeatureSpec:
    """Write ``features.toml`` with what is inferred, and copy the vocabularies; return it read."""
    text = "version = 1\n"
    if given is not None and features is not None:
        text = features.read_text(encoding="utf-8")
        for name in given.files:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given.folder / name, made / name)
    elif not infer:
        raise GraphError(f"{graph.name}: no features are given, and none are to be inferred")
    if infer:
        text = text.rstrip("\n") + "\n" + infer_features(graph, facts, shapes, given, stores)
    (made / "features.toml").write_text(text, encoding="utf-8")
    spec = load_spec(made / "features.toml", tables=False)
    if given is None:
        return spec
    dims = {feature.name: feature.dim for feature in given.features}
    return attrs.evolve(
        spec,
        folder=given.folder,
        features=tuple(attrs.evolve(f, dim=dims.get(f.name)) for f in spec.features),
    )


def _write(cut: Cut, made: Path, tell: Callable[[str], object]) -> None:
    (made / "dense.onnx").write_bytes(cut.dense.SerializeToString(deterministic=True))
    for name, program in cut.programs.items():
        (made / name).write_bytes(program.SerializeToString(deterministic=True))
    (made / "tables").mkdir()
    for table in cut.tables:
        array, file = cut.arrays[table.name], made / "tables" / table.file
        if isinstance(array, StoredTable):
            how = adopt(array.path, file)
            size = f"{table.rows:,} rows, {array.size_bytes:,} bytes"
            tell(f"table {table.name}: {size}, {how} from {array.path}")
        else:
            _write_table(array, file)


def _write_table(array: Array, file: Path) -> None:
    """Write a table as float32, some rows at a time."""
    rows, dim = array.shape
    with file.open("wb") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, rows, _CHUNK_ROWS):
            chunk = array[start : start + _CHUNK_ROWS]
            out.write(np.ascontiguousarray(chunk, dtype="<f4").data)


def _version(folder: Path) -> str:
    """Return the SHA-256 over names and contents of all files.

    Of a table of the store its header is enough, as that has the sums of all its files.
    """
    digests = {}
    stored = [each.parent for each in (folder / "tables").glob(f"*/{HEADER_NAME}")]
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.parent.parent not in stored:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            digests[file.relative_to(folder).as_posix()] = digest
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _replace(made: Path, target: Path) -> None:
    """Move a bundle to its place; a bundle that is there gives way in one more rename."""
    if not target.exists():
        made.rename(target)
        return
    old = made.with_name("old")
    target.rename(old)
    try:
        made.rename(target)
    except OSError:
        os.rename(old, target)
        raise

"""Small models for tests of the cut, and bundles built from them and compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.manifest import Lookup, SideLayout
from kernels.bundle.recorded import Case
from kernels.bundle.verify import verify

Array = NDArray[Any]


def table(rows: int, dim: int = 4, seed: int = 0) -> Array:
    """Return a table in which all rows differ."""
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def write_model(
    path: Path,
    signature: str,
    body: str,
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
) -> Path:
    """Write a model given as ONNX text: ``(inputs) => (outputs)`` and the nodes.

    ``B`` stands for the batch.
    """
    text = f'<ir_version: 9, opset_import: ["" : {opset}]>\nmodel {signature} {{\n{body}\n}}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in (constants or {}).items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


@attrs.frozen(eq=False)
class Built:
    """A model and the bundle that was built from it."""

    model: Path
    bundle: Bundle

    @property
    def candidate(self) -> SideLayout:
        return self.bundle.manifest.candidate

    @property
    def user(self) -> SideLayout:
        return self.bundle.manifest.user

    @property
    def lookup(self) -> Lookup:
        """The only lookup."""
        (lookup,) = (*self.user.lookups, *self.candidate.lookups)
        return lookup

    @property
    def ops(self) -> list[str]:
        """Operators of the dense graph, but for the last Identity."""
        nodes = onnx.load_from_string(self.bundle.dense_model()).graph.node
        return [node.op_type for node in nodes if node.op_type != "Identity"]

    def agrees(self, *cases: Mapping[str, Array], rtol: float = 1e-4) -> None:
        """Check that lookups and executor give what ONNX Runtime gives on the whole model."""
        session = onnxruntime.InferenceSession(str(self.model), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        recorded = {}
        for i, feeds in enumerate(cases):
            outputs = dict(zip(names, session.run(None, dict(feeds)), strict=True))
            recorded[f"case{i}"] = Case(inputs=feeds, outputs=outputs)
        verdict = verify(self.bundle, recorded, rtol=rtol, atol=1e-5)
        assert verdict.ok, verdict


def build(
    model: Path,
    spec: str | None = None,
    *,
    infer: bool | None = None,
    force: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Built:
    """Build a model's bundle, with inferred features if there is no spec."""
    features = None
    if spec is not None:
        features = model.with_name("features.toml")
        features.write_text("version = 1\n" + spec)
    target = model.with_name("bundle")
    chosen = BuildOptions(
        infer=spec is None if infer is None else infer, force=force, shapes=shapes or {}
    )
    build_bundle(model, features, target, chosen)
    return Built(model, load_bundle(target))


def ids(n: int, width: int | None = None, *, rows: int, seed: int = 1) -> Array:
    """Return random ids below ``rows``: int64 ``[n]`` or ``[n, width]``."""
    shape = (n,) if width is None else (n, width)
    return np.random.default_rng([seed, n]).integers(0, rows, shape)


def padded(n: int, width: int, *, rows: int, seed: int = 2) -> Array:
    """Return ids in which each row ends in zeros after at least one other."""
    found = 1 + ids(n, width, rows=rows - 1, seed=seed)
    lengths = np.random.default_rng([seed, n]).integers(1, width + 1, n)
    found[np.arange(width) >= lengths[:, None]] = 0
    return found

"""The whole model in this process: what the server's scores should be, and the fastest peer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.features.feature import Feature, FeatureSpec
from runtime.bench.peer_loop import open_session
from transport.messages import ScoreRequest

_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


@attrs.define(eq=False)
class WholeModel:
    """An ONNX model, its session, and where each feature goes in its inputs."""

    _session: Any
    _features: dict[str, Feature]

    @classmethod
    def open(cls, onnx: Path, spec: FeatureSpec) -> WholeModel:
        """Open a model whose features are raw numbers and identity ids, as inferred ones are.

        Raises:
            ValueError: A feature is something else, so that the request is not the model's input.
        """
        for feature in spec.features:
            plain_id = feature.encoder is not None and feature.encoder.encode == "identity"
            plain_number = feature.numeric is not None and feature.numeric.transform == "raw"
            if not (plain_id or plain_number) or feature.padding is not None or feature.table:
                raise ValueError(
                    f"feature {feature.name!r}: only raw numbers and identity ids can be given to "
                    "the whole model as they are; leave --onnx out, or use inferred features"
                )
        return cls(open_session(str(onnx)), dict(spec.by_name))

    def inputs(self, request: ScoreRequest) -> dict[str, NDArray[Any]]:
        """Return the model's inputs for a request: its user's values repeated for each row."""
        n = request.n_candidates
        inputs = {
            one.name: np.zeros((n, *one.shape[1:]), _DTYPES[one.type])
            for one in self._session.get_inputs()
        }
        for block in request.blocks:
            for name, values in zip(block.names, block.values, strict=True):
                feature = self._features[name]
                first_id = 0 if feature.encoder is None else feature.encoder.first_id
                target = inputs[feature.input].reshape(n, -1)
                wide = np.broadcast_to(values.reshape(len(values), -1), (n, feature.width))
                target[:, feature.column : feature.column + feature.width] = wide + first_id
        return inputs

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return all outputs side by side, float32 ``[n, n_outputs]``."""
        outputs = self._session.run(None, inputs)
        flat = [np.asarray(output, np.float32).reshape(len(output), -1) for output in outputs]
        return np.concatenate(flat, axis=1)

    def blob(self, request: ScoreRequest, n_user: int) -> bytes:
        """Return a request as ``peer_loop`` takes it: one matrix, its first columns the user's."""
        (x,) = self.inputs(request).values()
        columns = np.ascontiguousarray(x[:, n_user:].T)
        return x[0, :n_user].tobytes() + columns.tobytes()

    def leading_user_columns(self) -> int | None:
        """Return how many leading columns of the only input are the user's.

        None if there is another input, or one that is no float32 matrix, or user columns elsewhere.
        """
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
            return None
        sides: list[str] = [""] * inputs[0].shape[1]
        for feature in self._features.values():
            stop = feature.column + feature.width
            sides[feature.column : stop] = [feature.side] * feature.width
        n_user = sides.count("user")
        return n_user if sides[:n_user] == ["user"] * n_user else None

    def requests_per_s(
        self, requests: Sequence[ScoreRequest], batch: int, *, seconds: float
    ) -> float:
        """Run requests by ones or in batches, in this thread, inputs ready but for joining them.

        Joining a batch's inputs is counted, as it is work that batching brings.
        """
        ready = [self.inputs(request) for request in requests]
        groups = [ready[k : k + batch] for k in range(0, len(ready), batch)]
        n_done = 0
        start = time.perf_counter()
        while True:
            for group in groups:
                self._session.run(None, group[0] if batch == 1 else _joined(group))
                n_done += len(group)
                elapsed = time.perf_counter() - start
                if elapsed >= seconds:
                    return n_done / elapsed


def _joined(group: Iterable[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    parts = list(group)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

"""The peer that is the best public Python server on small models: MOSEC around the whole model.

``python -m runtime.bench.peer_mosec --port PORT`` with ``PEER_MODEL`` and ``PEER_USER_COLUMNS`` in
the environment (MOSEC's workers are spawned, and know nothing else). A body is the blob that
``peer_loop`` takes; the answer is the scores.
"""

from __future__ import annotations

import os
from typing import Any, Final

import mosec  # type: ignore[import-not-found, unused-ignore]
import numpy as np
from numpy.typing import NDArray

from runtime.bench.peer_loop import fill, open_session

MODEL: Final = "PEER_MODEL"
USER_COLUMNS: Final = "PEER_USER_COLUMNS"
WORKERS: Final = "PEER_WORKERS"
MOST: Final = "PEER_MOST"


class Scorer(mosec.Worker):  # type: ignore[misc, unused-ignore]
    """Runs what MOSEC batched."""

    def __init__(self) -> None:
        self._n_user = int(os.environ[USER_COLUMNS])
        self._session = open_session(os.environ[MODEL])
        (self._matrix,) = self._session.get_inputs()
        self._n_candidate = self._matrix.shape[1] - self._n_user

    def deserialize(self, data: bytes) -> NDArray[np.float32]:
        """View a body as the request's columns."""
        return np.frombuffer(data, np.float32)

    def serialize(self, data: NDArray[np.float32]) -> bytes:
        """Return a request's scores as a body."""
        return data.tobytes()

    def forward(self, data: Any) -> Any:  # noqa: ANN401 - mosec's signature: a list, or one
        """Score a batch of requests together."""
        requests = data if isinstance(data, list) else [data]
        ends = np.cumsum([(len(v) - self._n_user) // self._n_candidate for v in requests]).tolist()
        x = np.empty((ends[-1], self._n_user + self._n_candidate), np.float32)
        start = 0
        for values, end in zip(requests, ends, strict=True):
            fill(x[start:end], values, self._n_user)
            start = end
        (scores,) = self._session.run(None, {self._matrix.name: x})
        parts: list[NDArray[np.float32]] = np.split(scores, ends[:-1])
        return parts if isinstance(data, list) else parts[0]


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(
        Scorer,
        num=int(os.environ[WORKERS]),
        max_batch_size=int(os.environ[MOST]),
        max_wait_time=1,
    )
    server.run()

"""The peer that anyone would write first: a ZeroMQ loop around the whole model.

``python -m runtime.bench.peer_loop MODEL.onnx ADDRESS N_USER MOST`` serves until it is
terminated. The model takes one matrix, whose first ``N_USER`` columns are the user's. A request is
a msgpack header ``[id, n_candidates]`` and one blob, float32: the user's columns, then each of the
candidates' columns in full. The reply is ``[id, 0]`` and the scores. Up to ``MOST`` requests that
are at hand run as one batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import onnxruntime
import zmq
from numpy.typing import NDArray


def open_session(path: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Open a model on one thread, as every contender does here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def serve(path: str, address: str, n_user: int, most: int) -> None:
    """Answer requests until the process ends."""
    session = open_session(path)
    (matrix,) = session.get_inputs()
    width = matrix.shape[1]
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.bind(address)
    while True:
        batch = list(_at_hand(socket, most))
        headers = [msgpack.unpackb(header) for _, header, _ in batch]
        ends = np.cumsum([n for _, n in headers]).tolist()
        x = np.empty((ends[-1], width), np.float32)
        start = 0
        for (_, _, blob), end in zip(batch, ends, strict=True):
            fill(x[start:end], np.frombuffer(blob, np.float32), n_user)
            start = end
        (scores,) = session.run(None, {matrix.name: x})
        start = 0
        for (identity, _, _), (request_id, _), end in zip(batch, headers, ends, strict=True):
            socket.send_multipart([identity, msgpack.packb([request_id, 0]), scores[start:end]])
            start = end


def _at_hand(socket: zmq.Socket[bytes], most: int) -> Iterator[list[bytes]]:
    yield socket.recv_multipart()
    for _ in range(most - 1):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


def fill(x: NDArray[np.float32], values: NDArray[np.float32], n_user: int) -> None:
    """Expand a request's blob into the rows of the model's input."""
    x[:, :n_user] = values[:n_user]
    x[:, n_user:] = values[n_user:].reshape(-1, len(x)).T


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

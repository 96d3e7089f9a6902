"""From a bundle to what the GPU executor runs: the compiler behind a function of the bucket."""

from __future__ import annotations

import functools

import numpy as np

from kernels.bundle.load import Bundle
from kernels.compiler import Options, compile_graph
from kernels.gpu.executor import Model
from kernels.gpu.lanes import Blocks
from kernels.ir.onnx_import import import_dense


def model_of(
    bundle: Bundle, *, max_rows: int, max_requests: int, options: Options | None = None
) -> Model:
    """Return a bundle's dense graph, to be compiled bucket by bucket.

    Args:
        bundle: Its dense graph is read and imported; nothing of it is kept.
        max_rows: Rows of the largest bucket.
        max_requests: Requests of the largest bucket.
        options: Of the compiler.

    Raises:
        GraphError: An operator has no kernel; names it. The host executor can run the model.
    """
    options = options or Options()
    manifest = bundle.manifest
    graph = import_dense(bundle.dense_model(), manifest.model)
    blocks = Blocks(
        max_rows=max_rows,
        max_requests=max_requests,
        user_width=manifest.user.width,
        candidate_width=manifest.candidate.width,
        n_outputs=sum(output.width for output in manifest.outputs),
        input_dtype=np.dtype(options.input_dtype),
    )
    compile_bucket = functools.partial(compile_graph, graph, options=options)
    return Model(name=manifest.model, blocks=blocks, compile=compile_bucket)

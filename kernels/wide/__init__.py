"""One linear layer of the graph across the whole card, as one launch.

For layers whose weights are too large for a block to stream past its rows: it serves the cross
layers and top of DLRM-DCNv2, the top of BST and the merged experts of MMoE. Launches of a chain are
dependent (``program.Launch.dependent``): each fetches its weights while the one before still runs.

Read in this order: ``layer`` (what is computed), ``config`` (how it is cut), ``cost`` (the cost
model that picks a config), ``pack`` (the weights' layout), ``emit`` (text and launch). The device
code is ``kernels/cuda/wide_sm90.cuh`` (wgmma) and ``wide_mma.cuh`` (mma.sync; of floats with
``wide_tf32.cuh``), whose heads say how they work.

A layer may read and store floats of eight bits (``WideLayer.eights``, ``stores_eights``).

    config = choose(layer, target)
    kernel = emit(layer, config, "cross_1", precision)
    blob = pack(layer, weight, bias, precision)
    launch = kernel.launch(source, counts=..., weights=..., output=..., inputs=(...), staged=(...))
"""

from kernels.wide.config import Method, WideConfig
from kernels.wide.cost import candidates, choose, estimate_us
from kernels.wide.emit import Matrix, WideKernel, emit
from kernels.wide.layer import CROSS, Epilogue, WideLayer, activation
from kernels.wide.pack import Quantised, pack, packed_bytes

__all__ = [
    "CROSS",
    "Epilogue",
    "Matrix",
    "Method",
    "Quantised",
    "WideConfig",
    "WideKernel",
    "WideLayer",
    "activation",
    "candidates",
    "choose",
    "emit",
    "estimate_us",
    "pack",
    "packed_bytes",
]

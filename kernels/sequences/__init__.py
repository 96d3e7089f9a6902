"""Row programs over sequences: attention of a query over a row's steps, and the encoder block.

Each is a launch of its own, or a step inside another kernel. Python chooses sizes, packs weights
and writes the few lines of CUDA that name them; the kernels are
``kernels/cuda/target_attention.cuh`` and ``encoder.cuh``.

Read ``pack`` (the order of weights), ``text`` (sources and sinks as CUDA), then
``target_attention`` and ``encoder``.
"""

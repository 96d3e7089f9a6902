"""Benchmark of the GPU executor alone: ``python -m kernels.gpu.bench BUNDLE/|--model DLRM``.

No event loop and no network: as many requests as a load has are always waiting, and each lane has a
thread that takes them. Reading order: ``subject.py`` (what is served), ``load.py`` (requests, and
what serving them took), ``windows.py`` (requests merged or not, lanes and how they are kept apart),
``processes.py`` (several on one card, with and without MPS), ``compiling.py`` (seconds to compile,
and how it disturbs whoever serves), ``user_side.py`` (the user's side once or for each candidate),
``lengths.py`` (batches of shorter and shorter sequences), ``report.py``.
"""

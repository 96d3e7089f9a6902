"""The compiler's intermediate representation.

Reading order: ``node.py`` (one node type and its ops), ``rules.py`` (what each op means: shape,
numpy, CUDA; the longer rules stand in ``shapes*.py`` and ``numpy_*.py``), ``build.py`` (making
nodes), ``check.py`` (whether a graph is well formed), ``reference.py`` (the oracle),
``onnx_import.py`` (a bundle's dense graph becomes nodes).
"""

"""Models: cut, compiled and run. Synchronous, and knows no event loop.

Reading order: ``bundle/manifest.py`` (what a bundle is), ``features/`` (raw features to ids),
``graph/`` and ``bundle/build.py`` (an ONNX model becomes a bundle), ``shards.py`` and ``lookup.py``
(ids to pooled rows), ``executor.py``, ``host.py`` and ``host_graph.py`` (rows to scores).
"""

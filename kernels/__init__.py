"""Models: cut, compiled and run. Synchronous, and knows no event loop.

Reading order: ``bundle/manifest.py`` (what a bundle is), ``features/`` (raw features to ids),
``graph/`` and ``bundle/build.py`` (an ONNX model becomes a bundle), ``store/`` (tables larger than
memory), ``placement/`` (where tables lie), ``hot/`` (rows of them that are kept at hand),
``shards.py`` and ``lookup.py`` (ids to pooled rows), ``executor.py``, ``host.py`` and
``host_graph.py`` (rows to scores on a processor). On a card: ``device_tables.py`` and ``arenas.py``
(tables there, whole and hot), ``ir/`` (the compiler's graph and its oracle), ``passes/`` (graphs
that mean the same and do less), ``lengths/`` (which sequences may be shorter in a bucket),
``program.py`` (what the compiler makes), ``compiler.py`` and ``plan/`` (phases, tiles, steps),
``wide/`` and ``sequences/`` (kernels of their own), ``fp8.py`` (their smallest floats), ``cuda/``
(the device code), ``nvrtc/`` (text to cubins, the cache), ``gpu/`` (lanes, buckets, the executor),
``show/`` and ``bench/``.
"""

"""Models: cut, compiled and run. Synchronous, and knows no event loop.

Reading order: ``bundle/manifest.py`` (what a bundle is), ``features/`` (raw features to ids),
``bundle/build.py`` (an ONNX model becomes a bundle), ``lookup.py`` (ids to pooled rows),
``executor.py`` and ``host.py`` (rows to scores).
"""

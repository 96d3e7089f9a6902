"""ONNX graphs: read, probed, simplified, traced and written.

Reading order: ``model.py`` (a graph in memory), ``probe.py`` (running it to learn shapes),
``facts.py`` (what each tensor depends on), ``fold.py``, ``rewrite.py`` and ``bags.py`` (simpler
graphs that mean the same), ``movement.py`` and ``trace.py`` (where the elements of a tensor come
from), ``join.py``.
"""

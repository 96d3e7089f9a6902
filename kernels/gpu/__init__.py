"""Runs programs on a card: contexts, memory, captured launches, lanes, and the executor.

Read ``device.py`` (cards, contexts, partitions), ``memory.py``, ``loaded.py`` (a program in a
context, with its buffers), ``buckets.py`` (which padded shapes to have) with ``stock.py`` (which of
them are ready), ``lanes.py`` (a stream with its staging and a graph for each bucket), ``filler.py``
(rows into slots of hot tables), ``traffic.py`` (what was launched), ``executor.py`` (what serves a
model, behind the host executor's interface), ``model.py`` (a bundle becomes one), ``mps.py`` (the
daemon through which processes share a card).
"""

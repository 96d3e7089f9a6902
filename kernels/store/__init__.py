"""Embedding tables larger than memory: folders of memory-mapped segments, found by 64-bit keys.

Reading order: ``partition.py`` (which segment a key is of), ``rows.py`` (rows as bytes),
``header.py`` (what a table's folder holds), ``unique.py`` (a batch's distinct keys by group).

Updates of rows, durably: ``disk.py``, ``records.py`` and ``log.py`` (numbered records on disk),
``changes.py`` (what is in them), ``snapshot.py``, ``state.py`` (memory and disk together).
"""

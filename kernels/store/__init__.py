"""Embedding tables larger than memory: folders of memory-mapped segments, found by 64-bit keys.

Reading order: ``partition.py`` (which segment a key is of), ``rows.py`` (rows as bytes),
``header.py`` (what a table's folder holds), ``index.py`` (which row a key has), ``table.py`` and
``files.py`` (a table, open), ``delta.py`` (rows that change while it is served), ``build.py``
(writing one in bounded memory), ``sources.py`` (what of), ``unique.py`` (a batch's distinct keys by
group). ``scale.py`` and ``bench.py`` measure. The C: ``hash.h``, ``rows.h``, ``table.h``,
``store.c``. Lookups that pool are ``kernels.lookup``'s.

Updates of rows, durably: ``disk.py``, ``records.py`` and ``log.py`` (numbered records on disk),
``changes.py`` (what is in them), ``snapshot.py``, ``state.py`` (memory and disk together).
"""

"""The feature spec and its parser: raw features to ids, weights and values.

Reading order: ``spec.py`` (``features.toml``; ``feature.py`` holds what it says as values,
``section.py``, ``sent.py`` and ``derived.py`` read it), ``blocks.py`` (what goes in and comes out),
``parser.py`` (from one to the other), then its parts in the order of the work: ``compile.py`` and
``layout.py`` (what to do with requests of one shape), ``gather.py`` (their blocks end to end),
``steps.py`` with ``encode.py``, ``numbers.py``, ``lists.py``, ``hashing.py`` and ``vocabulary.py``
(values to ids and numbers), ``assemble.py`` and ``program.py`` (to the manifest's matrices).
"""

"""The feature spec and its parser: raw features to ids, weights and values.

Reading order: ``spec.py`` (``features.toml``), ``blocks.py`` (what goes in and comes out),
``parser.py``.
"""

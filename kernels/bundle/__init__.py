"""Bundles: what is built from a model and deployed.

Reading order: ``manifest.py``, ``build.py``, ``load.py``, ``show.py``, ``verify.py``.
"""

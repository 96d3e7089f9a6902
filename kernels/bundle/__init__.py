"""Bundles: what is built from a model and deployed.

Reading order: ``manifest.py`` and ``load.py`` (what a bundle is), ``build.py`` (the steps of a
build), ``inputs.py`` and ``infer.py`` (graph inputs as features), ``traces.py``, ``pooling.py``,
``demand.py`` and ``plan.py`` (where to cut), ``layout.py``, ``select.py``, ``emit.py``,
``dense.py``, ``program.py`` and ``cut.py`` (the parts), ``user_once.py`` (the user side once a
request), ``stores.py`` (tables larger than the model), ``check.py`` against ``reference.py``,
``recorded.py``, ``representative.py``, ``verify.py``, ``show.py``, ``picture.py``.
"""

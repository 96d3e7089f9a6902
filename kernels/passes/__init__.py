"""Passes over the compiler's graph: each takes a graph and returns one that means the same.

Reading order: ``rewrite.py`` (the core: bottom-up, rules asked until they have nothing to say),
``views.py`` and ``affine.py`` (helpers of movement and of LINEAR), then the passes as they run:
``fold.py`` with ``movement.py``, ``concat.py`` and ``sink.py`` (normal forms), ``primitives.py``
(softmax and others written out), ``linear.py``, ``split_k.py``, ``target_attention.py`` and
``encoder.py`` (composites), ``siblings.py``, ``user_once.py``.
``optimise.py`` runs all to a fixed point; ``expand.py`` writes composites out again.
"""

from kernels.passes.expand import expand
from kernels.passes.optimise import optimise

__all__ = ["expand", "optimise"]

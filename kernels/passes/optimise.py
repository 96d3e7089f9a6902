"""All passes in their order, to a fixed point.

Stages follow each other, and each runs its passes in turn until a round changes nothing:

1. fold (with movement), unique, primitives, linear, split_k: one normal form for what exporters
   write in many.
2. composites: what that form shows of target attention and encoders. Before siblings, which would
   merge parts of them with what stands beside.
3. siblings.
4. user_once, if there is a user's side; it splits what siblings have merged, in few pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from kernels.ir.node import Graph, Op
from kernels.ir.reference import flops
from kernels.passes.encoder import encoder
from kernels.passes.fold import fold_rule, unique
from kernels.passes.linear import linear_rule
from kernels.passes.primitives import primitives_rule
from kernels.passes.rewrite import Rule, by_op, rewrite
from kernels.passes.siblings import merge_siblings
from kernels.passes.split_k import split_k_rule
from kernels.passes.target_attention import target_attention
from kernels.passes.user_once import user_once_rule

Pass: TypeAlias = Callable[[Graph], Graph]
Trace: TypeAlias = Callable[[str, Graph], None]

# Real models take ten rounds or so of a stage. What a round leaves is as right as what it was
# given, so a graph that still changes after so many is taken as it is.
_ROUNDS: Final = 50


def _walk(rule: Rule) -> Pass:
    return lambda graph: rewrite(graph, rule)


_SIMPLIFY: Final[tuple[tuple[str, Pass], ...]] = (
    ("fold", _walk(fold_rule)),
    ("unique", unique),
    ("primitives", _walk(primitives_rule)),
    ("linear", _walk(linear_rule)),
    ("split_k", _walk(split_k_rule)),
)
_COMPOSE: Final = (
    *_SIMPLIFY,
    ("composites", _walk(by_op({Op.MATMUL: (target_attention,), Op.LAYER_NORM: (encoder,)}))),
)
_MERGE: Final = (*_COMPOSE, ("siblings", merge_siblings))
_ONCE: Final = (*_MERGE, ("user_once", _walk(user_once_rule)))


def optimise(graph: Graph, trace: Trace | None = None, *, user_once: bool = True) -> Graph:
    """Return a graph that means the same and does it with less.

    Args:
        graph: As imported, or optimised before.
        trace: Called after each pass that changed something, with its name and what it made.
        user_once: Whether what depends on a request alone is moved to the request's side.
    """
    for stage in (_SIMPLIFY, _COMPOSE, _MERGE):
        graph = _settled(graph, stage, trace)
    if not user_once or all(node.op is not Op.TO_ROWS for node in graph.nodes()):
        return graph
    once = _settled(graph, _ONCE, trace)
    # Work for the requests runs ahead of the rows' work, which has to wait for it: that takes a
    # product to pay for.
    return once if flops(once).row < flops(graph).row else graph


def simplify(graph: Graph) -> Graph:
    """Return a graph in the normal form that all further passes, and ``kernels.lengths``, read."""
    return _settled(graph, _SIMPLIFY, None)


def _settled(graph: Graph, stage: tuple[tuple[str, Pass], ...], trace: Trace | None) -> Graph:
    """Run passes in turn until a round of them changes nothing."""
    for _ in range(_ROUNDS):
        before = graph
        for name, each in stage:
            after = each(graph)
            if after is not graph and trace is not None:
                trace(name, after)
            graph = after
        if graph is before:
            break
    return graph

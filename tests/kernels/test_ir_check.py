from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import pytest

from kernels.errors import GraphError
from kernels.ir.build import concat, linear, make, to_rows
from kernels.ir.check import check
from kernels.ir.node import Constant, DType, Graph, Lead, Node, Op, const, input_node

ROWS, REQUESTS = Lead.ROWS, Lead.REQUESTS


@attrs.define
class Parts:
    """A small graph, and nodes of it to damage."""

    graph: Graph
    hidden: Node
    weight: Node
    user: Node


def build() -> Parts:
    user, candidate = input_node("user", REQUESTS, 3), input_node("candidate", ROWS, 2)
    joined = concat(to_rows(user), candidate)
    weight = const(np.ones((5, 4)), "weight")
    hidden = linear(joined, weight, np.zeros(4), name="hidden")
    scores = make(Op.SIGMOID, linear(hidden, np.ones((4, 1))), name="scores")
    graph = Graph("tiny", {"user": user, "candidate": candidate}, scores)
    return Parts(graph, hidden, weight, user)


def put(of: Node | Graph, field: str, value: object) -> None:
    """Change what is frozen, as only a mistake in a pass can."""
    object.__setattr__(of, field, value)


def test_a_graph_that_is_well_formed_passes() -> None:
    check(build().graph)


def test_an_input_that_nothing_needs_is_no_fault() -> None:
    graph = build().graph
    check(attrs.evolve(graph, inputs={**graph.inputs, "more": input_node("more", ROWS, 1)}))


def sources(parts: Parts, *nodes: Node) -> None:
    put(parts.hidden, "sources", nodes)


DAMAGE: dict[str, tuple[Callable[[Parts], None], str]] = {
    "shape": (lambda p: put(p.hidden, "shape", (ROWS, 5)), "linear 'hidden': says that"),
    "lead": (lambda p: put(p.hidden, "shape", (REQUESTS, 4)), "linear 'hidden': says that"),
    "dtype": (lambda p: put(p.hidden, "dtype", DType.INT), "linear 'hidden': says that"),
    "lead behind": (lambda p: put(p.hidden, "shape", (4, ROWS)), "linear 'hidden': .*behind"),
    "dimension": (
        lambda p: put(p.hidden, "shape", (ROWS, np.int64(4))),
        "linear 'hidden': dimension",
    ),
    "arity": (lambda p: sources(p, *p.hidden.sources[:2]), "linear 'hidden': 2 sources"),
    "arg": (lambda p: put(p.hidden, "arg", 7), "linear 'hidden': arg is 7"),
    "op": (lambda p: put(p.hidden, "op", Op.EXP), "exp 'hidden': 3 sources"),
    "cycle": (lambda p: sources(p, p.graph.output, *p.hidden.sources[1:]), "a cycle"),
    "own source": (lambda p: sources(p, p.hidden, *p.hidden.sources[1:]), "'hidden': .*a cycle"),
    "leads": (
        lambda p: sources(p, input_node("user", REQUESTS, 5), *p.hidden.sources[1:]),
        "'hidden': says that|input 'user': is not among",
    ),
    "array's shape": (
        lambda p: put(p.weight, "arg", Constant(np.ones((4, 5), np.float32))),
        r"const 'weight': holds \[4, 5\]",
    ),
    "array's dtype": (
        lambda p: put(p.weight, "arg", Constant(np.ones((5, 4)))),
        "const 'weight': holds float64",
    ),
    "array's order": (
        lambda p: put(p.weight, "arg", Constant(np.ones((4, 5), np.float32).T)),
        "const 'weight': .*C-ordered",
    ),
    "no array": (lambda p: put(p.weight, "arg", None), "const 'weight': arg is None"),
    "input's name": (lambda p: put(p.user, "arg", "users"), "input 'user': is not among"),
    "input's rank": (
        lambda p: put(p.user, "shape", (REQUESTS, 3, 1)),
        r"input 'user': \[requests, 3, 1\] of float, want \[lead, width\]|to_rows",
    ),
    "unknown input": (
        lambda p: put(p.graph, "inputs", {"candidate": p.graph.inputs["candidate"]}),
        "input 'user': is not among the graph's inputs: candidate",
    ),
    "another input": (
        lambda p: put(p.graph, "inputs", {**p.graph.inputs, "more": p.weight}),
        "const 'weight': stands for the input 'more'",
    ),
    "output of requests": (
        lambda p: put(p.graph, "output", linear(p.user, np.ones((3, 1)), name="out")),
        r"linear 'out': the output is \[requests, 1\] of float",
    ),
    "output of bools": (
        lambda p: put(p.graph, "output", make(Op.LT, p.hidden, p.hidden, name="out")),
        r"lt 'out': the output is \[rows, 4\] of bool",
    ),
    "output of rank 3": (
        lambda p: put(p.graph, "output", make(Op.RESHAPE, p.hidden, shape=(ROWS, 2, 2))),
        r"the output is \[rows, 2, 2\]",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(kind: str) -> None:
    parts = build()
    damage, message = DAMAGE[kind]
    damage(parts)
    with pytest.raises(GraphError, match=f"^tiny: .*({message})"):
        check(parts.graph)


def test_a_node_of_a_deep_graph_is_reached_without_recursion() -> None:
    x = input_node("candidate", ROWS, 1)
    node = x
    for _ in range(5_000):
        node = make(Op.ADD, node, node)
    check(Graph("deep", {"candidate": x}, node))

"""A graph as text, a line a node, and what the passes made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kernels.ir.node import Graph, Node, Op
from kernels.ir.reference import flops
from kernels.ir.shapes import text as shape_text
from kernels.passes import optimise


def graph_lines(graph: Graph) -> Iterator[str]:
    """Yield a line for each node; constants stand in the lines of their readers, by shape."""
    names: dict[Node, str] = {}
    for node in graph.nodes():
        if node.op is Op.CONST:
            names[node] = f"const{shape_text(node.shape)}"
            continue
        names[node] = f"v{sum(not each.startswith('const') for each in names.values())}"
        arg = "" if node.arg is None else f" {{{node.arg}}}"
        sources = ", ".join(names[source] for source in node.sources)
        yield (
            f"{names[node]:<6} {node.op}({sources}){arg} "
            f"{shape_text(node.shape)} {node.dtype}  # {node.name}"
        )


def passes_lines(graph: Graph, *, user_once: bool) -> Iterator[str]:
    """Yield the graph as imported, how often each pass changed it, and what they left."""
    changed: Counter[str] = Counter()

    def trace(name: str, _: Graph) -> None:
        changed[name] += 1

    after = optimise(graph, trace, user_once=user_once)
    yield from _headed("before the passes", graph)
    yield "passes    " + (", ".join(f"{name} x {n}" for name, n in changed.items()) or "none")
    yield ""
    yield from _headed("after the passes", after)


def _headed(title: str, graph: Graph) -> Iterator[str]:
    lines = list(graph_lines(graph))
    work = flops(graph)
    yield (
        f"graph     {title}: {len(lines)} nodes, {work.row:,} FLOPs a row, "
        f"{work.request:,} a request"
    )
    yield from (f"  {line}" for line in lines)
    yield ""

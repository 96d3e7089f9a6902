"""User side once: what depends on a request alone is computed once a request, not once a row.

TO_ROWS, which repeats a request's value for each of its rows, goes down the graph as far as it
does not cost:

* An op all of whose values are repeated is done for the requests, and its result repeated; an
  elementwise one only with what else is done there.
* A LINEAR of repeated and other sources becomes two: the repeated part is multiplied for the
  requests, and what comes of it is repeated and added before the activation.
* The repeated terms of a sum are added up before they are repeated.
* A sum over fields, some of the user and some of the candidate, is a sum of two; element-wise ops
  between it and the fields are done apart.

``kernels.bundle.user_once`` does likewise to the host executor's ONNX graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs
import numpy as np

from kernels.ir.build import make
from kernels.ir.node import Lead, Node, Op, Shape
from kernels.ir.reference import multiply_adds
from kernels.ir.rules import ELEMENTWISE, MOVEMENT
from kernels.passes.affine import Array, activated, bias, blocks, linear, spec
from kernels.passes.rewrite import Rule, Uses, by_op
from kernels.passes.views import join

# Candidates of a request that the trade is judged for; MLPerf's mean is 270.
_ROWS_OF_A_REQUEST: Final = 50
# A product of fewer columns is one step of a matrix instruction (k = 16), whatever its FLOPs.
_WORTH_COLUMNS: Final = 16


def _of_requests(shape: Shape) -> Shape:
    return (Lead.REQUESTS, *shape[1:])


def _compact(node: Node, known: dict[Node, Node | None] | None = None) -> Node | None:
    """Return the request's value that a node repeats, or a constant; None of any other.

    Movement and elementwise ops of repeated values are repeated values.
    """
    known = {} if known is None else known
    if node in known:
        return known[node]
    result: Node | None = None
    if node.op is Op.TO_ROWS:
        result = node.sources[0]
    elif node.lead is None:
        result = node
    elif node.op in ELEMENTWISE or node.op in MOVEMENT:
        sources = [_compact(source, known) for source in node.sources]
        found = tuple(source for source in sources if source is not None)
        if len(found) == len(sources):
            result = attrs.evolve(node, sources=found, shape=_of_requests(node.shape))
    known[node] = result
    return result


def _repeated(node: Node) -> bool:
    """Whether a node holds a request's value for each of its rows."""
    return node.lead is Lead.ROWS and _compact(node) is not None


def _is_view(node: Node) -> bool:
    """Whether a value is movement of an input: read where it lies, whoever reads it."""
    if node.op is Op.INPUT:
        return True
    return node.op in MOVEMENT and all(_is_view(source) for source in node.sources)


def _hoisted(node: Node, _: Uses) -> Node | None:
    """Do an op for the requests, if it reads nothing of the rows.

    An elementwise op on columns of an input is not worth a trip through memory of its own: it goes
    with the first op of another kind that takes it along.
    """
    if node.lead is not Lead.ROWS or not any(_repeated(source) for source in node.sources):
        return None
    if node.op in ELEMENTWISE and not any(
        source.op is Op.TO_ROWS and not _is_view(source.sources[0]) for source in node.sources
    ):
        return None
    if node.op in MOVEMENT and any(source.op is not Op.TO_ROWS for source in node.sources):
        return None
    sources = [_compact(source) for source in node.sources]
    found = tuple(source for source in sources if source is not None)
    if len(found) < len(sources):
        return None
    return make(Op.TO_ROWS, attrs.evolve(node, sources=found, shape=_of_requests(node.shape)))


def _split_linear(node: Node, _: Uses) -> Node | None:
    repeated: list[tuple[Node, Array]] = []
    own: list[tuple[Node, Array]] = []
    for source, rows in _columns(node):
        compact = _compact(source)
        if compact is None:
            own.append((source, rows))
        else:
            repeated.append((compact, rows))
    if not repeated or not own:
        return None
    if sum(source.dims[-1] for source, _ in repeated) < _WORTH_COLUMNS:
        return None
    grouped, offset = spec(node).grouped, bias(node)
    part = linear(repeated, offset, grouped=grouped, name=node.name)
    rest = linear(own, np.zeros_like(offset), grouped=grouped, name=node.name)
    # An addition for each element besides; a multiply-add counts as two operations.
    apart = multiply_adds(rest) + node.width / 2 + multiply_adds(part) / _ROWS_OF_A_REQUEST
    if apart >= multiply_adds(node):
        return None
    both = make(Op.ADD, rest, make(Op.TO_ROWS, part), name=node.name)
    return activated(both, spec(node))


def _columns(node: Node) -> Iterator[tuple[Node, Array]]:
    """Yield the blocks of a LINEAR, a CONCAT of repeated and other values in its parts."""
    for source, rows in blocks(node):
        whole = source.op is not Op.CONCAT or source.arg != len(source.shape) - 1
        if whole or not _is_mixed(source):
            yield source, rows
        else:
            ends = np.cumsum([part.dims[-1] for part in source.sources])[:-1]
            yield from zip(source.sources, np.split(rows, ends, axis=-2), strict=True)


def _sum_of_repeated(node: Node, uses: Uses) -> Node | None:
    """Add the repeated terms of a sum up before they are repeated."""
    terms = _terms(node, uses)
    repeated = [term for term in terms if term.op is Op.TO_ROWS]
    if len(repeated) < 2 or len(repeated) == len(terms):
        return None
    total = repeated[0].sources[0]
    for term in repeated[1:]:
        total = make(Op.ADD, total, term.sources[0], name=node.name)
    others = [term for term in terms if term.op is not Op.TO_ROWS]
    result = others[0]
    for term in [*others[1:], make(Op.TO_ROWS, total)]:
        result = make(Op.ADD, result, term, name=node.name)
    return result


def _terms(node: Node, uses: Uses) -> list[Node]:
    found: list[Node] = []
    for source in node.sources:
        inner = source.op is Op.ADD and uses.once(source)
        found.extend(_terms(source, uses) if inner else [source])
    return found


def _sum_of_fields(node: Node, _: Uses) -> Node | None:
    """SUM along a CONCAT of repeated and other values."""
    (source,), axes = node.sources, node.arg
    assert isinstance(axes, tuple)
    if source.op is not Op.CONCAT or source.arg not in axes or not _is_mixed(source):
        return None
    axis = source.arg
    assert isinstance(axis, int)
    halves = []
    for is_repeated in (False, True):
        parts = [part for part in source.sources if _repeated(part) is is_repeated]
        halves.append(make(Op.SUM, join(parts, axis), arg=axes, name=node.name))
    return make(Op.ADD, *halves, name=node.name)


def _is_mixed(node: Node) -> bool:
    repeated = [_repeated(source) for source in node.sources]
    return any(repeated) and not all(repeated)


def _fields_apart(node: Node, uses: Uses) -> Node | None:
    """Do an elementwise op part by part, where a SUM along the parts comes next."""
    first = next((source for source in node.sources if source.op is Op.CONCAT), None)
    if first is None or not _is_mixed(first) or not uses.only_by(node, {Op.SUM}):
        return None
    axis, columns = first.arg, []
    assert isinstance(axis, int)
    for source in node.sources:
        if source.op is Op.CONCAT and source.arg == axis:
            columns.append(source.sources)
        elif source.lead is None and source.shape[axis] == 1:
            columns.append((source,) * len(first.sources))
        else:
            return None
    if any(len(column) != len(first.sources) for column in columns):
        return None
    parts = []
    for sources in zip(*columns, strict=True):
        if any(x.shape[axis] != sources[0].shape[axis] for x in sources if x.lead is not None):
            return None
        parts.append(make(node.op, *sources, arg=node.arg, dtype=node.dtype, name=node.name))
    result = join(parts, axis)
    return result if result.shape == node.shape else None


_SPECIAL: Final[Mapping[Op, tuple[Rule, ...]]] = {
    Op.LINEAR: (_split_linear,),
    Op.ADD: (_sum_of_repeated,),
    Op.SUM: (_sum_of_fields,),
}
USER_ONCE: Final[Mapping[Op, tuple[Rule, ...]]] = {
    op: (_hoisted, *_SPECIAL.get(op, ()), *((_fields_apart,) if op in ELEMENTWISE else ()))
    for op in Op
    if op not in (Op.INPUT, Op.CONST, Op.TO_ROWS)
}
user_once_rule: Final = by_op(USER_ONCE)

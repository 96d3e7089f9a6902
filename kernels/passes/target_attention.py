"""DIN's attention, found among LINEARs: TARGET_ATTENTION.

``split_k`` has taken ``concat(q, h, q - h, q * h)`` apart by now, in whatever order and with
whatever differences it came, so there is one form to know: a sum of a LINEAR of h and ``q * h`` and
a LINEAR of q, an activation, LINEARs down to one column, a mask, perhaps a SOFTMAX, and a MATMUL
with h. Whatever does not fit the op's definition in every part is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np

from kernels.ir.build import make
from kernels.ir.node import DType, Node, Op, TargetAttention, const
from kernels.passes.affine import (
    ACTIVATIONS,
    Array,
    bias,
    blocks,
    inputs,
    is_plain,
    spec,
    weight,
    wide,
)
from kernels.passes.rewrite import Uses
from kernels.passes.views import Interval, interval, is_scalar, reshape, scalar


@attrs.frozen(eq=False)
class _First:
    """The first layer: what it reads, and the blocks of its weight."""

    query: Node
    w_query: Array
    w_keys: Array
    w_product: Array
    bias: Array


def target_attention(node: Node, uses: Uses) -> Node | None:
    """Return the op for a MATMUL of weights ``[lead, 1, t]`` and keys ``[lead, t, d]``."""
    if node.op is not Op.MATMUL or len(node.shape) != 3 or node.dims[0] != 1:
        return None
    weights, keys = _viewed(node.sources[0]), node.sources[1]
    t, d = keys.dims
    softmax = weights.op is Op.SOFTMAX and weights.shape[int(str(weights.arg))] == t
    masked = _masked(_viewed(weights.sources[0]) if softmax else weights)
    if masked is None or t == 1:
        return None
    mask, scores, value = masked
    layers = _layers(_viewed(scores), uses)
    if not layers or any(layer.dims[:-1] != (t,) for layer in layers) or layers[-1].width != t:
        return None
    activations = {_activation_of(_viewed(inputs(layer)[0])) for layer in layers}
    if len(activations) != 1:
        return None
    ((activation, slope),) = activations
    if activation not in ACTIVATIONS - {Op.ELU}:
        return None
    hidden = _viewed(inputs(layers[0])[0])
    first = _first(hidden, keys) if hidden.dims == inputs(layers[0])[0].dims else None
    if first is None:
        return None
    parameters = [first.w_query, first.w_keys, first.w_product, first.bias]
    for layer in layers:
        parameters += [weight(layer), bias(layer)]
    result = make(
        Op.TARGET_ATTENTION,
        reshape(first.query, (d,)),
        keys,
        reshape(mask, (t,)),
        *(const(each, node.name) for each in parameters),
        arg=TargetAttention(len(layers) + 1, activation, slope, softmax, value),
        name=node.name,
    )
    return reshape(result, node.dims)


def _viewed(node: Node) -> Node:
    return _viewed(node.sources[0]) if node.op is Op.RESHAPE else node


def _masked(node: Node) -> tuple[Node, Node, float] | None:
    """Return mask, scores, and the score of a step that is masked out."""
    if node.op is Op.WHERE:
        condition, then, otherwise = node.sources
        if condition.shape != node.shape:
            return None
        if is_scalar(otherwise) and then.shape == node.shape:
            return _viewed(condition), then, scalar(otherwise)
        if is_scalar(then) and otherwise.shape == node.shape:
            return make(Op.NOT, condition, name=node.name), otherwise, scalar(then)
    if node.op is Op.MUL:
        for scores, factor in (node.sources, node.sources[::-1]):
            one = _viewed(factor)
            is_mask = one.op is Op.CAST and one.sources[0].dtype is DType.BOOL
            if is_mask and scores.shape == factor.shape == node.shape:
                return one.sources[0], scores, 0.0
    return None


def _layers(node: Node, uses: Uses) -> list[Node]:
    """Return the LINEARs behind the first activation, the one nearest the input first."""
    found: list[Node] = []
    while node.op is Op.LINEAR and len(inputs(node)) == 1 and not spec(node).grouped:
        source = _viewed(inputs(node)[0])
        last_of_all = not found and spec(node).activation is None
        if not uses.once(node) or not (found or last_of_all):
            return []
        found.insert(0, node)
        if source.op is Op.LINEAR and (len(inputs(source)) > 1 or spec(source).activation is None):
            break
        node = source
    return found


def _activation_of(node: Node) -> tuple[Op, float]:
    """Return the activation that a value comes out of; the op itself, where it is none."""
    if node.op is Op.LINEAR:
        return spec(node).activation or Op.LINEAR, spec(node).slope
    if isinstance(node.arg, int | float):
        return node.op, float(node.arg)
    return node.op, 0.0


def _first(node: Node, keys: Node) -> _First | None:
    """Take the first layer apart: an activation of LINEARs of keys, products and a query."""
    pieces: list[tuple[Node, Array]] = []
    offset: Array = np.zeros(node.dims[-1])
    for term in _terms(node):
        inner = _viewed(term)
        if inner.op is not Op.LINEAR or spec(inner).grouped:
            return None
        pieces += blocks(inner)
        offset = offset + wide(bias(inner))
    d, zeros = keys.dims[-1], np.zeros((keys.dims[-1], node.dims[-1]))
    w_query, w_keys, w_product = zeros, zeros, zeros
    queries: dict[tuple[Node, int, int], Node] = {}
    for value, rows in pieces:
        query = _query_of_product(value, keys)
        if value is keys:
            w_keys = w_keys + rows
            continue
        if query is not None:
            w_product = w_product + rows
        elif value.width == d:
            query, w_query = value, w_query + rows
        else:
            return None
        where: Interval = interval(query)
        queries.setdefault((where.base, where.start, where.stop), query)
    if len(queries) != 1:
        return None
    (query,) = queries.values()
    return _First(query, w_query, w_keys, w_product, offset)


def _terms(node: Node) -> Iterator[Node]:
    """Yield the terms of what an activation is of; a LINEAR with an activation is the only one."""
    if node.op is Op.LINEAR:
        yield node
        return
    pending = list(node.sources)
    while pending:
        term = pending.pop(0)
        if term.op is Op.ADD:
            pending[:0] = term.sources
        elif term.op is Op.LINEAR and not is_plain(term):
            yield node  # not a sum of LINEARs alone; no LINEAR itself, so it is refused
        else:
            yield term


def _query_of_product(value: Node, keys: Node) -> Node | None:
    """Return q of ``q * h``, q ``[lead, 1, d]``."""
    if value.op is not Op.MUL:
        return None
    for query, other in (value.sources, value.sources[::-1]):
        if other is keys and query.lead is not None and query.dims == (1, keys.dims[-1]):
            return query
    return None

"""Blocks that ``ir_graphs`` grows graphs of: each picks values and returns a new ``[lead, w]``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from kernels.ir.build import cast, expand, linear, reshape, scalar, slice_, sum_, take, transpose
from kernels.ir.node import (
    DType,
    Encoder,
    Node,
    Op,
    Slice,
    Take,
    TargetAttention,
    TopK,
    const,
)
from tests.kernels.ir_maker import History, Maker


def tower(m: Maker) -> Node:
    """Linears, BatchNorms and activations."""
    x = m.some()
    for _ in range(m.chance.randint(1, 3)):
        x = m.linear(x, m.width())
        if m.likely(0.3):
            x = batch_norm(m, x)
        x = m.activate(x)
    return x


def batch_norm(m: Maker, x: Node) -> Node:
    """A factor and an offset for each column, as a BatchNorm leaves them."""
    n = x.dims[-1]
    ones = (1,) * (len(x.shape) - 1)
    gain = const(1 + m.array(*ones, n, scale=0.2), "gain")
    x = m.do(Op.MUL, x, gain)
    return m.do(Op.ADD, x, m.const(*ones, n, scale=0.2))


def twins(m: Maker) -> Node:
    """Linears side by side over one value, and a part computed twice."""
    x = m.some()
    heads = [m.activate(m.linear(x, m.width())) for _ in range(m.chance.randint(2, 3))]
    heads += [m.do(Op.TANH, heads[0]), m.do(Op.TANH, heads[0])]
    return m.concat(*heads)


def fm(m: Maker) -> Node:
    """A factorisation machine: half of the square of the sum less the sum of squares."""
    x = m.some_fields()
    total = sum_(x, 1)
    square = m.do(Op.MUL, total, total)
    squares = sum_(m.do(Op.MUL, x, x), 1)
    pairs = m.scaled(m.do(Op.SUB, square, squares), 0.5)
    depth = x.dims[-1]
    if m.likely():
        return reshape(m.scaled(sum_(pairs, 2), 1 / depth), 1)
    return m.scaled(reshape(pairs, depth), 1 / x.dims[0])


def dots(m: Maker) -> Node:
    """DLRM's interaction: dot products of all pairs of fields."""
    x = m.some_fields()
    n, depth = x.dims
    product = m.do(Op.MATMUL, x, transpose(x, 0, 2, 1))
    flat = m.scaled(reshape(product, n * n), depth**-0.5)
    pairs = tuple(i * n + j for i in range(n) for j in range(i))
    return take(flat, 1, pairs) if pairs else flat


def cross(m: Maker) -> Node:
    """DCN's cross layers, whole or of low rank."""
    first = x = m.some()
    for _ in range(m.chance.randint(1, 2)):
        inner = m.linear(x, 3) if m.likely() else x
        x = m.do(Op.ADD, m.do(Op.MUL, first, m.do(Op.TANH, m.linear(inner, first.width))), x)
    return x


def gates(m: Maker) -> Node:
    """A mixture of experts: a softmax weighs towers."""
    x = m.some()
    n, width = m.chance.randint(2, 4), m.width()
    if m.likely():
        experts = [reshape(m.activate(m.linear(x, width)), 1, width) for _ in range(n)]
        stacked = m.concat(*experts, axis=1)
    else:
        stacked = reshape(m.activate(m.linear(x, n * width)), n, width)
    weights = m.do(Op.SOFTMAX, m.linear(x, n), arg=1)
    if m.likely():
        return reshape(sum_(m.do(Op.MUL, stacked, reshape(weights, n, 1)), 1), width)
    return reshape(m.do(Op.MATMUL, reshape(weights, 1, n), stacked), width)


def squeeze(m: Maker) -> Node:
    """A sigmoid gates the columns of another value."""
    x, by = m.together(m.some(), m.flat())
    gate = m.do(Op.SIGMOID, m.linear(by, x.width))
    return m.do(Op.MUL, x, gate)


def layer_norm(m: Maker) -> Node:
    """Layer norm: as one op, or written out."""
    x = m.some()
    gain, offset = m.const(x.width), m.const(x.width)
    if m.likely():
        return m.do(Op.LAYER_NORM, x, gain, offset, arg=1e-2)
    centred = m.do(Op.SUB, x, m.do(Op.MEAN, x, arg=(1,)))
    variance = m.do(Op.MEAN, m.do(Op.MUL, centred, centred), arg=(1,))
    deviation = m.do(Op.SQRT, m.do(Op.ADD, variance, scalar(1e-2, x)))
    x = m.do(Op.DIV, centred, deviation)
    x = m.do(Op.MUL, x, reshape(gain, 1, x.width))
    return m.do(Op.ADD, x, reshape(offset, 1, x.width))


def soft(m: Maker) -> Node:
    """Softmax of a value, or of each field; perhaps written out."""
    if m.likely(0.3):
        x = m.some_fields()
        return m.flattened(m.do(Op.SOFTMAX, x, arg=m.chance.choice((1, 2))))
    x = m.some()
    if m.likely():
        return m.do(Op.SOFTMAX, x, arg=1)
    raised = m.do(Op.EXP, m.do(Op.SUB, x, m.do(Op.REDUCE_MAX, x, arg=(1,))))
    return m.do(Op.DIV, raised, sum_(raised, 1))


def _sequence(m: Maker) -> History:
    """Pick a sequence; fields stand for one, where there is none."""
    if m.sequences:
        return m.chance.choice(m.sequences)
    keys = m.chance.choice(m.fields)
    zero = scalar(0.0, keys)
    given = m.do(Op.EQ, m.do(Op.REDUCE_MAX, m.do(Op.MUL, keys, zero), arg=(2,)), zero)
    return History(keys, reshape(given, keys.dims[0]), nonempty=True)


def _masked(m: Maker, scores: Node, mask: Node, nonempty: bool) -> Node:
    """Scores ``[lead, t]``, far below where the mask is false."""
    if m.likely() or not nonempty:
        return m.do(Op.WHERE, mask, scores, scalar(m.chance.choice((-1e9, -1e4)), scores))
    left = m.do(Op.SUB, scalar(1.0, scores), cast(mask, DType.FLOAT))
    return m.do(Op.ADD, scores, m.scaled(left, -1e4))


def _query(m: Maker, depth: int) -> Node:
    """A vector ``[lead, depth]`` of rows: a field of the candidate, or a projection."""
    fields = m.fields[-1]
    if m.likely():
        field = slice_(fields, 1, at := m.chance.randrange(fields.dims[0]), at + 1)
        return reshape(field, depth)
    return m.linear(m.flat(), depth)


def target_attention(m: Maker) -> Node:
    """DIN, written out: concat(q, k, q - k, q * k), a tower, a mask, a softmax, a weighted sum."""
    sequence = _sequence(m)
    query, keys, mask = m.together(_query(m, sequence.keys.dims[1]), sequence.keys, sequence.mask)
    steps, depth = keys.dims
    query = reshape(query, 1, depth)
    wide = expand(query, steps, depth) if m.likely() else m.concat(*[query] * steps, axis=1)
    parts = [wide, keys, m.do(Op.SUB, wide, keys), m.do(Op.MUL, wide, keys)]
    x = m.concat(*parts)
    for _ in range(m.chance.randint(1, 2)):
        x = m.activate(m.linear(x, m.width()), always=True)
    scores = reshape(m.linear(x, 1), steps)
    if m.likely(0.7):
        weights = m.do(Op.SOFTMAX, _masked(m, scores, mask, sequence.nonempty), arg=1)
    else:
        weights = m.do(Op.WHERE, mask, scores, scalar(0.0, scores))
    if m.likely():
        return reshape(m.do(Op.MATMUL, reshape(weights, 1, steps), keys), depth)
    return reshape(sum_(m.do(Op.MUL, reshape(weights, steps, 1), keys), 1), depth)


def self_attention(m: Maker) -> Node:
    """A transformer block over a sequence, written out; its steps joined or averaged."""
    x = _sequence(m).keys
    steps, depth = x.dims
    heads = m.chance.choice([n for n in (1, 2, 4) if depth % n == 0])
    each = depth // heads

    def split(value: Node) -> Node:
        return transpose(reshape(value, steps, heads, each), 0, 2, 1, 3)

    if m.likely():
        joint = m.linear(x, 3 * depth)
        parts = [slice_(joint, 2, i * depth, (i + 1) * depth) for i in range(3)]
    else:
        parts = [m.linear(x, depth) for _ in range(3)]
    query, key, value = map(split, parts)
    scores = m.scaled(m.do(Op.MATMUL, query, transpose(key, 0, 1, 3, 2)), each**-0.5)
    mixed = m.do(Op.MATMUL, m.do(Op.SOFTMAX, scores, arg=3), value)
    joined = reshape(transpose(mixed, 0, 2, 1, 3), steps, depth)
    y = _norm(m, m.do(Op.ADD, x, m.linear(joined, depth)))
    inner = m.activate(m.linear(y, m.width()), always=True)
    y = _norm(m, m.do(Op.ADD, y, m.linear(inner, depth)))
    return m.flattened(y if m.likely() else m.do(Op.MEAN, y, arg=(1,)))


def _norm(m: Maker, x: Node) -> Node:
    n = x.dims[-1]
    return m.do(Op.LAYER_NORM, x, m.const(n), m.const(n, scale=0.1), arg=1e-2)


def pool(m: Maker) -> Node:
    """A sequence's masked sum, mean or maximum."""
    sequence = _sequence(m)
    keys, mask = sequence.keys, sequence.mask
    steps, depth = keys.dims
    wide = reshape(mask, steps, 1)
    if m.likely(0.3):
        low = m.do(Op.WHERE, wide, keys, scalar(-8.0, keys))
        return reshape(m.do(Op.REDUCE_MAX, low, arg=(1,)), depth)
    weights = cast(wide, DType.FLOAT)
    total = sum_(m.do(Op.MUL, keys, weights), 1)
    if m.likely():
        return reshape(total, depth)
    count = m.do(Op.MAX, sum_(weights, 1), scalar(1.0, total))
    return reshape(m.do(Op.DIV, total, count), depth)


_SMOOTH_OPS: Final = (
    Op.NEG, Op.ABS, Op.TANH, Op.SIGMOID, Op.RELU, Op.ERF, Op.SOFTPLUS, Op.SIN, Op.COS,
)  # fmt: skip
_JUMPY_OPS: Final = (Op.SIGN, Op.FLOOR, Op.CEIL, Op.ROUND)


def chain(m: Maker) -> Node:
    """Elementwise ops in a row, among them those that need a positive source."""
    x, other = m.together(m.some(), m.flat())
    other = m.linear(other, x.width)
    for _ in range(m.chance.randint(2, 6)):
        x = _link(m, x, other)
    return x


def _link(m: Maker, x: Node, other: Node) -> Node:
    one = scalar(1.0, x)
    match m.chance.randrange(16):
        case 0:
            return m.do(Op.LOG, m.do(Op.ADD, m.do(Op.RELU, x), one))
        case 1:
            return m.do(Op.EXP, m.do(Op.MIN, x, one))
        case 2:
            return m.do(Op.SQRT, m.do(Op.ADD, m.do(Op.ABS, x), one))
        case 3:
            return m.do(Op.RECIPROCAL, m.do(Op.ADD, m.do(Op.ABS, x), one))
        case 4:
            base = m.do(Op.ADD, m.do(Op.ABS, x), one)
            return m.do(Op.POW, base, scalar(m.chance.choice((0.5, 1.5, -1.0)), x))
        case 5:
            return m.do(m.chance.choice((Op.MAX, Op.MIN, Op.ADD, Op.SUB)), x, other)
        case 6:
            below = m.do(Op.LT, x, scalar(0.0, x))
            return m.do(Op.WHERE, below, m.scaled(x, 0.1), x)
        case 7:
            return m.activate(x, always=True)
        case _:
            ops = _SMOOTH_OPS if m.smooth else _SMOOTH_OPS + _JUMPY_OPS
            return m.do(m.chance.choice(ops), x)


def top(m: Maker) -> Node:
    """The largest or smallest of a value, sorted; or the least or the product of fields."""
    x = m.some()
    if m.likely(0.3):
        op = m.chance.choice((Op.REDUCE_MIN, Op.PROD))
        return m.flattened(m.do(op, m.do(Op.TANH, m.some_fields()), arg=(1,)))
    arg = TopK(1, m.chance.randint(1, min(4, x.width)), largest=m.likely())
    return m.do(Op.TOP_K, x, arg=arg)


def movement(m: Maker) -> Node:
    """Transposes, slices, takes and concats that end in a flat value."""
    x = m.some_fields()
    for _ in range(m.chance.randint(1, 4)):
        axis = m.chance.choice((1, 2))
        n = x.dims[axis - 1]
        match m.chance.randrange(4):
            case 0:
                x = transpose(x, 0, 2, 1)
            case 1:
                start = m.chance.randrange(n)
                stop = m.chance.randint(start + 1, n)
                x = m.do(Op.SLICE, x, arg=Slice(axis, start, stop, m.chance.randint(1, 2)))
            case 2:
                picked = tuple(m.chance.randrange(n) for _ in range(m.chance.randint(1, n)))
                x = m.do(Op.TAKE, x, arg=Take(axis, picked))
            case _:
                x = m.concat(x, m.do(Op.TANH, x), axis=axis) if n < 8 else x
    return m.flattened(x)


def grouped(m: Maker) -> Node:
    """A Linear of its own for each field."""
    x = m.some_fields()
    n, depth = x.dims
    width = m.chance.choice((1, 3, 4, 8))
    weight = m.array(n, depth, width, scale=depth**-0.5)
    made = linear(x, weight, m.array(n, width, scale=0.1), grouped=True, name=f"{m.block}/linear")
    return m.flattened(m.activate(made))


def wide_linear(m: Maker) -> Node:
    """A weighted sum of columns, as a product and a sum: the wide part of Wide and Deep."""
    x = m.some()
    return m.do(Op.ADD, sum_(m.do(Op.MUL, x, m.const(1, x.width, scale=0.2)), 1), m.const(1, 1))


def buckets(m: Maker) -> Node:
    """Integers and bools: a value put in buckets, compared, cast back. It jumps."""
    x = m.some()
    x = m.do(Op.WHERE, m.do(Op.ISNAN, x), scalar(0.0, x), x)
    number = cast(m.scaled(x, 4.0), DType.INT)
    two, three = scalar(2, number), scalar(3, number)
    odd = m.do(Op.EQ, m.do(Op.MOD, number, two), scalar(1, number))
    large = m.do(Op.LE, three, m.do(Op.ABS, number))
    either = m.do(m.chance.choice((Op.OR, Op.AND)), odd, m.do(Op.NOT, large))
    kept = m.do(Op.WHERE, either, number, m.do(Op.DIV, number, three))
    least = m.do(Op.MAX, kept, m.do(Op.NEG, two))
    return cast(m.do(Op.MIN, least, scalar(9, number)), DType.FLOAT)


def split_linear(m: Maker) -> Node:
    """A LINEAR of several inputs with its activation: a concat and an activation, fused."""
    inputs = m.together(*(m.flat() for _ in range(m.chance.randint(1, 3))))
    depth, activation = sum(x.width for x in inputs), m.chance.choice((Op.RELU, Op.TANH, None))
    return linear(inputs, *m.parameters(depth, m.width()), activation, name=f"{m.block}/linear")


def fused_attention(m: Maker) -> Node:
    """TARGET_ATTENTION."""
    sequence = _sequence(m)
    query, keys, mask = m.together(_query(m, sequence.keys.dims[1]), sequence.keys, sequence.mask)
    depth, n_layers = keys.dims[1], m.chance.randint(2, 3)
    widths = [m.width() for _ in range(n_layers - 1)] + [1]
    scale = (3 * depth) ** -0.5
    parameters = [m.const(depth, widths[0], scale=scale) for _ in range(3)]
    parameters.append(m.const(widths[0], scale=0.1))
    for before, after in itertools.pairwise(widths):
        parameters += m.parameters(before, after)
    activation = m.chance.choice((Op.RELU, Op.SIGMOID, Op.TANH, Op.LEAKY_RELU))
    softmax = m.likely(0.7)
    masked = m.chance.choice((-1e30, -1e9)) if softmax else 0.0
    arg = TargetAttention(n_layers, activation, 0.1, softmax, masked)
    return m.do(Op.TARGET_ATTENTION, query, keys, mask, *parameters, arg=arg)


def fused_encoder(m: Maker) -> Node:
    """ENCODER."""
    x = _sequence(m).keys
    depth = x.dims[1]
    heads = m.chance.choice([n for n in (1, 2, 4) if depth % n == 0])
    width = m.width()
    shapes = ((depth, 3 * depth), (depth, depth), (depth, width), (width, depth))
    qkv, out, first, second = (m.parameters(*shape) for shape in shapes)
    norms = [(m.const(depth), m.const(depth, scale=0.1)) for _ in range(2)]
    parameters = (*qkv, *out, *norms[0], *first, *second, *norms[1])
    arg = Encoder(heads, (depth // heads) ** -0.5, Op.RELU, 0.0, 1e-2, 1e-2)
    return m.flattened(m.do(Op.ENCODER, x, *parameters, arg=arg))


UNFUSED: Final = (
    "tower", "tower", "twins", "fm", "dots", "cross", "gates", "squeeze", "layer_norm", "soft",
    "target_attention", "self_attention", "pool", "chain", "top", "movement", "grouped",
    "wide_linear",
)  # fmt: skip
JUMPY: Final = ("buckets",)
FUSED: Final = ("split_linear", "fused_attention", "fused_encoder")
_ALL: Final = (
    tower, twins, fm, dots, cross, gates, squeeze, layer_norm, soft, target_attention,
    self_attention, pool, chain, top, movement, grouped, wide_linear, buckets, split_linear,
    fused_attention, fused_encoder,
)  # fmt: skip
BLOCKS: Final[dict[str, Callable[[Maker], Node]]] = {block.__name__: block for block in _ALL}

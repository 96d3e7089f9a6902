"""The compiler's graph: one node type, and the ops it may hold.

A value has a *lead*: ``ROWS`` (one element a candidate), ``REQUESTS`` (one a request) or none (a
constant). The lead is axis 0 of its shape and stands nowhere else, so that a schedule may cut every
value of a graph into tiles of rows. All other dimensions are integers; of these, ``Steps`` count
the steps of sequences, of which a bucket may have fewer (``kernels.lengths``).

What an op means (shapes, numpy, CUDA) is one row of the table in ``rules.py``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray


class Lead(enum.StrEnum):
    """What axis 0 of a value counts; its size is known when a batch runs."""

    ROWS = "rows"
    REQUESTS = "requests"


class Steps(int):
    """A dimension of steps of sequences: ``most`` of them, or as many as a bucket's length.

    The size of the whole to whoever takes it as a number.

    Attributes:
        most: How many steps there are.
        each: Elements of a step, where they lie in the same dimension, step by step.
        last: Whether a shorter one has the last steps, and not the first.
    """

    most: int
    each: int
    last: bool

    def __new__(cls, most: int, each: int = 1, *, last: bool = False) -> Steps:
        """Make the dimension, of ``most * each`` elements."""
        made = super().__new__(cls, most * each)
        made.most, made.each, made.last = most, each, last
        return made

    def with_each(self, each: int) -> Steps:
        """Return the dimension of the same steps, of so many elements each."""
        return Steps(self.most, each, last=self.last)

    def at(self, length: int) -> int:
        """Return its size in a bucket of a length."""
        return min(self.most, length) * self.each

    def start(self, length: int) -> int:
        """Return the first of its elements that a bucket of a length has."""
        return self - self.at(length) if self.last else 0

    def __str__(self) -> str:
        steps = f"steps<={self.most}"
        return steps if self.each == 1 else f"{steps}x{self.each}"

    __repr__ = __str__


Dim: TypeAlias = int | Lead  # Steps among the integers
Shape: TypeAlias = tuple[Dim, ...]


class DType(enum.StrEnum):
    """What an element is. The oracle computes floats in float64, a kernel in fp32 registers."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"


class Op(enum.StrEnum):
    """Every op. Elementwise ones take sources of equal rank, each dimension the result's or 1."""

    # Leaves.
    INPUT = "input"  # arg: str, its name
    CONST = "const"  # arg: Constant
    # Elementwise, one source.
    NEG = "neg"
    ABS = "abs"
    SIGN = "sign"
    FLOOR = "floor"
    CEIL = "ceil"
    ROUND = "round"
    SQRT = "sqrt"
    RECIPROCAL = "reciprocal"
    EXP = "exp"
    LOG = "log"
    SIN = "sin"
    COS = "cos"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    RELU = "relu"
    ERF = "erf"
    SOFTPLUS = "softplus"
    LEAKY_RELU = "leaky_relu"  # arg: float, the slope below 0
    ELU = "elu"  # arg: float, alpha
    NOT = "not"
    ISNAN = "isnan"
    CAST = "cast"  # to the node's dtype; float to int truncates, float to bool is != 0
    # Elementwise, two or three sources.
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"  # of ints: truncates toward zero
    MOD = "mod"  # of ints: sign of the divisor
    POW = "pow"
    MAX = "max"
    MIN = "min"
    EQ = "eq"
    LT = "lt"
    LE = "le"
    AND = "and"
    OR = "or"
    WHERE = "where"  # (condition, then, else)
    # Movement. None touches axis 0 of a value that has a lead.
    RESHAPE = "reshape"  # arg: none, the node's shape says it
    TRANSPOSE = "transpose"  # arg: tuple[int, ...], the permutation
    EXPAND = "expand"  # dimensions of 1 repeat, to the node's shape
    SLICE = "slice"  # arg: Slice
    CONCAT = "concat"  # arg: int, the axis
    TAKE = "take"  # arg: Take, along one axis by constant indices
    TO_ROWS = "to_rows"  # (a REQUESTS value) -> the ROWS value that repeats it for each candidate
    # Reductions, over axes that stay as 1. arg: tuple[int, ...], the axes.
    SUM = "sum"
    MEAN = "mean"
    REDUCE_MAX = "reduce_max"
    REDUCE_MIN = "reduce_min"
    PROD = "prod"
    # Row programs.
    SOFTMAX = "softmax"  # arg: int, the axis
    LAYER_NORM = "layer_norm"  # (x, gain, offset) over the last axis; arg: float, epsilon
    TOP_K = "top_k"  # arg: TopK; the values, sorted
    MATMUL = "matmul"  # both sources have the lead: [.., m, k] x [.., k, n], batch dims equal
    LINEAR = "linear"  # arg: Linear; see there
    TARGET_ATTENTION = "target_attention"  # arg: TargetAttention
    ENCODER = "encoder"  # arg: Encoder


@attrs.frozen(eq=False)
class Constant:
    """An array of the model: float32, int64 or bool, C-ordered, read-only by agreement."""

    array: NDArray[np.generic]


@attrs.frozen
class Slice:
    """Elements ``start, start + step, ...`` before ``stop`` of one axis; ``step`` is at least 1."""

    axis: int
    start: int
    stop: int
    step: int = 1


@attrs.frozen
class Take:
    """Elements of one axis by index. ``indices`` are non-negative; the axis gets their number."""

    axis: int
    indices: tuple[int, ...]


@attrs.frozen
class TopK:
    """The ``k`` largest (or smallest) elements of an axis, sorted from that end."""

    axis: int
    k: int
    largest: bool = True


@attrs.frozen
class Linear:
    """``activation(sum_i x_i W_i + b)``, where the W_i are the row blocks of one matrix.

    Sources are ``x_1 .. x_n, weight, bias``. x_i is ``[lead, .., k_i]``, weight ``[sum k_i, n]``
    and bias ``[n]``, both constants. The x_i stand for a concat on the last axis that is never
    made (split-K). With ``grouped``, axis -2 of each x_i is one of g groups with weights of its
    own: x_i ``[lead, .., g, k_i]``, weight ``[g, sum k_i, n]``, bias ``[g, n]``.

    Attributes:
        n_inputs: How many x_i.
        activation: RELU, SIGMOID, TANH, LEAKY_RELU, ELU or None.
        slope: The argument of LEAKY_RELU and ELU.
    """

    n_inputs: int = 1
    activation: Op | None = None
    slope: float = 0.0
    grouped: bool = False


@attrs.frozen
class TargetAttention:
    """Pooling of a sequence by an MLP's score of each step against a query (DIN, arXiv 1706.06978).

    Sources: query ``[lead, d]``, keys ``[lead, t, d]``, mask bool ``[lead, t]``, then constants
    ``W_q, W_k, W_p [d, h_1]``, ``b_1 [h_1]``, then ``W_i [h_(i-1), h_i]``, ``b_i [h_i]`` of each
    further layer; the last has one output. Result ``[lead, d]``:

        z_t = activation(q W_q + k_t W_k + (q * k_t) W_p + b_1); further layers likewise, the last
        without activation, gives a_t; a_t = masked where mask_t is false;
        w = softmax(a) over t, or a itself; result = sum_t w_t k_t

    Attributes:
        n_layers: Linear layers, 2 or more.
        activation: RELU, SIGMOID, TANH or LEAKY_RELU (with ``slope``).
        softmax: Whether scores are normalised over t.
        masked: The score of a step that is masked out (before the softmax, where there is one).
    """

    n_layers: int
    activation: Op
    slope: float = 0.0
    softmax: bool = True
    masked: float = -1e30


@attrs.frozen
class Encoder:
    """A transformer block over a short sequence, normalised after each half (arXiv 1706.03762).

    Sources: x ``[lead, t, d]``, then constants ``W_qkv [d, 3 d]``, ``b_qkv [3 d]``, ``W_o [d, d]``,
    ``b_o [d]``, ``gain_1, offset_1 [d]``, ``W_1 [d, f]``, ``b_1 [f]``, ``W_2 [f, d]``, ``b_2 [d]``,
    ``gain_2, offset_2 [d]``. Result ``[lead, t, d]``:

        a = softmax(scale q_h k_h^T) v_h for each head h, heads joined
        y = layer_norm(x + a W_o + b_o); result = layer_norm(y + activation(y W_1 + b_1) W_2 + b_2)

    Columns of W_qkv are ``[q | k | v]``, each ``[n_heads, d / n_heads]``.
    """

    n_heads: int
    scale: float
    activation: Op
    slope: float = 0.0
    epsilon_1: float = 1e-5
    epsilon_2: float = 1e-5


Arg: TypeAlias = (
    str
    | int
    | float
    | tuple[int, ...]
    | Constant
    | Slice
    | Take
    | TopK
    | Linear
    | TargetAttention
    | Encoder
    | None
)


@attrs.frozen(eq=False)
class Node:
    """One value. Nodes are compared by identity; a pass that wants to find equal ones keys them.

    Attributes:
        name: Of the model's node that it came from, for errors; not unique.
    """

    op: Op
    sources: tuple[Node, ...]
    shape: Shape
    dtype: DType = DType.FLOAT
    arg: Arg = None
    name: str = ""

    @property
    def lead(self) -> Lead | None:
        """What axis 0 counts, or None for a constant."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], Lead) else None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape without the lead."""
        return tuple(dim for dim in self.shape if not isinstance(dim, Lead))

    @property
    def width(self) -> int:
        """Elements for one row, or of the whole constant."""
        total = 1
        for dim in self.dims:
            total *= dim
        return total

    @property
    def array(self) -> NDArray[np.generic]:
        """The array of a CONST."""
        assert isinstance(self.arg, Constant)
        return self.arg.array


@attrs.frozen(eq=False)
class Graph:
    """A dense graph: named inputs ``[lead, width]``, one output ``scores`` ``[ROWS, n_outputs]``.

    Attributes:
        model: Its name, for errors.
        inputs: INPUT nodes by name: ``user`` and ``candidate``, in a bundle's dense graph.
    """

    model: str
    inputs: Mapping[str, Node]
    output: Node

    def nodes(self) -> Iterator[Node]:
        """Yield what the output needs, each node once, sources first."""
        return topological([self.output])


def topological(roots: Iterable[Node]) -> Iterator[Node]:
    """Yield the nodes that ``roots`` need, each once, sources first; the order is deterministic."""
    done: set[Node] = set()
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node in done:
                continue
            if ready:
                done.add(node)
                yield node
                continue
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(node.sources))


def input_node(name: str, lead: Lead, width: int) -> Node:
    """Make an INPUT ``[lead, width]`` of floats."""
    return Node(Op.INPUT, (), (lead, width), arg=name, name=name)


def const(array: NDArray[np.generic], name: str = "") -> Node:
    """Make a CONST; floats become float32, integers int64."""
    dtype = DType.FLOAT
    if array.dtype == np.bool_:
        dtype = DType.BOOL
    elif np.issubdtype(array.dtype, np.integer):
        dtype = DType.INT
    kind: type[np.generic] = {DType.FLOAT: np.float32, DType.INT: np.int64, DType.BOOL: np.bool_}[
        dtype
    ]
    held: NDArray[np.generic] = np.ascontiguousarray(array.astype(kind, copy=False)).reshape(
        array.shape
    )
    return Node(Op.CONST, (), tuple(array.shape), dtype, Constant(held), name)

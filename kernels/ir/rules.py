"""The table of ops: all that the compiler knows of each, one row an op.

A new op is a new row, with a shape rule in ``shapes.py`` and a meaning in ``numpy_ops.py`` (of row
programs in ``shapes_programs.py`` and ``numpy_programs.py``), and for an elementwise op an
expression in CUDA C++, which may call ``kernels/cuda/math.cuh``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.ir import numpy_ops, numpy_programs, shapes, shapes_programs
from kernels.ir.node import Arg, DType, Node, Op, Shape
from kernels.ir.numpy_ops import Meaning, elementwise, reduction
from kernels.ir.shapes import ANY, BOOLS, FLOATS, NUMBERS, Asked, Infer, same, truth


@attrs.frozen(eq=False)
class Rule:
    """What the compiler knows of one op.

    Attributes:
        op: Whose rule it is.
        arity: How many sources it reads; None where its argument, or nothing, says so.
        shape_rule: See ``infer``.
        numpy: Its meaning; works in any float dtype.
        cuda: Of an elementwise op, and None of others: a CUDA C++ expression over ``{0}``, ``{1}``,
            ``{2}``, with ``{arg}`` for a number and ``{dtype}`` for the result's dtype. Floats are
            ``float``; ints and bools are ``int``.
    """

    op: Op
    arity: int | None
    shape_rule: Infer
    numpy: Meaning
    cuda: str | None = None

    def infer(
        self,
        sources: Sequence[Node],
        arg: Arg = None,
        *,
        shape: Shape | None = None,
        dtype: DType | None = None,
        name: str = "",
    ) -> tuple[Shape, DType]:
        """Return the result's shape and dtype.

        RESHAPE and EXPAND need ``shape``, CAST needs ``dtype``; others do not look at them.

        Raises:
            GraphError: The op cannot be applied so. Names op and node.
        """
        asked = Asked(self.op, tuple(sources), arg, shape, dtype, name)
        if self.arity is not None and len(asked.sources) != self.arity:
            raise asked.refuse(f"{len(asked.sources)} sources, want {self.arity}")
        return self.shape_rule(asked)

    def cuda_text(self, sources: Sequence[str], node: Node) -> str:
        """Return the expression of one element of ``node``; sources are texts of an element each.

        A source's text may come more than once, so it should be a name or a number.
        """
        assert self.cuda is not None, f"{self.op} is not elementwise"
        arg = f"{float(node.arg)!r}f" if isinstance(node.arg, int | float) else ""
        return self.cuda.format(*sources, arg=arg, dtype=node.dtype.value)


def _leaf(asked: Asked) -> tuple[Shape, DType]:
    """Leaves say of themselves what they are."""
    if asked.shape is None or asked.dtype is None:
        raise asked.refuse("a leaf needs a shape and a dtype")
    return asked.shape, asked.dtype


def _unary(op: Op, infer: Infer, numpy: np.ufunc, cuda: str) -> Rule:
    return Rule(op, 1, infer, elementwise(numpy), cuda)


def _binary(op: Op, infer: Infer, numpy: np.ufunc, cuda: str) -> Rule:
    return Rule(op, 2, infer, elementwise(numpy), cuda)


_ROWS: Final = (
    Rule(Op.INPUT, 0, _leaf, numpy_ops.input_),
    Rule(Op.CONST, 0, _leaf, numpy_ops.const),
    # Elementwise, one source.
    _unary(Op.NEG, same(NUMBERS), np.negative, "(- {0})"),
    _unary(Op.ABS, same(NUMBERS), np.absolute, "absolute({0})"),
    _unary(Op.SIGN, same(NUMBERS), np.sign, "sign({0})"),
    _unary(Op.FLOOR, same(FLOATS), np.floor, "floorf({0})"),
    _unary(Op.CEIL, same(FLOATS), np.ceil, "ceilf({0})"),
    _unary(Op.ROUND, same(FLOATS), np.rint, "rintf({0})"),
    _unary(Op.SQRT, same(FLOATS), np.sqrt, "sqrtf({0})"),
    _unary(Op.RECIPROCAL, same(FLOATS), np.reciprocal, "(1.0f / {0})"),
    _unary(Op.EXP, same(FLOATS), np.exp, "expf({0})"),
    _unary(Op.LOG, same(FLOATS), np.log, "logf({0})"),
    _unary(Op.SIN, same(FLOATS), np.sin, "sine({0}, 0)"),
    _unary(Op.COS, same(FLOATS), np.cos, "sine({0}, 1)"),
    _unary(Op.TANH, same(FLOATS), np.tanh, "tanhf({0})"),
    Rule(Op.SIGMOID, 1, same(FLOATS), elementwise(numpy_ops.sigmoid), "sigmoid({0})"),
    Rule(Op.RELU, 1, same(NUMBERS), elementwise(numpy_ops.relu), "relu({0})"),
    Rule(Op.ERF, 1, same(FLOATS), elementwise(numpy_ops.erf), "erff({0})"),
    Rule(Op.SOFTPLUS, 1, same(FLOATS), elementwise(numpy_ops.softplus), "softplus({0})"),
    Rule(
        Op.LEAKY_RELU,
        1,
        shapes.with_number,
        numpy_ops.with_number(numpy_ops.leaky_relu),
        "leaky_relu({0}, {arg})",
    ),
    Rule(Op.ELU, 1, shapes.with_number, numpy_ops.with_number(numpy_ops.elu), "elu({0}, {arg})"),
    _unary(Op.NOT, same(BOOLS), np.logical_not, "(!{0})"),
    _unary(Op.ISNAN, truth(FLOATS), np.isnan, "({0} != {0})"),
    Rule(Op.CAST, 1, shapes.cast, numpy_ops.cast, "cast_to_{dtype}({0})"),
    # Elementwise, two or three sources.
    _binary(Op.ADD, same(NUMBERS), np.add, "({0} + {1})"),
    _binary(Op.SUB, same(NUMBERS), np.subtract, "({0} - {1})"),
    _binary(Op.MUL, same(NUMBERS), np.multiply, "({0} * {1})"),
    Rule(Op.DIV, 2, same(NUMBERS), elementwise(numpy_ops.divide), "({0} / {1})"),
    Rule(Op.MOD, 2, same(NUMBERS), elementwise(numpy_ops.modulo), "modulo({0}, {1})"),
    Rule(Op.POW, 2, same(NUMBERS), elementwise(numpy_ops.power), "power({0}, {1})"),
    _binary(Op.MAX, same(NUMBERS), np.maximum, "maximum({0}, {1})"),
    _binary(Op.MIN, same(NUMBERS), np.minimum, "minimum({0}, {1})"),
    _binary(Op.EQ, truth(ANY), np.equal, "({0} == {1})"),
    _binary(Op.LT, truth(NUMBERS), np.less, "({0} < {1})"),
    _binary(Op.LE, truth(NUMBERS), np.less_equal, "({0} <= {1})"),
    _binary(Op.AND, same(BOOLS), np.logical_and, "({0} && {1})"),
    _binary(Op.OR, same(BOOLS), np.logical_or, "({0} || {1})"),
    Rule(Op.WHERE, 3, shapes.where, elementwise(np.where), "({0} ? {1} : {2})"),
    # Movement.
    Rule(Op.RESHAPE, 1, shapes.reshape, numpy_ops.reshape),
    Rule(Op.TRANSPOSE, 1, shapes.transpose, numpy_ops.transpose),
    Rule(Op.EXPAND, 1, shapes.expand, numpy_ops.expand),
    Rule(Op.SLICE, 1, shapes.slice_, numpy_ops.slice_),
    Rule(Op.CONCAT, None, shapes.concat, numpy_ops.concat),
    Rule(Op.TAKE, 1, shapes.take, numpy_ops.take),
    Rule(Op.TO_ROWS, 1, shapes.to_rows, numpy_ops.to_rows),
    # Reductions.
    Rule(Op.SUM, 1, shapes.reduce(NUMBERS), reduction(np.sum)),
    Rule(Op.MEAN, 1, shapes.reduce(FLOATS), reduction(np.mean)),
    Rule(Op.REDUCE_MAX, 1, shapes.reduce(NUMBERS), reduction(np.max)),
    Rule(Op.REDUCE_MIN, 1, shapes.reduce(NUMBERS), reduction(np.min)),
    Rule(Op.PROD, 1, shapes.reduce(NUMBERS), reduction(np.prod)),
    # Row programs.
    Rule(Op.SOFTMAX, 1, shapes_programs.softmax, numpy_programs.softmax),
    Rule(Op.LAYER_NORM, 3, shapes_programs.layer_norm, numpy_programs.layer_norm),
    Rule(Op.TOP_K, 1, shapes_programs.top_k, numpy_ops.top_k),
    Rule(Op.MATMUL, 2, shapes_programs.matmul, numpy_programs.matmul),
    Rule(Op.LINEAR, None, shapes_programs.linear, numpy_programs.linear),
    Rule(
        Op.TARGET_ATTENTION, None, shapes_programs.target_attention, numpy_programs.target_attention
    ),
    Rule(Op.ENCODER, 13, shapes_programs.encoder, numpy_programs.encoder),
)
RULES: Final[Mapping[Op, Rule]] = {rule.op: rule for rule in _ROWS}
ELEMENTWISE: Final = frozenset(rule.op for rule in _ROWS if rule.cuda is not None)
MOVEMENT: Final = frozenset(
    {Op.RESHAPE, Op.TRANSPOSE, Op.EXPAND, Op.SLICE, Op.CONCAT, Op.TAKE, Op.TO_ROWS}
)
REDUCTIONS: Final = frozenset({Op.SUM, Op.MEAN, Op.REDUCE_MAX, Op.REDUCE_MIN, Op.PROD})

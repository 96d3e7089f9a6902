"""Import of Einsum: two operands at a time, as a product of matrices or elementwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from kernels.ir.node import Op
from kernels.ir.onnx_axes import drop, elementwise, reshape, transpose
from kernels.ir.onnx_call import Call, Result, Table
from kernels.ir.onnx_ops_linear import matmul
from kernels.ir.onnx_ops_reduce import reduce
from kernels.ir.onnx_value import Size, Value

# Names for the axes of an ellipsis: letters cannot clash with these.
_ELLIPSIS: Final = "0123456789"


@attrs.frozen
class Term:
    """A value whose axes have labels."""

    value: Value
    labels: str

    def size(self, label: str) -> Size:
        """Return the size of a labelled axis."""
        return self.value.sizes[self.labels.index(label)]


def _einsum(call: Call) -> Result:
    values = [call.lift(each) for each in call.operands()]
    terms, output = _parse(call, values)
    first, *rest = terms
    for i, term in enumerate(rest):
        later = set(output).union(*(each.labels for each in rest[i + 1 :]))
        first = _product(call, _summed(call, first, later | set(term.labels)), term, later)
    first = _summed(call, first, set(output))
    if sorted(first.labels) != sorted(output):
        raise call.refuse(f"repeats or lacks an axis of its result {output!r}")
    return _ordered(call, first, output).value


def _parse(call: Call, values: Sequence[Value]) -> tuple[list[Term], str]:
    equation: str = call.attribute("equation").replace(" ", "")
    left, arrow, output = equation.partition("->")
    names = left.split(",")
    if len(names) != len(values):
        raise call.refuse(f"has {len(values)} operands for {equation!r}")
    dots = ""
    terms = []
    for name, value in zip(names, values, strict=True):
        n = value.view.rank - len(name.replace("...", ""))
        if (n and "..." not in name) or n < 0 or n > len(_ELLIPSIS):
            raise call.refuse(f"has an operand of rank {value.view.rank} for {name!r}")
        own = _ELLIPSIS[len(_ELLIPSIS) - n :]
        dots = max(dots, own, key=len)
        labels = name.replace("...", own)
        if len(set(labels)) != len(labels):
            raise call.refuse(f"takes a diagonal, {name!r}")
        terms.append(Term(value, labels))
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        output = dots + "".join(sorted(each for each in set(letters) if letters.count(each) == 1))
    return terms, output.replace("...", dots)


def _summed(call: Call, term: Term, needed: set[str]) -> Term:
    """Sum over the axes that nothing needs."""
    axes = [i for i, label in enumerate(term.labels) if label not in needed]
    if not axes:
        return term
    made = drop(call, reduce(call, Op.SUM, term.value, axes), axes)
    return Term(made, "".join(label for label in term.labels if label in needed))


def _ordered(call: Call, term: Term, order: str) -> Term:
    return Term(transpose(call, term.value, [term.labels.index(each) for each in order]), order)


def _product(call: Call, a: Term, b: Term, needed: set[str]) -> Term:
    """Multiply, and sum over the labels that are not ``needed``."""
    b = _summed(call, b, needed | set(a.labels))
    both = [label for label in a.labels if label in b.labels]
    inner = "".join(label for label in both if label not in needed)
    batch = "".join(label for label in both if label in needed)
    left = "".join(label for label in a.labels if label not in both)
    right = "".join(label for label in b.labels if label not in both)
    if not inner:
        return _spread(call, a, b, batch + left + right)
    a, b = _ordered(call, a, batch + left + inner), _ordered(call, b, batch + inner + right)
    n_inner = _product_of(a, inner)
    matrix_a = reshape(call, a.value, [*_sizes(a, batch), _product_of(a, left), n_inner])
    matrix_b = reshape(call, b.value, [*_sizes(b, batch), n_inner, _product_of(b, right)])
    made = matmul(call, matrix_a, matrix_b)
    batch_sizes = made.sizes[: len(batch)]
    sizes = [*batch_sizes, *_sizes(a, left), *_sizes(b, right)]
    return Term(reshape(call, made, sizes), batch + left + right)


def _spread(call: Call, a: Term, b: Term, labels: str) -> Term:
    """Multiply without a sum, with broadcasting."""
    parts = []
    for term in (a, b):
        own = "".join(label for label in labels if label in term.labels)
        ordered = _ordered(call, term, own)
        sizes = [term.size(label) if label in own else 1 for label in labels]
        parts.append(reshape(call, ordered.value, sizes))
    return Term(elementwise(call, Op.MUL, *parts), labels)


def _sizes(term: Term, labels: str) -> list[Size]:
    return [term.size(label) for label in labels]


def _product_of(term: Term, labels: str) -> Size:
    total: Size = 1
    for size in _sizes(term, labels):
        total = size * total if isinstance(total, int) else total * size
    return total


EINSUM: Final[Table] = {"Einsum": _einsum}

"""CUDA text that sequence programs share: their configs' types, sources and sinks of matrices."""

from __future__ import annotations

import math

from kernels.ir.node import Lead, Op
from kernels.plan.matrix import Matrix
from kernels.program import Precision

STORAGE = {Precision.FP16: "Fp16", Precision.BF16: "Bf16"}
ACTIVATIONS = {Op.RELU: "Relu", Op.SIGMOID: "Sigmoid", Op.TANH: "Tanh"}


def number(value: float) -> str:
    """Return a float literal that reads back as the same fp32."""
    if math.isinf(value):
        return ("-" if value < 0 else "") + "__int_as_float(0x7f800000)"
    text = repr(float(value))
    return text + ("f" if "." in text or "e" in text else ".f")


def activation(op: Op, slope: float) -> tuple[list[str], str]:
    """Return lines that must stand before, and the type.

    Raises:
        ValueError: No such activation here.
    """
    if op is Op.LEAKY_RELU:
        return [f"struct Slope {{ static constexpr float VALUE = {number(slope)}; }};"], (
            "LeakyRelu<Slope>"
        )
    if op not in ACTIVATIONS:
        raise ValueError(f"sequence programs have no activation {op}")
    return [], ACTIVATIONS[op]


def flag(value: bool) -> str:
    """Return C++'s word."""
    return "true" if value else "false"


def indexed(matrix: Matrix, output: Matrix) -> bool:
    """Whether rows of the output find theirs of a matrix through REQUEST_OF_ROW."""
    return matrix.lead is Lead.REQUESTS and output.lead is Lead.ROWS


def aligned(matrix: Matrix, step_columns: int = 8) -> bool:
    """Whether 16-byte loads may be used at each multiple of 8 columns of each step."""
    starts = (matrix.pointer.offset, matrix.row_bytes, step_columns * matrix.element_bytes)
    return all(start % 16 == 0 for start in starts)


def steps(matrix: Matrix, width: int, precision: Precision, output: Matrix) -> str:
    """Return the type of a source of ``[t, width]`` a row."""
    return (
        f"MatrixSteps<{STORAGE[precision]}, {matrix.element}, {matrix.ld}, {width}, "
        f"{flag(aligned(matrix, width))}, {flag(indexed(matrix, output))}>"
    )


def vector(matrix: Matrix, precision: Precision, output: Matrix) -> str:
    """Return the type of a source of one vector a row."""
    return (
        f"MatrixVector<{STORAGE[precision]}, {matrix.element}, {matrix.ld}, "
        f"{flag(aligned(matrix))}, {flag(indexed(matrix, output))}>"
    )


def mask(matrix: Matrix, output: Matrix) -> str:
    """Return the type of a source of a truth value a step; a struct ``Test`` must stand before."""
    return f"MatrixMask<{matrix.element}, {matrix.ld}, Test, {flag(indexed(matrix, output))}>"


def sink(matrix: Matrix) -> str:
    """Return the type of a sink of pairs of columns."""
    return f"MatrixSink<{matrix.element}, {matrix.ld}>"

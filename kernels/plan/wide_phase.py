"""A phase of one wide Linear: layer, epilogue and matrices, as ``kernels.wide`` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from kernels.errors import GraphError
from kernels.ir.node import DType, Linear, Node, Op
from kernels.ir.rules import RULES
from kernels.plan.eights import Eights
from kernels.plan.expression import Expression
from kernels.plan.index import Index, Term
from kernels.plan.matrix import Matrix, located
from kernels.plan.phases import Phase, matrix_view, staged_by
from kernels.wide import CROSS, Epilogue, Quantised, WideLayer, activation
from kernels.wide import Matrix as WideMatrix


@attrs.frozen
class _Staged:
    """Implements ``expression.Memory``: what the epilogue reads has names."""

    names: Mapping[Node, str]

    def load(self, node: Node, element: Index, row: str, scope: Expression) -> str | None:
        """Return the name of a staged matrix's element."""
        del element, row, scope
        return self.names.get(node)

    def table(self, values: Sequence[int | float], dtype: DType, index: Index) -> str:
        """Refuse: constants of an epilogue are uniform."""
        raise GraphError("a wide Linear's epilogue reads no tables")


def wide_layer(phase: Phase, rows: int, eights: Eights, *, floats: bool) -> WideLayer:
    """Return the layer that a phase computes."""
    output = phase.outputs[0]
    core = phase.chain[0]
    arg = core.arg
    assert isinstance(arg, Linear)
    return WideLayer(
        rows=rows,
        n=core.dims[-1],
        segments=tuple(source.dims[-1] for source in core.sources[: arg.n_inputs]),
        groups=core.dims[0] if arg.grouped else 1,
        epilogue=_epilogue(phase.chain, arg),
        floats=floats,
        eights=core in eights.readers,
        stores_halves=output not in eights.only,
        stores_eights=output in eights.scales,
    )


def wide_matrix(matrix: Matrix) -> WideMatrix:
    """Return a matrix as ``kernels.wide`` names it."""
    return WideMatrix(matrix.pointer, matrix.ld)


def wide_inputs(phase: Phase, matrices: Mapping[Node, Matrix]) -> tuple[WideMatrix, ...]:
    """Return the layer's inputs."""
    return tuple(_matrix(source, matrices) for source in inputs_of(phase))


def wide_staged(phase: Phase, matrices: Mapping[Node, Matrix]) -> tuple[WideMatrix, ...]:
    """Return what the layer's epilogue reads."""
    return tuple(_matrix(each, matrices) for each in staged_by(phase.chain))


def inputs_of(phase: Phase) -> tuple[Node, ...]:
    """Return what a wide Linear multiplies with its weights."""
    core = phase.chain[0]
    assert isinstance(core.arg, Linear)
    return core.sources[: core.arg.n_inputs]


def quantised(phase: Phase, eights: Eights) -> Quantised:
    """Return the scales of a phase that reads or stores e4m3."""
    inputs: tuple[float, ...] = ()
    if phase.chain[0] in eights.readers:
        views = (matrix_view(source) for source in inputs_of(phase))
        inputs = tuple(eights.scales[view.base] for view in views if view is not None)
    return Quantised(inputs, eights.scales.get(phase.outputs[0], 1.0), eights.weights)


def _matrix(node: Node, matrices: Mapping[Node, Matrix]) -> WideMatrix:
    found = located(node, matrices)
    assert found is not None, f"{node.name}: phases store what a wide Linear reads"
    return wide_matrix(found.as_matrix())


def _epilogue(chain: Sequence[Node], arg: Linear) -> Epilogue:
    if len(chain) == 1:
        return activation(arg.activation, arg.slope)
    staged = staged_by(chain)
    if arg.activation is None and _is_cross(chain, staged):
        return CROSS
    names = {node: f"s{index}" for index, node in enumerate(staged)}
    expression = Expression(_Staged(names))
    held = "v"
    if arg.activation is not None:
        slope = arg.slope if arg.activation in (Op.LEAKY_RELU, Op.ELU) else None
        activated = Node(arg.activation, (chain[0],), chain[0].shape, arg=slope)
        held = expression.name(DType.FLOAT, RULES[arg.activation].cuda_text(["v"], activated))
    expression.bound = {chain[0]: held}
    body = expression.body(expression.computed(chain[-1], (Term("c"),) * len(chain[-1].dims)))
    parameters = "".join(f", float {name}" for name in names.values())
    first = "".join(f", staged[{index}].x" for index in range(len(names)))
    second = "".join(f", staged[{index}].y" for index in range(len(names)))
    text = "\n".join(
        [
            '#include "math.cuh"',
            "struct Chain {",
            f"  static constexpr int N_STAGED = {len(names)};",
            f"  static DEVICE float of(float v{parameters}) {{ {body} }}",
            "  DEVICE void operator()(int, int, float& v0, float& v1, const F32x2* staged) const {",
            f"    v0 = of(v0{first});",
            f"    v1 = of(v1{second});",
            "  }",
            "};",
        ]
    )
    return Epilogue("Chain", text, n_staged=len(names))


def _is_cross(chain: Sequence[Node], staged: Sequence[Node]) -> bool:
    """Whether the chain is ``x_0 * sums + x``, with ``staged`` in that order."""
    ops = [node.op for node in chain[1:]]
    if ops != [Op.MUL, Op.ADD] or not staged:
        return False
    product, total = chain[1:]
    factor = next((each for each in product.sources if each is not chain[0]), None)
    term = next((each for each in total.sources if each is not product), None)
    return len(staged) == 2 and (factor, term) == (staged[0], staged[1])

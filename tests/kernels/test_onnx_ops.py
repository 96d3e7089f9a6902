"""Each operator of an ONNX graph, imported, against ONNX Runtime."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.onnx_help import agree, dense_text

RANDOM = np.random.default_rng(5)


def f32(*shape: int) -> NDArray[np.float32]:
    made: NDArray[np.float32] = RANDOM.normal(size=shape).astype(np.float32)
    return made


def i64(*numbers: int) -> NDArray[np.int64]:
    return np.asarray(numbers, np.int64)


# Constants by name; what a body does not read is left out by pruning.
CONSTANTS: dict[str, Any] = {
    "half": np.float32(0.5),
    "four": np.float32(4.0),
    "five": np.asarray(5, np.int8),
    "zeros24": np.zeros(24, np.int8),
    "two": np.float32(2.0),
    "one": np.float32(1.0),
    "zero": np.float32(0.0),
    "minus1": i64(-1),
    "i0": i64(0),
    "i1": i64(1),
    "i2": i64(2),
    "i3": i64(3),
    "k2": i64(2),
    "to_234": i64(-1, 2, 3, 4),
    "to_64": i64(-1, 6, 4),
    "to_46": i64(-1, 4, 6),
    "flat": i64(-1, 24),
    "row24": f32(24),
    "w24_5": f32(24, 5),
    "w5_24": f32(5, 24),
    "b5": f32(5),
    "w6_24": f32(6, 24),
    "v4": f32(4),
    "g6_4_3": f32(6, 4, 3),
    "t4": f32(4),
    "s6": np.abs(f32(6)) + 0.5,
    "o6": f32(6),
    "m66": (f32(6, 6) > -0.5) | np.eye(6, dtype=np.bool_),
    "f66": f32(6, 6),
    "m64": f32(6, 4) > 0,
    "perm": i64(5, 0, 3, 3, 1, 2),
    "grid": i64(3, -1, 0, 5).reshape(2, 2),
    "pairs": np.stack(np.tril_indices(4, -1), axis=1).astype(np.int64),
    "int_max": i64(2**63 - 1),
    "v01": np.asarray([-1.0, 3.0], np.float32),
    "m": f32(6, 4),
    "sq24": np.abs(f32(24)) + 0.1,
    "w4_5": f32(4, 5),
    "w5_6": f32(5, 6),
    "to_614": i64(-1, 6, 1, 4),
    "to_241": i64(-1, 24, 1),
    "to_153": i64(1, 5, 1),
    "to_121": i64(1, 2, 1),
    "to_1_46": i64(-1, 1, 4, 6),
    "to_32": i64(-1, 3, 2),
    "e3": f32(3, 24, 5),
    "sizes": i64(7, 17),
    "i4": i64(4),
    "i6": i64(6),
    "i20": i64(20),
    "i24": i64(24),
    "im9": i64(-9),
    "minus2": i64(-2),
    "last": np.asarray(-1, np.int64),
    "pairs1": np.stack(np.tril_indices(4, -1), axis=1).astype(np.int64)[None],
    "el4": i64(5, 0, -1, 5)[None],
    "pads": i64(0, 2, 0, 0, 1, -1),
    "zero_m1": i64(0, -1),
    "c1": i64(1, 1),
    "k5_4_3": f32(5, 4, 3),
    "k5_4_1": f32(5, 4, 1),
    "k4_2_3": f32(4, 2, 3),
    "k2_1_22": f32(2, 1, 2, 2),
    "g2_4_5": f32(2, 4, 5),
    "mirror": i64(0, 2, 1, 0, 1, 2),
}

ELEMENTWISE = (
    "Neg Abs Sign Floor Ceil Round Exp Sin Cos Tan Tanh Sigmoid Relu Erf Softplus Softsign Elu "
    "Selu Celu LeakyRelu ThresholdedRelu HardSigmoid HardSwish Mish Identity"
)


@pytest.mark.parametrize("op", ELEMENTWISE.split())
def test_functions_of_one_number(op: str) -> None:
    agree(dense_text(f"scores = {op}(candidate)"))


BODIES = {
    # Elementwise
    "sqrt": "a = Abs(candidate)\nb = Sqrt(a)\nc = Add(b, one)\nscores = Reciprocal(c)",
    "log": "a = Abs(candidate)\nb = Add(a, half)\nscores = Log(b)",
    "clip": "scores = Clip(candidate, zero, one)",
    "clip from below": "scores = Clip(candidate, zero)",
    "clip from above": "scores = Clip(candidate, , half)",
    "binary": "a = Add(candidate, row24)\nb = Mul(a, candidate)\nc = Sub(half, b)\n"
    "scores = Div(c, two)",
    "pow": "a = Pow(candidate, two)\nb = Abs(candidate)\nc = Pow(b, half)\nscores = Add(a, c)",
    "pow by a value": "a = Abs(candidate)\nscores = Pow(a, row24)",
    "max of three": "a = Neg(candidate)\nscores = Max(candidate, a, half)",
    "mean of three": "a = Neg(candidate)\nscores = Mean(candidate, a, half)",
    "sum of three": "a = Neg(candidate)\nscores = Sum(candidate, a, half)",
    "prelu": "scores = PRelu(candidate, row24)",
    "prelu of one slope": "scores = PRelu(candidate, half)",
    "prelu of channels": "x = Reshape(candidate, to_64)\ns = Unsqueeze(o6, i1)\ny = PRelu(x, s)\n"
    "scores = Reshape(y, flat)",
    "where": "c = Less(candidate, half)\nscores = Where(c, candidate, row24)",
    "where of a constant": "x = Reshape(candidate, to_64)\ny = Where(m64, x, zero)\n"
    "scores = Reshape(y, flat)",
    "comparisons": "a = Greater(candidate, zero)\nb = LessOrEqual(candidate, half)\n"
    "c = GreaterOrEqual(candidate, one)\nd = And(a, b)\ne = Or(d, c)\nf = Not(e)\ng = Xor(f, a)\n"
    "scores = Cast<to=1>(g)",
    "equal": "a = Cast<to=7>(candidate)\nb = Equal(a, i1)\nscores = Cast<to=1>(b)",
    "equal of flags": "a = Less(candidate, zero)\nb = Less(candidate, half)\nc = Equal(a, b)\n"
    "scores = Cast<to=1>(c)",
    "integers": "a = Mul(candidate, two)\nb = Cast<to=7>(a)\nc = Mod(b, i3)\nd = Div(b, i2)\n"
    "e = Sub(c, d)\nscores = Cast<to=1>(e)",
    "fmod": "scores = Mod<fmod=1>(candidate, half)",
    "is nan": "a = Log(candidate)\nb = IsNaN(a)\nscores = Where(b, candidate, a)",
    "is inf": "a = Relu(candidate)\nb = Reciprocal(a)\nc = IsInf(b)\nscores = Where(c, a, b)",
    "one hot": "a = Cast<to=7>(candidate)\nh = OneHot<axis=1>(a, i3, v01)\n"
    "scores = ReduceMax<keepdims=0>(h, i2)",
    "dequantized": "a = Mul(candidate, four)\nq = Cast<to=3>(a)\n"
    "x = DequantizeLinear(q, half, five)\ny = DequantizeLinear<axis=1>(q, row24, zeros24)\n"
    "scores = Add(x, y)",
    "dropout": "scores, mask = Dropout(candidate)",
    # Reductions
    "softmax": "x = Reshape(candidate, to_64)\ny = Softmax<axis=1>(x)\nscores = Reshape(y, flat)",
    "log softmax": "x = Reshape(candidate, to_64)\ny = LogSoftmax(x)\nscores = Reshape(y, flat)",
    "top k": "x = Reshape(candidate, to_64)\ny, at = TopK<axis=1>(x, k2)\nscores = Flatten(y)",
    "smallest": "y, at = TopK<largest=0>(candidate, k2)\nscores = Identity(y)",
    "cumulative sum": "x = Reshape(candidate, to_64)\ny = CumSum(x, i1)\nscores = Flatten(y)",
    "cumulative sum backwards": "x = Reshape(candidate, to_64)\n"
    "y = CumSum<reverse=1, exclusive=1>(x, i2)\nscores = Flatten(y)",
    "lp norm": "scores = LpNormalization<axis=1>(candidate)",
    "l1 norm": "scores = LpNormalization<axis=1, p=1>(candidate)",
    "layer norm": "x = Reshape(candidate, to_64)\ny = LayerNormalization(x, t4, v4)\n"
    "scores = Flatten(y)",
    "layer norm of two axes": "x = Reshape(candidate, to_64)\n"
    "y = LayerNormalization<axis=1>(x, m, m)\nscores = Flatten(y)",
    "batch norm": "x = Reshape(candidate, to_64)\ny = BatchNormalization(x, s6, o6, o6, s6)\n"
    "scores = Flatten(y)",
    "batch norm of columns": "y = BatchNormalization(candidate, row24, row24, row24, sq24)\n"
    "scores = Identity(y)",
    "instance norm": "x = Reshape(candidate, to_64)\ny = InstanceNormalization(x, s6, o6)\n"
    "scores = Flatten(y)",
    # Linear algebra
    "linear": "scores = MatMul(candidate, w24_5)",
    "linear of 3 axes": "x = Reshape(candidate, to_64)\ny = MatMul(x, w4_5)\nscores = Flatten(y)",
    "linear from the left": "x = Reshape(candidate, to_64)\ny = MatMul(w5_6, x)\n"
    "scores = Flatten(y)",
    "dot with a vector": "x = Reshape(candidate, to_64)\nscores = MatMul(x, v4)",
    "gemm": "scores = Gemm<alpha=0.5, beta=2.0, transB=1>(candidate, w5_24, b5)",
    "gemm of a column": "x = Transpose(candidate)\nscores = Gemm<transA=1, transB=1>(x, w5_24, b5)",
    "gemm plus a value": "y = MatMul(candidate, w24_5)\nz = Gemm(candidate, w24_5, y)\n"
    "scores = Gemm<beta=0.5>(candidate, w24_5, z)",
    "gemm plus one number": "scores = Gemm<transB=1, beta=3.0>(candidate, w5_24, half)",
    "grouped": "x = Reshape(candidate, to_614)\ny = MatMul(x, g6_4_3)\nscores = Flatten(y)",
    "grouped among other axes": "x = Reshape(candidate, to_234)\ny = MatMul(x, g2_4_5)\n"
    "scores = Flatten(y)",
    "experts": "x = Unsqueeze(candidate, i0)\ny = MatMul(x, e3)\n"
    "z = Transpose<perm=[1,0,2]>(y)\nscores = Flatten(z)",
    "product": "x = Reshape(candidate, to_64)\nt = Transpose<perm=[0,2,1]>(x)\n"
    "y = MatMul(x, t)\nscores = Flatten(y)",
    "outer product": "x = Reshape(candidate, to_241)\nt = Transpose<perm=[0,2,1]>(x)\n"
    "y = MatMul(x, t)\nscores = Flatten(y)",
    "product with broadcast": "x = Reshape(candidate, to_234)\nw = ReduceMean(x, i1)\n"
    "t = Transpose<perm=[0,1,3,2]>(w)\ny = MatMul(x, t)\nscores = Flatten(y)",
    # Movement
    "concat and split": "a, b, c = Split<axis=1, num_outputs=3>(candidate)\n"
    "scores = Concat<axis=-1>(c, a, candidate)",
    "split by sizes": "a, b = Split<axis=1>(candidate, sizes)\nscores = Concat<axis=1>(b, a)",
    "concat with a constant": "s = Shape(candidate)\nn = Gather(s, i0)\nd = Concat<axis=0>(n, i2)\n"
    "o = ConstantOfShape(d)\nscores = Concat<axis=1>(candidate, o)",
    "slices": "a = Slice(candidate, i1, i20, i1, i3)\nscores = Slice(a, minus1, im9, i1, minus2)",
    "slice of all rows": "scores = Slice(candidate, i0, int_max, i0)",
    "gather": "x = Reshape(candidate, to_64)\ny = Gather<axis=1>(x, perm)\nscores = Flatten(y)",
    "gather of a grid": "x = Reshape(candidate, to_64)\ny = Gather<axis=1>(x, grid)\n"
    "scores = Flatten(y)",
    "gather of one": "x = Reshape(candidate, to_64)\nscores = Gather<axis=1>(x, last)",
    "gather nd": "x = Reshape(candidate, to_46)\nt = Transpose<perm=[1,2,0]>(x)\n"
    "y = GatherND(t, pairs)\nscores = Transpose(y)",
    "gather nd of each row": "x = Reshape(candidate, to_46)\ns = Shape(candidate)\n"
    "n = Slice(s, i0, i1)\nd = Concat<axis=0>(n, i6, i2)\np = Expand(pairs1, d)\n"
    "scores = GatherND<batch_dims=1>(x, p)",
    "gather elements": "s = Shape(candidate)\nn = Slice(s, i0, i1)\nd = Concat<axis=0>(n, i4)\n"
    "e = Expand(el4, d)\nscores = GatherElements<axis=1>(candidate, e)",
    "expand": "x = Reshape(candidate, to_614)\ny = Expand(x, to_153)\nscores = Flatten(y)",
    "tile": "x = Reshape(candidate, to_64)\ny = Tile(x, to_121)\nscores = Flatten(y)",
    "pad": "x = Reshape(candidate, to_64)\ny = Pad(x, pads, half)\nscores = Flatten(y)",
    "pad by reflection": "x = Reshape(candidate, to_64)\n"
    'y = Pad<mode="reflect">(x, mirror)\nscores = Flatten(y)',
    "trilu": "x = Reshape(candidate, to_64)\ny = Trilu<upper=0>(x)\nscores = Flatten(y)",
    "squeeze": "x = Unsqueeze(candidate, i1)\ny = Squeeze(x, i1)\nscores = Identity(y)",
    "reshape by shapes": "s = Shape(candidate)\nn = Gather(s, i0)\nd = Concat<axis=0>(n, minus1)\n"
    "x = Reshape(candidate, to_64)\nscores = Reshape(x, d)",
    "reshape with copies": "x = Reshape(candidate, to_64)\nscores = Reshape(x, zero_m1)",
    "rows times a number": "s = Shape(candidate)\nn = Gather(s, i0)\nnn = Mul(n, i6)\n"
    "d = Concat<axis=0>(nn, i4)\nx = Reshape(candidate, d)\ny = Softmax(x)\n"
    "scores = Reshape(y, flat)",
    "size over rows": "n = Size(candidate)\nu = Unsqueeze(n, i0)\nd = Div(u, i24)\n"
    "t = Concat<axis=0>(d, i24)\nscores = Reshape(candidate, t)",
    "expand to a shape with -1 replaced": "s = Shape(candidate)\ne = Equal(s, minus1)\n"
    "w = Where(e, c1, s)\nscores = Expand(candidate, w)",
    "sizes split and multiplied, as tensorflow does": "s = Shape(candidate)\n"
    "n, c = Split<num_outputs=2>(s)\nt = Cast<to=6>(s)\nd = Cast<to=7>(t)\n"
    "p = ReduceProd(d)\nf = Div(p, i4)\ng = Concat<axis=0>(f, i4)\nx = Reshape(candidate, g)\n"
    "y = Softmax(x)\nh = Concat<axis=0>(n, c)\nscores = Reshape(y, h)",
    "zeros of rows as a start": "s = Shape(candidate)\nz = ConstantOfShape(s)\n"
    "scores = Add(candidate, z)",
    # Convolutions
    "convolution": "x = Reshape(candidate, to_46)\n"
    "y = Conv<kernel_shape=[3], pads=[1,1]>(x, k5_4_3, b5)\nscores = Flatten(y)",
    "pointwise convolution": "x = Reshape(candidate, to_46)\ny = Conv(x, k5_4_1, b5)\n"
    "scores = Flatten(y)",
    "strided and dilated": "x = Reshape(candidate, to_1_46)\n"
    "y = Conv<strides=[1,2], dilations=[2,1], pads=[0,1,1,0]>(x, k2_1_22)\nscores = Flatten(y)",
    "convolution that pads by itself": "x = Reshape(candidate, to_46)\n"
    'y = Conv<auto_pad="SAME_UPPER", strides=[2]>(x, k5_4_3, b5)\nscores = Flatten(y)',
    "grouped convolution": "x = Reshape(candidate, to_46)\n"
    "y = Conv<group=2, pads=[1,1]>(x, k4_2_3)\nscores = Flatten(y)",
    "max pool": "x = Reshape(candidate, to_46)\n"
    "y = MaxPool<kernel_shape=[3], strides=[2], pads=[1,0]>(x)\nscores = Flatten(y)",
    "average pool": "x = Reshape(candidate, to_46)\n"
    "y = AveragePool<kernel_shape=[3], pads=[1,1]>(x)\nscores = Flatten(y)",
    "global pools": "x = Reshape(candidate, to_46)\na = GlobalAveragePool(x)\n"
    "b = GlobalMaxPool(x)\nc = Concat<axis=1>(a, b)\nscores = Flatten(c)",
    # The user
    "user rows": "u = Gather(user, request_of_row)\nscores = Concat<axis=1>(u, candidate)",
    "user once": "l = MatMul(user, w6_24)\nr = Relu(l)\nu = Gather(r, request_of_row)\n"
    "scores = Add(u, candidate)",
    "user sequence": "x = Reshape(user, to_32)\ns = Softmax(x)\nu = Gather(s, request_of_row)\n"
    "scores = Flatten(u)",
    "user elsewhere": "x = Transpose(user)\nu = Gather<axis=1>(x, request_of_row)\n"
    "scores = Transpose(u)",
}


@pytest.mark.parametrize("kind", BODIES)
def test_an_operator_means_what_onnx_runtime_computes(kind: str) -> None:
    agree(dense_text(BODIES[kind], CONSTANTS))


REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op: str, keep: int) -> None:
    body = (
        f"x = Reshape(candidate, to_234)\ny = Reduce{op}<keepdims={keep}>(x, axes)\n"
        "scores = Flatten(y)"
    )
    agree(dense_text(body, {**CONSTANTS, "axes": i64(-1, 1)}))


OLD = {
    "softmax over all axes behind": (
        "x = Reshape(candidate, to_64)\ny = Softmax(x)\nscores = Flatten(y)",
        12,
    ),
    "log softmax of old": (
        "x = Reshape(candidate, to_64)\ny = LogSoftmax<axis=2>(x)\nscores = Flatten(y)",
        11,
    ),
    "axes as attributes": (
        "x = Unsqueeze<axes=[1]>(candidate)\ny = Squeeze<axes=[1]>(x)\n"
        "a, b = Split<axis=1, split=[4,20]>(y)\nscores = ReduceSum<axes=[1]>(b)",
        11,
    ),
    "slice by attributes": ("scores = Slice<axes=[1], starts=[2], ends=[-3]>(candidate)", 9),
    "clip and pad by attributes": (
        "x = Clip<min=-0.5, max=0.5>(candidate)\nscores = Pad<pads=[0,1,0,2], value=3.0>(x)",
        10,
    ),
    "k as an attribute": ("scores, at = TopK<k=3>(candidate)", 9),
}


@pytest.mark.parametrize("kind", OLD)
def test_older_versions_of_operators(kind: str) -> None:
    body, opset = OLD[kind]
    agree(dense_text(body, CONSTANTS, opset=opset))


NEW = {
    "gelu": "scores = Gelu(candidate)",
    "gelu by tanh": 'scores = Gelu<approximate="tanh">(candidate)',
    "rms norm": "x = Mul(candidate, candidate)\nscores = RMSNormalization(x, row24)",
    "attention of three axes": "q = Reshape(candidate, to_64)\n"
    "y = Attention<q_num_heads=2, kv_num_heads=2>(q, q, q)\nscores = Flatten(y)",
    "attention of shared heads": "q = Reshape(candidate, to_234)\n"
    "k, v = Split<axis=1, num_outputs=2>(q)\ny = Attention<is_causal=1, scale=0.3>(q, k, v)\n"
    "scores = Flatten(y)",
    "attention with a mask": "q = Reshape(candidate, to_64)\n"
    "y = Attention<q_num_heads=2, kv_num_heads=2>(q, q, q, m66)\nscores = Flatten(y)",
    "attention with a bias": "q = Reshape(candidate, to_64)\n"
    "y = Attention<q_num_heads=2, kv_num_heads=2>(q, q, q, f66)\nscores = Flatten(y)",
    "group norm": "x = Reshape(candidate, to_64)\n"
    "y = GroupNormalization<num_groups=3>(x, s6, o6)\nscores = Flatten(y)",
    "parts that differ": "a, b = Split<axis=1, num_outputs=2>(candidate)\nscores = Sub(a, b)",
}


@pytest.mark.parametrize("kind", NEW)
def test_newer_operators(kind: str) -> None:
    agree(dense_text(NEW[kind], CONSTANTS, opset=23))


EQUATIONS = {
    "bi,io->bo": ("[N,24]", (24, 5)),
    "bnd,dk->bnk": ("[N,6,4]", (4, 5)),
    "bnd,nd->bn": ("[N,6,4]", (6, 4)),
    "bnd,ndk->bnk": ("[N,6,4]", (6, 4, 3)),
    "bnd,nkd->bkn": ("[N,6,4]", (6, 3, 4)),
    "bi,eio->beo": ("[N,24]", (3, 24, 5)),
    "...d,dk->...k": ("[N,6,4]", (4, 2)),
    "bnd->bdn": ("[N,6,4]", None),
    "bnd->bd": ("[N,6,4]", None),
    "dk,bnd": ("[N,6,4]", (4, 5)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_with_a_constant(equation: str) -> None:
    shape, weight = EQUATIONS[equation]
    sizes = i64(-1, *(int(each) for each in shape[3:-1].split(",")))
    constants: dict[str, Any] = {"shape": sizes, "flat": i64(-1)}
    operands = "x"
    if weight is not None:
        constants["w"] = f32(*weight)
        operands = "w, x" if equation.startswith("dk") else "x, w"
    body = f'x = Reshape(candidate, shape)\ny = Einsum<equation="{equation}">({operands})\n'
    agree(dense_text(body + "scores = Flatten(y)", constants))


@pytest.mark.parametrize(
    "equation",
    [
        "bnd,bmd->bnm",
        "bnd,bmd->bnmd",
        "bnd,bnd->bn",
        "bnd,bnd->b",
        "nbd,mbd->bnm",
        "bnd,bkd,bmd->bnm",
        "bnd,bme->bnmde",
    ],
)
def test_einsum_of_values(equation: str) -> None:
    left = equation.partition("->")[0].split(",")
    names = []
    body = "b = Reshape(candidate, to_64)\nr = Relu(b)\n"
    for i, labels in enumerate(left):
        source = "b" if i % 2 == 0 else "r"
        names.append(source)
        if labels.startswith(("n", "m")):
            names[-1] = f"t{i}"
            body += f"t{i} = Transpose<perm=[1,0,2]>({source})\n"
    body += f'y = Einsum<equation="{equation}">({", ".join(names)})\n'
    wide = i64(-1, 1) if equation.endswith("->b") else i64(0, -1)
    agree(dense_text(body + "scores = Reshape(y, wide)", {**CONSTANTS, "wide": wide}))

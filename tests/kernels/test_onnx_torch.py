"""What torch's exporters make of the parts of CTR models, imported, against ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
functional = torch.nn.functional
nn: Any = torch.nn

from tests.kernels.onnx_help import agree  # noqa: E402

ROWS = 3
WIDTH = 24


class Of(nn.Module):  # type: ignore[misc]
    """A function of the candidate's block, and the modules that it uses."""

    def __init__(self, function: Callable[..., Any], *modules: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.function = function
        self.modules_used = nn.ModuleList(modules)

    def forward(self, candidate: Any) -> Any:  # noqa: ANN401
        return self.function(candidate, *self.modules_used).flatten(1)


def seq(x: Any) -> Any:  # noqa: ANN401
    """Return ``[rows, 6, 4]``."""
    return x.reshape(-1, 6, 4)


def attention(heads: int = 2) -> Any:  # noqa: ANN401
    return nn.MultiheadAttention(4, heads, batch_first=True)


class CrossNet(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, WIDTH, 1))
        self.b = nn.Parameter(torch.randn(2, WIDTH, 1))

    def forward(self, x: Any) -> Any:  # noqa: ANN401
        x0 = x.unsqueeze(2)
        made = x0
        for w, b in zip(self.w, self.b, strict=True):
            made = torch.matmul(x0, torch.tensordot(made, w, dims=([1], [0]))) + b + made
        return made.squeeze(2)


KINDS: dict[str, Callable[[], Any]] = {
    "self attention": lambda: Of(
        lambda x, m: m(seq(x), seq(x), seq(x), need_weights=False)[0], attention()
    ),
    "attention with weights": lambda: Of(
        lambda x, m: torch.cat([t.flatten(1) for t in m(seq(x), seq(x), seq(x))], 1), attention()
    ),
    "attention of sequences first": lambda: Of(
        lambda x, m: m(*[seq(x).transpose(0, 1)] * 3)[0].transpose(0, 1),
        nn.MultiheadAttention(4, 2),
    ),
    "attention with a padding mask": lambda: Of(
        lambda x, m: m(seq(x), seq(x), seq(x), key_padding_mask=seq(x)[:, :, 0] > 1)[0].nan_to_num(
            0.0
        ),
        attention(),
    ),
    "encoder layer": lambda: Of(
        lambda x, m: m(seq(x)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    ),
    "causal attention": lambda: Of(
        lambda x: functional.scaled_dot_product_attention(
            *[x.reshape(-1, 2, 4, 3)] * 3, is_causal=True
        )
    ),
    "layer norm": lambda: Of(lambda x, m: m(seq(x)), nn.LayerNorm(4)),
    "layer norm of two axes": lambda: Of(lambda x, m: m(seq(x)), nn.LayerNorm([6, 4])),
    "batch norm": lambda: Of(lambda x, m: m(seq(x)), nn.BatchNorm1d(6)),
    "group norm": lambda: Of(lambda x, m: m(seq(x)), nn.GroupNorm(3, 6)),
    "instance norm": lambda: Of(lambda x, m: m(seq(x)), nn.InstanceNorm1d(6)),
    "normalize": lambda: Of(lambda x: functional.normalize(seq(x), dim=-1)),
    "activations": lambda: Of(
        lambda x: (
            functional.gelu(x)
            + functional.silu(x)
            + functional.mish(x)
            + functional.hardswish(x)
            + functional.selu(x)
            + functional.softplus(x)
            + functional.leaky_relu(x)
            + functional.logsigmoid(x)
            + functional.relu6(x)
        )
    ),
    "prelu of channels": lambda: Of(lambda x, m: m(seq(x)), nn.PReLU(6)),
    "glu": lambda: Of(lambda x: functional.glu(x, -1)),
    "pairs": lambda: Of(
        lambda x: torch.bmm(seq(x), seq(x).transpose(1, 2))[
            :, torch.tril_indices(6, 6, -1)[0], torch.tril_indices(6, 6, -1)[1]
        ]
    ),
    "factorisation machine": lambda: Of(
        lambda x: 0.5 * (seq(x).sum(1) ** 2 - (seq(x) ** 2).sum(1)).sum(1, keepdim=True)
    ),
    "cross": CrossNet,
    "gated experts": lambda: Of(
        lambda x, e, g: torch.einsum("be,beo->bo", torch.softmax(g(x), -1), e(x).reshape(-1, 3, 5)),
        nn.Linear(WIDTH, 15),
        nn.Linear(WIDTH, 3),
    ),
    "masked mean": lambda: Of(
        lambda x: (
            (seq(x) * (seq(x)[..., :1] > 0)).sum(1)
            / ((seq(x)[..., :1] > 0).float().sum(1).clamp(min=1.0))
        )
    ),
    "masked fill": lambda: Of(lambda x: torch.softmax(seq(x).masked_fill(seq(x) < 0, -1e9), 1)),
    "expand, repeat and stack": lambda: Of(
        lambda x: torch.stack(
            [x[:, :1].expand(-1, 6), x[:, None, :2].repeat(1, 3, 1).flatten(1)], 1
        )
    ),
    "expand to the size of another": lambda: Of(
        lambda x: x[:, None, :4].expand(x.size(0), 6, 4) * seq(x)
    ),
    "zeros like rows": lambda: Of(lambda x: torch.cat([x, torch.zeros(x.shape[0], 2)], 1)),
    "full like": lambda: Of(lambda x: torch.where(x > 0, x, torch.full_like(x, -3.0))),
    "a learned query": lambda: Of(
        lambda x, m: torch.matmul(m.weight.expand(x.shape[0], -1, -1), seq(x).transpose(1, 2)),
        nn.Linear(4, 3),
    ),
    "convolution": lambda: Of(lambda x, m: m(seq(x)), nn.Conv1d(6, 5, 3, padding=1)),
    "convolution of a plane": lambda: Of(
        lambda x, m: functional.max_pool2d(m(x.reshape(-1, 1, 6, 4)), (2, 1)),
        nn.Conv2d(1, 2, (3, 1), padding=(1, 0)),
    ),
    "flips and rolls": lambda: Of(lambda x: torch.roll(seq(x).flip(1), 1, 2)),
    "cumulative sum": lambda: Of(lambda x: seq(x).cumsum(1)),
    "top k": lambda: Of(lambda x: torch.topk(seq(x), 2, dim=1)[0]),
    "log sum exp": lambda: Of(lambda x: torch.logsumexp(seq(x), 1)),
    "variance": lambda: Of(lambda x: seq(x).var(1) + seq(x).std(1, unbiased=False)),
    "norms": lambda: Of(lambda x: seq(x).norm(dim=1) + seq(x).abs().max(1).values),
    "addmm and baddbmm": lambda: Of(
        lambda x, m: torch.addmm(m.bias, x, m.weight.t(), alpha=0.5, beta=2.0), nn.Linear(WIDTH, 4)
    ),
    "bilinear": lambda: Of(lambda x, m: m(x[:, :12], x[:, 12:]), nn.Bilinear(12, 12, 3)),
    "grouped weights": lambda: Of(
        lambda x, m: torch.matmul(seq(x).unsqueeze(2), m.weight.reshape(6, 4, 3)).squeeze(2),
        nn.Linear(12, 6),
    ),
    "chunks": lambda: Of(
        lambda x: torch.cat([a * b for a, b in zip(x.chunk(3, 1), x.split(8, 1), strict=True)], 1)
    ),
    "triangle": lambda: Of(lambda x: torch.triu(seq(x)[:, :4] @ seq(x)[:, :4].mT, 1)),
    "one number a row": lambda: Of(lambda x: x.sum(1)[:, None] / x.shape[1]),
    "rows joined with steps": lambda: Of(
        lambda x, m: m(seq(x).reshape(-1, 4)).reshape(x.shape[0], 6, 3), nn.Linear(4, 3)
    ),
}
EXPORTERS = {"dynamo": 20, "dynamo 23": 23, "legacy 17": 17, "legacy 12": 12}
# An export takes about a second: all together are for the slow run.
QUICK = {
    ("self attention", "legacy 17"),
    ("self attention", "dynamo"),
    ("attention of sequences first", "legacy 17"),
    ("encoder layer", "dynamo"),
    ("pairs", "legacy 17"),
    ("masked mean", "legacy 12"),
    ("gated experts", "dynamo"),
    ("a learned query", "legacy 17"),
}
CASES = [
    pytest.param(kind, exporter, marks=() if (kind, exporter) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for exporter in EXPORTERS
]


def export(module: Any, opset: int) -> bytes:  # noqa: ANN401
    """Export with dynamo, or up to opset 17 with the older exporter."""
    out = io.BytesIO()
    example = torch.rand(ROWS, WIDTH)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if opset > 17:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["candidate"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("rows")},),
                verbose=False,
            )
            serialized: bytes = program.model_proto.SerializeToString()
            return serialized
        torch.onnx.export(
            module.eval(),
            (example,),
            out,
            dynamo=False,
            opset_version=opset,
            input_names=["candidate"],
            output_names=["scores"],
            dynamic_axes={"candidate": {0: "rows"}, "scores": {0: "rows"}},
        )
    return out.getvalue()


@pytest.mark.parametrize(("kind", "exporter"), CASES)
def test_a_part_is_imported(kind: str, exporter: str) -> None:
    torch.manual_seed(1)
    try:
        model = export(KINDS[kind](), EXPORTERS[exporter])
    except Exception as error:
        pytest.skip(f"{exporter} does not export it: {type(error).__name__}")
    agree(model, name=kind)

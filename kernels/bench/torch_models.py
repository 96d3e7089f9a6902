"""The six models as torch modules: what two of the peers run, and, in float64, the measure of all.

Imported only where torch is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from kernels.bench.models import Model, Parameters


def mlp(sizes: Sequence[int], *, last: bool = True) -> nn.Sequential:
    """Linears with ReLUs between, and one at the end or not."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers if last else layers[:-1])


class DLRMDCNv2(nn.Module):  # type: ignore[misc]
    """Low-rank crosses (arXiv 2008.13535)."""

    def __init__(self) -> None:
        super().__init__()
        width = 27 * 128
        self.bot = mlp([13, 512, 256, 128])
        self.v = nn.ModuleList(nn.Linear(width, 512, bias=False) for _ in range(3))
        self.w = nn.ModuleList(nn.Linear(512, width) for _ in range(3))
        self.top = mlp([width, 1024, 1024, 512, 256, 1], last=False)

    def forward(self, dense: torch.Tensor, emb: torch.Tensor) -> Any:  # noqa: ANN401
        """Take ``[rows, 13]`` and ``[rows, 26, 128]``."""
        start = torch.cat([self.bot(dense), emb.flatten(1)], 1)
        x = start
        for v, w in zip(self.v, self.w, strict=True):
            x = start * w(v(x)) + x
        return torch.sigmoid(self.top(x))


class DLRM(nn.Module):  # type: ignore[misc]
    """Pairwise dot products (arXiv 1906.00091)."""

    def __init__(self) -> None:
        super().__init__()
        i, j = torch.tril_indices(27, 27, -1)
        self.register_buffer("i", i, persistent=False)
        self.register_buffer("j", j, persistent=False)
        self.bot = mlp([13, 512, 256, 64])
        self.top = mlp([64 + 351, 512, 512, 256, 1], last=False)

    def forward(self, dense: torch.Tensor, emb: torch.Tensor) -> Any:  # noqa: ANN401
        """Take ``[rows, 13]`` and ``[rows, 26, 64]``."""
        bottom = self.bot(dense)
        vectors = torch.cat([bottom[:, None], emb], 1)
        pairs = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.i, self.j]
        return torch.sigmoid(self.top(torch.cat([bottom, pairs], 1)))


class DeepFM(nn.Module):  # type: ignore[misc]
    """A factorisation machine beside an MLP (arXiv 1703.04247)."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(13, 1)
        self.deep = mlp([26 * 16 + 13, 400, 400, 400, 1], last=False)

    def forward(self, dense: torch.Tensor, emb: torch.Tensor, first: torch.Tensor) -> Any:  # noqa: ANN401
        """Take ``[rows, 13]``, ``[rows, 26, 16]`` and ``[rows, 26]``."""
        total = emb.sum(1)
        pairs = 0.5 * (total * total - (emb * emb).sum(1)).sum(1, keepdim=True)
        deep = self.deep(torch.cat([emb.flatten(1), dense], 1))
        return torch.sigmoid(deep + pairs + first.sum(1, keepdim=True) + self.lin(dense))


class DIN(nn.Module):  # type: ignore[misc]
    """Attention of the candidate over its user's behaviours (arXiv 1706.06978)."""

    def __init__(self) -> None:
        super().__init__()
        self.att = mlp([256, 80, 40, 1], last=False)
        self.top = mlp([64 * 2 + 256, 200, 80, 1], last=False)

    def forward(
        self, query: torch.Tensor, hist: torch.Tensor, mask: torch.Tensor, other: torch.Tensor
    ) -> Any:  # noqa: ANN401
        """Take ``[rows, 64]``, ``[rows, 100, 64]``, ``[rows, 100]`` and ``[rows, 256]``."""
        each = query[:, None].expand_as(hist)
        scores = self.att(torch.cat([each, hist, each - hist, each * hist], -1)).squeeze(-1)
        masked = -6e4 if scores.dtype == torch.float16 else -1e30
        scores = torch.where(mask > 0.5, scores, torch.full_like(scores, masked))
        pooled = torch.bmm(torch.softmax(scores, -1)[:, None], hist).squeeze(1)
        return torch.sigmoid(self.top(torch.cat([query, pooled, other], 1)))


class MMoE(nn.Module):  # type: ignore[misc]
    """8 experts, 4 tasks (doi 10.1145/3219819.3220007)."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp([640, 512, 256]) for _ in range(8))
        self.gates = nn.ModuleList(nn.Linear(640, 8) for _ in range(4))
        self.towers = nn.ModuleList(mlp([256, 128, 64, 1], last=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:  # noqa: ANN401
        """Take ``[rows, 640]``, give ``[rows, 4]``."""
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        tasks = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(x), -1)
            tasks.append(torch.sigmoid(tower((weights[:, :, None] * experts).sum(1))))
        return torch.cat(tasks, 1)


class BST(nn.Module):  # type: ignore[misc]
    """A transformer block over 64 behaviours, 4 heads (arXiv 1905.06874)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(64, 192), nn.Linear(64, 64)
        self.n1, self.n2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.f1, self.f2 = nn.Linear(64, 256), nn.Linear(256, 64)
        self.top = mlp([64 * 64 + 512, 1024, 512, 256, 1], last=False)

    def forward(self, seq: torch.Tensor, other: torch.Tensor) -> Any:  # noqa: ANN401
        """Take ``[rows, 64, 64]`` and ``[rows, 512]``."""
        rows, steps, width = seq.shape
        query, key, value = self.qkv(seq).view(rows, steps, 3, 4, 16).permute(2, 0, 3, 1, 4)
        joined = F.scaled_dot_product_attention(query, key, value)
        attended = joined.transpose(1, 2).reshape(rows, steps, width)
        x = self.n1(seq + self.o(attended))
        x = self.n2(x + self.f2(F.leaky_relu(self.f1(x))))
        return torch.sigmoid(self.top(torch.cat([x.flatten(1), other], 1)))


_CLASSES: Final[Mapping[str, type[nn.Module]]] = {
    each.__name__: each for each in (DLRMDCNv2, DLRM, DeepFM, DIN, MMoE, BST)
}


def module_of(model: Model, parameters: Parameters) -> Any:  # noqa: ANN401 - a torch module
    """Return a model as a torch module in float32 on the CPU, for inference."""
    module = _CLASSES[model.name]().eval().requires_grad_(requires_grad=False)
    module.load_state_dict({name: torch.tensor(array) for name, array in parameters.items()})
    return module

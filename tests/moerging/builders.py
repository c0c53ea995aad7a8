"""Random layers with experts, and equation 2 as written in the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hubmerge.moerging.layer import MoeLinear, TokenRouting


def random_layer(
    experts: int = 4,
    rank: int = 3,
    width: int = 6,
    out: int = 5,
    routing: TokenRouting = TokenRouting(2),  # noqa: B008 (frozen)
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> MoeLinear:
    """A layer with random values, and different scales."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=dtype)

    base = nn.Linear(width, out, dtype=dtype)
    base.load_state_dict({"weight": normal(out, width) / width**0.5, "bias": normal(out)})
    A, B = normal(experts, rank, width) / width**0.5, normal(experts, out, rank) / rank**0.5
    return MoeLinear(base, A, B, normal(experts), normal(experts, width), routing)


def random_tokens(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def equation_2(layer: MoeLinear, x: Tensor) -> Tensor:
    """W x + b plus the experts' products, token by token and expert by expert, in float64.

    The softmax is over all experts, and the shares of the top k are divided by their sum.
    """
    W, A, B, R, scale = (
        tensor.detach().double()
        for tensor in (layer.weight, layer.lora_A, layer.lora_B, layer.router, layer.scale)
    )
    rows = []
    for token in x.detach().double().reshape(-1, layer.in_features):
        scores = R @ token
        if not layer.routing.signed:
            scores = scores.abs()
        shares = torch.softmax(scores / layer.routing.temperature, 0)
        best = sorted(range(len(A)), key=lambda e: -shares[e].item())[: layer.routing.top_k]
        total = sum(shares[e] for e in best)
        y = W @ token
        if layer.bias is not None:
            y = y + layer.bias.double()
        for e in best:
            y = y + shares[e] / total * scale[e] * (B[e] @ (A[e] @ token))
        rows.append(y)
    return torch.stack(rows).view(*x.shape[:-1], layer.out_features)

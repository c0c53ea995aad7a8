"""Explicit attention computes the same as torch's fused attention, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError
from hubmerge.models.explicit_attention import ExplicitAttention

BATCH, LENGTH, WIDTH, HEADS = 3, 5, 12, 4


def attention(**options: Any) -> nn.MultiheadAttention:
    """Fused attention in float64 with random weights and biases."""
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **options)
    with torch.no_grad():
        for weight in fused.parameters():
            weight.copy_(torch.randn_like(weight))
    return fused


def tokens(batch_first: bool) -> Tensor:
    shape = (BATCH, LENGTH, WIDTH) if batch_first else (LENGTH, BATCH, WIDTH)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


CAUSAL = torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)
ADDED = torch.randn(LENGTH, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [None, CAUSAL, ADDED], ids=["none", "causal", "added"])
def test_same_outputs_and_gradients(batch_first: bool, bias: bool, mask: Tensor | None) -> None:
    fused = attention(batch_first=batch_first, bias=bias)
    results = []
    for module in (fused, ExplicitAttention(fused)):
        x = tokens(batch_first)
        y, weights = module(x, x, x, need_weights=False, attn_mask=mask)
        assert weights is None
        assert y.shape == x.shape
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        results.append((y.detach(), grad))
    torch.testing.assert_close(results[1], results[0], atol=1e-9, rtol=1e-9)


def test_weights_are_shared() -> None:
    fused = attention()
    explicit = ExplicitAttention(fused)
    assert explicit.in_proj.weight is fused.in_proj_weight
    assert explicit.in_proj.bias is fused.in_proj_bias
    assert explicit.out_proj.weight is fused.out_proj.weight
    assert explicit.out_proj.bias is fused.out_proj.bias
    assert not any(weight.is_meta for weight in explicit.parameters())
    shapes = {name: tuple(weight.shape) for name, weight in explicit.named_parameters()}
    assert shapes == {
        "in_proj.weight": (36, 12), "in_proj.bias": (36,),
        "out_proj.weight": (12, 12), "out_proj.bias": (12,),
    }  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"kdim": 6}, {"vdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True},
             {"dropout": 0.1}], ids=str,
)  # fmt: skip
def test_other_kinds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="cannot be split into linear layers") as refused:
        ExplicitAttention(attention(**options))
    assert refused.value.hint

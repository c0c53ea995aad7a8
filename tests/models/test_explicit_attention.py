"""An attention taken apart computes what torch's fused one does, from the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError
from hubmerge.models.explicit_attention import ExplicitAttention

BATCH, LENGTH, WIDTH, HEADS = 3, 5, 12, 4


def attention(**said: Any) -> nn.MultiheadAttention:
    """Random all over, its biases too, in float64."""
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **said)
    with torch.no_grad():
        for weight in fused.parameters():
            weight.copy_(torch.randn_like(weight))
    return fused


def tokens(batch_first: bool) -> Tensor:
    shape = (BATCH, LENGTH, WIDTH) if batch_first else (LENGTH, BATCH, WIDTH)
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=drawn).requires_grad_()


CAUSAL = torch.full((LENGTH, LENGTH), float("-inf"), dtype=torch.float64).triu(1)
ADDED = torch.randn(LENGTH, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [None, CAUSAL, ADDED], ids=["none", "causal", "added"])
def test_same_answers_and_gradients(batch_first: bool, bias: bool, mask: Tensor | None) -> None:
    fused = attention(batch_first=batch_first, bias=bias)
    grads = []
    for made in (fused, ExplicitAttention(fused)):
        x = tokens(batch_first)
        y, weights = made(x, x, x, need_weights=False, attn_mask=mask)
        assert weights is None
        assert y.shape == x.shape
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        grads.append((y.detach(), grad))
    torch.testing.assert_close(grads[1], grads[0], atol=1e-9, rtol=1e-9)


def test_its_weights_are_the_same_tensors() -> None:
    fused = attention()
    made = ExplicitAttention(fused)
    assert made.in_proj.weight is fused.in_proj_weight
    assert made.in_proj.bias is fused.in_proj_bias
    assert made.out_proj.weight is fused.out_proj.weight
    assert made.out_proj.bias is fused.out_proj.bias
    assert not any(weight.is_meta for weight in made.parameters())
    shapes = {name: tuple(weight.shape) for name, weight in made.named_parameters()}
    assert shapes == {
        "in_proj.weight": (36, 12), "in_proj.bias": (36,),
        "out_proj.weight": (12, 12), "out_proj.bias": (12,),
    }  # fmt: skip


@pytest.mark.parametrize(
    "said", [{"kdim": 6}, {"vdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True},
             {"dropout": 0.1}], ids=str,
)  # fmt: skip
def test_other_kinds_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="cannot be taken apart") as refused:
        ExplicitAttention(attention(**said))
    assert refused.value.hint

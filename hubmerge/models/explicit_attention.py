"""torch's fused attention as two linear layers and a product, so that each can be a mixture.

nn.MultiheadAttention hands its weights to one function and calls no layer, so nothing can stand
between its inputs and its projections.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hubmerge.errors import CheckpointError


class ExplicitAttention(nn.Module):
    """Self-attention as nn.MultiheadAttention computes it, with its weights in `in_proj` (queries,
    keys and values in one) and `out_proj`.

    Raises CheckpointError for an attention of another kind: with keys of another width, with rows
    added to keys, or with dropout.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        strange = fused.in_proj_weight is None or fused.bias_k is not None or fused.add_zero_attn
        if strange or fused.dropout:
            raise CheckpointError(
                "This model's attention is of a kind that cannot be taken apart.",
                "Use a base in transformers' layout.",
            )
        self.heads, self.batch_first = fused.num_heads, fused.batch_first
        self.in_proj = _linear(fused.in_proj_weight, fused.in_proj_bias)
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """query [B, L, D], or [L, B, D], which must be key and value too; the same shape back."""
        assert key is query
        assert value is query
        x = query if self.batch_first else query.transpose(0, 1)
        batch, length, width = x.shape
        parts = self.in_proj(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        out = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out if self.batch_first else out.transpose(0, 1), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer around parameters that are there already."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = cast(nn.Parameter, weight)
    if bias is not None:
        layer.bias = cast(nn.Parameter, bias)
    return layer

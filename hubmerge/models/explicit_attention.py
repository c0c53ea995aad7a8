"""torch's fused attention as two linear layers, so that each can become a mixture of experts.

nn.MultiheadAttention passes its weights to one function and calls no layers, so its projections
cannot be replaced.
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

    Raises CheckpointError for attention that this class does not compute: keys of another width,
    rows added to the keys, or dropout.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        is_special = fused.in_proj_weight is None or fused.bias_k is not None or fused.add_zero_attn
        if is_special or fused.dropout:
            raise CheckpointError(
                "This model's attention cannot be split into linear layers.",
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
        """Self-attention of `query` [B, L, D] or [L, B, D]; `key` and `value` must be `query`."""
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
    """A linear layer around existing parameters."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = cast(nn.Parameter, weight)
    if bias is not None:
        layer.bias = cast(nn.Parameter, bias)
    return layer

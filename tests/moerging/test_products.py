"""Which product is used, by shape; test_layer checks that both give the same result."""

from __future__ import annotations

import pytest
import torch

from hubmerge.moerging.products import add_dense, add_grouped, grouped_is_faster

from .builders import random_tokens


@pytest.mark.parametrize(
    ("experts", "rank", "width", "out", "top_k", "tokens", "grouped"),
    [
        (8, 8, 768, 3072, 2, 1600, False),  # CLIP at the paper's rank: 64 ranks at once are cheap
        (8, 32, 768, 768, 2, 1600, True),
        (8, 32, 3072, 768, 2, 1600, False),  # the copies leave the cache
        (32, 32, 768, 768, 2, 1600, True),
        (32, 32, 768, 768, 32, 1600, False),  # all are chosen
        (32, 32, 768, 768, 2, 4, False),  # too little work for copying
        (32, 32, 766, 768, 2, 1600, False),  # rows of 3064 bytes, no multiple of 16
    ],
)
def test_product_by_shape(
    experts: int, rank: int, width: int, out: int, top_k: int, tokens: int, grouped: bool
) -> None:
    A, B = torch.empty(experts, rank, width), torch.empty(experts, out, rank)
    assert grouped_is_faster(torch.empty(tokens, width), A, B, top_k) is grouped


def test_product_by_dtype() -> None:
    A, B, x = torch.empty(64, 32, 768), torch.empty(64, 768, 32), torch.empty(1600, 768)
    is_grouped = {
        dtype: [grouped_is_faster(x.to(dtype), A.to(dtype), B.to(dtype), k) for k in (1, 4)]
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    }
    assert is_grouped[torch.float32] == [True, True]
    assert is_grouped[torch.bfloat16] == [True, False]
    assert is_grouped[torch.float64] == [False, False]  # torch has no grouped product of it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_expert_that_no_token_chose(dtype: torch.dtype) -> None:
    A, B = random_tokens(3, 8, 16, dtype=dtype), random_tokens(3, 8, 8, seed=2, dtype=dtype)
    tokens, y = random_tokens(5, 16, seed=3, dtype=dtype), torch.zeros(5, 8, dtype=dtype)
    chosen, share = torch.tensor([[0], [2], [2], [0], [2]]), torch.rand(5, 1)
    scale = torch.tensor([2.0, torch.nan, -1.0])
    grouped = add_grouped(y.clone(), tokens, A, B, scale, chosen, share)
    scale[1] = 0.0
    torch.testing.assert_close(grouped, add_dense(y, tokens, A, B, scale, chosen, share))

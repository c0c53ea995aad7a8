"""Two ways to add the products of the chosen experts: of all with most zeroed, or of those only.

Everywhere y [N, O] (overwritten), tokens [N, I], A [E, R, I], B [E, O, R] and scale [E]; and of
each token the experts `chosen` [N, k] and their `share` [N, k].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_is_faster(tokens: Tensor, A: Tensor, B: Tensor, top_k: int) -> bool:
    """Whether `add_grouped` beats `add_dense`, by shape and dtype.

    Of a token's time, dense takes E R parts, and grouped k R, and for each choice what it costs to
    copy its input and output: in float32 as much as 64 ranks, thrice that once the copies leave the
    cache; in bfloat16, where products are ten times as fast, 512. With little to do, dense always.

    Measured on one core of a Xeon with AMX: E 4 to 64, R 8 to 128, k 1 to 4, N 16 to 8192, widths
    64 to 3072. Of 359 shapes in float32, forward or with backward, the rule takes a way that is
    over 15 % slower in two, by 21 % at most; of 162 in bfloat16 in five, by 24 % at most where
    widths are not 64. Nothing else was measured: other devices go by bfloat16.
    """
    (experts, rank, width), out = A.shape, B.shape[1]
    if top_k == experts or not _groupable(A, B):
        return False
    exact_on_cpu = A.dtype == torch.float32 and A.device.type == "cpu"
    copying, least = (64, 2**23) if exact_on_cpu else (512, 2**29)
    if top_k * len(tokens) * max(width, out) > 2**23:
        copying *= 3
    work = len(tokens) * experts * rank * (width + out)
    return work > least and experts * rank > top_k * (rank + copying)


def _groupable(A: Tensor, B: Tensor) -> bool:
    """Whether torch has a grouped product for these: not of float64, nor of rows of odd sizes.

    And not when it compiles: it knows no shapes of those of float32.
    """
    aligned = all(side * A.element_size() % 16 == 0 for side in (*A.shape[1:], B.shape[1]))
    return aligned and A.dtype != torch.float64 and not torch.compiler.is_compiling()


def add_dense(
    y: Tensor, tokens: Tensor, A: Tensor, B: Tensor, scale: Tensor, chosen: Tensor, share: Tensor
) -> Tensor:
    """All experts as one adapter of rank E R, whose inner values are zero where not chosen."""
    experts, rank, _ = A.shape
    gate = share.new_zeros(len(tokens), experts).scatter(1, chosen, share) * scale
    low = F.linear(tokens, A.flatten(0, 1)).view(-1, experts, rank)
    low = low * gate.to(low.dtype).unsqueeze(2)
    return y.addmm_(low.flatten(1), B.transpose(1, 2).flatten(0, 1))


def add_grouped(
    y: Tensor, tokens: Tensor, A: Tensor, B: Tensor, scale: Tensor, chosen: Tensor, share: Tensor
) -> Tensor:
    """Every choice a row of its own, sorted by expert: each expert multiplies its rows only."""
    expert, order = chosen.flatten().sort(stable=True)
    every = torch.arange(len(A), device=expert.device)
    ends = torch.searchsorted(expert, every, right=True, out_int32=True)
    token = order // chosen.shape[1]
    low = F.grouped_mm(tokens[token], A.transpose(1, 2), offs=ends)
    gate = share.flatten()[order] * scale[expert]
    low = low * gate.to(low.dtype).unsqueeze(1)
    return y.index_add_(0, token, F.grouped_mm(low, B.transpose(1, 2), offs=ends))

"""Arrow (arXiv 2405.11157): start an expert's router row at the input direction of most effect.

Exact and cheap: with A^T = Qa Ra and B = Qb Rb, the right singular vectors of B A are Qa times
those of the r x r core Rb Ra^T. Power iteration would not converge if the first two singular values
are close, as in adapters that were hardly trained.
"""

from __future__ import annotations

import torch
from torch import Tensor


def arrow_prototypes(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """The top right singular vector of each B A, one unit row per expert, as float32.

    `lora_A` [E, R, I], `lora_B` [E, O, R] -> [E, I]. Padding ranks with zeros has no effect. Nor
    has an expert's scale: a negative one only flips the left vector. An untrained expert (B = 0)
    gets the top right singular vector of A, which is the limit for small random B; one with A = 0
    has no direction and gets zeros.

    A singular vector's sign is arbitrary: here the entry of largest magnitude (the first of equals)
    is positive, so that the result does not depend on a library's choice of sign.
    """
    pairs = zip(lora_A.detach().double(), lora_B.detach().double(), strict=True)
    return torch.stack([_fix_sign(_top_direction(A, B)) for A, B in pairs]).float()


def _top_direction(A: Tensor, B: Tensor) -> Tensor:
    if not A.any():
        return torch.zeros_like(A[0])
    basis, upper = torch.linalg.qr(A.T)
    core = torch.linalg.qr(B).R @ upper.T if B.any() else upper.T
    top: Tensor = basis @ torch.linalg.svd(core).Vh[0]
    return top


def _fix_sign(vector: Tensor) -> Tensor:
    size = vector.abs()
    largest = size >= size.max() * (1 - 1e-9)  # equal up to rounding
    first = vector[largest.int().argmax()]
    return torch.where(first < 0, -vector, vector)

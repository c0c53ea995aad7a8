"""Arrow: the direction an expert reacts to most, as the start of its router (arXiv 2405.11157).

Exact and cheap: with A^T = Qa Ra and B = Qb Rb, the right singular vectors of B A are Qa times
those of the r x r core Rb Ra^T. Power iterations would not converge where the first two singular
values are close, as they are in adapters that were hardly trained.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prototypes(lora_A: Tensor, lora_B: Tensor) -> Tensor:
    """The top right singular vector of each B A, one unit row per expert, as float32.

    `lora_A` [E, R, I], `lora_B` [E, O, R] -> [E, I]. Ranks padded with zeros change nothing, nor
    does an expert's scale: a negative one only turns the left vector round. An untrained expert
    (B = 0) gets the top right singular vector of A, which B A tends to when B is small and random;
    one with A = 0 has no direction and gets zeros.

    A singular vector's sign is arbitrary: here the entry of largest magnitude, the first of equals,
    is positive, so that no library's choice of sign reaches a file.
    """
    pairs = zip(lora_A.detach().double(), lora_B.detach().double(), strict=True)
    return torch.stack([_signed(_direction(A, B)) for A, B in pairs]).float()


def _direction(A: Tensor, B: Tensor) -> Tensor:
    if not A.any():
        return torch.zeros_like(A[0])
    basis, upper = torch.linalg.qr(A.T)
    core = torch.linalg.qr(B).R @ upper.T if B.any() else upper.T
    top: Tensor = basis @ torch.linalg.svd(core).Vh[0]
    return top


def _signed(vector: Tensor) -> Tensor:
    size = vector.abs()
    largest = size >= size.max() * (1 - 1e-9)  # what differs by rounding only is equal
    first = vector[largest.int().argmax()]
    return torch.where(first < 0, -vector, vector)

"""Initialise routers without data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hubmerge.errors import UsageError
from hubmerge.moerging.arrow import arrow_prototypes

DataFreeInit = Literal["arrow", "zero", "random"]


def init_router(
    kind: DataFreeInit,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    signed: bool,
    seed: int,
    module: str,
    experts: Sequence[str],
) -> Tensor:
    """A router [E, I] for the experts of one layer, `lora_A` [E, R, I] and `lora_B` [E, O, R].

    arrow    each expert's top right singular vector: tokens go to the expert that changes them most
    zero     no preference: all scores tie, and the first experts are chosen. Only with signed
             scores, else UsageError: |0| has no gradient, so the first experts would stay chosen
    random   a random direction that depends only on (seed, module, expert), not on other experts
             or their order
    """
    if kind == "zero" and not signed:
        raise UsageError(
            "A router of zeros cannot learn from unsigned scores: |0| has no gradient.",
            "Use signed scores, or initialise the router with arrow or random.",
        )
    if kind == "arrow":
        return arrow_prototypes(lora_A, lora_B)
    width = lora_A.shape[2]
    if kind == "zero":
        return torch.zeros(len(experts), width)
    return torch.stack([_random_direction(width, seed, module, expert) for expert in experts])


def _random_direction(width: int, *address: object) -> Tensor:
    key = "/".join(map(str, ("router", *address))).encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)

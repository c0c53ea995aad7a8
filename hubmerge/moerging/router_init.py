"""Routers to start training from that need no data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hubmerge.errors import UsageError
from hubmerge.moerging.arrow import prototypes

Start = Literal["arrow", "zero", "random"]


def start(
    kind: Start,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    signed: bool,
    seed: int,
    module: str,
    experts: Sequence[str],
) -> Tensor:
    """A router [E, I] for the experts of one layer, `lora_A` [E, R, I] and `lora_B` [E, O, R].

    arrow    each expert's top right singular vector: a token goes where it is changed most
    zero     no preference: all scores tie, and the first experts begin. Signed scores only, else
             UsageError: |0| has no gradient, so that the first experts would stay for ever
    random   a direction drawn at (seed, module, expert): other experts, or another order of them,
             change nothing about it
    """
    if kind == "zero" and not signed:
        raise UsageError(
            "A router of zeros cannot learn from unsigned scores: |0| has no gradient.",
            "Choose signed scores, or start the router at arrow or random.",
        )
    if kind == "arrow":
        return prototypes(lora_A, lora_B)
    width = lora_A.shape[2]
    if kind == "zero":
        return torch.zeros(len(experts), width)
    return torch.stack([_direction(width, seed, module, expert) for expert in experts])


def _direction(width: int, *address: object) -> Tensor:
    said = "/".join(map(str, ("router", *address))).encode()
    seed = int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=0)

"""A linear layer with several LoRA experts, of which each token uses the few that a router chooses.

y = W x + b + sum over the top-k experts e of p_e scale_e B_e A_e x        arXiv 2506.14126, eq. 2
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.moerging.products import add_dense, add_grouped, grouped_is_faster

RoutingCallback = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class TokenRouting:
    """How a token's scores become its experts' shares.

    The `top_k` experts are chosen by score / temperature if `signed`, else by its magnitude.
    """

    top_k: int
    signed: bool = False
    temperature: float = 1.0


class MoeLinear(nn.Module):
    """A frozen linear layer plus the experts that its router chooses for each token.

    `lora_A` [E, R, I], `lora_B` [E, O, R] and `router` [E, I] are trained; `scale` [E] multiplies
    each expert's product, alpha / r for most. A rank below R is padded with zeros in both factors:
    these get no gradient, and stay zero.

    `routing_callback`, if set, is called in every forward with logits [N, E], the chosen experts
    [N, k] and their shares [N, k] for all N tokens, with gradients. With gradient checkpointing it
    is called again in the backward pass.
    """

    scale: Tensor

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: Tensor,
        router: Tensor,
        routing: TokenRouting,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.router = nn.Parameter(router)
        self.register_buffer("scale", scale, persistent=False)
        self.routing = routing
        self.routing_callback: RoutingCallback | None = None
        self.in_features, self.out_features = lora_A.shape[2], lora_B.shape[1]

    @property
    def weight(self) -> Tensor:
        """The base's weight: transformers' T5 reads it to find the dtype to compute in."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the dtype that the base alone would give."""
        tokens = x.reshape(-1, self.in_features)
        y = self.base(tokens)
        chosen, share = self._route(tokens)
        # Experts compute in the dtype of the base's output, bfloat16 under autocast.
        tokens, A, B = (tensor.to(y.dtype) for tensor in (tokens, self.lora_A, self.lora_B))
        add = add_grouped if grouped_is_faster(tokens, A, B, self.routing.top_k) else add_dense
        y = add(y, tokens, A, B, self.scale, chosen, share)
        return y.view(*x.shape[:-1], self.out_features)

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of every token and their shares, both [N, k], in float32 or wider."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        with _no_autocast(tokens.device.type):
            logits = F.linear(tokens.to(wide), self.router.to(wide))
            if self.routing.temperature != 1.0:
                logits = logits / self.routing.temperature
            if not self.routing.signed:
                logits = logits.abs()
            # A softmax over all experts, divided by its sum over the top k, is one over the top k.
            top, chosen = logits.topk(self.routing.top_k, dim=-1)
            share = top.softmax(-1)
        if self.routing_callback is not None:
            self.routing_callback(logits, chosen, share)
        return chosen, share


def _no_autocast(device: str) -> AbstractContextManager[object]:
    # Only if autocast is on: at 50 tokens, this context manager takes 5 % of a forward pass.
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()

"""A linear layer with several LoRA experts, of which each token uses the few its router names.

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

Watch = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Routing:
    """How a token's scores become its experts' shares.

    `top_k` experts are chosen, by score / temperature, or by its magnitude unless `signed`.
    """

    top_k: int
    signed: bool = False
    temperature: float = 1.0


class MixtureLinear(nn.Module):
    """A frozen linear layer plus the experts that its router chooses, anew for every token.

    `lora_A` [E, R, I], `lora_B` [E, O, R] and `router` [E, I] are trained; `scale` [E] is what each
    expert's product is multiplied by, alpha / r for most. A lower rank than R is padded with zeros
    in both: they get no gradient, and stay zero.

    `watch`, when set, is told of every forward: logits [N, E], the experts chosen [N, k] and their
    shares [N, k] for all N tokens, with their gradients. Under gradient checkpointing it is told
    twice, once more on the way back.
    """

    scale: Tensor

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: Tensor,
        router: Tensor,
        routing: Routing,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(lora_A)
        self.lora_B = nn.Parameter(lora_B)
        self.router = nn.Parameter(router)
        self.register_buffer("scale", scale, persistent=False)
        self.routing = routing
        self.watch: Watch | None = None
        self.in_features, self.out_features = lora_A.shape[2], lora_B.shape[1]

    @property
    def weight(self) -> Tensor:
        """The base's: transformers' T5 reads it to learn which dtype to compute in."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the dtype that the base alone would give."""
        tokens = x.reshape(-1, self.in_features)
        y = self.base(tokens)
        chosen, share = self._route(tokens)
        # What the base computes in, bfloat16 under autocast, is what its experts compute in.
        tokens, A, B = (tensor.to(y.dtype) for tensor in (tokens, self.lora_A, self.lora_B))
        add = add_grouped if grouped_is_faster(tokens, A, B, self.routing.top_k) else add_dense
        y = add(y, tokens, A, B, self.scale, chosen, share)
        return y.view(*x.shape[:-1], self.out_features)

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of every token and their shares, both [N, k]; never below float32."""
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
        if self.watch is not None:
            self.watch(logits, chosen, share)
        return chosen, share


def _no_autocast(device: str) -> AbstractContextManager[object]:
    # Only where it is on: at 50 tokens, turning off what is off would take 5 % of a forward.
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()

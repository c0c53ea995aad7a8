"""Routing statistics of the layers with experts: shares, entropy, and the load-balance loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hubmerge.moerging.layer import MoeLinear


@dataclass(frozen=True)
class RoutingSummary:
    """The mean over tokens: `share` [L, E] is the weight of each expert in each layer.

    The shares of a layer sum to 1. `entropy` is that of a token's weights over experts, in nats.
    """

    share: Tensor
    entropy: float


class RoutingStats:
    """Counts every token that the layers route in evaluation mode, padding included.

    With `track_balance`, also the load in training mode. L layers, E experts, N tokens, k chosen.
    """

    def __init__(self, layers: Mapping[str, MoeLinear], track_balance: bool = False) -> None:
        self._layers, self._track_balance = layers, track_balance
        self._terms: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._entropy, self._tokens = 0.0, 0
        for path, layer in layers.items():
            layer.routing_callback = partial(self._record, path, layer)

    def balance_loss(self) -> Tensor:
        """The load-balance loss of the last forward, mean over layers (arXiv 2101.03961, eq. 4).

        E times the sum over experts of their share of the choices times their mean probability: 1
        if the load is even, up to E if one expert gets all tokens.
        """
        terms = [self._terms[path] for path in self._layers]
        self._terms.clear()
        return torch.stack(terms).mean()

    @property
    def unused_layers(self) -> list[str]:
        """The layers that have routed no token since the last `pop_summary` or `reset`."""
        return [path for path in self._layers if path not in self._sums]

    def pop_summary(self, reduce: Callable[[Tensor], Tensor] = lambda own: own) -> RoutingSummary:
        """The summary since the last `pop_summary` or `reset`; the counts are reset.

        `reduce` sums a tensor over the processes that share the rows.
        """
        sums = reduce(torch.stack([self._sums[path] for path in self._layers]))
        entropy, tokens = reduce(sums.new_tensor([self._entropy, self._tokens])).tolist()
        self.reset()
        return RoutingSummary((sums / sums.sum(dim=1, keepdim=True)).cpu(), entropy / tokens)

    def reset(self) -> None:
        """Start counting from zero."""
        self._sums.clear()
        self._entropy, self._tokens = 0.0, 0

    def _record(
        self, path: str, layer: MoeLinear, logits: Tensor, chosen: Tensor, share: Tensor
    ) -> None:
        if not layer.training:
            self._count(path, logits, chosen, share)
        elif self._track_balance:
            # By path, as gradient checkpointing calls this twice for one forward.
            self._terms[path] = _layer_balance_loss(logits, chosen)

    @torch.no_grad()
    def _count(self, path: str, logits: Tensor, chosen: Tensor, share: Tensor) -> None:
        sums = self._sums.setdefault(path, share.new_zeros(logits.shape[-1]))
        sums.scatter_add_(0, chosen.flatten(), share.flatten())
        self._entropy -= (share * share.clamp_min(1e-12).log()).sum().item()
        self._tokens += len(share)


def _layer_balance_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    experts = logits.shape[-1]
    load = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (load * logits.softmax(dim=-1).mean(dim=0)).sum()

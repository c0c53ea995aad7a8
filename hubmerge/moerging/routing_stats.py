"""What the layers of a mixture say of their routing: shares and entropy, and the load balance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hubmerge.moerging.layer import MixtureLinear


@dataclass(frozen=True)
class Told:
    """What was seen of the routing: `share` [L, E] is the mean weight of each expert in each layer,
    which sums to 1; `entropy` is that of a token's weights over the experts, in nats, on average.
    """

    share: Tensor
    entropy: float


class Book:
    """Keeps account of every token that the layers route in evaluation mode, padding included.

    With `balances`, also of the load in training mode. L layers, E experts, N tokens, k chosen.
    """

    def __init__(self, layers: Mapping[str, MixtureLinear], balances: bool = False) -> None:
        self._layers, self._balances = layers, balances
        self._terms: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._entropy, self._tokens = 0.0, 0
        for path, layer in layers.items():
            layer.watch = partial(self._see, path, layer)

    def balance(self) -> Tensor:
        """The load-balance loss of the last forward, mean over layers (arXiv 2101.03961, eq. 4).

        E times the sum over experts of their share of the choices times their mean probability: 1
        where the load is even, up to E where one expert takes all.
        """
        terms = [self._terms[path] for path in self._layers]
        self._terms.clear()
        return torch.stack(terms).mean()

    @property
    def idle(self) -> list[str]:
        """The layers that have routed nothing since the last time."""
        return [path for path in self._layers if path not in self._sums]

    def take(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> Told:
        """What was seen since the last time, which is forgotten.

        `total` adds up a tensor over the processes that share the rows.
        """
        sums = total(torch.stack([self._sums[path] for path in self._layers]))
        entropy, tokens = total(sums.new_tensor([self._entropy, self._tokens])).tolist()
        self.forget()
        return Told((sums / sums.sum(dim=1, keepdim=True)).cpu(), entropy / tokens)

    def forget(self) -> None:
        """See anew from here on."""
        self._sums.clear()
        self._entropy, self._tokens = 0.0, 0

    def _see(
        self, path: str, layer: MixtureLinear, logits: Tensor, chosen: Tensor, share: Tensor
    ) -> None:
        if not layer.training:
            self._count(path, logits, chosen, share)
        elif self._balances:
            # By path: under gradient checkpointing the same forward is told of twice.
            self._terms[path] = _balance(logits, chosen)

    @torch.no_grad()
    def _count(self, path: str, logits: Tensor, chosen: Tensor, share: Tensor) -> None:
        sums = self._sums.setdefault(path, share.new_zeros(logits.shape[-1]))
        sums.scatter_add_(0, chosen.flatten(), share.flatten())
        self._entropy -= (share * share.clamp_min(1e-12).log()).sum().item()
        self._tokens += len(share)


def _balance(logits: Tensor, chosen: Tensor) -> Tensor:
    experts = logits.shape[-1]
    load = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (load * logits.softmax(dim=-1).mean(dim=0)).sum()

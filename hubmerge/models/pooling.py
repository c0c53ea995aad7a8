"""The modules of an embedding model after its transformer, as sentence-transformers computes them.

Shapes: B texts, L tokens, D features of the transformer, E features of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hubmerge.errors import CheckpointError
from hubmerge.weights.embedding_modules import EmbeddingModule

# The modules that are run here, in any order after the transformer.
RUN_MODULES = frozenset({"Transformer", "Pooling", "Dense", "Normalize"})


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _mean_sqrt_length(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Later tokens weigh more: the first 1, the second 2, and so on."""
    positions = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    weights = (mask * positions).unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last token that is not padding, which is on the right."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


POOLING: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_length,
    "weightedmean": _weighted_mean,
    "max": _max,
    "cls": _first,
    "lasttoken": _last,
}
# The activations of torch that a Dense module is allowed to name.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Mish")


class Pooling(nn.Module):
    """Token features [B, L, D] and their mask [B, L] -> [B, modes x D], in float32."""

    def __init__(self, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden.float()
        return torch.cat([POOLING[mode](hidden, mask) for mode in self.modes], dim=-1)


class Dense(nn.Module):
    """A linear layer and an activation: [B, D] -> [B, E], with a residual if there is one."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        inputs, outputs = int(settings["in_features"]), int(settings["out_features"])
        self.linear = nn.Linear(inputs, outputs, bias=settings["bias"])
        self.activation = getattr(nn, settings["activation_function"])()
        self.use_residual = settings["use_residual"]
        if self.use_residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        output = self.activation(self.linear(features))
        if not self.use_residual:
            return cast(Tensor, output)
        return cast(Tensor, output + getattr(self, "residual", nn.Identity())(features))


class Normalize(nn.Module):
    """Features of length 1."""

    def forward(self, features: Tensor) -> Tensor:
        return normalize(features, dim=-1)


def build_module(module: EmbeddingModule, where: str) -> nn.Module:
    """The module after a transformer with these settings; Dense has no values yet.

    Raises CheckpointError, with `where`, for settings that are not supported.
    """
    settings = module.settings
    if any(key.startswith("module_") for key in settings):
        raise CheckpointError(
            f"{where} has the module {module}, which does not change the embedding."
        )
    if module.kind == "Pooling":
        _check_pooling(module, where)
        return Pooling(tuple(settings["modes"]))
    if module.kind == "Normalize":
        return Normalize()
    if settings["activation_function"] not in ACTIVATIONS:
        raise CheckpointError(
            f"{where} has the module {module}, whose activation is not supported.",
            f"Supported are {', '.join(ACTIVATIONS)} of torch.",
        )
    return Dense(settings)


def _check_pooling(module: EmbeddingModule, where: str) -> None:
    unknown = [mode for mode in module.settings["modes"] if mode not in POOLING]
    if unknown or not module.settings["include_prompt"]:
        reason = "pools by what is not known" if unknown else "leaves the prompt out of pooling"
        raise CheckpointError(
            f"{where} has the module {module}, which {reason}.",
            f"Supported are {', '.join(POOLING)}, with include_prompt.",
        )

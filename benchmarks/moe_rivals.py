"""One linear layer with experts, computed by hubmerge, peft and mttl with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import ArrowConfig, LoraConfig, create_arrow_model, get_peft_model
from torch import Tensor, nn

from hubmerge.moerging.arrow import arrow_prototypes
from hubmerge.moerging.layer import MoeLinear, TokenRouting

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Experts:
    """`count` LoRA experts of one rank on a linear layer, of which each token uses `top_k`."""

    width: int
    out: int
    count: int = 8
    rank: int = 8
    top_k: int = 2
    scale: float = 4.0

    def base(self) -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(self.width, self.out).requires_grad_(False)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [E, R, I], B [E, O, R] and a router [E, I], by Arrow."""
        torch.manual_seed(1)
        A = torch.randn(self.count, self.rank, self.width) / self.width**0.5
        B = torch.randn(self.count, self.out, self.rank) / 8
        return A, B, arrow_prototypes(A, B)


def make_contestants(experts: Experts, folder: Path) -> dict[str, Forward]:
    """All implementations, the bare layer first; raises if their outputs differ."""
    forwards: dict[str, Forward] = {
        "bare": experts.base(),
        "hubmerge": hubmerge_layer(experts),
        "peft arrow": peft_arrow(experts, folder),
        "mttl dense": DenseMoe(experts),
    }
    x = torch.randn(2, 50, experts.width)
    expected = forwards["hubmerge"](x)
    for name in ("peft arrow", "mttl dense"):
        torch.testing.assert_close(forwards[name](x), expected, rtol=1e-4, atol=1e-4)
    return forwards


def hubmerge_layer(experts: Experts) -> MoeLinear:
    A, B, router = experts.weights()
    scale = torch.full((experts.count,), experts.scale)
    return MoeLinear(experts.base(), A, B, scale, router, TokenRouting(experts.top_k))


class DenseMoe(nn.Module):
    """Computes every expert for every token, then weights the outputs."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.base, self.experts = experts.base(), experts
        self.A, self.B, self.router = (nn.Parameter(tensor) for tensor in experts.weights())

    def forward(self, x: Tensor) -> Tensor:
        logits = F.linear(x, self.router).abs()
        top, chosen = logits.topk(self.experts.top_k, -1)
        gate = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1))
        low = torch.einsum("...i,eri->...er", x, self.A)
        products = torch.einsum("...er,eor->...eo", low, self.B) * self.experts.scale
        return self.base(x) + torch.einsum("...e,...eo->...o", gate, products)


class PeftBody(nn.Module):
    """A module around the layer, since peft finds layers by name."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.fc = base

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def peft_arrow(experts: Experts, folder: Path) -> Forward:
    """peft's Arrow with our router and with the same trainable weights."""
    A, B, router = experts.weights()
    config = LoraConfig(
        r=experts.rank, lora_alpha=round(experts.scale * experts.rank), target_modules=["fc"]
    )
    paths = [str(folder / str(number)) for number in range(experts.count)]
    for path, a, b in zip(paths, A, B, strict=True):
        adapter = get_peft_model(PeftBody(experts.base()), config)
        layer = adapter.base_model.model.fc
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
        adapter.save_pretrained(path)
    model = create_arrow_model(PeftBody(experts.base()), paths, ArrowConfig(top_k=experts.top_k))
    layer = model.base_model.model.fc
    routing = layer.lora_arrow["arrow_router"]
    routing.register_buffer("prototypes", router.requires_grad_(), persistent=False)
    routing._protos_ready = True
    for number in range(experts.count):
        layer.lora_A[f"task_{number}"].requires_grad_(True)
        layer.lora_B[f"task_{number}"].requires_grad_(True)
    return layer

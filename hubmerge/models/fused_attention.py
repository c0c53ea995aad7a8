"""peft's LoRA on a fused attention, kept from wearing its base away.

peft adds the delta to torch's MultiheadAttention before each forward and subtracts it after it: the
base comes back with a rounding error, which grows from step to step, so that adapter and base no
longer give what was trained. Here the very weights are put back instead.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from peft.tuners.lora.layer import MultiheadAttention
from torch import nn


def keep_bases_exact(peft: PeftModel) -> None:
    """Let every forward leave the base weights of fused attentions bit for bit as they were."""
    for layer in peft.modules():
        if isinstance(layer, MultiheadAttention):
            held: list[tuple[nn.Module, str, nn.Parameter]] = []
            layer.register_forward_pre_hook(_hold(layer, held))
            layer.register_forward_hook(_put_back(held), always_call=True)


def _hold(layer: MultiheadAttention, held: list[tuple[nn.Module, str, nn.Parameter]]) -> Any:
    def hold(*_: object) -> None:
        attention: Any = layer.get_base_layer()
        places = (attention, "in_proj_weight"), (attention.out_proj.get_base_layer(), "weight")
        held[:] = [(module, name, getattr(module, name)) for module, name in places]

    return hold


def _put_back(held: list[tuple[nn.Module, str, nn.Parameter]]) -> Any:
    def put_back(*_: object) -> None:
        for module, name, weight in held:
            delattr(module, name)
            module.register_parameter(name, weight)
        held.clear()

    return put_back

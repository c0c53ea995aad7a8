"""Keep the base weights exact under peft's LoRA on a fused attention.

peft adds the delta to the weights of torch's MultiheadAttention before each forward pass and
subtracts it afterwards. This leaves a rounding error in the base weights, which grows with every
step, so that adapter and base no longer match what was trained. Here the original weights are
restored instead.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from peft.tuners.lora.layer import MultiheadAttention
from torch import nn

SavedWeights = list[tuple[nn.Module, str, nn.Parameter]]  # module, parameter name, weight


def keep_base_weights_exact(peft_model: PeftModel) -> None:
    """Make every forward pass leave the base weights of fused attention unchanged, bit for bit."""
    for layer in peft_model.modules():
        if isinstance(layer, MultiheadAttention):
            saved: SavedWeights = []
            layer.register_forward_pre_hook(_save_weights(layer, saved))
            layer.register_forward_hook(_restore_weights(saved), always_call=True)


def _save_weights(layer: MultiheadAttention, saved: SavedWeights) -> Any:
    def hook(*_: object) -> None:
        attention: Any = layer.get_base_layer()
        weights = (attention, "in_proj_weight"), (attention.out_proj.get_base_layer(), "weight")
        saved[:] = [(module, name, getattr(module, name)) for module, name in weights]

    return hook


def _restore_weights(saved: SavedWeights) -> Any:
    def hook(*_: object) -> None:
        for module, name, weight in saved:
            delattr(module, name)
            module.register_parameter(name, weight)
        saved.clear()

    return hook

"""A base in 4 bits, on which an adapter is trained: QLoRA (arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from hubmerge.errors import UsageError
from hubmerge.models.layers import linear_layers
from hubmerge.models.loading import Model
from hubmerge.models.open_clip_folder import OpenClip


def quantise_to_4bit(model: Model) -> None:
    """Replace the linear layers of a model that is trained by ones in NF4, in place.

    Their values become 4 bits when they move to the GPU, and are computed with in bfloat16. The
    adapter is recorded as one of the whole base, on which it is merged. Raises UsageError for a
    model whose layers bitsandbytes cannot replace.
    """
    if isinstance(model, OpenClip):
        raise UsageError(
            "The attention of open_clip's models cannot be in 4 bits.",
            "Use a base in transformers' layout, or leave --load-in out.",
        )
    bitsandbytes: Any = import_module("bitsandbytes")
    module: Any = model.module
    for name in linear_layers(model):
        layer = module.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise UsageError(
                f"The layers of this {model.name} cannot be in 4 bits.", "Leave --load-in out."
            )
        quantised = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        quantised.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=quantised
        )
        quantised.bias = layer.bias
        module.set_submodule(name, quantised)
    module.is_loaded_in_4bit = True  # peft looks here

"""A mixture of experts for PEFT's Arrow (arXiv 2405.11157): same experts, with our trained router.

PEFT keeps Arrow's prototypes in a buffer that it neither trains nor saves, stacks only experts of
one rank, and only scores by |R x|. So experts are written with ranks padded by zeros and alpha
scaled in proportion, which changes no product, and the router is inserted when they are loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import UsageError
from hubmerge.models.layers import target_modules
from hubmerge.moerging.layer import MoeLinear
from hubmerge.moerging.moe_model import MoeModel
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.layout import ADAPTER_WEIGHTS
from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS, MoeConfig

_LOAD_MOE_HINT = "Load it with hubmerge.load_moe."


def check_arrow_support(config: MoeConfig) -> None:
    """Raise UsageError for a mixture of experts that PEFT's Arrow cannot compute."""
    check_transformers_layout(config)
    if config.router.signed:
        raise UsageError(
            "This router has signed scores, and PEFT's Arrow routes only by |R x|.",
            f"{_LOAD_MOE_HINT} Or train one whose router is not signed.",
        )


def check_transformers_layout(config: MoeConfig) -> None:
    """Raise UsageError for a mixture of experts whose base is not in transformers' layout."""
    if config.layout != "transformers":
        raise UsageError(
            "The base is in open_clip's layout, where queries, keys and values are one matrix: "
            "neither PEFT nor transformers can route to experts there.",
            f"{_LOAD_MOE_HINT} Or make one from a base in transformers' layout.",
        )


def write_equal_ranks(moe: MoeModel, folder: Path) -> None:
    """Write configuration, router, and each expert as a PEFT LoRA, all of the largest rank.

    Tensors are named by the layers of the opened base, whatever their names in the experts' files.
    """
    (folder / MOE_CONFIG).write_bytes(moe.config.to_bytes())
    router = {f"{path}.router.weight": layer.router for path, layer in moe.layers.items()}
    _save(router, folder / ROUTER_WEIGHTS)
    rank = max(layer.lora_A.shape[1] for layer in moe.layers.values())
    for index, expert in enumerate(moe.config.experts):
        subfolder = folder / EXPERTS_FOLDER / expert.name
        subfolder.mkdir(parents=True)
        _save(_peft_tensors(moe.layers, index, rank), subfolder / ADAPTER_WEIGHTS)
        text = json.dumps(_adapter_config(moe, index, rank), indent=2, sort_keys=True)
        (subfolder / ADAPTER_CONFIG).write_text(f"{text}\n", encoding="utf-8")


def _peft_tensors(layers: Mapping[str, MoeLinear], index: int, rank: int) -> dict[str, Tensor]:
    """One expert's A [rank, I] and B [O, rank] by their names in PEFT."""
    tensors = {}
    for path, layer in layers.items():
        a, b = layer.lora_A[index], layer.lora_B[index]
        padding = rank - len(a)
        tensors[f"base_model.model.{path}.lora_A.weight"] = F.pad(a, (0, 0, 0, padding))
        tensors[f"base_model.model.{path}.lora_B.weight"] = F.pad(b, (0, padding))
    return tensors


def _adapter_config(moe: MoeModel, index: int, rank: int) -> dict[str, Any]:
    """One expert's adapter_config.json: alpha / rank is the expert's scale in each layer."""
    alphas = {path: _alpha(layer, index, rank) for path, layer in moe.layers.items()}
    default_alpha = next(iter(alphas.values()))
    module = moe.model.module
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=default_alpha,  # type: ignore[arg-type]
        alpha_pattern={
            # Anchored, as peft matches a pattern with the end of a name.
            f"^{re.escape(path)}": alpha
            for path, alpha in alphas.items()
            if alpha != default_alpha
        },
        target_modules=target_modules(module, tuple(moe.layers)),
        fan_in_fan_out=any(isinstance(layer.base, Conv1D) for layer in moe.layers.values()),
        base_model_name_or_path=moe.config.base_model,
        revision=moe.config.base_revision,
        inference_mode=True,
    )
    fields = config.to_dict().items()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in fields}


def _alpha(layer: MoeLinear, index: int, rank: int) -> float | int:
    alpha = float(layer.scale[index].item() * rank)
    return int(alpha) if alpha.is_integer() else alpha


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})

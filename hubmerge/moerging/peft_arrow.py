"""A mixture as PEFT's Arrow (arXiv 2405.11157) computes it: the same experts, our trained router.

PEFT keeps Arrow's prototypes in a buffer that it neither trains nor saves, stacks experts of one
rank only, and knows no other scores than |R x|. So experts are written with ranks padded by zeros
and alpha grown alike, which changes no product, and the router goes in when they are loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.models.layers import targets
from hubmerge.moerging.layer import MixtureLinear
from hubmerge.moerging.moe_model import WEIGHTS, Mixture
from hubmerge.moerging.remote_code.peft_mixture import load_mixture
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER, MoeConfig

_IN_HUBMERGE = "Load it with hubmerge.load_moe."


def to_peft(model: nn.Module, mixture: Mixture) -> PeftModel:
    """The mixture in PEFT, over `model`, in place: the base again, opened by the same class.

    Raises UsageError for a mixture that PEFT's Arrow cannot compute, CheckpointError for a base
    that lacks its layers.
    """
    check_arrow(mixture.config)
    there = {name for name, _ in model.named_modules()}
    if lacking := [path for path in mixture.layers if path not in there]:
        raise CheckpointError(
            f"This {type(model).__name__} lacks {len(lacking)} of the {len(mixture.layers)} layers "
            f"of the mixture, such as {lacking[0]}.",
            f"Open the base as {type(mixture.model.module).__name__}.",
        )
    with TemporaryDirectory() as scratch:
        write_equal_ranks(mixture, Path(scratch))
        return load_mixture(model, Path(scratch))


def check_arrow(config: MoeConfig) -> None:
    """Raise UsageError for a mixture that PEFT's Arrow cannot compute."""
    check_layout(config)
    if config.router.signed:
        raise UsageError(
            "This mixture's router is signed, and PEFT's Arrow routes by |R x| alone.",
            f"{_IN_HUBMERGE} Or train one whose router is not signed.",
        )


def check_layout(config: MoeConfig) -> None:
    """Raise UsageError for a mixture over a base that is not in transformers' layout."""
    if config.layout != "transformers":
        raise UsageError(
            "This mixture's base is in open_clip's layout, whose queries, keys and values are one "
            "matrix: neither PEFT nor transformers can route to experts there.",
            f"{_IN_HUBMERGE} Or make one over a base in transformers' layout.",
        )


def write_equal_ranks(mixture: Mixture, folder: Path) -> None:
    """Write configuration, router, and each expert as a PEFT LoRA, all of the largest rank.

    Tensors are named by the layers of the opened base, whatever the experts' files called them.
    """
    (folder / CONFIG).write_bytes(mixture.config.to_bytes())
    router = {f"{path}.router.weight": layer.router for path, layer in mixture.layers.items()}
    _save(router, folder / ROUTER)
    rank = max(layer.lora_A.shape[1] for layer in mixture.layers.values())
    for place, expert in enumerate(mixture.config.experts):
        inner = folder / EXPERTS / expert.name
        inner.mkdir(parents=True)
        _save(_factors(mixture.layers, place, rank), inner / WEIGHTS)
        text = json.dumps(_settings(mixture, place, rank), indent=2, sort_keys=True)
        (inner / FILE).write_text(f"{text}\n", encoding="utf-8")


def _factors(layers: Mapping[str, MixtureLinear], place: int, rank: int) -> dict[str, Tensor]:
    """One expert's A [rank, I] and B [O, rank] by PEFT's names."""
    told = {}
    for path, layer in layers.items():
        a, b = layer.lora_A[place], layer.lora_B[place]
        more = rank - len(a)
        told[f"base_model.model.{path}.lora_A.weight"] = F.pad(a, (0, 0, 0, more))
        told[f"base_model.model.{path}.lora_B.weight"] = F.pad(b, (0, more))
    return told


def _settings(mixture: Mixture, place: int, rank: int) -> dict[str, Any]:
    """One expert's adapter_config.json: alpha / rank is its own scale, layer by layer."""
    alphas = {path: _alpha(layer, place, rank) for path, layer in mixture.layers.items()}
    usual = next(iter(alphas.values()))
    module = mixture.model.module
    config: Any = LoraConfig(
        r=rank,
        lora_alpha=usual,  # type: ignore[arg-type]
        alpha_pattern={
            # Anchored: peft takes a pattern for the end of a name.
            f"^{re.escape(path)}": alpha
            for path, alpha in alphas.items()
            if alpha != usual
        },
        target_modules=targets(module, tuple(mixture.layers)),
        fan_in_fan_out=any(isinstance(layer.base, Conv1D) for layer in mixture.layers.values()),
        base_model_name_or_path=mixture.config.base_model,
        revision=mixture.config.base_revision,
        inference_mode=True,
    )
    said = config.to_dict().items()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said}


def _alpha(layer: MixtureLinear, place: int, rank: int) -> float | int:
    alpha = float(layer.scale[place].item() * rank)
    return int(alpha) if alpha.is_integer() else alpha


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})

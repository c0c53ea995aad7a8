"""The modules of a model that a LoRA can change, from its configuration alone: no weight is read.

The model is built on torch's meta device, where tensors have shapes and no values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn
from transformers import CLIPModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import CheckpointError
from hubmerge.models.config import read_config
from hubmerge.models.load_errors import load_errors_name
from hubmerge.models.loading import family_of
from hubmerge.models.open_clip_folder import check_self_contained
from hubmerge.models.open_clip_folder import without_warnings as without_open_clip_warnings
from hubmerge.models.tensor_names import find_unchanged_names
from hubmerge.models.transformers_folder import class_of_config, class_of_type, without_warnings
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.lora_modules import LoraModule, module_path


@dataclass(frozen=True)
class Structure:
    """The linear layers of a model, and what peft records of its class."""

    modules: tuple[LoraModule, ...]
    task_type: str | None
    auto_mapping: Mapping[str, str] | None


def read_structure(folder: Path, index: Mapping[str, TensorInfo]) -> Structure:
    """The linear layers whose weights are tensors of `index`, by their paths in the loaded model.

    The class is the one with which hubmerge loads the folder. Layers whose weight another module
    shares are left out, as are weights that the class builds from several tensors. Raises
    CheckpointError for a folder whose class is not known.
    """
    with load_errors_name(folder):
        module, task_type = _build(folder)
        names = find_unchanged_names(index, module)
    by_module = {found: name for name, found in names.items()}
    modules = tuple(
        LoraModule(module_path(weight), by_module[weight], index[by_module[weight]].shape,
                   inputs_first=inputs_first)
        for weight, inputs_first in _linear_weights(module)
        if weight in by_module
    )  # fmt: skip
    mapping = {"base_model_class": type(module).__name__, "parent_library": type(module).__module__}
    return Structure(modules, task_type, None if task_type else mapping)


def _build(folder: Path) -> tuple[nn.Module, str | None]:
    """The model of a folder without values, and peft's task type for a language model."""
    if (folder / "open_clip_config.json").is_file():
        check_self_contained(read_config(folder / "open_clip_config.json")["model_cfg"])
        with without_open_clip_warnings(), torch.device("meta"):
            return open_clip.create_model(
                f"local-dir:{folder}", load_weights=False, pretrained_text=False, device="meta"
            ), None
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json, which says which of its matrices are layers.",
            "An adapter needs to know them: merge whole weights.",
        )
    config = read_config(folder / "config.json")
    model_class, task_type = _class_of(config)
    built = model_class.config_class.from_dict(config)
    with without_warnings(), torch.device("meta"):
        # Always set, because a config may name a kernel on the Hub.
        return model_class._from_config(built, attn_implementation="eager"), task_type


def _class_of(config: dict[str, Any]) -> tuple[Any, str | None]:
    """The class with which hubmerge loads a model, and peft's task type for it."""
    family = family_of(config)
    if family == "clip":
        return CLIPModel, None
    if family != "language":
        return class_of_config(config, MODEL_MAPPING_NAMES), None
    if config.get("is_encoder_decoder"):
        mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        return class_of_type(config, mapping), "SEQ_2_SEQ_LM"
    return class_of_type(config, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), "CAUSAL_LM"


def _linear_weights(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """The weights of all linear layers by their names in the state, and whether inputs are first.

    A fused attention has two, or none if peft does not support it.
    """
    uses = Counter(id(weight) for weight in module.state_dict(keep_vars=True).values())
    fused = [m for m in module.modules() if isinstance(m, nn.MultiheadAttention)]
    inside = {id(attention.out_proj) for attention in fused}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(layer, nn.MultiheadAttention) and layer._qkv_same_embed_dim:
            yield f"{prefix}in_proj_weight", False
            yield f"{prefix}out_proj.weight", False
        elif isinstance(layer, (nn.Linear, Conv1D)) and id(layer) not in inside:
            is_shared = uses[id(layer.weight)] > 1
            if not is_shared:
                yield f"{prefix}weight", isinstance(layer, Conv1D)

"""The layers that adapters change, and the shortest words that name them and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import UsageError
from hubmerge.models.clip_folder import TransformersClip
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model
from hubmerge.models.open_clip_folder import OpenClip

# peft has no word on these; as elsewhere: keys, values, and what goes into the second layer.
_IA3 = {"clip": ["k_proj", "v_proj", "fc2"], "vit": ["k_proj", "v_proj", "fc2"]}
_IA3_FEEDFORWARD = {"clip": ["fc2"], "vit": ["fc2"]}
_TOWERS = ("visual.transformer.", "visual.trunk.")  # open_clip's own ViT, or timm's

Targets = str | list[str]


def linear_layers(model: Model) -> tuple[str, ...]:
    """The names in `model.module` of "every linear layer" of the part that is trained.

    Poolers, heads, projections behind an encoder and output embeddings are none of them. In
    open_clip's attention queries, keys and values are one parameter, so there the attention counts
    as a layer. Raises UsageError where there is none.
    """
    counts = _is_layer(model)
    found = tuple(name for name, layer in model.module.named_modules() if counts(name, layer))
    if not found:
        raise UsageError(
            f"This {model.name} has no linear layers that an adapter could change.",
            "Use `tune: full`.",
        )
    return found


def ia3_layers(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The layers that (IA)^3 scales, and those among them whose inputs it scales.

    Raises UsageError for a family of which neither peft nor we know them.
    """
    family = model.module.config.model_type
    scaled = {**TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING, **_IA3}.get(family)
    inputs = {**TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING, **_IA3_FEEDFORWARD}
    if not scaled:
        raise UsageError(
            f"peft does not know which layers of a {family!r} model (IA)^3 scales.",
            "Use `tune: lora`.",
        )
    layers = linear_layers(model)
    return _ending(layers, scaled), _ending(layers, inputs[family])


def targets(module: nn.Module, layers: Sequence[str]) -> Targets:
    """`layers` as peft's `target_modules`: endings, sorted, or else one pattern.

    Either matches exactly these modules of all that there are.
    """
    every = [name for name, _ in module.named_modules()]
    ends = {_own_ending(every, layers, name.split(".")) for name in layers}
    if None not in ends:
        return sorted(cast("set[str]", ends))
    last = sorted({name.rpartition(".")[2] for name in layers})
    pattern = rf"{re.escape(_shared(layers))}.*\.({'|'.join(last)})"
    if [name for name in every if re.fullmatch(pattern, name)] == list(layers):
        return pattern
    return "|".join(re.escape(name) for name in layers)


def _is_layer(model: Model) -> Callable[[str, nn.Module], bool]:
    if isinstance(model, OpenClip):
        return _in_tower
    if isinstance(model, TransformersClip):
        body: nn.Module = model.module.vision_model
    elif isinstance(model, LanguageModel):
        body = model.module
    else:
        body = model.module.base_model
    inside = {layer for layer in body.modules() if isinstance(layer, (nn.Linear, Conv1D))}
    output = cast(object, model.module.get_output_embeddings())
    return lambda name, layer: (
        layer in inside and layer is not output and "pooler" not in name.split(".")
    )


def _in_tower(name: str, layer: nn.Module) -> bool:
    # The projection inside the attention is never called, so an adapter on it would be dead.
    kind = (nn.Linear, nn.MultiheadAttention)
    return name.startswith(_TOWERS) and isinstance(layer, kind) and "attn.out_proj" not in name


def _ending(names: Iterable[str], ends: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in names if any(n == end or n.endswith(f".{end}") for end in ends))


def _own_ending(every: Sequence[str], layers: Sequence[str], parts: list[str]) -> str | None:
    """The end of a layer's name, one or two parts long, that only such layers have."""
    ends = (parts[-1], ".".join(parts[-2:]))
    return next((end for end in ends if set(_ending(every, [end])) <= set(layers)), None)


def _shared(names: Sequence[str]) -> str:
    """The path that all names have in common, with its dot."""
    shared = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared

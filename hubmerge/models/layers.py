"""The layers that adapters change, and the shortest `target_modules` that match exactly them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import UsageError, join_with_or, raise_together
from hubmerge.models.clip_folder import TransformersClip
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model
from hubmerge.models.open_clip_folder import OpenClip
from hubmerge.refs import printable

# Families missing in peft; like its own entries: keys, values, and the second feed-forward layer.
_IA3_LAYERS = {"clip": ["k_proj", "v_proj", "fc2"], "vit": ["k_proj", "v_proj", "fc2"]}
_IA3_FEEDFORWARD_LAYERS = {"clip": ["fc2"], "vit": ["fc2"]}
_OPEN_CLIP_TOWERS = ("visual.transformer.", "visual.trunk.")  # open_clip's own ViT, or timm's

TargetModules = str | list[str]


def linear_layers(model: Model) -> tuple[str, ...]:
    """The names in `model.module` of every linear layer of the part that is trained.

    Poolers, heads, projections after an encoder and output embeddings are excluded. In open_clip's
    attention, queries, keys and values are one parameter, so the attention counts as a layer.
    Raises UsageError if there are none.
    """
    is_adaptable = _layer_filter(model)
    names = tuple(name for name, layer in model.module.named_modules() if is_adaptable(name, layer))
    if not names:
        raise UsageError(
            f"This {model.name} has no linear layers that an adapter could change.",
            "Use `tune: full`.",
        )
    return names


def named_layers(model: Model, names: Sequence[str], embeddings: bool) -> tuple[str, ...]:
    """The names in `model.module` of the linear layers that users name, by their last parts.

    `q_proj` is the layer of that name in every block, `layers.0.self_attn.q_proj` one of them; with
    `embeddings` these count as layers. Raises UsageError for all names that are no layers at once.
    """
    kinds = (nn.Linear, Conv1D, *((nn.Embedding,) if embeddings else ()))
    modules = dict(model.module.named_modules())
    allowed = [name for name, module in modules.items() if isinstance(module, kinds)]
    if isinstance(model, OpenClip):  # peft adapts its attention as one layer
        allowed = list(linear_layers(model))
    found, problems = set[str](), list[str]()
    for name in names:
        matches = _with_suffix(allowed, [name])
        found.update(matches)
        if not matches:
            is_other = bool(_with_suffix(modules, [name]))
            problems.append(_unknown_module(name, allowed, "layer", is_other))
    raise_together(UsageError, problems, "Write --target-modules with names of layers.")
    return tuple(name for name in allowed if name in found)


def saved_modules(model: Model, names: Sequence[str]) -> list[str]:
    """The full names of the modules that users name, which are trained whole beside LoRA.

    Raises UsageError, naming near matches, for names that are no modules with weights, and for
    those by which peft, which compares ends of names, would train other modules too.
    """
    all_names = _names(model)
    with_weights = [
        name
        for name, module in model.module.named_modules()
        if name and any(True for _ in module.parameters(recurse=False))
    ]
    problems, found = list[str](), set[str]()
    for name in names:
        matches = _with_suffix(with_weights, [name])
        found.update(matches)
        if not matches:
            is_other = bool(_with_suffix(all_names, [name]))
            problems.append(_unknown_module(name, with_weights, "module", is_other))
    others = sorted({n for n in all_names if any(n.endswith(path) for path in found)} - found)
    if others:
        problems.append(f"peft would also train {others[0]} whole, whose name ends like the other.")
    raise_together(UsageError, problems, "Write --modules-to-save with names of such modules.")
    return sorted(found)


def _names(model: Model) -> list[str]:
    return [name for name, _ in model.module.named_modules()]


def _unknown_module(name: str, allowed: Sequence[str], noun: str, is_other: bool) -> str:
    """A sentence on a name that is not allowed, with near ones."""
    known = sorted({path.rpartition(".")[2] for path in allowed})
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=3, cutoff=0.5)
    shown = f"did you mean {join_with_or(near)}?" if near else f"it has {', '.join(known[:12])}."
    what = "no linear layer" if noun == "layer" else "no module with weights of its own"
    problem = f"is {what} of this model" if is_other else "is in no name of this model"
    return f"{printable(name)!r} {problem}: {shown}"


def ia3_layers(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The layers that (IA)^3 scales, and those among them whose inputs it scales.

    Raises UsageError for a model family that is not listed in peft or here.
    """
    family = model.module.config.model_type
    scaled = {**TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING, **_IA3_LAYERS}.get(family)
    inputs = {**TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING, **_IA3_FEEDFORWARD_LAYERS}
    if not scaled:
        raise UsageError(
            f"(IA)^3 is not supported for {family!r} models: peft lists no layers for them.",
            "Use `tune: lora`.",
        )
    layers = linear_layers(model)
    return _with_suffix(layers, scaled), _with_suffix(layers, inputs[family])


def target_modules(module: nn.Module, layers: Sequence[str]) -> TargetModules:
    """`layers` as peft's `target_modules`: sorted name suffixes, or else one regular expression.

    It matches exactly these layers and no other modules.
    """
    all_names = [name for name, _ in module.named_modules()]
    suffixes = {_unique_suffix(all_names, layers, name.split(".")) for name in layers}
    if None not in suffixes:
        return sorted(cast("set[str]", suffixes))
    last_parts = sorted({name.rpartition(".")[2] for name in layers})
    pattern = rf"{re.escape(_common_prefix(layers))}.*\.({'|'.join(last_parts)})"
    if [name for name in all_names if re.fullmatch(pattern, name)] == list(layers):
        return pattern
    return "|".join(re.escape(name) for name in layers)


def _layer_filter(model: Model) -> Callable[[str, nn.Module], bool]:
    if isinstance(model, OpenClip):
        return _is_open_clip_layer
    if isinstance(model, TransformersClip):
        body: nn.Module = model.module.vision_model
    elif isinstance(model, LanguageModel):
        body = model.module
    else:
        body = model.module.base_model
    outside = getattr(model, "module_folders", ())  # modules of an embedding model
    inside = {layer for layer in body.modules() if isinstance(layer, (nn.Linear, Conv1D))}
    output = cast(object, model.module.get_output_embeddings())
    return lambda name, layer: (
        layer in inside
        and layer is not output
        and "pooler" not in (parts := name.split("."))
        and parts[0] not in outside
    )


def _is_open_clip_layer(name: str, layer: nn.Module) -> bool:
    # The projection inside the attention is never called, so an adapter on it has no effect.
    is_linear = isinstance(layer, (nn.Linear, nn.MultiheadAttention))
    return name.startswith(_OPEN_CLIP_TOWERS) and is_linear and "attn.out_proj" not in name


def _with_suffix(names: Iterable[str], suffixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in names if any(n == s or n.endswith(f".{s}") for s in suffixes))


def _unique_suffix(all_names: Sequence[str], layers: Sequence[str], parts: list[str]) -> str | None:
    """The last one or two parts of a layer's name, if only names in `layers` end with them."""
    suffixes = (parts[-1], ".".join(parts[-2:]))
    return next((s for s in suffixes if set(_with_suffix(all_names, [s])) <= set(layers)), None)


def _common_prefix(names: Sequence[str]) -> str:
    """The module path that all names have in common, with its final dot."""
    prefix = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
    return prefix

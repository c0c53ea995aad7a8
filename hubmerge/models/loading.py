"""From a folder and a kind of task to the model that does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from hubmerge.errors import CheckpointError
from hubmerge.models.clip_folder import TransformersClip, open_transformers_clip
from hubmerge.models.config import check_configs, read_config
from hubmerge.models.language_model import LanguageModel, open_language_model
from hubmerge.models.open_clip_folder import OpenClip, open_open_clip
from hubmerge.models.text_encoder import TextEncoder, open_text_encoder
from hubmerge.models.vision_encoder import VisionEncoder, open_vision_encoder
from hubmerge.refs import printable
from hubmerge.specs import Kind
from hubmerge.weights.checkpoint import open_checkpoint

ImageModel = OpenClip | TransformersClip | VisionEncoder
Model = ImageModel | TextEncoder | LanguageModel
Family = Literal["clip", "image", "text", "language", "none"]
Opener = Callable[[Path, dict[str, Any]], Model]

_OPENERS: dict[Family, Opener] = {
    "clip": open_transformers_clip,
    "image": open_vision_encoder,
    "text": open_text_encoder,
    "language": open_language_model,
}
_FAMILIES: dict[Kind, tuple[Family, ...]] = {
    "image": ("clip", "image"),
    "text": ("text",),
    "rank": ("language",),
    "target": ("language",),
}
_NEEDS: dict[Kind, str] = {
    "image": "a CLIP in open_clip's or transformers' layout, or a vision encoder such as a ViT",
    "text": "a text encoder such as BERT or RoBERTa",
    "rank": "a language model such as T5 or GPT-2",
    "target": "a language model such as T5 or GPT-2",
}
# Image classifiers of transformers that read words as well, or fetch their tower from elsewhere.
_NO_ENCODERS = {"timm_wrapper", "siglip", "siglip2", "metaclip_2", "shieldgemma2", "perceiver"}


@overload
def open_model(folder: Path, kind: Literal["image"] = "image") -> ImageModel: ...
@overload
def open_model(folder: Path, kind: Literal["text"]) -> TextEncoder: ...
@overload
def open_model(folder: Path, kind: Literal["rank", "target"]) -> LanguageModel: ...
@overload
def open_model(folder: Path, kind: Kind) -> Model: ...


def open_model(folder: Path, kind: Kind = "image") -> Model:
    """Open the model of a folder for a kind of task, on the CPU, in float32, from safetensors only.

    Nothing outside the folder is looked at. Raises CheckpointError for a model of another kind, an
    adapter, pickled or missing weights, or a config that wants code to be run or files fetched.
    """
    _check_no_adapter(folder)
    check_configs(folder)
    if (folder / "open_clip_config.json").is_file():
        _check_family(folder, "an open_clip CLIP", "clip", kind)
        return _opened(open_open_clip, folder, read_config(folder / "open_clip_config.json"))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no model: neither open_clip_config.json nor config.json is there."
        )
    config = read_config(folder / "config.json")
    family = _family(config)
    _check_family(folder, f"a {config.get('model_type', 'nameless')!r} model", family, kind)
    _check_not_quantised(folder, config)
    return _opened(_OPENERS[family], folder, config)


def _family(config: dict[str, Any]) -> Family:
    """What a transformers config is of, by transformers' own lists of what each type can do."""
    kind = config.get("model_type")
    if kind == "clip":
        return "clip"
    if config.get("is_encoder_decoder"):
        return "language" if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else "none"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return "text"
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and kind not in _NO_ENCODERS:
        return "image"
    return "language" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "none"


def _check_family(folder: Path, found: str, family: Family, kind: Kind) -> None:
    if family not in _FAMILIES[kind]:
        raise CheckpointError(
            f"{folder} holds {found}, which cannot do a task of kind {kind}.",
            f"A task of kind {kind} needs {_NEEDS[kind]}.",
        )


def _check_no_adapter(folder: Path) -> None:
    """transformers would look its base up on the Hub, whatever lies beside it."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter.", "Open its base instead, and apply the adapter to that."
        )


def _check_not_quantised(folder: Path, config: dict[str, Any]) -> None:
    if {"quantization_config", "compression_config"} & set(config):
        raise CheckpointError(
            f"{folder} is quantised, which can be neither trained nor merged.",
            "Use the model it was made from.",
        )


def _opened(opener: Opener, folder: Path, config: dict[str, Any]) -> Model:
    open_checkpoint(folder)  # refuses pickles, links and shards that lead out of the folder
    try:
        return opener(folder, config)
    except (
        AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        reason = printable(" ".join(str(error).split()))[:400]
        raise CheckpointError(f"{folder} cannot be opened as a model: {reason}") from error

"""Load the model of a folder for a kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from hubmerge.errors import CheckpointError
from hubmerge.models.clip_folder import TransformersClip, load_transformers_clip
from hubmerge.models.config import check_configs, read_config
from hubmerge.models.embedder import Embedder, load_embedder
from hubmerge.models.language_model import LanguageModel, load_language_model
from hubmerge.models.load_errors import load_errors_name
from hubmerge.models.open_clip_folder import OpenClip, load_open_clip
from hubmerge.models.text_decoder import TextDecoder, load_text_decoder
from hubmerge.models.text_encoder import TextEncoder, load_text_encoder
from hubmerge.models.vision_encoder import VisionEncoder, load_vision_encoder
from hubmerge.specs import Kind
from hubmerge.weights.checkpoint import open_checkpoint

ImageModel = OpenClip | TransformersClip | VisionEncoder
Model = ImageModel | TextEncoder | TextDecoder | LanguageModel | Embedder
Family = Literal["clip", "image", "text", "language", "none"]
Loader = Callable[[Path, dict[str, Any]], Model]

_LOADERS: dict[Family, Loader] = {
    "clip": load_transformers_clip,
    "image": load_vision_encoder,
    "text": load_text_encoder,
    "language": load_language_model,
}
_FAMILIES_OF_KIND: dict[Kind, tuple[Family, ...]] = {
    "image": ("clip", "image"),
    "text": ("text",),
    "rank": ("language",),
    "target": ("language",),
    "pairs": ("text", "language"),
}
_REQUIRED_MODEL: dict[Kind, str] = {
    "image": "a CLIP in open_clip's or transformers' layout, or a vision encoder such as a ViT",
    "text": "a text encoder such as BERT or RoBERTa",
    "rank": "a language model such as T5 or GPT-2",
    "target": "a language model such as T5 or GPT-2",
    "pairs": "a text encoder such as BERT, or a decoder, with the modules of sentence-transformers",
}
# transformers' image classifiers that are not plain encoders: they also read text, or fetch their
# tower from elsewhere.
_NOT_ENCODERS = {"timm_wrapper", "siglip", "siglip2", "metaclip_2", "shieldgemma2", "perceiver"}


@overload
def load_model(folder: Path, kind: Literal["image"] = "image") -> ImageModel: ...
@overload
def load_model(folder: Path, kind: Literal["text"]) -> TextEncoder: ...
@overload
def load_model(folder: Path, kind: Literal["rank", "target"]) -> LanguageModel: ...
@overload
def load_model(folder: Path, kind: Literal["pairs"]) -> Embedder: ...
@overload
def load_model(folder: Path, kind: Kind) -> Model: ...


def load_model(folder: Path, kind: Kind = "image") -> Model:
    """Load the model of a folder for a kind of task: on the CPU, in float32, from safetensors only.

    Reads nothing outside the folder. Raises CheckpointError for a model that does not support this
    kind of task, an adapter, pickled or missing weights, or a config that would run code or fetch
    files.
    """
    _check_no_adapter(folder)
    check_configs(folder)
    if (folder / "open_clip_config.json").is_file():
        _check_family(folder, "an open_clip CLIP", "clip", kind, {})
        return _load(load_open_clip, folder, read_config(folder / "open_clip_config.json"))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a model folder: it has no open_clip_config.json and no config.json."
        )
    config = read_config(folder / "config.json")
    family = family_of(config)
    _check_family(folder, f"a {config.get('model_type', 'unnamed')!r} model", family, kind, config)
    _check_not_quantised(folder, config)
    return _load(load_embedder if kind == "pairs" else _LOADERS[family], folder, config)


def load_classifier(folder: Path, kind: Kind) -> Model:
    """As `load_model`, but a model with a decoder may classify texts too, as a `TextDecoder`."""
    if kind == "text" and _is_language_model(folder):
        _check_no_adapter(folder)
        check_configs(folder)
        config = read_config(folder / "config.json")
        _check_not_quantised(folder, config)
        return _load(load_text_decoder, folder, config)
    return load_model(folder, kind)


def default_kind(folder: Path) -> Kind:
    """The first kind of task that the model of a folder supports; raises CheckpointError."""
    if (folder / "open_clip_config.json").is_file():
        return "image"
    family = family_of(read_config(folder / "config.json"))
    kinds = [kind for kind, families in _FAMILIES_OF_KIND.items() if family in families]
    if not kinds:
        raise CheckpointError(f"{folder} supports no kind of task.")
    return kinds[0]


def _is_language_model(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and family_of(read_config(config)) == "language"


def family_of(config: dict[str, Any]) -> Family:
    """The family of a model, by transformers' own lists of what each model type can do."""
    model_type = config.get("model_type")
    if model_type == "clip":
        return "clip"
    if config.get("is_encoder_decoder"):
        return "language" if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES else "none"
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return "text"
    is_image_classifier = model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if is_image_classifier and model_type not in _NOT_ENCODERS:
        return "image"
    return "language" if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "none"


def _check_family(
    folder: Path, description: str, family: Family, kind: Kind, config: Mapping[str, Any]
) -> None:
    is_seq2seq = kind == "pairs" and config.get("is_encoder_decoder")
    if family not in _FAMILIES_OF_KIND[kind] or is_seq2seq:
        raise CheckpointError(
            f"{folder} is {description}, which does not support tasks of kind {kind}.",
            f"Tasks of kind {kind} need {_REQUIRED_MODEL[kind]}.",
        )


def _check_no_adapter(folder: Path) -> None:
    """Refuse adapters: transformers would look up their base model on the Hub."""
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} is an adapter.", "Load its base model, and apply the adapter to it."
        )


def _check_not_quantised(folder: Path, config: dict[str, Any]) -> None:
    if {"quantization_config", "compression_config"} & set(config):
        raise CheckpointError(
            f"{folder} is a quantised model, which cannot be trained or merged.",
            "Use the model that it was quantised from.",
        )


def _load(loader: Loader, folder: Path, config: dict[str, Any]) -> Model:
    open_checkpoint(folder)  # raises for pickles, and for links and shards outside the folder
    with load_errors_name(folder):
        return loader(folder, config)

"""CLIP models in transformers' layout: config, weights, tokenizer and image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from transformers import CLIPModel

from hubmerge.models.preprocess import Transform, image_transform, processor_preprocess
from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.transformers_folder import (
    load_module,
    load_tokenizer,
    save_module,
    tokenize_prompts,
)


class ImageTower(nn.Module):
    """CLIP's vision model and projection as one module; it shares the model's parameters."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.vision_model(pixel_values=images).pooler_output
        return cast(Tensor, self.visual_projection(pooled))


@dataclass(frozen=True)
class TransformersClip:
    """A transformers CLIPModel; `visual_projection` is trained too, as open_clip's `proj` is."""

    module: CLIPModel
    names: TensorNames
    encoder: nn.Module
    tokenizer: Any
    preprocess: PreprocessCfg
    max_tokens: int  # of the text tower
    width: int
    layout: str = "transformers"
    name: str = "CLIPModel"

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        tokens = tokenize_prompts(self.tokenizer, prompts, self.max_tokens)
        hidden = self.module.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return cast(Tensor, self.module.text_projection(hidden.pooler_output))

    def scale(self) -> float:
        return self.module.logit_scale.exp().item()

    def transform(self, augment: bool) -> Transform:
        return image_transform(self.preprocess, augment)

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


def load_transformers_clip(folder: Path, config: dict[str, Any]) -> TransformersClip:
    """Load the folder with transformers; reads no pickle and no file outside the folder."""
    module, names = load_module(folder, CLIPModel)
    max_tokens = module.text_model.embeddings.position_embedding.num_embeddings
    preprocess = _preprocess(folder, config["vision_config"]["image_size"])
    width = module.config.projection_dim
    return TransformersClip(
        module, names, ImageTower(module), load_tokenizer(folder), preprocess, max_tokens, width
    )


def _preprocess(folder: Path, image_size: int) -> PreprocessCfg:
    """The settings of the folder's CLIPImageProcessor; missing ones have its defaults."""
    path = folder / "preprocessor_config.json"
    processor = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return processor_preprocess({"do_center_crop": True, "size": image_size, **processor}, path)

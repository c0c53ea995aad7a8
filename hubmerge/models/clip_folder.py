"""transformers' CLIP layout: config.json, model.safetensors, tokenizer, preprocessor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel

from hubmerge.models.preprocess import Transform, image_transform

_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class ImageTower(nn.Module):
    """CLIP's vision model and projection as one module; the parameters stay those of the model."""

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

    model: CLIPModel
    encoder: nn.Module
    tokenizer: Any
    preprocess: PreprocessCfg
    length: int  # words the text tower takes
    layout: str = "transformers"

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        words = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        hidden = self.model.text_model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
        return cast(Tensor, self.model.text_projection(hidden.pooler_output))

    def scale(self) -> float:
        return self.model.logit_scale.exp().item()

    def transform(self, augment: bool) -> Transform:
        return image_transform(self.preprocess, augment)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def open_clip_transformers(folder: Path, config: dict[str, Any]) -> TransformersClip:
    """Open the folder with transformers; no file outside it and no pickle is looked at."""
    model = CLIPModel.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype="float32"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = model.text_model.embeddings.position_embedding.num_embeddings
    return TransformersClip(
        model, ImageTower(model), tokenizer, _preprocess(folder, config), length
    )


def _preprocess(folder: Path, config: dict[str, Any]) -> PreprocessCfg:
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = said.get("crop_size") or config["vision_config"]["image_size"]
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    defaults = PreprocessCfg()
    return PreprocessCfg(
        size=size,
        mean=tuple(said.get("image_mean", defaults.mean)),
        std=tuple(said.get("image_std", defaults.std)),
        interpolation=_INTERPOLATION.get(said.get("resample", 3), "bicubic"),
    )

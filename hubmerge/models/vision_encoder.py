"""A transformers vision encoder: ViT, DeiT, DINOv2, Swin ... It reads no words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from transformers import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hubmerge.models.preprocess import Transform, image_transform, preprocess_said
from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.transformers_folder import named_class, open_module, save_module


class ImageFeatures(nn.Module):
    """Images [B, 3, H, W] -> the pooler's output [B, D], or the first token's without a pooler."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        seen = self.body(pixel_values=images)
        pooled = getattr(seen, "pooler_output", None)
        features = seen.last_hidden_state[:, 0] if pooled is None else pooled
        return cast(Tensor, features.flatten(1))  # convolutional models keep a 1 x 1 map


@dataclass(frozen=True)
class VisionEncoder:
    """A vision encoder with the heads it came with; only a trained head can tell its classes."""

    module: Any
    names: TensorNames
    encoder: nn.Module
    preprocess: PreprocessCfg
    width: int
    name: str
    layout: str = "transformers"

    def transform(self, augment: bool) -> Transform:
        return image_transform(self.preprocess, augment)

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        save_module(self.module, self.names, folder, state)


def open_vision_encoder(folder: Path, config: dict[str, Any]) -> VisionEncoder:
    """Open the folder by the class its config names; raises ValueError without a processor."""
    module, names = open_module(folder, named_class(config, MODEL_MAPPING_NAMES))
    encoder = ImageFeatures(module.base_model).eval()
    preprocess = _preprocess(folder)
    width = _width(encoder, preprocess)
    return VisionEncoder(module, names, encoder, preprocess, width, type(module).__name__)


def _preprocess(folder: Path) -> PreprocessCfg:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError("preprocessor_config.json, which says how images are prepared, is missing")
    processor = cast(Any, AutoImageProcessor).from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    said = processor.to_dict()
    if not (said.get("do_normalize") and said.get("do_rescale")):
        raise ValueError(f"{path} does not scale and normalise images, which is not supported")
    return preprocess_said(said, path)


@torch.no_grad()
def _width(encoder: nn.Module, preprocess: PreprocessCfg) -> int:
    """Configs name it in as many ways as there are families, so one image is looked at."""
    size = cast("tuple[int, int]", preprocess.size)
    return int(encoder(torch.zeros(1, 3, *size)).shape[1])

"""Vision encoders of transformers without a text tower: ViT, DeiT, DINOv2, Swin ..."""

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

from hubmerge.models.preprocess import Transform, image_transform, processor_preprocess
from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.transformers_folder import class_of_config, load_module, save_module


class ImageFeatures(nn.Module):
    """Images [B, 3, H, W] -> the pooler's output [B, D], or the first token's without a pooler."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        output = self.body(pixel_values=images)
        pooled = getattr(output, "pooler_output", None)
        features = output.last_hidden_state[:, 0] if pooled is None else pooled
        return cast(Tensor, features.flatten(1))  # convolutional models keep a 1 x 1 map


@dataclass(frozen=True)
class VisionEncoder:
    """A vision encoder, with the heads of its folder; tasks need a trained head."""

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


def load_vision_encoder(folder: Path, config: dict[str, Any]) -> VisionEncoder:
    """Load the folder with the class that its config names.

    Raises ValueError if there is no image processor.
    """
    module, names = load_module(folder, class_of_config(config, MODEL_MAPPING_NAMES))
    encoder = ImageFeatures(module.base_model).eval()
    preprocess = _preprocess(folder)
    width = _width(encoder, preprocess)
    return VisionEncoder(module, names, encoder, preprocess, width, type(module).__name__)


def _preprocess(folder: Path) -> PreprocessCfg:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError("preprocessor_config.json, the settings for images, is missing")
    processor = cast(Any, AutoImageProcessor).from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    settings = processor.to_dict()
    if not (settings.get("do_normalize") and settings.get("do_rescale")):
        raise ValueError(f"{path} does not rescale and normalise images, which is not supported")
    return processor_preprocess(settings, path)


@torch.no_grad()
def _width(encoder: nn.Module, preprocess: PreprocessCfg) -> int:
    """The feature dimension, found with one image: its name in configs differs by family."""
    size = cast("tuple[int, int]", preprocess.size)
    return int(encoder(torch.zeros(1, 3, *size)).shape[1])

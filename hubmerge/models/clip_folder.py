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
from transformers.utils.logging import disable_progress_bar

from hubmerge.models.preprocess import Transform, image_transform

disable_progress_bar()  # type: ignore[no-untyped-call]

_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, and all that open_clip has


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
    length: int  # tokens the text tower takes
    layout: str = "transformers"

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        hidden = self.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return cast(Tensor, self.model.text_projection(hidden.pooler_output))

    def scale(self) -> float:
        return self.model.logit_scale.exp().item()

    def transform(self, augment: bool) -> Transform:
        return image_transform(self.preprocess, augment)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def open_transformers_clip(folder: Path, config: dict[str, Any]) -> TransformersClip:
    """Open the folder with transformers; no file outside it and no pickle is looked at."""
    model = CLIPModel.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        dtype="float32",
        attn_implementation="sdpa",  # a config may name a kernel on the Hub instead
    )
    # False rather than nothing: transformers would ask on the terminal.
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    length = model.text_model.embeddings.position_embedding.num_embeddings
    preprocess = _preprocess(folder, config["vision_config"]["image_size"])
    return TransformersClip(model, ImageTower(model), tokenizer, preprocess, length)


def _preprocess(folder: Path, image_size: int) -> PreprocessCfg:
    """CLIPImageProcessor's settings in open_clip's words; ValueError for those it cannot say."""
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    crops = said.get("do_center_crop", True)
    resized = _sides(said.get("size", image_size))
    size = _sides(said.get("crop_size", image_size)) if crops else resized
    if resized != size:
        raise ValueError(f"{path} resizes to {resized} and crops {size}; they must be the same")
    if said.get("resample", 3) not in _INTERPOLATION:
        raise ValueError(f"{path} resamples in way {said['resample']}, which is not supported")
    defaults = PreprocessCfg()
    return PreprocessCfg(
        size=size,
        mean=tuple(said.get("image_mean", defaults.mean)),
        std=tuple(said.get("image_std", defaults.std)),
        interpolation=_INTERPOLATION[said.get("resample", 3)],
        resize_mode="shortest" if crops else "squash",
    )


def _sides(size: int | dict[str, int]) -> tuple[int, int]:
    """Height and width, however the processor's config writes them."""
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]

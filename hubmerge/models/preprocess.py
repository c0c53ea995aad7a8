"""Image preprocessing with open_clip's transforms, for models of every layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

Transform = Callable[[Any], Tensor]
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # PIL's number -> open_clip's name


def image_transform(preprocess: PreprocessCfg, augment: bool) -> Transform:
    """Resize, crop and normalise; with `augment`, take a random crop of 90 to 100 % of the area.

    Augmentation draws from torch's global generator, which the caller seeds.
    """
    compose = image_transform_v2(preprocess, is_train=augment)
    compose.transforms[-1] = _Normalize(*map(_per_channel, (preprocess.mean, preprocess.std)))
    transform: Transform = compose
    return transform


@dataclass(frozen=True)
class _Normalize:
    """torchvision's Normalize with tensors [C, 1, 1] that it would make again for every image.

    On a small image that takes longer than all other transforms together.
    """

    mean: Tensor
    std: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean).div_(self.std)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def processor_preprocess(processor: Mapping[str, Any], path: Path) -> PreprocessCfg:
    """The settings of a transformers image processor as open_clip's PreprocessCfg.

    Raises ValueError for settings that open_clip does not support.
    """
    crops = bool(processor.get("do_center_crop"))
    resized = _height_and_width(processor["size"])
    size = _height_and_width(processor.get("crop_size") or processor["size"]) if crops else resized
    if resized != size:
        raise ValueError(f"{path} resizes to {resized} and crops to {size}; they must be the same")
    if processor.get("resample", 3) not in _INTERPOLATION:
        raise ValueError(f"{path} has resample {processor['resample']}, which is not supported")
    defaults = PreprocessCfg()
    return PreprocessCfg(
        size=size,
        mean=tuple(processor.get("image_mean") or defaults.mean),
        std=tuple(processor.get("image_std") or defaults.std),
        interpolation=_INTERPOLATION[processor.get("resample", 3)],
        resize_mode="shortest" if crops else "squash",
    )


def _height_and_width(size: int | Mapping[str, int]) -> tuple[int, int]:
    """Height and width, in any of the forms that processor configs have."""
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]

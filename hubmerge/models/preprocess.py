"""From a PIL image to the tensor an encoder sees, by open_clip's transforms for every layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

Transform = Callable[[Any], Tensor]
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, and all that open_clip has


def image_transform(preprocess: PreprocessCfg, augment: bool) -> Transform:
    """Resize, crop and normalise; with `augment`, a random crop of 90 to 100 % of the area.

    Draws from torch's global generator when augmenting: the caller seeds it.
    """
    transform: Transform = image_transform_v2(preprocess, is_train=augment)
    return transform


def preprocess_said(said: Mapping[str, Any], path: Path) -> PreprocessCfg:
    """A transformers processor's settings in open_clip's words; ValueError if it has none."""
    crops = bool(said.get("do_center_crop"))
    resized = _sides(said["size"])
    size = _sides(said.get("crop_size") or said["size"]) if crops else resized
    if resized != size:
        raise ValueError(f"{path} resizes to {resized} and crops {size}; they must be the same")
    if said.get("resample", 3) not in _INTERPOLATION:
        raise ValueError(f"{path} resamples in way {said['resample']}, which is not supported")
    defaults = PreprocessCfg()
    return PreprocessCfg(
        size=size,
        mean=tuple(said.get("image_mean") or defaults.mean),
        std=tuple(said.get("image_std") or defaults.std),
        interpolation=_INTERPOLATION[said.get("resample", 3)],
        resize_mode="shortest" if crops else "squash",
    )


def _sides(size: int | Mapping[str, int]) -> tuple[int, int]:
    """Height and width, however the processor's config writes them."""
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]

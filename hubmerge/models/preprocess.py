"""From a PIL image to the tensor a CLIP sees, by open_clip's transforms for both layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

Transform = Callable[[Any], Tensor]


def image_transform(preprocess: PreprocessCfg, augment: bool) -> Transform:
    """Resize, crop and normalise; with `augment`, a random crop of 90 to 100 % of the area.

    Draws from torch's global generator when augmenting: the caller seeds it.
    """
    transform: Transform = image_transform_v2(preprocess, is_train=augment)
    return transform

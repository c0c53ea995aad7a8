"""Images whose values have more than 8 bits, as 8-bit ones: X-rays, depth, microscopy.

PIL's own conversion clips at 255, which makes almost every pixel of such an image white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from hubmerge.errors import DataError

_MOST_16_BIT = 65535
_HINT = (
    "Write which values are black and white under `data:` in the task's YAML: `range: [0, 4095]`."
)
Range = tuple[float, float]


def has_wide_values(image: Image.Image) -> bool:
    """Whether a value has more than 8 bits: grey images of 16 or 32 bits, and of floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_8_bit(image: Image.Image, value_range: Range | None, location: str) -> Image.Image:
    """The image with values from 0 to 255, scaled from `value_range`; what is outside is clipped.

    Without a range, values are of 16 bits, and floats are from 0 to 1. An 8-bit image is returned
    as it is. Raises DataError naming `location` for values that do not fit, or are not finite.
    """
    if not has_wide_values(image):
        return image
    values = np.asarray(image, np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"the image of {location} has values that are not finite")
    low, high = value_range or _default_range(image.mode, values, location)
    scaled = (values - low) * (255 / (high - low))
    return Image.fromarray(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8))


def dark_note(brightest: float) -> str | None:
    """What to say of 16-bit images whose largest value is a small part of the range, else None."""
    if not 0 < brightest < _MOST_16_BIT / 4:
        return None
    return (
        f"The brightest value of the tried images is {brightest:g} of {_MOST_16_BIT}, so they are "
        f"dark: if that is white, write `range: [0, {brightest:g}]` under `data:` in the task's "
        "YAML."
    )


def _default_range(mode: str, values: np.ndarray, location: str) -> Range:
    smallest, largest = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    most = 1 if mode == "F" else _MOST_16_BIT
    if smallest < 0 or largest > most:
        raise DataError(
            f"the image of {location} has values from {smallest:g} to {largest:g}, and without a "
            f"range they are from 0 to {most}",
            _HINT,
        )
    return 0.0, float(most)

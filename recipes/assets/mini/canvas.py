"""The grey canvas every mini image is drawn on, and what any picture may pass through.

A picture is a float array [S, S], 0 black to 1 white, S = SIZE; it may leave that range until
`to_grey` cuts it. The order in which a function asks `rng` for numbers is part of the data: change
it and every image after it changes.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIZE = 28
"""Side of a finished image, in pixels."""

Picture = NDArray[np.floating]
GreyImage = NDArray[np.uint8]


def clouds(rng: np.random.Generator, cells: int) -> Picture:
    """Draw smooth random light: `cells` x `cells` random greys, enlarged."""
    coarse = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def blur(picture: Picture, radius: float) -> Picture:
    """Return the picture after a Gaussian blur, cut to 0..1."""
    # Pillow blurs bytes only, so the values pass through 256 levels here.
    levels = Image.fromarray((picture * 255).clip(0, 255).astype(np.uint8))
    blurred = levels.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, np.float32) / 255


def noise(rng: np.random.Generator, scale: float) -> Picture:
    """Draw Gaussian noise for one picture."""
    return rng.normal(0, scale, (SIZE, SIZE))


def to_grey(picture: Picture) -> GreyImage:
    """Cut a picture to 0..1 and round it down to bytes."""
    grey: GreyImage = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return grey

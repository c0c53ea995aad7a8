"""Draw one character, or a digit between its neighbours, white on black and slightly warped.

Everything is drawn twice as large as needed and averaged down: thin strokes survive.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recipes.assets.mini.canvas import SIZE, Picture

DRAWN = 2 * SIZE
"""Side of the drawing before it is averaged down, in pixels."""
LARGEST = 46
"""Longest side of a glyph in a drawing: a larger one is drawn in a smaller size."""


def pick_font(rng: np.random.Generator, families: list[list[Path]]) -> Path:
    """Draw a family, then a face of it: families count alike, however many faces they have."""
    faces = families[rng.integers(len(families))]
    return faces[rng.integers(len(faces))]


def draw_glyph(rng: np.random.Generator, character: str, file: Path) -> Picture:
    """Draw one centred character."""
    font = open_font(file, 38)
    left, top, right, bottom = font.getbbox(character)
    longest = max(right - left, bottom - top, 1)
    if longest > LARGEST:
        font = open_font(file, max(8, int(38 * LARGEST / longest)))
        left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (DRAWN, DRAWN))
    corner = (DRAWN / 2 - (left + right) / 2, DRAWN / 2 - (top + bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, font=font, fill=255)
    return average_down(warp(rng, image))


def draw_house_number(rng: np.random.Generator, digit: str, file: Path) -> Picture:
    """Draw a centred digit with, often, a cut-off digit on its left and on its right."""
    font = open_font(file, 34)
    image = Image.new("L", (DRAWN, DRAWN))
    pen = ImageDraw.Draw(image)
    width = font.getlength(digit)
    x = DRAWN / 2 - width / 2
    _, top, _, bottom = font.getbbox(digit)
    y = DRAWN / 2 - (top + bottom) / 2
    pen.text((x, y), digit, font=font, fill=255)
    if rng.random() < 0.7:
        neighbour = str(rng.integers(10))
        pen.text((x - font.getlength(neighbour) - 1, y), neighbour, font=font, fill=255)
    if rng.random() < 0.7:
        pen.text((x + width + 1, y), str(rng.integers(10)), font=font, fill=255)
    return average_down(warp(rng, image))


def warp(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Rotate, shear, scale, stretch and move a drawing a little, about its middle."""
    angle = np.deg2rad(rng.uniform(-10, 10))
    shear = rng.uniform(-0.15, 0.15)
    scale = rng.uniform(0.85, 1.15)
    stretch = rng.uniform(0.9, 1.1)
    rotated = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = rotated @ np.array([[1, shear], [0, 1]]) @ np.diag([scale * stretch, scale / stretch])
    backward = np.linalg.inv(forward)
    middle = np.array([DRAWN / 2, DRAWN / 2])
    origin = middle - backward @ (middle + rng.uniform(-3, 3, 2))
    # Pillow asks where each new pixel comes from: the inverse map, row by row.
    coefficients = (*backward[0], origin[0], *backward[1], origin[1])
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )


def average_down(image: Image.Image) -> Picture:
    """Return the drawing at its final size, 0 black to 1 white."""
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255


@lru_cache(6000)
def open_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    """Open a face once for each size."""
    return ImageFont.truetype(str(file), size)

"""The look of each glyph task: how a white-on-black glyph becomes a picture."""

from collections.abc import Callable

import numpy as np

from recipes.assets.mini.canvas import SIZE, Picture, blur, clouds, noise


def plain(rng: np.random.Generator, glyph: Picture) -> Picture:
    """Black on white or white on black, almost clean: for pre-training only."""
    ink, paper = (1.0, 0.0) if rng.random() < 0.5 else (0.0, 1.0)
    ink = ink + rng.uniform(-0.2, 0.2)
    paper = paper + rng.uniform(-0.2, 0.2)
    return paper + (ink - paper) * glyph + noise(rng, 0.03)


def latin(rng: np.random.Generator, glyph: Picture) -> Picture:
    """Ink of any strength on noisy white paper."""
    picture = rng.uniform(0.8, 1) - rng.uniform(0.55, 0.9) * glyph
    return picture + noise(rng, rng.uniform(0.02, 0.08))


def greek(rng: np.random.Generator, glyph: Picture) -> Picture:
    """Light on dark, out of focus."""
    picture = rng.uniform(0, 0.2) + rng.uniform(0.5, 0.8) * glyph
    return blur(picture, rng.uniform(0, 0.7)) + noise(rng, 0.04)


def hebrew(rng: np.random.Generator, glyph: Picture) -> Picture:
    """Dark on unevenly lit paper, with specks."""
    paper = 0.5 + 0.3 * clouds(rng, 5)
    picture = paper * (1 - glyph * rng.uniform(0.6, 0.95))
    speck = rng.random(glyph.shape) < rng.uniform(0, 0.05)
    return np.where(speck, rng.uniform(0, 1, glyph.shape), picture)


def kana(rng: np.random.Generator, glyph: Picture) -> Picture:
    """Either way round, crossed by up to two ruled lines."""
    if rng.random() < 0.5:
        glyph = 1 - glyph
    picture = 0.1 + 0.8 * glyph
    for _ in range(rng.integers(0, 3)):
        across = rng.random() < 0.5
        at = rng.integers(SIZE)
        line = (at, slice(None)) if across else (slice(None), at)
        picture[line] = rng.uniform()
    return picture + noise(rng, 0.04)


def house_number(rng: np.random.Generator, glyph: Picture) -> Picture:
    """Paint a number on an unevenly lit wall, lighter or darker than it."""
    wall = clouds(rng, 3) * rng.uniform(0.15, 0.35)
    contrast = rng.uniform(0.4, 0.7) * (1 if rng.random() < 0.6 else -1)
    picture = wall + (0.65 if contrast < 0 else 0) + contrast * glyph
    return blur(picture, rng.uniform(0, 0.5)) + noise(rng, 0.04)


Look = Callable[[np.random.Generator, Picture], Picture]

LOOKS: dict[str, Look] = {
    "mini-latin": latin,
    "mini-greek": greek,
    "mini-hebrew": hebrew,
    "mini-kana": kana,
    "mini-housenum": house_number,
}

# Pre-training shows every script in every look, so that no look gives a task away.
PRETRAINING_LOOKS: tuple[Look, ...] = (plain, latin, greek, hebrew, kana, house_number)

"""Tasks of a few pictures, for tests that measure no accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, seed: int) -> str:
    """Write a task: thirty pictures of noise in each of two classes, one of them darker."""
    random = np.random.default_rng(seed)
    for name, most in (("dark", 90), ("bright", 256)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            noise = random.integers(0, most, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return str(folder)

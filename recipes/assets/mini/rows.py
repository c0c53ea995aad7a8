"""The splits of a domain, and the seeded order in which their rows are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recipes.assets.mini.canvas import GreyImage
from recipes.assets.mini.domains import Domain

SEED = 17

FontSplit = Literal["pretrain", "train", "test"]
Draw = Callable[[np.random.Generator, int], GreyImage]
"""Draws one image of the class with that label."""


@dataclass(frozen=True)
class Split:
    """A split's address in seeds, its number of rows, and the fonts it may use."""

    name: str
    number: int
    count: int
    fonts: FontSplit


TRAIN = Split("train", 0, 4000, "train")
VALIDATION = Split("validation", 1, 400, "train")
TEST = Split("test", 2, 1000, "test")
PRETRAIN = Split("pretrain", 3, 8000, "pretrain")


@dataclass(frozen=True)
class Rows:
    """Images uint8 [N, S, S] and their labels [N]."""

    images: GreyImage
    labels: NDArray[np.int64]

    def cut(self, first: int, count: int) -> "Rows":
        """Return `count` rows from row `first` on."""
        return Rows(self.images[first : first + count], self.labels[first : first + count])

    def shuffled(self, seed: int) -> "Rows":
        """Return the rows in an order that depends on the seed alone."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        return Rows(self.images[order], self.labels[order])


def draw_rows(domain: Domain, split: Split, draw: Draw, most: int | None = None) -> Rows:
    """Draw the first `most` rows of a split, or all of them.

    The labels of the whole split are drawn first: fewer rows are the beginning of all rows.
    """
    rng = np.random.default_rng([SEED, domain.number, split.number])
    labels = rng.integers(0, len(domain.classes), split.count)[:most]
    return Rows(np.stack([draw(rng, int(label)) for label in labels]), labels)

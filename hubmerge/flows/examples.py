"""Rows of a split to look at: the image or the text, its class and what a model says it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from hubmerge.difficulty.difficulty import DIGITS
from hubmerge.tasks.data import Split


@dataclass(frozen=True)
class Shown:
    """A row with its image or its text, its class, a model's answer and its EL2N."""

    row: int
    what: Any
    label: str
    predicted: str
    score: float

    @property
    def is_image(self) -> bool:
        return not isinstance(self.what, str)


def shown(
    split: Split, rows: Iterable[int], predicted: ArrayLike, scores: ArrayLike
) -> list[Shown]:
    """These rows, in this order; `predicted` and `scores` are of all rows of the split."""
    says, by = np.asarray(predicted), np.asarray(scores)
    classes, found = split.classes, []
    for row in rows:
        what, label = cast("tuple[Any, int]", split.example(row))  # the task classifies
        score = round(float(by[row]), DIGITS)
        found.append(Shown(row, what, classes[label], classes[says[row]], score))
    return found

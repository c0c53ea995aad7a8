"""Rows of a split with their content, the image or text, their class and the predicted class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from hubmerge.difficulty.difficulty import DIGITS
from hubmerge.tasks.data import Split


@dataclass(frozen=True)
class ExampleRow:
    """A row with its image or text, its class, a model's predicted class and its EL2N."""

    row: int
    content: Any
    label: str
    predicted: str
    score: float

    @property
    def is_image(self) -> bool:
        return not isinstance(self.content, str)


def example_rows(
    split: Split, rows: Iterable[int], predicted: ArrayLike, scores: ArrayLike
) -> list[ExampleRow]:
    """Return these rows in order; `predicted` and `scores` are for all rows of the split."""
    predicted_classes, row_scores = np.asarray(predicted), np.asarray(scores)
    classes, examples = split.classes, []
    for row in rows:
        content, label = cast("tuple[Any, int]", split.example(row))  # the task classifies
        score = round(float(row_scores[row]), DIGITS)
        examples.append(
            ExampleRow(row, content, classes[label], classes[predicted_classes[row]], score)
        )
    return examples

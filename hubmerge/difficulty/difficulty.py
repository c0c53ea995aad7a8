"""difficulty.json: how hard each row of a split is for one model or several.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, ValidationError

from hubmerge.difficulty.bins import BINS, Ints, assign_bins, bin_means, bin_shares
from hubmerge.durable import write_atomic
from hubmerge.errors import DataError, UsageError, raise_together
from hubmerge.predictions import Predictions
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

DIFFICULTY_JSON = "difficulty.json"
FORMAT = 1
DIGITS = 6
_HINT = "`hubmerge difficulty --out` writes one."
_PER_ROW_FIELDS = ("el2n", "margin", "loss", "right", "label", "predicted")

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class ScoredModel:
    """A model with its accuracy and the share of its loss in each bin, easiest first."""

    label: str
    digest: str
    step: NonNegativeInt | None
    accuracy: Share
    loss_share: tuple[Share, ...]


@dataclass(frozen=True)
class Bin:
    """Rows of similar difficulty: their number, and means over these rows and the models.

    `el2n` in [0, sqrt(2)], `accuracy` in [0, 1], `margin` in logits; `loss_share` is their share of
    the loss of all rows.
    """

    size: int
    el2n: float
    accuracy: float
    margin: float
    loss_share: float


@dataclass(frozen=True)
class Difficulty:
    """The difficulty of every row of a split: means over `models`, rounded to six digits.

    `el2n` is the score, `right` the share of the models that predict the row correctly, `predicted`
    the prediction of the last model. `course` are models whose loss is reported but not scored.
    """

    task: str
    split: str
    models: tuple[ScoredModel, ...]
    el2n: tuple[FiniteFloat, ...]
    margin: tuple[FiniteFloat, ...]
    loss: tuple[FiniteFloat, ...]
    right: tuple[Share, ...]
    label: tuple[NonNegativeInt, ...]
    predicted: tuple[NonNegativeInt, ...]
    bins: Annotated[int, Field(ge=1, le=1000)] = BINS
    course: tuple[ScoredModel, ...] = ()
    format: int = FORMAT

    @property
    def count(self) -> int:
        return len(self.el2n)

    @property
    def digest(self) -> str:
        """64 hex digits over task, split and scores."""
        text = json.dumps([self.task, self.split, self.el2n])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def bin_of(self) -> Ints:
        """The bin of each row [N]; 0 is the easiest."""
        return assign_bins(self.el2n, self.bins)

    @property
    def by_bin(self) -> list[Bin]:
        """Means over the rows of each bin, easiest first."""
        bins, count = self.bin_of, self.bins
        sizes = np.bincount(bins, minlength=count)
        means = [bin_means(values, bins, count) for values in (self.el2n, self.right, self.margin)]
        columns = zip(sizes, *means, bin_shares(self.loss, bins, count), strict=True)
        return [Bin(int(size), *map(float, rest)) for size, *rest in columns]

    def with_course(self, course: Sequence[ScoredModel]) -> Difficulty:
        return dataclasses.replace(self, course=tuple(course))

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal scores give equal bytes."""
        return (json.dumps(dataclasses.asdict(self), sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class ModelName:
    """The label of a model, the digest of its files, and its step."""

    label: str
    digest: str
    step: int | None = None


def compute_difficulty(
    task: str,
    split: str,
    named_predictions: Sequence[tuple[ModelName, Predictions]],
    bins: int = BINS,
) -> Difficulty:
    """Score the rows of a split from the predictions of one model or several.

    Raises UsageError for fewer rows than bins.
    """
    all_predictions = [predictions for _, predictions in named_predictions]
    rows = len(all_predictions[0])
    if rows < bins:
        raise UsageError(
            f"{rows} rows of {split} of task {task.partition('@')[0]} do not fill {bins} bins.",
            f"Write --bins with at most {rows}.",
        )
    el2n = _mean_over_models([predictions.el2n for predictions in all_predictions])
    last = all_predictions[-1]
    return Difficulty(
        task=task,
        split=split,
        models=score_models(named_predictions, assign_bins(el2n, bins), bins),
        el2n=el2n,
        margin=_mean_over_models([predictions.margin for predictions in all_predictions]),
        loss=_mean_over_models([predictions.loss for predictions in all_predictions]),
        right=_mean_over_models([predictions.correct for predictions in all_predictions]),
        label=tuple(last.label.tolist()),
        predicted=tuple(last.predicted.tolist()),
        bins=bins,
    )


def score_models(
    named_predictions: Sequence[tuple[ModelName, Predictions]], bins: Ints, count: int = BINS
) -> tuple[ScoredModel, ...]:
    """Each model with its accuracy and the share of its loss in each bin."""
    return tuple(
        ScoredModel(
            name.label,
            name.digest,
            name.step,
            round(predictions.accuracy, DIGITS),
            _rounded(bin_shares(predictions.loss, bins, count)),
        )
        for name, predictions in named_predictions
    )


def write_difficulty(difficulty: Difficulty, path: Path) -> None:
    """Replace the file atomically."""
    write_atomic(path, difficulty.to_bytes(), mode=0o644)


def read_difficulty(path: Path) -> Difficulty:
    """Read an untrusted file; raises DataError that names it."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.", _HINT)
    try:
        difficulty = validate_json(Difficulty, path.read_bytes())
    except ValidationError as error:
        reason = first_problem(error)[:200]
        raise DataError(f"{path} is not a valid difficulty.json: {reason}.", _HINT) from None
    raise_together(DataError, [f"{path}: {problem}" for problem in _problems(difficulty)])
    return difficulty


def _problems(difficulty: Difficulty) -> Iterator[str]:
    if difficulty.format != FORMAT:
        yield f"its format is {difficulty.format}; this hubmerge reads format {FORMAT}."
    lengths = {name: len(getattr(difficulty, name)) for name in _PER_ROW_FIELDS}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        yield f"its fields have different numbers of rows: {counts}."
    if not difficulty.models:
        yield "it names no model."
    if any(
        len(model.loss_share) != difficulty.bins
        for model in (*difficulty.models, *difficulty.course)
    ):
        yield f"its shares of the loss do not have {difficulty.bins} bins."


def _mean_over_models(values: Sequence[ArrayLike]) -> tuple[float, ...]:
    stacked: Any = np.stack([np.asarray(of_model, np.float64) for of_model in values])
    return _rounded(stacked.mean(axis=0))


def _rounded(values: Any) -> tuple[float, ...]:
    """Round to the digits of the file, so that reports from memory and from the file are equal."""
    return tuple(round(float(value), DIGITS) for value in values)

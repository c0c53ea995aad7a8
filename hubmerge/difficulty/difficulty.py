"""difficulty.json: how hard each row of a split is, by the models that were asked.

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
from pydantic import Field, TypeAdapter, ValidationError

from hubmerge.difficulty.bins import BINS, Ints, bins_of, means, shares
from hubmerge.durable import write_whole
from hubmerge.errors import DataError, UsageError, raise_together
from hubmerge.predictions import Answers

NAME = "difficulty.json"
FORMAT = 1
DIGITS = 6
_PER_ROW = ("el2n", "margin", "loss", "right", "label", "predicted")

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Asked:
    """A model that was asked: its accuracy, and what each bin has of its loss, easiest first."""

    label: str
    digest: str
    step: Whole | None
    accuracy: Share
    loss_share: tuple[Share, ...]


@dataclass(frozen=True)
class Bin:
    """Rows that are about as hard as each other: how many, and means over them and the models.

    `el2n` in [0, sqrt(2)], `accuracy` in [0, 1], `margin` in logits; `loss_share` is what they have
    of the loss of all rows.
    """

    size: int
    el2n: float
    accuracy: float
    margin: float
    loss_share: float


@dataclass(frozen=True)
class Difficulty:
    """Every row of a task's split, scored by `models`, means over them; six digits.

    `el2n` is the score; `right` the share of the models that have the row right, `predicted` the
    class that the last of them says. `course` are models that were asked but give no score.
    """

    task: str
    split: str
    models: tuple[Asked, ...]
    el2n: tuple[Number, ...]
    margin: tuple[Number, ...]
    loss: tuple[Number, ...]
    right: tuple[Share, ...]
    label: tuple[Whole, ...]
    predicted: tuple[Whole, ...]
    bins: Annotated[int, Field(ge=1, le=1000)] = BINS
    course: tuple[Asked, ...] = ()
    format: int = FORMAT

    @property
    def count(self) -> int:
        return len(self.el2n)

    @property
    def digest(self) -> str:
        """64 hex digits that two of the same scores for the same rows share."""
        said = json.dumps([self.task, self.split, self.el2n])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def bin_of(self) -> Ints:
        """The bin of each row [N], 0 the easiest."""
        return bins_of(self.el2n, self.bins)

    @property
    def by_bin(self) -> list[Bin]:
        """What the rows of each bin have in common, the easiest first."""
        bins, count = self.bin_of, self.bins
        sizes = np.bincount(bins, minlength=count)
        told = [means(values, bins, count) for values in (self.el2n, self.right, self.margin)]
        columns = zip(sizes, *told, shares(self.loss, bins, count), strict=True)
        return [Bin(int(size), *map(float, rest)) for size, *rest in columns]

    def with_course(self, course: Sequence[Asked]) -> Difficulty:
        return dataclasses.replace(self, course=tuple(course))

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same scores are the same bytes."""
        return (json.dumps(dataclasses.asdict(self), sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class Name:
    """What a model is called: its label, the digest of its files, its step."""

    label: str
    digest: str
    step: int | None = None


def difficulty_of(
    task: str, split: str, answered: Sequence[tuple[Name, Answers]], bins: int = BINS
) -> Difficulty:
    """Scores of a split's rows from the answers of one model or several.

    Raises UsageError for fewer rows than bins.
    """
    answers = [said for _, said in answered]
    rows = len(answers[0])
    if rows < bins:
        raise UsageError(
            f"{rows} rows of {split} of task {task.partition('@')[0]} do not fill {bins} bins.",
            f"Write --bins with at most {rows}.",
        )
    el2n = _mean([said.el2n for said in answers])
    last = answers[-1]
    return Difficulty(
        task=task,
        split=split,
        models=asked_of(answered, bins_of(el2n, bins), bins),
        el2n=el2n,
        margin=_mean([said.margin for said in answers]),
        loss=_mean([said.loss for said in answers]),
        right=_mean([said.right for said in answers]),
        label=tuple(last.label.tolist()),
        predicted=tuple(last.predicted.tolist()),
        bins=bins,
    )


def asked_of(
    answered: Sequence[tuple[Name, Answers]], bins: Ints, count: int = BINS
) -> tuple[Asked, ...]:
    """Each model with its accuracy and the share of its loss in each bin."""
    return tuple(
        Asked(
            name.label,
            name.digest,
            name.step,
            round(said.accuracy, DIGITS),
            _rounded(shares(said.loss, bins, count)),
        )
        for name, said in answered
    )


def write_difficulty(difficulty: Difficulty, path: Path) -> None:
    """Write it whole."""
    write_whole(path, difficulty.to_bytes(), mode=0o644)


def read_difficulty(path: Path) -> Difficulty:
    """Read what anybody may have written; raises DataError naming the file."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "`hubmerge difficulty` makes one with --out.")
    try:
        found = TypeAdapter(Difficulty).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
        raise DataError(
            f"{path} tells no difficulty: {reason}.", "`hubmerge difficulty` makes one with --out."
        ) from None
    raise_together(DataError, [f"{path}: {problem}" for problem in _problems(found)])
    return found


def _problems(found: Difficulty) -> Iterator[str]:
    if found.format != FORMAT:
        yield f"it has format {found.format}, and this hubmerge knows {FORMAT}."
    lengths = {name: len(getattr(found, name)) for name in _PER_ROW}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        yield f"its rows are not as many everywhere: {said}."
    if not found.models:
        yield "it names no model."
    if any(len(one.loss_share) != found.bins for one in (*found.models, *found.course)):
        yield f"its shares of the loss are not of {found.bins} bins."


def _mean(values: Sequence[ArrayLike]) -> tuple[float, ...]:
    stacked: Any = np.stack([np.asarray(one, np.float64) for one in values])
    return _rounded(stacked.mean(axis=0))


def _rounded(values: Any) -> tuple[float, ...]:
    """Rounded before anything is told of them, so that a file tells what was told when made."""
    return tuple(round(float(value), DIGITS) for value in values)

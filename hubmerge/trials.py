"""Trials: merges that were evaluated in memory on validation, and the append-only log of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubmerge.durable import append_lines
from hubmerge.typed_json import validate_json

SINGLE_EXPERT = "alone"  # the method of a trial of one expert
SELECTION_SPLIT = "validation"  # the only split that a selection uses


@dataclass(frozen=True)
class Part:
    """An expert in a trial: the commit it is pinned to, and how its task vector is used."""

    sha: str
    weight: float = 1.0
    keep: float = 1.0
    intruders: float = 1.0


@dataclass(frozen=True)
class RowResults:
    """The correct rows of a trial on one task: one bit per row, in an order fixed for the task.

    `of` is the number of rows in the split; there are fewer `bits` if the trial was stopped early.
    """

    bits: str
    of: int

    @property
    def correct(self) -> tuple[bool, ...]:
        """Row by row, whether the prediction is correct."""
        return tuple(bit == "1" for bit in self.bits)


@dataclass(frozen=True)
class Trial:
    """One merge, identified by its recipe, and its results on each task (by task id)."""

    recipe: str
    base: str
    parts: tuple[Part, ...]
    method: str
    params: Mapping[str, Any]
    split: str
    rows: Mapping[str, RowResults]

    @property
    def key(self) -> tuple[str, str, tuple[tuple[str, int], ...]]:
        """Equal for two trials exactly if they are of the same merge on the same rows."""
        counts = sorted((task, rows.of) for task, rows in self.rows.items())
        return self.recipe, self.split, tuple(counts)

    def truncate(self, counts: Mapping[str, int]) -> Trial:
        """A copy with only the first rows of each task, as many as `counts` gives."""
        results = {
            task: RowResults(rows.bits[: counts[task]], rows.of) for task, rows in self.rows.items()
        }
        return dataclasses.replace(self, rows=results)

    @property
    def rows_measured(self) -> int:
        """The number of rows measured, over all tasks."""
        return sum(len(rows.bits) for rows in self.rows.values())

    @property
    def is_complete(self) -> bool:
        """Whether every row of every task was measured."""
        return all(len(rows.bits) == rows.of for rows in self.rows.values())

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy by task id, over the rows measured."""
        return {task: r.bits.count("1") / len(r.bits) for task, r in self.rows.items() if r.bits}

    @property
    def accuracy(self) -> float:
        """Raw mean accuracy over the tasks."""
        return math.fsum(self.accuracies.values()) / len(self.rows)

    @property
    def stderr(self) -> float:
        """Binomial standard error of the mean."""
        counts = {task: len(rows.bits) for task, rows in self.rows.items()}
        spread = (a * (1 - a) / counts[task] for task, a in self.accuracies.items())
        return math.sqrt(math.fsum(spread)) / len(self.rows)


class TrialLog:
    """An append-only JSON Lines file of trials; the line with the most rows of a merge counts.

    Rows have a fixed order, so a longer line contains all that a shorter one does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, trials: Iterable[Trial]) -> None:
        """Append trials; they are on disk before this returns."""
        lines = (json.dumps(dataclasses.asdict(t), sort_keys=True) + "\n" for t in trials)
        append_lines(self.path, "".join(lines))

    def read(self) -> list[Trial]:
        """The trials, one for each merge and set of rows; skips broken lines."""
        if not self.path.is_file():
            return []
        trials: dict[object, Trial] = {}
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                trial = _parse_line(line)
                if trial is None:
                    continue
                longest = trials.get(trial.key)
                if longest is None or trial.rows_measured >= longest.rows_measured:
                    trials[trial.key] = trial
        return list(trials.values())


def _parse_line(line: str) -> Trial | None:
    try:
        trial = validate_json(Trial, line)
    except ValidationError:
        return None
    return trial if all(_is_valid(rows) for rows in trial.rows.values()) else None


def _is_valid(rows: RowResults) -> bool:
    return set(rows.bits) <= {"0", "1"} and len(rows.bits) <= rows.of

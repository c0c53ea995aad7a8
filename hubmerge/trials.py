"""Trials: merges measured on validation and never written, and the log that keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hubmerge.durable import append_lines

ALONE = "alone"  # the method that a single expert is logged under
CHOSEN_ON = "validation"  # the split that choices are made on; no other has a say


@dataclass(frozen=True)
class Part:
    """An expert's part in a trial: the commit it is pinned to, and how its task vector went in."""

    sha: str
    weight: float = 1.0
    keep: float = 1.0
    intruders: float = 1.0


@dataclass(frozen=True)
class Rows:
    """What a trial got right on one task: one bit a row, in an order fixed for the task.

    `of` is how many rows the split has; fewer `bits` are measured when a trial was given up early.
    """

    bits: str
    of: int

    @property
    def right(self) -> tuple[bool, ...]:
        """Row by row."""
        return tuple(bit == "1" for bit in self.bits)


@dataclass(frozen=True)
class Trial:
    """One merge, by its recipe, and the rows it got right of each task (by task id)."""

    recipe: str
    base: str
    parts: tuple[Part, ...]
    method: str
    params: Mapping[str, Any]
    split: str
    rows: Mapping[str, Rows]

    @property
    def key(self) -> tuple[str, str, tuple[tuple[str, int], ...]]:
        """What two trials share exactly if they are about one merge and the same rows."""
        asked = sorted((task, rows.of) for task, rows in self.rows.items())
        return self.recipe, self.split, tuple(asked)

    def first(self, counts: Mapping[str, int]) -> Trial:
        """The same as if only so many rows of each task had been measured."""
        rows = {task: Rows(one.bits[: counts[task]], one.of) for task, one in self.rows.items()}
        return dataclasses.replace(self, rows=rows)

    @property
    def measured(self) -> int:
        """How many rows were measured, over all tasks."""
        return sum(len(rows.bits) for rows in self.rows.values())

    @property
    def is_whole(self) -> bool:
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
    """Trials in a JSON Lines file that only grows; of a merge, the line with the most rows counts.

    Rows have one order, so a shorter line says nothing that a longer one does not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, trials: Iterable[Trial]) -> None:
        """Add trials; they are on disk before this returns."""
        lines = (json.dumps(dataclasses.asdict(t), sort_keys=True) + "\n" for t in trials)
        append_lines(self.path, "".join(lines))

    def read(self) -> list[Trial]:
        """Every merge in it, once for each set of rows that it was asked."""
        if not self.path.is_file():
            return []
        known: dict[object, Trial] = {}
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                trial = _parsed(line)
                if trial is None:
                    continue
                if trial.key not in known or trial.measured >= known[trial.key].measured:
                    known[trial.key] = trial
        return list(known.values())


def _parsed(line: str) -> Trial | None:
    try:
        trial = TypeAdapter(Trial).validate_json(line, strict=True)
    except ValidationError:
        return None
    return trial if all(_is_sound(rows) for rows in trial.rows.values()) else None


def _is_sound(rows: Rows) -> bool:
    return set(rows.bits) <= {"0", "1"} and len(rows.bits) <= rows.of

"""Trials: merges that were evaluated in memory on validation, and the append-only log of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from hubmerge.durable import append_lines
from hubmerge.garbage_collection import garbage_collection_paused

SINGLE_EXPERT = "alone"  # the method of a trial of one expert
SELECTION_SPLIT = "validation"  # the only split that a selection uses
_NUMBERS = {int, float}
_TEXT_FIELDS = ("recipe", "base", "method", "split")


@dataclass(frozen=True)
class Part:
    """An expert in a trial: the commit it is pinned to, and how its task vector is used.

    `sha` is followed by its folder if it is not at the root of the repository.
    """

    sha: str
    weight: float = 1.0
    keep: float = 1.0
    intruders: float = 1.0

    @property
    def commit(self) -> str:
        """The commit alone."""
        return self.sha.partition("/")[0]


# What was measured row by row: one bit per row, or one number of a metric with other values.
RowValues = str | tuple[float, ...]


@dataclass(frozen=True)
class RowResults:
    """The results of a trial on one task, row by row, in an order fixed for the task.

    `bits` has a 1 for each row that is right. Of metrics with other values than 0 and 1, `values`
    has the numbers in [0, 1], and there are no bits. `of` is the number of rows in the split; fewer
    were measured if the trial was stopped early.
    """

    bits: str
    of: int
    values: tuple[float, ...] | None = None

    @property
    def measured(self) -> RowValues:
        """The results, as bits or as numbers."""
        return self.bits if self.values is None else self.values

    @property
    def count(self) -> int:
        """The number of rows measured."""
        return len(self.measured)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Row by row, whether the prediction is correct, for results in bits."""
        return tuple(bit == "1" for bit in self.bits)

    @property
    def numbers(self) -> tuple[float, ...]:
        """One number per row."""
        return tuple(map(float, self.measured))

    @property
    def mean(self) -> float:
        """The mean over the rows measured, of which there is one at least."""
        if self.values is None:
            return self.bits.count("1") / len(self.bits)
        return math.fsum(self.values) / len(self.values)

    @property
    def variance(self) -> float:
        """The variance of one row, around `mean`."""
        if self.values is None:
            return self.mean * (1 - self.mean)
        return math.fsum((value - self.mean) ** 2 for value in self.values) / len(self.values)

    def with_rows(self, measured: RowValues) -> RowResults:
        """These results in place of those measured."""
        if isinstance(measured, str):
            return RowResults(measured, self.of)
        return RowResults("", self.of, measured)

    def extended(self, more: RowValues) -> RowResults:
        """The results with those of the next rows."""
        return self.with_rows(join_rows([self.measured, more]) if self.count else more)


def join_rows(parts: Sequence[RowValues]) -> RowValues:
    """Results of one task one after the other; all are bits, or all are numbers."""
    bits = [part for part in parts if isinstance(part, str)]
    if len(bits) == len(parts):
        return "".join(bits)
    return tuple(number for part in parts for number in part if not isinstance(number, str))


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
        """The trial with only the first rows of each task, at most as many as `counts` gives."""
        if all(rows.count <= counts[task] for task, rows in self.rows.items()):
            return self
        results = {
            task: rows.with_rows(rows.measured[: counts[task]]) for task, rows in self.rows.items()
        }
        return dataclasses.replace(self, rows=results)

    @cached_property
    def rows_measured(self) -> int:
        """The number of rows measured, over all tasks."""
        return sum(rows.count for rows in self.rows.values())

    @cached_property
    def is_complete(self) -> bool:
        """Whether every row of every task was measured."""
        return all(rows.count == rows.of for rows in self.rows.values())

    @cached_property
    def accuracies(self) -> Mapping[str, float]:
        """Accuracy, or the mean of another metric, by task id, over the rows measured."""
        return {task: rows.mean for task, rows in self.rows.items() if rows.count}

    @cached_property
    def accuracy(self) -> float:
        """Raw mean accuracy over the tasks."""
        return math.fsum(self.accuracies.values()) / len(self.rows)

    @property
    def stderr(self) -> float:
        """Standard error of the mean: binomial, where rows are right or wrong."""
        spread = (rows.variance / rows.count for rows in self.rows.values() if rows.count)
        return math.sqrt(math.fsum(spread)) / len(self.rows)


class TrialLog:
    """An append-only JSON Lines file of trials; the line with the most rows of a merge counts.

    Rows have a fixed order, so a longer line contains all that a shorter one does. `skipped` is the
    number of lines that the last reading could not use.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.skipped = path, 0

    def append(self, trials: Iterable[Trial]) -> None:
        """Append trials; they are on disk before this returns."""
        lines = (json.dumps(_to_json(t), sort_keys=True) + "\n" for t in trials)
        append_lines(self.path, "".join(lines))

    def read(self) -> list[Trial]:
        """The trials, one for each merge and set of rows; skips broken lines."""
        if not self.path.is_file():
            return []
        with (
            self.path.open(encoding="utf-8", errors="replace") as file,
            garbage_collection_paused(),
        ):
            trials, self.skipped = _longest_by_key(file)
        return trials


def _to_json(trial: Trial) -> dict[str, Any]:
    fields = dataclasses.asdict(trial)
    for results in fields["rows"].values():
        if results["values"] is None:
            del results["values"]  # as in logs of the versions before
    return fields


def _longest_by_key(lines: Iterable[str]) -> tuple[list[Trial], int]:
    """The longest trial of each key, and how many lines are none."""
    trials: dict[object, Trial] = {}
    skipped = 0
    for line in lines:
        trial = _parse_line(line)
        if trial is None:
            skipped += not line.isspace()
            continue
        key = trial.key
        longest = trials.get(key)
        if longest is None or trial.rows_measured >= longest.rows_measured:
            trials[key] = trial
    return list(trials.values()), skipped


def _parse_line(line: str) -> Trial | None:
    """The trial of a line, None for anything else; checked by hand, as a log has many lines."""
    try:
        fields = from_json(line)
        recipe, base, method, split = (fields[name] for name in _TEXT_FIELDS)
        params, parts = fields["params"], tuple(map(_parse_part, fields["parts"]))
        rows = {task: _parse_rows(results) for task, results in fields["rows"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    is_text = type(recipe) is type(base) is type(method) is type(split) is str
    if not (is_text and type(fields["parts"]) is list and type(params) is dict):
        return None
    return Trial(recipe, base, parts, method, params, split, rows)


def _parse_part(fields: dict[str, Any]) -> Part:
    sha = fields["sha"]
    numbers = fields.get("weight", 1.0), fields.get("keep", 1.0), fields.get("intruders", 1.0)
    if type(sha) is not str or not {type(number) for number in numbers} <= _NUMBERS:
        raise ValueError
    return _make_part(sha, *map(float, numbers))


# Most lines name the same few experts.
_make_part = lru_cache(maxsize=65536)(Part)


def _parse_rows(fields: dict[str, Any]) -> RowResults:
    bits, of = fields["bits"], fields["of"]
    if (
        type(bits) is not str
        or type(of) is not int
        or bits.encode().translate(None, b"01")
        or len(bits) > of
    ):
        raise ValueError
    values = fields.get("values")
    if values is None:
        return RowResults(bits, of)
    if type(values) is not list or bits or len(values) > of or not all(map(_is_share, values)):
        raise ValueError
    return RowResults("", of, tuple(map(float, values)))


def _is_share(value: Any) -> bool:
    return type(value) in _NUMBERS and 0 <= value <= 1

"""The examples of a task: a split of rows, each of them an example, or a stream of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import torch

from hubmerge.errors import DataError, UnknownName
from hubmerge.tasks.examples import Example, Paired, Ranked, example_of
from hubmerge.tasks.labels import Labels, Numbers, labels_of
from hubmerge.tasks.rows import told, with_columns
from hubmerge.tasks.source import read_rows, where
from hubmerge.tasks.splits import SPLITS, places
from hubmerge.tasks.stream import Stream, load_stream
from hubmerge.tasks.task import Task

__all__ = [
    "SPLITS",
    "Example",
    "Paired",
    "Ranked",
    "Split",
    "Stream",
    "load_split",
    "load_stream",
    "read_split",
]


@dataclass(frozen=True)
class Split:
    """Rows of one split, with the columns that its examples are made of.

    These are `image` or `text`, and `label`, where the task classifies; else the columns that its
    prompts name, and there are no classes.
    """

    task: Task
    name: str
    rows: datasets.Dataset
    named: Labels

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in label order."""
        return self.named.classes

    def example(self, row: int) -> Example:
        """An image or a text, and its label; a Ranked or a Paired where the task's kind says so.

        Raises DataError, naming the row, if it is broken.
        """
        at = f"{self.name} row {row}"
        with told(self.task, f"the {self.task.spec.kind} of {at} cannot be read"):
            return example_of(self.task.spec, self.named, self.rows[row], at)

    def labels(self) -> Numbers:
        """The labels of all rows, in their order."""
        with told(self.task, "its labels cannot be read"):
            return self.named.numbers(self.rows["label"][:], self.name)

    def absent(self) -> tuple[str, ...]:
        """The classes without an example."""
        return tuple(name for name, count in self.per_class().items() if count == 0)

    def per_class(self) -> dict[str, int]:
        """Class -> how many examples it has; rows without a label count for none."""
        found = Counter(self.found().tolist())
        return {name: found[label] for label, name in enumerate(self.classes)}

    def found(self) -> Numbers:
        """The labels of all rows, -1 where there is none; empty for a task without classes."""
        return self.named.found(self.rows["label"][:] if self.classes else [])

    def sample(self, count: int, seed: int) -> Split:
        """The first `count` rows of a seeded permutation; the split itself if it has no more."""
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.only(order[:count].tolist())

    def only(self, rows: Sequence[int]) -> Split:
        """These rows, in this order."""
        return replace(self, rows=self.rows.select(rows))


def load_split(task: Task, name: str) -> Split:
    """The rows of `train`, `validation` or `test`; the same rows on every machine.

    Raises DataError when data, split or columns are missing, a split is empty, or the class names
    do not fit the labels.
    """
    split = read_split(task, name)
    if split.classes:
        split.labels()  # raises for a row without one
    return split


def read_split(task: Task, name: str) -> Split:
    """The same rows before their labels were looked at; raises DataError for all else."""
    if name not in SPLITS:
        raise UnknownName("split", name, SPLITS)
    source = task.spec.splits.sources[name]
    whole = with_columns(task, read_rows(task, source))
    rows = whole.select(places(task.spec.splits, name, len(whole)))
    if len(rows) == 0:
        raise DataError(f"Task {task.name} has no {name} examples.", where(task))
    if not task.spec.classifies:
        return Split(task, name, rows, Labels())
    with told(task, "its labels cannot be read"):
        distinct = partial(_distinct, task, whole if source == task.spec.splits.train else None)
        return Split(task, name, rows, labels_of(task.spec, rows.features["label"], distinct))


def _distinct(task: Task, whole: datasets.Dataset | None) -> Iterable[Any]:
    """What labels the rows of train, before anything is carved from them."""
    train = whole or with_columns(task, read_rows(task, task.spec.splits.train))
    values: list[Any] = train.unique("label")
    return values

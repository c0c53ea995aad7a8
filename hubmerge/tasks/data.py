"""The examples of a task, as a split (random access) or a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import datasets
import torch

from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.refs import printable
from hubmerge.specs import Carve
from hubmerge.tasks.documents import Corpus, Documents, find_documents, load_corpus
from hubmerge.tasks.examples import (
    Example,
    PairExample,
    RankExample,
    TargetExample,
    make_example,
)
from hubmerge.tasks.labels import ClassLabels, LabelArray, find_class_labels
from hubmerge.tasks.lm_eval_docs import LmEvalDocs, load_docs
from hubmerge.tasks.rows import CHECK_HINT, name_labels, select_columns, task_errors
from hubmerge.tasks.source import data_location_hint, read_rows
from hubmerge.tasks.splits import SPLITS, is_stratified, split_indices
from hubmerge.tasks.stream import Stream, load_stream
from hubmerge.tasks.task import Task
from hubmerge.tasks.tried_rows import try_rows

__all__ = [
    "SPLITS",
    "Example",
    "PairExample",
    "RankExample",
    "Split",
    "Stream",
    "TargetExample",
    "load_split",
    "load_stream",
    "read_split",
]

DOC = "doc"  # the column of the indices of docs of lm_eval


@dataclass(frozen=True)
class Split:
    """The rows of one split, with the columns that its examples are made from.

    For classification these are `image` or `text`, and `label`. Other tasks have no classes; their
    columns are those that the prompts use. A row of a task of lm_eval is the index of one of its
    `lm_eval` docs, which are no examples. `skipped` is how many broken rows are left out. The
    documents of a task of pairs are in its `corpus`, if it has one.
    """

    task: Task
    name: str
    rows: datasets.Dataset
    class_labels: ClassLabels
    lm_eval: LmEvalDocs | None = None
    skipped: int = 0
    corpus: Corpus | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in label order."""
        return self.class_labels.classes

    def example(self, row: int) -> Example:
        """(image or text, label) for classification, else a RankExample or a TargetExample.

        Raises DataError with the row number, and the path of an image, if the row is broken, and
        UsageError for a task of lm_eval.
        """
        if self.lm_eval is not None:
            raise UsageError(
                f"Task {self.task.name} only measures models.",
                "Use it in `hubmerge eval`, `select` and `verify --evidence`.",
            )
        try:
            return self._example(row, f"{self.name} row {row}")
        except DataError as error:
            path = self._image_path(row)
            if path is None or path in error.message:
                raise
            return self._example(row, f"{self.name} row {row} ({path})")  # raises it again

    def _example(self, row: int, location: str) -> Example:
        with task_errors(self.task, f"the {self.task.spec.kind} of {location} cannot be read"):
            values = name_labels(self.task, self._features, self.rows[row])
            example = make_example(self.task.spec, self.class_labels, values, location)
            if self.corpus is not None and isinstance(example, PairExample):
                return self.corpus.complete(example, location)
            return example

    @cached_property
    def _features(self) -> datasets.Features:
        """The types of the columns, which the rows copy whenever they are asked for them."""
        return self.rows.features

    def _image_path(self, row: int) -> str | None:
        """The path of a row's image, None if it is not a file."""
        if self.task.spec.kind != "image":
            return None
        images = self.rows.cast_column("image", datasets.Image(decode=False))
        path = (images[row]["image"] or {}).get("path")
        return printable(path) if path else None

    @cached_property
    def documents(self) -> Documents:
        """The documents that texts of pairs are compared with, and which belong to each row.

        Raises DataError, with all problems of the rows at once.
        """
        return find_documents(self.task, self._pairs(), self.corpus)

    def _pairs(self) -> Iterator[PairExample | DataError]:
        for row in range(len(self)):
            try:
                example = self.example(row)
            except DataError as error:
                yield error
                continue
            assert isinstance(example, PairExample)
            yield example

    def labels(self) -> LabelArray:
        """The labels of all rows; raises DataError if a row has no valid label."""
        with task_errors(self.task, "its labels cannot be read"):
            return self.class_labels.labels(self.rows["label"][:], self.name)

    def absent_classes(self) -> tuple[str, ...]:
        """The classes that have no examples."""
        return tuple(name for name, count in self.class_counts().items() if count == 0)

    def class_counts(self) -> dict[str, int]:
        """Class -> number of examples, without rows that have no valid label."""
        counts = Counter(self.labels_or_missing().tolist())
        return {name: counts[label] for label, name in enumerate(self.classes)}

    def labels_or_missing(self) -> LabelArray:
        """The labels of all rows, -1 for a row without a valid one; empty without classes."""
        return self.class_labels.labels_or_missing(self.rows["label"][:] if self.classes else [])

    def sample(self, count: int, seed: int) -> Split:
        """`count` rows sampled with a seed; the split itself if it has no more than that."""
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[:count].tolist())

    def select(self, rows: Sequence[int]) -> Split:
        """These rows, in this order."""
        return replace(self, rows=self.rows.select(rows))


def load_split(task: Task, name: str) -> Split:
    """The rows of `train`, `validation` or `test`; the same rows on every machine.

    Raises DataError if data, split or columns are missing, a split is empty, or labels are not
    valid for the classes.
    """
    split = read_split(task, name)
    if split.classes:
        split.labels()  # raises for a row without a valid label
    return split


def _no_examples(task: Task, name: str, source_rows: int) -> DataError:
    message = f"Task {task.name} has no {name} examples"
    split = getattr(task.spec.splits, name)
    if not isinstance(split, Carve) or split.count or not source_rows:
        return DataError(f"{message}.", data_location_hint(task))
    return DataError(
        f"{message}: {split.fraction} of {source_rows} {split.of} rows is less than one.",
        f"Give it more rows, or write `splits: {{{name}: {{of: {split.of}, count: N}}}}` in the "
        "task's YAML.",
    )


def read_split(task: Task, name: str) -> Split:
    """Like `load_split`, but without checking the labels of the rows."""
    if task.lm_eval is not None:
        docs = load_docs(task, name)
        rows = datasets.Dataset.from_dict({DOC: docs.indices})
        return Split(task, name, rows, ClassLabels(), docs)
    if name not in SPLITS:
        raise UnknownName("split", name, SPLITS)
    source = task.spec.splits.sources[name]
    source_rows = select_columns(task, read_rows(task, source))
    by_class = task.spec.is_classification and is_stratified(task.spec.splits)
    values = source_rows["label"][:] if by_class else []
    rows = source_rows.select(split_indices(task.spec.splits, name, len(source_rows), values))
    if len(rows) == 0:
        raise _no_examples(task, name, len(source_rows))
    if not task.spec.is_classification:
        return _without_broken(Split(task, name, rows, ClassLabels(), corpus=load_corpus(task)))
    with task_errors(task, "its labels cannot be read"):
        train = source_rows if source == task.spec.splits.train else None
        labels = find_class_labels(
            task.spec, rows.features["label"], partial(_train_labels, task, train)
        )
        return _without_broken(Split(task, name, rows, labels))


def _without_broken(split: Split) -> Split:
    """The split without rows that cannot be read, if its task leaves them out."""
    if not split.task.spec.data.skip_broken:
        return split
    rows = range(len(split))
    kept = [row for row, tried in try_rows(split.example, rows) if not isinstance(tried, DataError)]
    if not kept:
        raise DataError(f"Task {split.task.name}: no row of {split.name} can be read.", CHECK_HINT)
    return replace(split.select(kept), skipped=len(split) - len(kept))


def _train_labels(task: Task, train: datasets.Dataset | None) -> Iterable[Any]:
    """The distinct labels of train, before other splits are carved from it."""
    rows = train or select_columns(task, read_rows(task, task.spec.splits.train))
    values: list[Any] = rows.unique("label")
    return values

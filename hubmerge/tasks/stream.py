"""The train split of a task as a stream: rows are read once per epoch, not all kept at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets

from hubmerge.errors import DataError
from hubmerge.tasks.examples import Example, make_example
from hubmerge.tasks.labels import ClassLabels, find_class_labels
from hubmerge.tasks.rows import name_labels, select_columns, task_errors
from hubmerge.tasks.source import data_location_hint, stream_rows
from hubmerge.tasks.splits import carved_splits
from hubmerge.tasks.task import Task


@dataclass(frozen=True)
class Stream:
    """The training examples, shuffled within a buffer of `buffer` rows."""

    task: Task
    rows: datasets.IterableDataset
    class_labels: ClassLabels
    buffer: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in label order."""
        return self.class_labels.classes

    def epoch(self, seed: int) -> Iterator[Example]:
        """Every example once, in an order that depends on the seed only.

        Raises DataError at a broken example, with the number of examples before it, and if there
        are no examples, since repeating empty epochs would never end.
        """
        rows = iter(self.rows.shuffle(seed=seed, buffer_size=self.buffer))
        count = 0
        while True:
            location = f"train, {count} rows into the stream,"
            with task_errors(self.task, f"the {self.task.spec.kind} of {location} cannot be read"):
                row = next(rows, None)
                if row is None:
                    break
                values = name_labels(self.task, self.rows.features or {}, row)
                example = make_example(self.task.spec, self.class_labels, values, location)
            yield example
            count += 1
        if count == 0:
            raise DataError(
                f"Task {self.task.name} has no train examples.", data_location_hint(self.task)
            )


def load_stream(task: Task, max_examples: int | None = None, buffer: int = 1000) -> Stream:
    """The train split as a stream, cut to the first `max_examples` rows; None means all.

    If class names are not known in advance, this reads all labels once. Raises DataError like
    `load_split`, and if another split is carved from train.
    """
    source = task.spec.splits.train
    if carved := carved_splits(task.spec.splits, source):
        raise DataError(
            f"Task {task.name} cannot be streamed: its {carved[0]} split is carved from "
            f"{source!r}, which needs all rows at once.",
            "Give the data's own validation and test splits under `splits:`.",
        )
    if task.spec.corpus is not None:
        raise DataError(
            f"Task {task.name} cannot be streamed: its rows name documents of a corpus.",
            "Leave --stream out.",
        )
    rows = select_columns(task, stream_rows(task, source))
    class_labels = ClassLabels()
    if task.spec.is_classification:
        with task_errors(task, "its labels cannot be read"):
            labels = rows.select_columns(["label"])
            feature = labels.features["label"]
            class_labels = find_class_labels(
                task.spec, feature, lambda: {row["label"] for row in labels}
            )
    return Stream(task, rows.take(max_examples) if max_examples else rows, class_labels, buffer)

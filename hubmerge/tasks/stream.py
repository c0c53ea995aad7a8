"""The train split of a task as a stream: its rows pass by once an epoch, never all there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets

from hubmerge.errors import DataError
from hubmerge.tasks.examples import Example, example_of
from hubmerge.tasks.labels import Labels, labels_of
from hubmerge.tasks.rows import told, with_columns
from hubmerge.tasks.source import stream_rows, where
from hubmerge.tasks.splits import carvers
from hubmerge.tasks.task import Task


@dataclass(frozen=True)
class Stream:
    """The examples of train, in an order that is shuffled within a buffer of `buffer` rows."""

    task: Task
    rows: datasets.IterableDataset
    named: Labels
    buffer: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in label order."""
        return self.named.classes

    def epoch(self, seed: int) -> Iterator[Example]:
        """Every example once, from the start, in an order that depends on the seed alone.

        Raises DataError, saying how many came before it, at a broken one, and where there is none:
        who goes round and round for the next example would wait for ever.
        """
        rows = iter(self.rows.shuffle(seed=seed, buffer_size=self.buffer))
        place = 0
        while True:
            at = f"train, {place} rows into the stream,"
            with told(self.task, f"the {self.task.spec.kind} of {at} cannot be read"):
                row = next(rows, None)
                if row is None:
                    break
                example = example_of(self.task.spec, self.named, row, at)
            yield example
            place += 1
        if place == 0:
            raise DataError(f"Task {self.task.name} has no train examples.", where(self.task))


def load_stream(task: Task, max_examples: int | None = None, buffer: int = 1000) -> Stream:
    """The train split, read while it is used; of it the first `max_examples`, all of them for None.

    Where words label the rows and nothing names the classes, the labels are read through once.
    Raises DataError as `load_split` does, and for a split from which another one is carved.
    """
    source = task.spec.splits.train
    if carving := carvers(task.spec.splits, source):
        raise DataError(
            f"Task {task.name} cannot be streamed: its {carving[0]} examples are carved from "
            f"{source!r}, which takes all rows at once.",
            "Name the data's own validation and test splits under `splits:`.",
        )
    rows = with_columns(task, stream_rows(task, source))
    named = Labels()
    if task.spec.classifies:
        with told(task, "its labels cannot be read"):
            labels = rows.select_columns(["label"])
            feature = labels.features["label"]
            named = labels_of(task.spec, feature, lambda: {row["label"] for row in labels})
    return Stream(task, rows.take(max_examples) if max_examples else rows, named, buffer)

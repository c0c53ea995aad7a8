"""Rows as the data have them -> rows with the columns that a task's examples are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import datasets

from hubmerge.errors import DataError, either
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec
from hubmerge.tasks.examples import columns_named
from hubmerge.tasks.source import line
from hubmerge.tasks.task import Task

Rows = TypeVar("Rows", datasets.Dataset, datasets.IterableDataset)

_ALL = "`hubmerge tasks --check` lists all that is wrong with a task."


def with_columns(task: Task, rows: Rows) -> Rows:
    """The rows with `image` or `text`, and `label`, or with what the prompts of a task name.

    An image is decoded when its row is read. Raises DataError for a column that is not there, or
    that cannot hold images.
    """
    check_columns(task, rows.column_names)
    if not task.spec.classifies:
        return rows.select_columns(_named(task.spec, rows.column_names))
    read = getattr(task.spec.data, task.spec.kind)
    rows = rows.select_columns([read, task.spec.data.label])
    renames = {read: task.spec.kind, task.spec.data.label: "label"}
    rows = rows.rename_columns({old: new for old, new in renames.items() if old != new})
    if task.spec.kind == "text" or isinstance(rows.features["image"], datasets.Image):
        return rows
    try:  # a parquet file that `datasets` did not write does not say that its bytes are images
        return rows.cast_column("image", datasets.Image())
    except Exception as error:  # whatever arrow has against it, they are no images
        said = printable(repr(read))
        raise DataError(f"Task {task.name}: column {said} holds no images.") from error


def check_columns(task: Task, there: Sequence[str]) -> None:
    """Raise DataError for a column that is two things, or that the data do not have."""
    data = task.spec.data
    if task.spec.classifies and getattr(data, task.spec.kind) == data.label:
        raise DataError(
            f"Task {task.name}: column {printable(repr(data.label))} is both its {task.spec.kind} "
            "and its label.",
            f"Name two columns under `data:` in the task's YAML, `{task.spec.kind}:` and `label:`.",
        )
    named = set().union(*columns_named(task.spec).values())
    missing = sorted(named - {"row"} - set(there))
    if missing:
        near = difflib.get_close_matches(missing[0], there, n=1)
        raise DataError(
            f"Task {task.name}: the data have no column {either([repr(n) for n in missing])}, "
            f"only {', '.join(map(printable, there))}.",
            (f"Did you mean {printable(near[0])!r}? " if near else "")
            + "The task's YAML names the columns.",
        )


def _named(spec: TaskSpec, there: Sequence[str]) -> list[str]:
    """The columns that prompts name; all of them where `row` does."""
    named = set().union(*columns_named(spec).values())
    return [name for name in there if name in named or "row" in named]


@contextmanager
def told(task: Task, otherwise: str) -> Iterator[None]:
    """Say whose data they are that cannot be used, and `otherwise` what went wrong with them."""
    try:
        yield
    except DataError as error:
        raise DataError(f"Task {task.name}: {error.message}.", error.hint or _ALL) from error
    except Exception as error:  # PIL, arrow and datasets raise many kinds for what is broken
        raise DataError(f"Task {task.name}: {otherwise}: {line(str(error))}.", _ALL) from error

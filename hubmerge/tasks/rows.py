"""Select and rename the columns that a task's examples are made from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import datasets

from hubmerge.errors import DataError, join_with_or
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec
from hubmerge.tasks.examples import used_columns
from hubmerge.tasks.row_formats import columns_of_format
from hubmerge.tasks.source import one_line
from hubmerge.tasks.task import Task

Rows = TypeVar("Rows", datasets.Dataset, datasets.IterableDataset)

CHECK_HINT = "`hubmerge tasks --check` lists all problems of a task."


def select_columns(task: Task, rows: Rows) -> Rows:
    """The rows with columns `image` or `text`, and `label`, or with the columns of the prompts.

    Images are decoded when their row is read. Raises DataError for a column that does not exist, or
    that cannot hold images.
    """
    check_columns(task, rows.column_names)
    if not task.spec.is_classification:
        return rows.select_columns(_prompt_columns(task.spec, rows.column_names))
    column = getattr(task.spec.data, task.spec.kind)
    rows = rows.select_columns([column, task.spec.data.label])
    renames = {column: task.spec.kind, task.spec.data.label: "label"}
    rows = rows.rename_columns({old: new for old, new in renames.items() if old != new})
    if task.spec.kind == "text" or isinstance(rows.features["image"], datasets.Image):
        return rows
    try:  # a parquet file that `datasets` did not write does not declare its bytes as images
        return rows.cast_column("image", datasets.Image())
    except Exception as error:  # arrow raises several kinds of errors
        label = printable(repr(column))
        raise DataError(f"Task {task.name}: column {label} does not hold images.") from error


def name_labels(task: Task, features: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a task of pairs with the names of its classes in place of their numbers."""
    if task.spec.kind != "pairs":
        return dict(row)
    return {
        column: feature.int2str(value)
        if isinstance(feature := features.get(column), datasets.ClassLabel)
        and isinstance(value, int)
        and value in range(feature.num_classes)
        else value
        for column, value in row.items()
    }


def check_columns(task: Task, available: Sequence[str]) -> None:
    """Raise DataError for a column that has two uses, or that the data do not have."""
    data = task.spec.data
    if task.spec.is_classification and getattr(data, task.spec.kind) == data.label:
        raise DataError(
            f"Task {task.name}: column {printable(repr(data.label))} is both its {task.spec.kind} "
            "and its label.",
            f"Name two columns under `data:` in the task's YAML, `{task.spec.kind}:` and `label:`.",
        )
    used = set().union(*used_columns(task.spec).values())
    missing = sorted(used - {"row"} - set(available))
    if missing:
        near = difflib.get_close_matches(missing[0], available, n=1)
        columns = join_with_or([repr(name) for name in missing])
        raise DataError(
            f"Task {task.name}: the data have no column {columns}, only "
            f"{', '.join(map(printable, available))}.",
            (f"Did you mean {printable(near[0])!r}? " if near else "")
            + "The columns are given in the task's YAML.",
        )


def _prompt_columns(spec: TaskSpec, available: Sequence[str]) -> list[str]:
    """The columns that a format has or prompts use; all columns if they use `row`."""
    used = set().union(*used_columns(spec).values())
    if spec.format:
        used |= set(columns_of_format(spec)[1].values())
    return [name for name in available if name in used or "row" in used]


@contextmanager
def task_errors(task: Task, problem: str) -> Iterator[None]:
    """Add the task's name and a hint to data errors; `problem` describes any other error."""
    try:
        yield
    except DataError as error:
        raise DataError(f"Task {task.name}: {error.message}.", error.hint or CHECK_HINT) from error
    except Exception as error:  # PIL, arrow and datasets raise many kinds of errors
        raise DataError(
            f"Task {task.name}: {problem}: {one_line(str(error))}.", CHECK_HINT
        ) from error
